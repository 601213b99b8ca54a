"""Predictions of real small models, labelled by a reader and frozen before any rule was tuned on them.

real_predictions.jsonl: 200 answers drawn by lot among those of a small model after three epochs of SLAKE-zh (questions
and references: SLAKE, CC BY 4.0), labelled from question, reference and answer alone, on scorer version 1.
real_predictions_unlike.jsonl: 200 more, drawn by lot among the 229 answers of a better model (40 epochs) whose letters
differ from the reference, where the rules have something to decide.
Labels are never changed to fit a rule; a row that is found mislabelled is reported here, beside the number.
"""

import hashlib
import json
from pathlib import Path

import pytest

from qilin.evaluate.scoring.answers import judge_answer

FROZEN = {
    "real_predictions.jsonl": "c01d6cbc48d2d43bf9427bc2b12ea7c92a4384e938fc985a5a072d43338a3f99",
    "real_predictions_unlike.jsonl": "ecda6f19eb4e2b1eed3ec67843b06184d2375e663600bb312226a0d1f51efd63",
}


@pytest.mark.parametrize("name", FROZEN)
def test_scorer_agrees_with_the_reader(name: str) -> None:
    path = Path(__file__).parent / name
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FROZEN[name], "the labels are frozen"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    unlike = []
    for row in rows:
        said = judge_answer(row["question"], row["reference"], row["prediction"], row["answer_type"]).correct is True
        if said is not row["correct"]:
            unlike.append((row["question"], row["reference"], row["prediction"]))
    assert len(rows) == 200
    assert len(unlike) <= 2, unlike  # 200 of 200 agreed on the day they were frozen
