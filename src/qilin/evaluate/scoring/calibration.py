"""Does a model know when it is wrong? Confidence against being right, and what it says where there is nothing to see.

In: each answer's confidence (0 to 1: the geometric mean of its tokens' probabilities) and whether it was right; the
answers given to the mean image, to a black one, and to images of another modality. Out: the blocks "confidence"
and "nothing_to_see" of scores.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qilin.text.facts import Vocabulary, facts_of_text, is_finding

BINS = 10
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def calibration(confidence: Sequence[float | None], right: ArrayLike) -> dict[str, Any]:
    """{"n", "ece", "mean_confidence", "accuracy", "bins", "coverage", "area"} of the answers that have a confidence.

    ece: expected calibration error, ten bins of equal width weighed by their answers (Guo et al. 2017). coverage:
    accuracy over the surest answers only; area: the mean error over all coverages (the error rate is chance).
    """
    marks = np.asarray(right, dtype=np.float64)
    known = np.array([value is not None for value in confidence], dtype=bool)
    if not known.any():
        return {"n": 0, "ece": None, "reason": "the predictions carry no confidence"}
    sure = np.array([value for value in confidence if value is not None], dtype=np.float64)
    marks = marks[known]
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        here = place == number
        if here.any():
            bins.append({
                "from": number / BINS, "to": (number + 1) / BINS, "n": int(here.sum()),
                "confidence": float(sure[here].mean()), "accuracy": float(marks[here].mean()),
            })  # fmt: skip
    ece = sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / len(sure)
    return {
        "n": len(sure),
        "ece": float(ece),
        "mean_confidence": float(sure.mean()),
        "accuracy": float(marks.mean()),
        "bins": bins,
        **selective(sure, marks),
    }


def selective(sure: NDArray[np.float64], marks: NDArray[np.float64]) -> dict[str, Any]:
    """Accuracy over the surest share of the answers. Answers of equal confidence share their mean."""
    order = np.argsort(-sure, kind="stable")
    _, group = np.unique(-sure[order], return_inverse=True)
    means = np.bincount(group, weights=marks[order]) / np.bincount(group)
    running = np.cumsum(means[group]) / np.arange(1, len(sure) + 1)  # (N,): accuracy of the k surest
    rows = []
    for share in COVERAGES:
        kept = max(1, round(share * len(sure)))
        rows.append(
            {"coverage": share, "n": kept, "accuracy": float(running[kept - 1]), "from": float(sure[order[kept - 1]])}
        )
    return {"coverage": rows, "area": float(1 - running.mean())}


def affirms(text: str, vocabulary: Vocabulary) -> bool:
    """Whether a text affirms any finding."""
    return any(is_finding(fact) for fact in facts_of_text(text, vocabulary))


def nothing_to_see(
    rows: Sequence[Mapping[str, Any]],
    unseen: Mapping[str, Mapping[str, str] | None],
    shuffled: Sequence[Mapping[str, str]],
    other_modality: Sequence[Mapping[str, bool]],
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """Of the rows whose reference affirms a finding: how many answers affirm one, and how many are word for word the
    same, with the own image, with each of `unseen` (name -> answers to an image on which nothing is to be seen),
    and with an image of another modality.
    """
    asked = [row for row in rows if row.get("image_ids") and affirms(row["reference"], vocabulary)]
    if not asked:
        return {"n": 0, "reason": "no reference affirms a finding"}

    def block(pairs: Sequence[tuple[Mapping[str, Any], str]]) -> dict[str, Any] | None:
        if not pairs:
            return None
        return {
            "n": len(pairs),
            "affirm_a_finding": sum(affirms(text, vocabulary) for _, text in pairs) / len(pairs),
            "same_answer": sum(text == row["prediction"] for row, text in pairs) / len(pairs),
        }

    strange = [
        (row, answers[row["id"]])
        for answers, strange_there in zip(shuffled, other_modality, strict=False)
        for row in asked
        if strange_there.get(row["id"])
    ]
    return {
        "n": len(asked),
        "own_picture": block([(row, row["prediction"]) for row in asked]),
        **{
            name: block([(row, answers[row["id"]]) for row in asked if row["id"] in answers])
            if answers is not None
            else None
            for name, answers in unseen.items()
        },
        "other_modality": block(strange),
    }
