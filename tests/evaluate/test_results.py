"""Predictions from rows on disk and back; scores to the blocks of scores.json and back."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders.evaluation import write_rows
from qilin.core.errors import UserError
from qilin.evaluate.results import Prediction, RowNotes, Score, SubsetScores, Verdict, read_predictions

ROW: dict[str, Any] = {"id": "1", "question": "图片中包含肝脏吗?", "reference": "包含", "prediction": "是"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "1", "question": "a", "reference": "b"}], "line 1: field prediction is missing"),
        ([ROW, ROW], "line 2: id 1 was used on line 1"),
        ([ROW | {"reference": " "}], "reference is empty"),
        ([ROW | {"answer_type": "maybe"}], "answer_type is 'maybe'"),
        ([ROW | {"choices": "A"}], "choices is 'A'"),
        ([ROW | {"prediction": ["A"]}], "prediction is .* expected a text"),
        ([[1]], "expected an object"),
        ([ROW | {"kind": {"a": 1}}], "kind is"),
        ([ROW | {"image_ids": "['a', 'b']"}], "image_ids is .* list of texts"),
        ([ROW | {"choices": {"A": "x"}}], "choices is"),
        ([ROW | {"choices": ["a", None]}], "choices is"),
        ([ROW | {"answer_type": ["open"]}], "answer_type is"),
        ([ROW | {"id": {}}], "id is {}; expected a text"),
        ([ROW | {"id": ""}], "id is empty"),
        ([ROW, {"id": None}], "line 2: field question is missing"),
        ([ROW | {"reference": float("nan")}], "field reference is missing"),
        ([ROW | {"prediction": float("inf")}], "prediction is inf"),
        ([], "no rows"),
    ],
)
def test_errors_name_the_line_and_the_field(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_predictions(write_rows(tmp_path / "p.jsonl", rows))


def test_captions_and_closed_questions_are_recognized() -> None:
    def prediction(**fields: Any) -> Prediction:
        return Prediction.from_row({"id": 1, "question": "", "reference": "a", "prediction": ""} | fields)

    assert prediction(kind="report").is_caption
    assert not prediction(kind="chat", answer_type=None).is_caption
    assert prediction(answer_type=None).is_caption
    assert prediction(answer_type=None, question="请根据图像写出报告").is_caption
    assert not prediction(**ROW, answer_type=None).is_caption
    assert prediction(**ROW, answer_type=None).is_closed
    assert not prediction(answer_type=None, question="图片描述的是什么器官?").is_caption
    assert not prediction().is_caption
    assert prediction(**ROW).is_closed
    assert not prediction(**ROW, answer_type="open").is_closed
    assert prediction(answer_type="choice").is_closed
    assert prediction(choices=["a", "b"]).is_closed


@pytest.mark.parametrize(
    ("name", "value", "expected", "is_noted"),
    [
        ("confidence", "high", None, True),
        ("confidence", 95, None, True),
        ("confidence", True, None, True),
        ("confidence", 10**400, None, True),
        ("confidence", [0.5], None, True),
        ("confidence", "95%", 0.95, False),
        ("confidence", "0.25", 0.25, False),
        ("question_type", ["Organ"], "Organ", False),
        ("question_type", ["Organ", "Plane"], "Organ, Plane", False),
        ("question_type", {"a": 1}, None, True),
        ("question_type", [], None, False),
        ("answer_type", "OPEN", "open", False),
        ("answer_type", "CLOSED", "closed", False),
        ("answer_type", "multiple-choice", "choice", False),
    ],
)
def test_optional_fields_cost_no_row(name: str, value: Any, expected: Any, is_noted: bool) -> None:
    notes = RowNotes()
    assert getattr(Prediction.from_row(ROW | {name: value}, "line 1", notes), name) == expected
    assert bool(notes.messages()) == is_noted


def test_a_prediction_survives_its_row() -> None:
    row = ROW | {
        "answer_type": "choice", "choices": ["是", "否"], "image_ids": ["i"], "question_type": "Organ",
        "confidence": 0.5, "kind": "vqa", "group": "g",
    }  # fmt: skip
    prediction = Prediction.from_row(row | {"logits": [1, 2]})  # a field of another system
    assert prediction.to_row() == row
    assert not hasattr(prediction, "__dict__")  # 100,000 rows stay small


def test_scores_survive_their_blocks() -> None:
    score = Score(0.5, [0.25, 0.75], blind=0.1, blind_from="mean image", blind_each={"mean image": 0.1}, shuffles=3)
    block = score.to_json()
    assert list(block) == [
        "value", "interval", "blind", "blind_from", "blind_each", "shuffled", "shuffles", "nearest",
    ]  # fmt: skip
    assert Score.from_json(block) == score
    assert Score(0.5, reasons={"blind": "not given"}).to_json()["reasons"] == {"blind": "not given"}
    missing = Score(None, reason="no such questions").to_json()
    assert missing["value"] is missing["interval"] is missing["nearest"] is None
    assert missing["reason"] == "no such questions"
    assert SubsetScores(2, score, score, unparsable=0).to_json() == {
        "n": 2, "exact": block, "accuracy": block, "unparsable": 0,
    }  # fmt: skip
    assert Verdict(None, "empty").to_row("1") == {"id": "1", "correct": None, "rule": "empty"}


def test_odd_values_whose_reading_is_clear(tmp_path: Path) -> None:
    nan = float("nan")  # as pandas writes for a missing value
    rows = [
        ROW | {"id": 7, "prediction": nan, "answer_type": nan, "confidence": nan, "image_ids": nan, "choices": nan,
               "question_type": nan, "kind": nan, "group": nan},
        ROW | {"id": "x" * 300, "prediction": "a\ud800b\x00", "image_ids": "one.png", "choices": [1, 2.5],
               "confidence": "0.25", "group": 12},
    ]  # fmt: skip
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with_nan, odd = read_predictions(path)
    assert with_nan == Prediction("7", ROW["question"], ROW["reference"], "")
    assert not with_nan.is_caption  # null is a caption, "unknown" is not
    assert (odd.id, odd.prediction, odd.image_ids, odd.choices) == (
        "x" * 300,
        "a\ufffdb\x00",
        ("one.png",),
        ("1", "2.5"),
    )
    assert (odd.confidence, odd.group) == (0.25, "12")
