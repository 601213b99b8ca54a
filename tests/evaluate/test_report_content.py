"""What the report says: where a control wins, which facts of a caption are wrong, several runs, a baseline."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders.evaluation import config_for, write_rows
from qilin.core.errors import UserError
from qilin.evaluate.config import ReportConfig
from qilin.evaluate.report.build import report_command
from qilin.evaluate.report.caption_facts import caption_facts
from qilin.evaluate.report.headline import headline
from qilin.evaluate.report.html import MAX_SHOWN_CHARACTERS, shorten_answer
from qilin.evaluate.report.labels import label, name_of_type, svg_label
from qilin.evaluate.results import Prediction
from qilin.evaluate.run import evaluate
from qilin.evaluate.scoring.captions import FactSource
from qilin.text.facts import DEFAULT_VOCABULARY


def gain(value: float | None, low: float = 0.0, high: float = 0.0) -> dict[str, Any]:
    return {"value": value, "interval": [low, high]}


def scores_with(gains: dict[str, Any], caption_gains: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "gain": gains,
        "all": {"accuracy": {"value": 0.8}},
        "captions": {"fact_f1": 0.9, "gain": caption_gains or {}},
        "by_question_type": {},
        "manifest": {},
        **more,
    }


def test_the_headline_says_where_a_control_wins_first() -> None:
    statements = headline(
        scores_with(
            {
                "over_blind": gain(0.3, 0.2, 0.4),
                "over_shuffled": gain(0.01, -0.1, 0.1),
                "over_nearest_neighbour": gain(None),
            },
            {"over_nearest_neighbour": gain(-0.031, -0.05, -0.01)},
            by_question_type={
                "finding": {"n": 80, "accuracy": {"value": 0.825, "blind": 0.2, "nearest": 0.894}},
                "Organ": {"n": 80, "accuracy": {"value": 0.9, "blind": 0.2, "nearest": 0.8}},
                "few": {"n": 5, "accuracy": {"value": 0.1, "blind": 0.9, "nearest": 0.9}},
            },
            manifest={"leaks": {"pictures": {"n": 300, "same": 1, "near": 236}}},
        )
    )
    assert [s.level for s in statements] == ["loses", "loses", "unclear", "note", "wins"]
    assert "0.931 against 0.900 (-0.031" in statements[0].english
    assert "which finding 0.894 against 0.825" in statements[1].english
    assert "few" not in statements[1].english
    assert "异常所见 0.894 对 0.825" in statements[1].chinese
    assert statements[3].english.startswith("237 of 300 test images")
    assert headline(scores_with({})) == []


def test_facts_of_a_caption_are_marked() -> None:
    source = FactSource(DEFAULT_VOCABULARY, {})
    row = Prediction("1", "", "左肺见结节，右侧胸腔积液。", "右肺见结节，右侧胸腔积液，可见气胸。", kind="caption")
    facts = caption_facts(source, row)
    assert any("积液" in fact for fact in facts["right"])
    assert any("结节" in fact and "右" in fact for fact in facts["wrong"])
    assert any("气胸" in fact for fact in facts["wrong"])
    assert any("结节" in fact and "左" in fact for fact in facts["missed"])
    same = caption_facts(source, Prediction("1", "", row.reference, row.reference, kind="caption"))
    assert same["right"]
    assert same["wrong"] == same["missed"] == []
    truth = FactSource({"modality": {"CT": ("CT",)}, "organ": {}}, {"i": frozenset({"modality=CT"})})
    with_truth = caption_facts(truth, Prediction("1", "", "x", "CT图像", image_ids=("i",), kind="caption"))
    assert with_truth["right"] == ["成像方式：CT"]


def test_labels_hold_both_languages() -> None:
    assert 'data-zh="准确率"' in label("accuracy")
    assert label("<b>") == "&lt;b&gt;"
    assert 'data-en="medical knowledge"' in name_of_type("KG")
    assert svg_label("Organ").startswith("<tspan")
    assert 'data-zh="&lt;b&gt;"' in svg_label("<b>")
    assert len(shorten_answer("长" * 400_000)) < MAX_SHOWN_CHARACTERS + 40


@pytest.mark.story
def test_a_page_of_several_runs_and_a_baseline(lookup_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    for name in ("seed-0", "seed-1", "other"):
        evaluate(config_for(lookup_model, dataset, tmp_path / name, controls=False))
    rows = [json.loads(line) for line in (tmp_path / "seed-1" / "predictions.jsonl").read_text("utf-8").splitlines()]
    wrong = [row | {"prediction": "不知道"} if i % 2 else row for i, row in enumerate(rows)]
    write_rows(tmp_path / "seed-1" / "predictions.jsonl", wrong)
    write_rows(tmp_path / "other" / "predictions.jsonl", wrong[:40])
    card = (tmp_path / "seed-0" / "model_card.md").read_text(encoding="utf-8")
    assert "Not a medical device" in card
    assert "不得用于诊断" in card
    assert "| all questions 全部问题 | 48 | " in card
    page = tmp_path / "page.html"
    evaluations = (tmp_path / "seed-0", tmp_path / "seed-1")
    report_command(ReportConfig(evaluations=evaluations, baseline=tmp_path / "other", out=page, language="zh"))
    text = page.read_text(encoding="utf-8")
    assert 'data-language="zh"' in text
    for part in ("seed-0", "seed-1", "standard deviation", "baseline", ">other ✗<"):
        assert part in text, part
    with pytest.raises(UserError, match=r"other: other questions than"):
        report_command(ReportConfig(evaluations=(tmp_path / "seed-0", tmp_path / "other"), out=page))
    with pytest.raises(UserError, match=r"expected a folder that qilin evaluate wrote"):
        report_command(ReportConfig(evaluations=(tmp_path,), out=page))
