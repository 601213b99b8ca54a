"""Predictions of real small models, labeled by a human reader and frozen before any rule was tuned on them.

real_predictions.jsonl: 200 answers sampled at random from those of a small model after three epochs of SLAKE-zh
(questions and references: SLAKE, CC BY 4.0), labeled from question, reference and answer alone, at scorer version 1.
real_predictions_unlike.jsonl: 200 more, sampled from the 229 answers of a better model (40 epochs) whose text differs
from the reference, so that the rules have to decide.
Labels are never changed to fit a rule; a row that turns out to be mislabeled is reported here, beside the number.
"""

import hashlib
import json
from pathlib import Path

import pytest

from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.answers import judge_prediction

SHA256 = {
    "real_predictions.jsonl": "c01d6cbc48d2d43bf9427bc2b12ea7c92a4384e938fc985a5a072d43338a3f99",
    "real_predictions_unlike.jsonl": "ecda6f19eb4e2b1eed3ec67843b06184d2375e663600bb312226a0d1f51efd63",
}


@pytest.mark.parametrize("name", SHA256)
def test_scorer_agrees_with_the_reader(name: str) -> None:
    path = Path(__file__).parent / name
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[name], "the labels are frozen"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    disagreements = [
        (row["question"], row["reference"], row["prediction"])
        for row in rows
        if (judge_prediction(Prediction.from_row(row | {"id": "0"})).correct is True) is not row["correct"]
    ]
    assert len(rows) == 200
    assert len(disagreements) <= 2, disagreements  # 0 when the labels were frozen
