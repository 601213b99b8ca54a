"""Calibrated confidence: learned from an evaluation, kept beside the weights that it was learned with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.evaluation import config_for
from qilin.core.errors import UserError
from qilin.evaluate import answer_probability
from qilin.evaluate.answer_probability import (
    Calibration,
    find_calibration,
    fit_calibration,
    model_fingerprint,
    read_calibration,
    write_calibration,
)
from qilin.evaluate.manifest import model_hash
from qilin.evaluate.run import evaluate

ABOUT: dict[str, Any] = {
    "max_characters": 20,
    "dataset": "d",
    "split": "test",
    "synthetic": False,
    "kinds": ("CT",),
    "model": None,
}


def overconfident_answers(n: int = 2000, seed: int = 0) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Confidences, verdicts, clusters of a model that is right less often than it says."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 1, n)
    return confidence.tolist(), rng.random(n) < confidence**3, np.arange(n) // 4


def test_curve_corrects_overconfidence_on_other_images() -> None:
    confidence, correct, cluster = overconfident_answers()
    fitted = fit_calibration(confidence, correct, cluster, **ABOUT)
    assert isinstance(fitted, Calibration)
    assert fitted.ece_before > 0.2
    assert fitted.ece_after < 0.05
    others, others_correct, _ = overconfident_answers(seed=1)
    probabilities = np.array([fitted.probability(value) for value in others])
    assert abs(probabilities.mean() - others_correct.mean()) < 0.03
    assert np.all(np.diff(probabilities[np.argsort(others)]) >= 0)


def test_confidence_that_says_nothing_becomes_the_accuracy() -> None:
    confidence, correct, cluster = overconfident_answers()
    shuffled = np.random.default_rng(2).permutation(correct)
    fitted = fit_calibration(confidence, shuffled, cluster, **ABOUT)
    assert isinstance(fitted, Calibration)
    assert fitted.probability(0.55) == pytest.approx(fitted.accuracy, abs=0.06)
    assert fitted.probability(0.99) == pytest.approx(fitted.accuracy, abs=0.06)
    flawless = fit_calibration(confidence, np.ones(len(confidence)), cluster, **ABOUT)
    assert isinstance(flawless, Calibration)
    assert flawless.probability(0.9) < 1


@pytest.mark.parametrize(
    ("answers", "images", "reason"), [(99, 99, "99 answers"), (400, 4, "4 independent"), (0, 0, "0 answers")]
)
def test_too_little_to_learn_from(answers: int, images: int, reason: str) -> None:
    cluster = np.arange(answers) % max(images, 1)
    fitted = fit_calibration([0.9] * answers, np.ones(answers), cluster, **ABOUT)
    assert isinstance(fitted, str)
    assert reason in fitted


def test_file_belongs_to_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_probability, "WHOLE_FILE", 1 << 10)
    monkeypatch.setattr(answer_probability, "STRIDE", 1 << 18)
    weights = bytearray(1 << 20)
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "qilin.json").write_text("{}", encoding="utf-8")
    assert find_calibration(tmp_path) == "the model was not evaluated"
    before = model_hash(tmp_path)
    confidence, correct, cluster = overconfident_answers()
    fitted = fit_calibration(confidence, correct, cluster, **ABOUT | {"model": model_fingerprint(tmp_path)})
    assert isinstance(fitted, Calibration)
    write_calibration(tmp_path / "calibration.json", fitted)
    (tmp_path / "plan.json").write_text("{}", encoding="utf-8")  # which a published model does not have
    assert find_calibration(tmp_path) == fitted
    (tmp_path / "plan.json").unlink()
    assert model_hash(tmp_path) == before  # an evaluation is resumed although the file is new
    weights[600_000:900_000] = b"x" * 300_000  # one tensor is trained
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert find_calibration(tmp_path) == "the model was evaluated with other weights"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"slope": "1"},
        {"slope": -1.0},
        {"offset": None},
        {"answers": 1.5},
        {"split": 1},
        {"kinds": "CT"},
        {"model": 3},
    ],
)
def test_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(path, Calibration(1.0, 0.0, 200, 0.9, 0.1, 0.02, 0.02, 20, "d", "test", False, (), None))
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_calibration(path)
    assert "calibration.json" in str(error.value)
    assert next(iter(change)) in str(error.value)


def test_evaluation_leaves_the_file_in_both_folders(
    lookup_model: dict[str, Any], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_probability, "MIN_ANSWERS", 40)
    evaluate(config_for(lookup_model, dataset, tmp_path / "out"))
    calibration = read_calibration(tmp_path / "out" / "calibration.json")
    assert calibration.answers == 48
    assert calibration.split == "test"
    assert calibration.kinds == ("CT", "MRI")
    assert find_calibration(tmp_path / "model") == calibration
