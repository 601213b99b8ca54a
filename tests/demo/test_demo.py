"""The demo end to end: finishes in a minute, reuses its work, continues after Ctrl-C, loads without Qilin."""

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


def start_demo(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qilin.cli", "demo", "--quick", "--out", str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def demo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick demo, interrupted once and run again to its end."""
    out = tmp_path_factory.mktemp("demo_dir") / "demo"
    first = start_demo(out)
    deadline = time.monotonic() + 300
    while not (out / "align" / "plan.json").is_file() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    _, stderr = first.communicate(timeout=120)
    assert first.returncode == 130, stderr
    assert not (out / "evaluation" / "scores.json").is_file()
    parts = (out / "parts" / "vision" / "model.safetensors").stat().st_mtime
    again = start_demo(out)
    _, stderr = again.communicate(timeout=600)
    assert again.returncode == 0, stderr
    assert (out / "parts" / "vision" / "model.safetensors").stat().st_mtime == parts, (
        "a finished model was trained twice"
    )
    for word in ("1.", "2.", "3.", "4.", "5.", "qilin chat"):
        assert word in stderr
    return out


def test_the_folder_holds_all_results(demo_dir: Path) -> None:
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
        assert (demo_dir / name).is_file(), name
    scores = json.loads((demo_dir / "evaluation" / "scores.json").read_text())
    assert scores["all"]["n"] > 100
    assert scores["captions"]["n"] > 0
    report = (demo_dir / "evaluation" / "report.html").read_text()
    assert "quick" in report, "results of a quick run must be labeled"


def test_a_second_run_reuses_everything(demo_dir: Path) -> None:
    before = {path: path.stat().st_mtime for path in demo_dir.rglob("*.safetensors")}
    demo(DemoConfig(out=demo_dir, quick=True))
    assert {path: path.stat().st_mtime for path in demo_dir.rglob("*.safetensors")} == before


def test_another_config_does_not_overwrite_it(demo_dir: Path) -> None:
    with pytest.raises(UserError, match="seed is 0 there, and 1"):
        demo(DemoConfig(out=demo_dir, quick=True, seed=1))


def test_the_model_answers_in_plain_transformers(demo_dir: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (demo_dir / "evaluation" / "predictions.jsonl").read_text().splitlines()]
    question = next(row["question"] for row in rows if row["answer_type"] == "closed")
    image = next(demo_dir.glob("example.*"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = tmp_path / "plain.py"
    script.write_text(PLAIN)
    words = [sys.executable, "-P", str(script), str(demo_dir / "instruct"), str(image), question]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout.splitlines()[-1]), str)


def test_a_dataset_without_a_held_out_split_is_refused(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "data", splits=("train",))
    with pytest.raises(UserError, match="needs a train split and another one"):
        demo(DemoConfig(out=tmp_path / "out", data=tmp_path / "data"))


def test_the_demo_runs_on_an_imported_dataset(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "data", images=24)
    demo(DemoConfig(out=tmp_path / "out", data=tmp_path / "data", quick=True))
    assert (tmp_path / "out" / "evaluation" / "scores.json").is_file()
    assert not (tmp_path / "out" / "dataset").exists()
