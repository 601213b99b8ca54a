"""Answers in sentences, judged by clause, polarity and quantity: hand-written pairs, with a half that no rule saw.

sentence_pairs.jsonl has one answer per line with a clinician's verdict and its reason. `read` says whether the rules
were written while looking at the row; the split is by a hash of the question. The thresholds are what is promised of
unseen answers.
"""

import json
from pathlib import Path

import pytest

from qilin.evaluate.scoring.answers import judge_answer

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "sentence_pairs.jsonl").read_text(encoding="utf-8").splitlines()
]
OPPOSITES = (("是", "否"), ("是的", "不是"), ("有", "没有"), ("能", "不能"), ("可见", "不可见"), ("存在", "不存在"),
             ("正确", "错误"), ("对", "错"), ("需要", "不需要"), ("可以", "不可以"), ("yes", "no"))  # fmt: skip


def is_accepted(row: dict, reference: str) -> bool:
    return judge_answer(row["question"], reference, row["prediction"]).correct is True


@pytest.mark.parametrize("read", [True, False])
def test_agreement_with_a_clinician(read: bool) -> None:
    verdicts = [(is_accepted(row, row["reference"]), row["expected"]) for row in ROWS if row["read"] is read]
    accepted = sum(verdict for verdict, _ in verdicts)
    both = sum(verdict and expected for verdict, expected in verdicts)
    assert len(verdicts) > 450
    assert sum(verdict is expected for verdict, expected in verdicts) / len(verdicts) >= 0.93
    assert both / accepted >= 0.97
    assert both / sum(expected for _, expected in verdicts) >= 0.90


def test_the_opposite_reference_is_refused() -> None:
    opposite = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
    rows = [row for row in ROWS if row["expected"] and row["reference"] in opposite]
    accepted = [row for row in rows if is_accepted(row, opposite[row["reference"]])]
    assert len(rows) > 150
    assert len(accepted) <= 0.02 * len(rows), accepted


def test_rows_are_balanced_and_have_reasons() -> None:
    assert all(row["why"] for row in ROWS)
    assert 0.4 < sum(row["expected"] for row in ROWS) / len(ROWS) < 0.6
    assert len({(row["question"], row["reference"], row["prediction"]) for row in ROWS}) == len(ROWS)
