"""Confidence against being right: known calibration errors, coverage without luck in the order, findings of nothing."""

import numpy as np
import pytest

from qilin.evaluate.scoring.calibration import calibration, nothing_to_see
from qilin.text.facts import DEFAULT_VOCABULARY


def test_calibration_by_hand() -> None:
    # Two bins: 0.95 sure and 3 of 4 right, 0.55 sure and 1 of 2 right.
    found = calibration([0.95, 0.95, 0.95, 0.95, 0.55, 0.55, None], [1, 1, 1, 0, 1, 0, 0])
    assert found["n"] == 6
    assert found["ece"] == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)
    assert [b["n"] for b in found["bins"]] == [2, 4]
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert calibration([None], [1])["ece"] is None


def test_a_calibrated_model_has_little_error_and_an_overconfident_one_much() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(20_000)
    right = (rng.random(20_000) < sure).astype(float)
    assert calibration(sure.tolist(), right)["ece"] < 0.02
    assert calibration([0.99] * 20_000, right)["ece"] == pytest.approx(0.49, abs=0.02)


def test_selective_answering() -> None:
    found = calibration([0.9] * 5 + [0.1] * 5, [1] * 5 + [0] * 5)
    by_share = {row["coverage"]: row["accuracy"] for row in found["coverage"]}
    assert by_share[0.5] == 1.0
    assert by_share[1.0] == 0.5
    # Where all are equally sure, the order of the file must not matter.
    equal = calibration([0.5] * 10, [1] * 5 + [0] * 5)
    assert {row["accuracy"] for row in equal["coverage"]} == {0.5}
    assert equal["area"] == pytest.approx(0.5)
    assert found["area"] < equal["area"]


def test_findings_out_of_nothing() -> None:
    rows = [
        {"id": "1", "reference": "左肺结节", "prediction": "左肺结节", "image_ids": ["a"]},
        {"id": "2", "reference": "气胸", "prediction": "未见气胸", "image_ids": ["b"]},
        {"id": "3", "reference": "CT", "prediction": "CT", "image_ids": ["b"]},
        {"id": "4", "reference": "气胸", "prediction": "气胸", "image_ids": []},
    ]
    mean = {"1": "左肺结节", "2": "正常", "3": "CT", "4": "气胸"}
    found = nothing_to_see(
        rows,
        {"mean_picture": mean, "blank_picture": {"1": "正常", "2": "正常"}, "another": None},
        [{**mean, "1": "未见异常"}],
        [{"1": True, "2": False}],
        DEFAULT_VOCABULARY,
    )
    assert found["n"] == 2
    assert found["own_picture"] == {"n": 2, "affirm_a_finding": 0.5, "same_answer": 1.0}
    assert found["mean_picture"] == {"n": 2, "affirm_a_finding": 0.5, "same_answer": 0.5}
    assert found["blank_picture"] == {"n": 2, "affirm_a_finding": 0.0, "same_answer": 0.0}
    assert found["another"] is None
    assert found["other_modality"] == {"n": 1, "affirm_a_finding": 0.0, "same_answer": 0.0}
    assert nothing_to_see(rows[2:3], {}, [], [], DEFAULT_VOCABULARY)["n"] == 0
