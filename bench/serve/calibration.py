"""How well the calibrated confidence agrees with the share of right answers, on images that the curve has not seen.

In: folders of `qilin evaluate`. Out: bench/results/calibration.json. The answers are split into two halves by image,
ten times; a curve is learned from one half and measured on the other, both ways. Curves: none (the raw confidence),
temperature scaling, Platt's (slope and offset on the logit, which Qilin uses), isotonic regression. The control learns
Platt's curve from shuffled verdicts: it gives every answer the mean accuracy, which costs the Brier score.

    python bench/serve/calibration.py NAME=EVALUATION_FOLDER …
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression, minimize_scalar

from qilin.evaluate.answer_probability import apply_curve, fit_curve, logits
from qilin.evaluate.scoring.calibration import calibration

sys.path[:0] = [str(Path(__file__).parents[1])]

SPLITS = 10
Array = np.ndarray
Curve = Callable[[Array], Array]


def temperature(confidence: Array, correct: Array) -> Curve:
    x = logits(confidence)
    slope = minimize_scalar(
        lambda s: (np.logaddexp(0, s * x) - correct * s * x).mean(), bounds=(0, 20), method="bounded"
    ).x
    return lambda values: apply_curve(values, float(slope), 0.0)


def platt(confidence: Array, correct: Array) -> Curve:
    slope, offset = fit_curve(confidence, correct)
    return lambda values: apply_curve(values, slope, offset)


def isotonic(confidence: Array, correct: Array) -> Curve:
    values, index = np.unique(confidence, return_inverse=True)
    counts = np.bincount(index)
    fitted = isotonic_regression(np.bincount(index, weights=correct) / counts, weights=counts.astype(float)).x
    n = len(correct)
    return lambda other: np.interp(other, values, np.clip(fitted, 1 / (n + 2), (n + 1) / (n + 2)))


def shuffled(confidence: Array, correct: Array) -> Curve:
    return platt(confidence, np.random.default_rng(0).permutation(correct))


CURVES: dict[str, Callable[[Array, Array], Curve]] = {
    "none": lambda confidence, correct: lambda values: values,
    "temperature": temperature,
    "platt": platt,
    "isotonic": isotonic,
    "control: platt on shuffled verdicts": shuffled,
}


def read_answers(folder: Path) -> tuple[Array, Array, Array]:
    """(confidence, whether right, image) of the answers that are judged."""
    verdicts = {row["id"]: row for row in map(json.loads, (folder / "verdicts.jsonl").open(encoding="utf-8"))}
    rows = [
        (row["confidence"], float(verdicts[row["id"]]["correct"] is True), (row["image_ids"] or [row["id"]])[0])
        for row in map(json.loads, (folder / "predictions.jsonl").open(encoding="utf-8"))
        if verdicts[row["id"]]["rule"] != "caption" and row["confidence"] is not None
    ]
    confidence, correct, image = zip(*rows, strict=True)
    return np.array(confidence), np.array(correct), np.unique(image, return_inverse=True)[1]


def measure(confidence: Array, correct: Array, image: Array) -> dict[str, Any]:
    """Errors of each curve on the half that it was not learned from: means over the splits."""
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in CURVES}
    chance = []
    for seed in range(SPLITS):
        half = np.random.default_rng(seed).permutation(image.max() + 1)[image] % 2
        for name, fit in CURVES.items():
            probability = np.zeros(len(confidence))
            for number in (0, 1):
                held_out = half == number
                probability[held_out] = fit(confidence[~held_out], correct[~held_out])(confidence[held_out])
            block = calibration(list(probability), correct, image, resamples=200, seed=seed)
            rows[name].append((block["ece"], float(((probability - correct) ** 2).mean())))
            if name == "platt":
                chance.append(block["ece_if_calibrated"])
    low = confidence < 0.5
    return {
        "answers": len(confidence),
        "images": int(image.max() + 1),
        "accuracy": round(float(correct.mean()), 4),
        "accuracy where the confidence is below 0.5": round(float(correct[low].mean()), 4) if low.any() else None,
        "calibration error that chance alone gives": round(float(np.mean(chance)), 4),
        "curves": {
            name: {
                "calibration_error": round(float(np.mean([ece for ece, _ in values])), 4),
                "lowest_and_highest": [round(f(ece for ece, _ in values), 4) for f in (min, max)],
                "brier": round(float(np.mean([brier for _, brier in values])), 4),
            }
            for name, values in rows.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="NAME=EVALUATION_FOLDER")
    args = parser.parse_args()
    named = dict(text.split("=", 1) for text in args.folders)
    result = {name: measure(*read_answers(Path(folder))) for name, folder in named.items()}
    from write_result import write_result

    write_result("calibration", "python bench/serve/calibration.py " + " ".join(f"{n}=DIR" for n in named), result)


if __name__ == "__main__":
    main()
