"""Calibration and the hallucination probe: known calibration errors, ties in confidence, findings without evidence."""

import numpy as np
import pytest

from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.calibration import calibration, hallucination_probe
from qilin.text.facts import DEFAULT_VOCABULARY


def test_calibration_matches_hand_computed_values() -> None:
    # Two bins: confidence 0.95 with 3 of 4 correct, confidence 0.55 with 1 of 2 correct.
    result = calibration([0.95, 0.95, 0.95, 0.95, 0.55, 0.55, None], [1, 1, 1, 0, 1, 0, 0])
    assert result["n"] == 6
    assert result["ece"] == pytest.approx((4 * 0.2 + 2 * 0.05) / 6)
    assert [b["n"] for b in result["bins"]] == [2, 4]
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert calibration([None], [1])["ece"] is None


def test_calibrated_model_has_small_error_and_overconfident_model_large_error() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(20_000)
    correct = (rng.random(20_000) < confidence).astype(float)
    assert calibration(confidence.tolist(), correct)["ece"] < 0.02
    assert calibration([0.99] * 20_000, correct)["ece"] == pytest.approx(0.49, abs=0.02)


def test_calibration_error_has_an_interval_over_images_and_a_chance_level() -> None:
    rng = np.random.default_rng(0)
    confidence, cluster = rng.uniform(0.3, 1, 600), np.arange(600) // 6
    calibrated = calibration(confidence.tolist(), rng.random(600) < confidence, cluster)
    assert calibrated["clusters"] == 100
    assert calibrated["ece_interval"][0] == 0.0
    assert calibrated["ece_if_calibrated"] == pytest.approx(calibrated["ece"], abs=0.02)
    overconfident = calibration(confidence.tolist(), rng.random(600) < confidence - 0.2, cluster)
    assert overconfident["ece_interval"][0] > overconfident["ece_if_calibrated"]
    assert overconfident["ece_interval"][0] < 0.2 < overconfident["ece_interval"][1]
    assert calibration([0.5, 0.6], [1, 0], [3, 3])["ece_interval"] is None


def test_accuracy_by_coverage() -> None:
    result = calibration([0.9] * 5 + [0.1] * 5, [1] * 5 + [0] * 5)
    accuracy = {row["coverage"]: row["accuracy"] for row in result["coverage"]}
    assert accuracy[0.5] == 1.0
    assert accuracy[1.0] == 0.5
    # With equal confidences the order of the file must not matter.
    tied = calibration([0.5] * 10, [1] * 5 + [0] * 5)
    assert {row["accuracy"] for row in tied["coverage"]} == {0.5}
    assert tied["area"] == pytest.approx(0.5)
    assert result["area"] < tied["area"]


def test_hallucination_probe_counts_findings_without_evidence() -> None:
    predictions = [
        Prediction("1", "", "左肺结节", "左肺结节", image_ids=("a",)),
        Prediction("2", "", "气胸", "未见气胸", image_ids=("b",)),
        Prediction("3", "", "CT", "CT", image_ids=("b",)),
        Prediction("4", "", "气胸", "气胸"),
    ]
    mean = {"1": "左肺结节", "2": "正常", "3": "CT", "4": "气胸"}
    probe = hallucination_probe(
        predictions,
        {"mean_picture": mean, "blank_picture": {"1": "正常", "2": "正常"}, "another": None},
        [{**mean, "1": "未见异常"}],
        [{"1": True, "2": False}],
        DEFAULT_VOCABULARY,
    )
    assert probe["n"] == 2
    assert probe["own_picture"] == {"n": 2, "affirm_a_finding": 0.5, "same_answer": 1.0}
    assert probe["mean_picture"] == {"n": 2, "affirm_a_finding": 0.5, "same_answer": 0.5}
    assert probe["blank_picture"] == {"n": 2, "affirm_a_finding": 0.0, "same_answer": 0.0}
    assert probe["another"] is None
    assert probe["other_modality"] == {"n": 1, "affirm_a_finding": 0.0, "same_answer": 0.0}
    assert hallucination_probe(predictions[2:3], {}, [], [], DEFAULT_VOCABULARY)["n"] == 0
