"""From the model's confidence in an answer to the probability that the answer is right, learned from an evaluation.

In: the confidences and verdicts of an evaluation. Out: calibration.json, in the folder of the evaluation and in that of
the model, where `qilin serve` reads it. The curve is Platt's: a slope and an offset on the logit of the confidence, fit
by likelihood (temperature scaling is the same without the offset). bench/serve/calibration.py compares it with others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qilin.core.errors import UserError
from qilin.core.files import read_json_object, to_json, write_atomic

CALIBRATION_FILE = "calibration.json"
MIN_ANSWERS = 100  # below this, the curve's own error is as large as what it corrects
FOLDS = 5
# Files that determine a model's answers: weights, configuration, tokenizer, chat template.
MODEL_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")
# qilin.json holds paths and the time of the run, which do not change an answer.
NOT_WEIGHTS = ("qilin.json", CALIBRATION_FILE)
# What of it a published model has too: the files of a run (plan.json) are missing there.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".jinja", ".model")
CONFIGS = ("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
           "chat_template.json", "tokenizer.json", "tokenizer_config.json")  # fmt: skip
WHOLE_FILE = 16 << 20  # bytes up to which a file is hashed as a whole
BLOCK, STRIDE = 64 << 10, 4 << 20  # of a larger one: a block in each 4 MiB, so 26 GB take a second


@dataclass(frozen=True)
class Calibration:
    """The curve, and what it was learned from. `ece_before` and `ece_after` are expected calibration errors on answers
    that the curve has not seen (cross-validation over independent images)."""

    slope: float
    offset: float
    answers: int
    accuracy: float
    ece_before: float
    ece_after: float
    ece_if_calibrated: float  # what chance gives probabilities that are exactly right
    max_characters: int  # of the longest answer that was judged
    dataset: str  # its folder's name
    split: str
    synthetic: bool
    kinds: tuple[str, ...]  # of the images (CT, X光, …); empty if some are unknown
    model: str | None  # fingerprint of the weights; None for a remote model

    def probability(self, confidence: float) -> float:
        """The probability, 0 to 1, that an answer of this confidence is right."""
        return float(apply_curve(np.array([confidence]), self.slope, self.offset)[0])


def logits(confidence: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(confidence, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def apply_curve(confidence: NDArray[np.float64], slope: float, offset: float) -> NDArray[np.float64]:
    from scipy.special import expit

    return np.asarray(expit(slope * logits(confidence) + offset), dtype=np.float64)


def fit_curve(confidence: NDArray[np.float64], correct: NDArray[np.float64]) -> tuple[float, float]:
    """(slope, offset) of the greatest likelihood; the slope is not negative.

    The targets are Platt's, (n+ + 1) / (n+ + 2) and 1 / (n- + 2): a model that made no mistake is not sure of itself.
    """
    from scipy.optimize import minimize

    x = logits(confidence)
    right = correct.sum()
    target = np.where(correct > 0, (right + 1) / (right + 2), 1 / (len(correct) - right + 2))

    def loss(curve: NDArray[np.float64]) -> float:
        z = curve[0] * x + curve[1]
        return float((np.logaddexp(0, z) - target * z).mean())

    slope, offset = minimize(loss, [1.0, 0.0], bounds=[(0, None), (None, None)]).x
    return float(slope), float(offset)


def fit_calibration(
    confidences: Sequence[float | None],
    correct: ArrayLike,
    cluster: ArrayLike,
    *,
    max_characters: int,
    dataset: str,
    split: str,
    synthetic: bool,
    kinds: Sequence[str],
    model: str | None,
    seed: int = 0,
) -> Calibration | str:
    """The calibration, or why there is none. `cluster` numbers the independent images of the answers."""
    from qilin.evaluate.scoring.calibration import calibration

    has_confidence = np.array([value is not None for value in confidences], dtype=bool)
    confidence = np.array([value for value in confidences if value is not None], dtype=np.float64)
    is_correct = np.asarray(correct, dtype=np.float64)[has_confidence]
    clusters = np.asarray(cluster)[has_confidence]
    if len(confidence) < MIN_ANSWERS:
        return f"{len(confidence)} answers with a confidence; expected at least {MIN_ANSWERS}"
    if len(np.unique(clusters)) < FOLDS:
        return f"{len(np.unique(clusters))} independent images; expected at least {FOLDS}"
    held_out = held_out_probabilities(confidence, is_correct, clusters, seed)
    before = calibration(list(confidence), is_correct, clusters, seed=seed)
    after = calibration(list(held_out), is_correct, clusters, seed=seed)
    slope, offset = fit_curve(confidence, is_correct)
    return Calibration(
        slope, offset, len(confidence), float(is_correct.mean()), before["ece"], after["ece"],
        after["ece_if_calibrated"], max_characters, dataset, split, synthetic, tuple(kinds), model,
    )  # fmt: skip


def held_out_probabilities(
    confidence: NDArray[np.float64], correct: NDArray[np.float64], cluster: NDArray[Any], seed: int
) -> NDArray[np.float64]:
    """Each answer's probability from a curve fit without its image (N,)."""
    names, index = np.unique(cluster, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(names))[index] % FOLDS
    result = np.zeros(len(confidence))
    for number in range(FOLDS):
        held_out = fold == number
        result[held_out] = apply_curve(confidence[held_out], *fit_curve(confidence[~held_out], correct[~held_out]))
    return result


def model_fingerprint(folder: Path) -> str:
    """A hash of the files that determine a model's answers; of large ones, of a block in each 4 MiB.

    It costs a second for 26 GB, where sha256 over everything would delay each start of the server.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if not (path.suffix in WEIGHT_SUFFIXES or path.name in CONFIGS) or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= WHOLE_FILE:
                digest.update(file.read())
                continue
            for position in (*range(0, size, STRIDE), size - BLOCK):
                file.seek(position)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def write_calibration(path: Path, calibration: Calibration) -> None:
    write_atomic(path, to_json({"format": 1, **asdict(calibration)}) + "\n")


def read_calibration(path: Path) -> Calibration:
    """The calibration of a file. Raises UserError for anything else."""
    row = read_json_object(path)
    fields = {name: row.get(name) for name in Calibration.__dataclass_fields__}
    problem = field_problem(fields) if row.get("format") == 1 else f"format is {row.get('format')!r}; expected 1"
    if problem:
        raise UserError(f"{path}: {problem}; run qilin evaluate again, which writes this file, or remove it")
    return Calibration(**fields | {"kinds": tuple(fields["kinds"])})  # type: ignore[arg-type]


def field_problem(fields: Mapping[str, Any]) -> str | None:
    """What is wrong with the fields of a calibration, or None."""
    for name in ("slope", "offset", "accuracy", "ece_before", "ece_after", "ece_if_calibrated"):
        value = fields[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{name} is {value!r}; expected a number"
    for name in ("answers", "max_characters"):
        if isinstance(fields[name], bool) or not isinstance(fields[name], int) or fields[name] < 0:
            return f"{name} is {fields[name]!r}; expected a count"
    if fields["slope"] < 0:
        return f"slope is {fields['slope']!r}; expected at least 0"
    for name in ("dataset", "split"):
        if not isinstance(fields[name], str):
            return f"{name} is {fields[name]!r}; expected a text"
    if not isinstance(fields["kinds"], list) or not all(isinstance(kind, str) for kind in fields["kinds"]):
        return f"kinds is {fields['kinds']!r}; expected a list of texts"
    if not isinstance(fields["synthetic"], bool) or not isinstance(fields["model"], str | None):
        return "synthetic or model has another type than expected"
    return None


def find_calibration(model: Path) -> Calibration | str:
    """The calibration in a model's folder, or why there is none: never evaluated, or evaluated with other weights.

    Raises UserError for a damaged file.
    """
    path = model / CALIBRATION_FILE
    if not path.is_file():
        return "the model was not evaluated"
    return check_weights(read_calibration(path), model)


def check_weights(calibration: Calibration, model: Path) -> Calibration | str:
    """The calibration, or a reason if it was learned with other weights than the model's."""
    if calibration.model is not None and model.is_dir() and calibration.model != model_fingerprint(model):
        return "the model was evaluated with other weights"
    return calibration
