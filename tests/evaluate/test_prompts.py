"""Protocols: the instruction under a question, and the recognition of published test sets."""

from pathlib import Path
from typing import Any

import pytest

from builders.evaluation import blob_image, config_for
from qilin.cli import main
from qilin.core.errors import UserError
from qilin.dataset import benchmarks
from qilin.dataset.benchmarks import BENCHMARKS, find_benchmark
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, assistant, text_of, user
from qilin.dataset.writer import DatasetWriter
from qilin.evaluate.items import iter_items
from qilin.evaluate.prompts import PROTOCOLS, apply_prompt, get_protocol
from qilin.evaluate.run import evaluate

SLAKE = Path(__file__).parents[3] / "shared" / "data" / "slake_zh"


def test_every_benchmark_has_a_protocol() -> None:
    assert set(PROTOCOLS) == {"plain", *BENCHMARKS}
    with pytest.raises(UserError, match="did you mean slake-zh"):
        get_protocol("slake_zh")


def test_instruction_is_under_the_question_and_not_scored() -> None:
    samples = [
        Sample("o", "vqa", (), (user("在哪?"), assistant("左")), "open"),
        Sample("c", "vqa", (), (user("是否正确?"), assistant("对")), "closed"),
        Sample("x", "vqa", (), (user("选哪个?"), assistant("B")), "choice", ("a", "b")),
        Sample("k", "caption", (), (user(""), assistant("左肺结节"))),
        Sample("t", "chat", (), (user("在哪?"), assistant("左"), user("确定?"), assistant("确定")), "open"),
    ]
    items = [apply_prompt(item, get_protocol("cmmmu-health")) for item in iter_items(samples, "描述。")]
    assert {item.id: text_of(item.messages[-1]) for item in items} == {
        "o": "在哪?\n请用一个词或短语回答。",
        "c": "是否正确?\n请只回答对或错。",
        "x": "选哪个?\n请只回答选项的字母。",
        "k": "描述。",
        "t": "在哪?\n请用一个词或短语回答。",
        "t#1": "确定?\n请用一个词或短语回答。",
    }
    assert text_of(items[-1].messages[0]) == "在哪?"  # earlier turns have no instruction
    assert items[0].question == "在哪?"


def test_manifest_holds_the_protocol(lookup_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    config = config_for(lookup_model, dataset, tmp_path / "a", controls=False, protocol="slake-zh")
    manifest = evaluate(config)["manifest"]
    assert manifest["prompt"]["protocol"] == "slake-zh"
    assert manifest["prompt"]["under choice questions"] == "请只回答选项的字母。"
    assert manifest["decoding"]["max_new_tokens"] == 32
    with pytest.raises(UserError, match=r"another evaluation.*prompt"):
        evaluate(config_for(lookup_model, dataset, tmp_path / "a", controls=False))


def test_split_hash_depends_only_on_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def split_hash(name: str, *rows: tuple[str, str, str]) -> str:
        image = blob_image(1)
        with DatasetWriter(tmp_path / name, {"importer": "test"}) as writer:
            writer.add_image(image)
            for row_id, kind, answer in rows:
                messages = (user("在哪?" if kind == "vqa" else "", 1), assistant(answer))
                writer.add_sample("test", Sample(row_id, kind, (image.image_id,), messages))  # type: ignore[arg-type]
        return open_dataset(tmp_path / name).split_hash("test")

    one = split_hash("one", ("a", "vqa", "左"), ("b", "vqa", "右"))
    assert split_hash("two", ("y", "vqa", "右"), ("x", "vqa", "左"), ("z", "caption", "左肺")) == one
    assert split_hash("three", ("a", "vqa", "左"), ("b", "vqa", "中")) != one
    assert split_hash("left", ("z", "caption", "左肺")) != split_hash("right", ("z", "caption", "右肺"))
    assert find_benchmark(one) is None
    slake = BENCHMARKS["slake-zh"]
    known = {"here": slake.__class__(**{**vars(slake), "sha256": {"test": one}})}
    monkeypatch.setattr(benchmarks, "BENCHMARKS", known)
    assert find_benchmark(one) == "here, test"


@pytest.mark.long
@pytest.mark.skipif(not SLAKE.is_dir(), reason="the SLAKE data are not beside this checkout")
def test_slake_is_recognized_by_its_hash(tmp_path: Path) -> None:
    assert main(["data", "import", "slake", str(SLAKE), str(tmp_path / "slake")]) == 0
    dataset = open_dataset(tmp_path / "slake")
    assert find_benchmark(dataset.split_hash("validation")) == "slake-zh, validation"
    assert find_benchmark(dataset.split_hash("train")) == "slake-zh, train"
