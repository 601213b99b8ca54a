"""`score_file`: the scores of `evaluate` again, and those of predictions from other systems."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builders.evaluation import config_for, write_rows
from qilin.core.errors import UserError
from qilin.evaluate.config import ScoreConfig
from qilin.evaluate.run import evaluate
from qilin.evaluate.score import score_file

ROW = {"id": "1", "question": "图片中包含肝脏吗?", "reference": "包含", "prediction": "是"}


def test_score_equals_evaluate(lookup_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluated = evaluate(config_for(lookup_model, dataset, out))
    scores, rows = score_file(ScoreConfig(file=out / "predictions.jsonl", resamples=200))
    assert json.loads(json.dumps({k: v for k, v in scores.items() if k != "manifest"})) == json.loads(
        json.dumps({k: v for k, v in evaluated.items() if k != "manifest"})
    )
    assert len(rows) == 60
    assert {row["rule"] for row in rows if row["id"].endswith("-k")} == {"caption"}


def test_controls_without_a_model(
    lookup_model: dict[str, Any],
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Predictions alone, as of another system: --train and --dataset give the same values as evaluate."""
    evaluated = evaluate(config_for(lookup_model, dataset, tmp_path / "out"))
    file = tmp_path / "alone.jsonl"
    file.write_bytes((tmp_path / "out" / "predictions.jsonl").read_bytes())
    capsys.readouterr()
    scores, _ = score_file(ScoreConfig(file=file, train=dataset, dataset=dataset, resamples=200))
    assert "of 12 images" in capsys.readouterr().err  # the contamination
    assert scores["nearest_neighbour"]["each"] == {"thumbnails": evaluated["nearest_neighbour"]["each"]["thumbnails"]}
    for name in ("no_near_duplicate", "unseen_wording"):
        assert scores[name]["n"] == evaluated[name]["n"]
        assert scores[name]["accuracy"]["value"] == evaluated[name]["accuracy"]["value"]
    blind_each = evaluated["all"]["accuracy"]["blind_each"]
    assert scores["all"]["accuracy"]["blind"] == blind_each["commonest training answer"]
    assert scores["all"]["accuracy"]["shuffled"] is None
    only_answers, _ = score_file(ScoreConfig(file=file, train=dataset, resamples=200))
    assert only_answers["nearest_neighbour"]["accuracy"] is None
    assert "--dataset" in only_answers["nearest_neighbour"]["reason"]
    unknown_image = file.read_text(encoding="utf-8").replace('"image_ids": ["', '"image_ids": ["x', 1)
    file.write_text(unknown_image, encoding="utf-8")
    with pytest.raises(UserError, match="not in this dataset"):
        score_file(ScoreConfig(file=file, train=dataset, dataset=dataset, resamples=200))


def test_a_file_of_predictions_needs_neither_arrow_nor_images(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", [ROW | {"answer_type": "closed"}])
    score = f"from qilin.cli import main; main(['score', {str(path)!r}, '--json'])"
    code = f"import sys; {score}; print({{'scipy', 'pyarrow', 'PIL', 'jieba'}} & set(sys.modules), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == "{'scipy'}"  # which is a control: its intervals are needed


def test_rows_of_another_system(tmp_path: Path) -> None:
    rows = [
        ROW,
        ROW | {"id": 2, "prediction": None},
        ROW | {"id": "3", "question": "图中有几个肾脏?", "reference": 2, "prediction": "两个"},
        ROW
        | {
            "id": "4",
            "answer_type": None,
            "question": "请描述这张图片",
            "reference": "左侧气胸。",
            "prediction": "右侧气胸。",
        },
    ]
    scores, verdicts = score_file(ScoreConfig(file=write_rows(tmp_path / "p.jsonl", rows)))
    assert [row["correct"] for row in verdicts] == [True, None, True, None]
    assert [row["id"] for row in verdicts] == ["1", "2", "3", "4"]
    assert scores["all"]["n"] == 3
    assert scores["all"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert scores["all"]["exact"]["value"] == 0.0
    assert scores["all"]["unparsable"] == 1
    assert scores["closed"]["n"] == 2
    assert scores["captions"]["n"] == 1
    assert scores["captions"]["fact_f1"] < 0.6  # the side is wrong
    assert scores["all"]["accuracy"]["blind"] is None
    assert scores["all"]["accuracy"]["reasons"]["shuffled"]
