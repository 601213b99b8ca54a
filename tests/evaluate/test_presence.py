"""Sensitivity, specificity and predictive values of presence questions."""

import numpy as np
import pytest

from qilin.evaluate.results import Prediction, Verdict
from qilin.evaluate.scoring.presence import asks_presence, presence_scores


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("图中有结节吗?", True),
        ("右肺是否存在积液？", True),
        ("有没有骨折", True),
        ("左侧胸腔有无积液?", True),
        ("是否可见气胸？", True),
        ("Is there a nodule?", True),
        ("Is there evidence of pneumothorax?", True),
        ("这是CT吗?", False),
        ("图中没有结节吗?", False),
        ("肺部正常吗?", False),
        ("图中有什么?", False),
        ("有几个结节?", False),
        ("有" * 100_000 + "吗", False),
    ],
)
def test_which_questions_ask_for_presence(question: str, expected: bool) -> None:
    assert asks_presence(question) is expected


def test_counts_and_shares() -> None:
    # reference, correct: 3 findings of which 2 are affirmed, 4 absences of which 2 are denied and 1 cannot be read
    rows = [("有", True), ("是", True), ("有", False), ("没有", True), ("否", True), ("无", False), ("没有", None)]
    predictions = [Prediction(str(i), "图中有结节吗?", reference, "") for i, (reference, _) in enumerate(rows)]
    predictions.append(Prediction("x", "哪里?", "左肺", ""))
    verdicts = [Verdict(correct, "yes/no") for _, correct in rows] + [Verdict(True, "equal")]
    block = presence_scores(predictions, verdicts, np.arange(8))
    counts = ("n", "positive", "true_positive", "false_negative", "true_negative", "false_positive", "unparsable")
    assert [block[name] for name in counts] == [7, 3, 2, 1, 2, 1, 1]
    shares = {name: block[name]["value"] for name in ("sensitivity", "specificity", "ppv", "npv")}
    assert shares == pytest.approx({"sensitivity": 2 / 3, "specificity": 2 / 4, "ppv": 2 / 3, "npv": 2 / 3})
    low, high = block["sensitivity"]["interval"]
    assert 0 < low < 2 / 3 < high < 1
    assert presence_scores(predictions[:2], verdicts[:2], np.arange(2))["specificity"]["value"] is None
    assert presence_scores(predictions[-1:], verdicts[-1:], np.arange(1))["n"] == 0
