"""Protocols: the words under a question, and the test set that a split is."""

from pathlib import Path
from typing import Any

import pytest
from test_evaluate import config_for, dataset, image, table_model  # noqa: F401

from qilin.cli import main
from qilin.core.errors import UserError
from qilin.dataset import benchmarks
from qilin.dataset.benchmarks import BENCHMARKS, benchmark_of
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, assistant, text_of, user
from qilin.dataset.writer import DatasetWriter
from qilin.evaluate.items import items_of
from qilin.evaluate.prompts import PROTOCOLS, protocol_of, put
from qilin.evaluate.run import evaluate

SLAKE = Path(__file__).parents[3] / "shared" / "data" / "slake_zh"


def test_every_benchmark_has_a_protocol() -> None:
    assert set(PROTOCOLS) == {"plain", *BENCHMARKS}
    with pytest.raises(UserError, match="did you mean slake-zh"):
        protocol_of("slake_zh")


def test_words_stand_under_the_question_and_are_not_scored() -> None:
    samples = [
        Sample("o", "vqa", (), (user("在哪?"), assistant("左")), "open"),
        Sample("c", "vqa", (), (user("是否正确?"), assistant("对")), "closed"),
        Sample("x", "vqa", (), (user("选哪个?"), assistant("B")), "choice", ("a", "b")),
        Sample("k", "caption", (), (user(""), assistant("左肺结节"))),
        Sample("t", "chat", (), (user("在哪?"), assistant("左"), user("确定?"), assistant("确定")), "open"),
    ]
    items = [put(item, protocol_of("cmmmu-health")) for item in items_of(samples, "描述。")]
    asked = {item.id: text_of(item.messages[-1]) for item in items}
    assert asked == {
        "o": "在哪?\n请用一个词或短语回答。",
        "c": "是否正确?\n请只回答对或错。",
        "x": "选哪个?\n请只回答选项的字母。",
        "k": "描述。",
        "t": "在哪?\n请用一个词或短语回答。",
        "t#1": "确定?\n请用一个词或短语回答。",
    }
    assert text_of(items[-1].messages[0]) == "在哪?"  # what was said before stays as it was
    assert items[0].question == "在哪?"


def test_the_manifest_holds_the_protocol(table_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:  # noqa: F811
    given = config_for(table_model, dataset, tmp_path / "a", controls=False, protocol="slake-zh")
    manifest = evaluate(given)["manifest"]
    assert manifest["prompt"]["protocol"] == "slake-zh"
    assert manifest["prompt"]["under choice questions"] == "请只回答选项的字母。"
    assert manifest["decoding"]["max_new_tokens"] == 32
    with pytest.raises(UserError, match="holds another evaluation"):
        evaluate(config_for(table_model, dataset, tmp_path / "a", controls=False))


def test_a_split_has_one_hash_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(name: str, *rows: tuple[str, str, str]) -> str:
        with DatasetWriter(tmp_path / name, {"importer": "test"}) as writer:
            writer.add_image(image(1))
            for row_id, kind, answer in rows:
                messages = (user("在哪?" if kind == "vqa" else "", 1), assistant(answer))
                writer.add_sample("test", Sample(row_id, kind, (image(1).image_id,), messages))  # type: ignore[arg-type]
        return open_dataset(tmp_path / name).split_hash("test")

    one = made("one", ("a", "vqa", "左"), ("b", "vqa", "右"))
    assert made("two", ("y", "vqa", "右"), ("x", "vqa", "左"), ("z", "caption", "左肺")) == one
    assert made("three", ("a", "vqa", "左"), ("b", "vqa", "中")) != one
    assert made("told", ("z", "caption", "左肺")) != made("other", ("z", "caption", "右肺"))
    assert benchmark_of(one) is None
    row = BENCHMARKS["slake-zh"]
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"here": row.__class__(**{**vars(row), "sha256": {"test": one}})})
    assert benchmark_of(one) == "here, test"


@pytest.mark.skipif(not SLAKE.is_dir(), reason="the SLAKE data are not beside this checkout")
def test_slake_is_known_by_its_hash(tmp_path: Path) -> None:
    assert main(["data", "import", "slake", str(SLAKE), str(tmp_path / "slake")]) == 0
    data = open_dataset(tmp_path / "slake")
    assert benchmark_of(data.split_hash("validation")) == "slake-zh, validation"
    assert benchmark_of(data.split_hash("train")) == "slake-zh, train"
