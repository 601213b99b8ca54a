"""The whole story, end to end: told in a minute, reused, continued after Ctrl-C, loadable without Qilin."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builders.tiny import tiny_dataset
from qilin.core.errors import UserError
from qilin.demo.config import DemoConfig
from qilin.demo.run import demo

pytestmark = pytest.mark.story

PLAIN = """
import sys, json
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
assert "qilin" not in sys.modules
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
asked = [{"role": "user", "content": [{"type": "image", "image": sys.argv[2]}, {"type": "text", "text": sys.argv[3]}]}]
as_tensors = dict(add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
inputs = processor.apply_chat_template(asked, **as_tensors)
made = model.generate(**inputs, max_new_tokens=16)
print(json.dumps(processor.tokenizer.decode(made[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)))
"""


def tell(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qilin.cli", "demo", "--quick", "--out", str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick story, interrupted once in its middle and told again to its end."""
    out = tmp_path_factory.mktemp("story") / "demo"
    first = tell(out)
    deadline = time.monotonic() + 300
    while not (out / "align" / "plan.json").is_file() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 130, said
    assert not (out / "evaluation" / "scores.json").is_file()
    parts = (out / "parts" / "vision" / "model.safetensors").stat().st_mtime
    again = tell(out)
    _, said = again.communicate(timeout=600)
    assert again.returncode == 0, said
    assert (out / "parts" / "vision" / "model.safetensors").stat().st_mtime == parts, "a finished part was made twice"
    for word in ("1.", "2.", "3.", "4.", "5.", "qilin chat"):
        assert word in said
    return out


def test_the_folder_holds_what_was_promised(story: Path) -> None:
    for name in (
        "dataset/manifest.json",
        "dataset/truth.jsonl",
        "parts/vision/config.json",
        "parts/language/tokenizer.json",
        "align/qilin.json",
        "instruct/model.safetensors",
        "evaluation/predictions.jsonl",
        "evaluation/scores.json",
        "evaluation/report.html",
    ):
        assert (story / name).is_file(), name
    scores = json.loads((story / "evaluation" / "scores.json").read_text())
    assert scores["all"]["n"] > 100
    assert scores["captions"]["n"] > 0
    report = (story / "evaluation" / "report.html").read_text()
    assert "quick" in report, "a quick run's numbers must be labelled as such"


def test_a_second_telling_reuses_everything(story: Path) -> None:
    before = {path: path.stat().st_mtime for path in story.rglob("*.safetensors")}
    demo(DemoConfig(out=story, quick=True))
    assert {path: path.stat().st_mtime for path in story.rglob("*.safetensors")} == before


def test_another_story_does_not_write_over_it(story: Path) -> None:
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        demo(DemoConfig(out=story, quick=True, seed=1))


def test_the_model_answers_where_qilin_was_never_heard_of(story: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (story / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    question = next(row["question"] for row in rows if row["answer_type"] == "closed")
    image = next(story.glob("example.*"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = tmp_path / "plain.py"
    script.write_text(PLAIN)
    words = [sys.executable, "-P", str(script), str(story / "instruct"), str(image), question]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout.splitlines()[-1]), str)


def test_a_dataset_without_a_held_out_split_is_refused(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "data", splits=("train",))
    with pytest.raises(UserError, match="needs a train split and another"):
        demo(DemoConfig(out=tmp_path / "out", data=tmp_path / "data"))


def test_the_same_story_on_an_imported_dataset(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "data", images=24)
    demo(DemoConfig(out=tmp_path / "out", data=tmp_path / "data", quick=True))
    assert (tmp_path / "out" / "evaluation" / "scores.json").is_file()
    assert not (tmp_path / "out" / "dataset").exists()
