"""Calibration of the model's confidence, and a probe for findings that the image cannot show.

Inputs: each answer's confidence (0 to 1: the geometric mean of its token probabilities) and whether it was correct;
the answers to the mean image, to a black image and to images of another modality. Outputs: the blocks "confidence" and
"nothing_to_see" of scores.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.intervals import jackknife_variance, sum_by_cluster
from qilin.text.facts import Vocabulary, extract_facts, is_finding

NUM_BINS = 10
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def calibration(
    confidences: Sequence[float | None],
    correct: ArrayLike,
    cluster: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """{"n", "ece", "mean_confidence", "accuracy", "bins", "coverage", "area", …} of the answers with a confidence.

    ece: expected calibration error over ten bins of equal width, weighted by their size (Guo et al. 2017).
    ece_if_calibrated: the mean error that chance gives confidences that are exactly right, by `resamples` draws.
    coverage: accuracy over the most confident answers only. area: the mean error over all coverages; an uninformative
    confidence gives the error rate.
    """
    has_confidence = np.array([value is not None for value in confidences], dtype=bool)
    if not has_confidence.any():
        return {"n": 0, "ece": None, "reason": "the predictions carry no confidence"}
    confidence = np.array([value for value in confidences if value is not None], dtype=np.float64)
    is_correct = np.asarray(correct, dtype=np.float64)[has_confidence]
    bin_index = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for index in range(NUM_BINS):
        in_bin = bin_index == index
        if in_bin.any():
            bins.append({
                "from": index / NUM_BINS, "to": (index + 1) / NUM_BINS, "n": int(in_bin.sum()),
                "confidence": float(confidence[in_bin].mean()), "accuracy": float(is_correct[in_bin].mean()),
            })  # fmt: skip
    gaps = np.zeros((NUM_BINS, len(confidence)))
    gaps[bin_index, np.arange(len(confidence))] = is_correct - confidence
    clusters = np.arange(len(confidence)) if cluster is None else np.asarray(cluster)[has_confidence]
    by_cluster = np.stack([sum_by_cluster(row, clusters) for row in gaps])  # (bins, C)
    counts = sum_by_cluster(np.ones(len(confidence)), clusters)
    ece = float(np.abs(by_cluster.sum(axis=1)).sum() / len(confidence))
    by_chance = errors_by_chance(confidence, bin_index, resamples, seed)
    interval = ece_interval(ece, by_cluster, counts)
    if interval and ece <= np.quantile(by_chance, 0.95):
        interval = (0.0, interval[1])  # the error is never below 0: chance alone explains this much
    return {
        "n": len(confidence),
        "clusters": len(counts),
        "ece": ece,
        "ece_interval": list(interval) if interval else None,
        "ece_if_calibrated": float(by_chance.mean()),
        "mean_confidence": float(confidence.mean()),
        "accuracy": float(is_correct.mean()),
        "bins": bins,
        **accuracy_by_coverage(confidence, is_correct),
    }


def ece_interval(
    ece: float, by_cluster: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[float, float] | None:
    """95 % interval by the delete-one-cluster jackknife and t; None for fewer than two clusters.

    `by_cluster`: correct minus confidence, summed by bin and cluster (bins, C); `counts`: answers by cluster (C,).
    """
    size = len(counts)
    if size < 2:
        return None
    without_each = np.abs(by_cluster.sum(axis=1, keepdims=True) - by_cluster).sum(axis=0) / (counts.sum() - counts)
    half = float(stdtrit(size - 1, 0.975)) * jackknife_variance(ece, without_each) ** 0.5
    return max(0.0, ece - half), min(1.0, ece + half)


def errors_by_chance(
    confidence: NDArray[np.float64], bin_index: NDArray[np.intp], draws: int, seed: int
) -> NDArray[np.float64]:
    """Calibration errors of answers that are right exactly as often as their confidence says: (draws,).

    The sum of the errors in a bin is drawn from the normal distribution of that variance; answers count as independent.
    """
    deviation = np.sqrt(np.bincount(bin_index, weights=confidence * (1 - confidence), minlength=NUM_BINS))
    drawn = np.random.default_rng(seed).normal(size=(draws, NUM_BINS)) * deviation
    return np.abs(drawn).sum(axis=1) / len(confidence)


def accuracy_by_coverage(confidence: NDArray[np.float64], is_correct: NDArray[np.float64]) -> dict[str, Any]:
    """Accuracy over the most confident share of the answers; answers of equal confidence count with their mean."""
    order = np.argsort(-confidence, kind="stable")
    _, tie = np.unique(-confidence[order], return_inverse=True)
    tie_means = np.bincount(tie, weights=is_correct[order]) / np.bincount(tie)
    accuracies = np.cumsum(tie_means[tie]) / np.arange(1, len(confidence) + 1)  # (N,): of the k most confident
    rows = []
    for share in COVERAGES:
        n = max(1, round(share * len(confidence)))
        rows.append(
            {"coverage": share, "n": n, "accuracy": float(accuracies[n - 1]), "from": float(confidence[order[n - 1]])}
        )
    return {"coverage": rows, "area": float(1 - accuracies.mean())}


def affirms_finding(text: str, vocabulary: Vocabulary) -> bool:
    """Whether a text affirms any finding."""
    return any(is_finding(fact) for fact in extract_facts(text, vocabulary))


def hallucination_probe(
    predictions: Sequence[Prediction],
    uninformative: Mapping[str, Mapping[str, str] | None],
    shuffled: Sequence[Mapping[str, str]],
    other_modality: Sequence[Mapping[str, bool]],
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """How often a finding is affirmed although the image shown cannot show it.

    Counts, over the rows whose reference affirms a finding, the answers that affirm one and the answers that equal the
    answer to the row's own image: for that image, for each uninformative image (name -> answers by row id), and for
    the shuffled images of another modality (`other_modality`: row id -> true, one mapping per shuffle).
    """
    affirms = lru_cache(maxsize=20_000)(lambda text: affirms_finding(text, vocabulary))  # answers repeat
    probed = [p for p in predictions if p.image_ids and affirms(p.reference)]
    if not probed:
        return {"n": 0, "reason": "no reference affirms a finding"}

    def summarize(pairs: Iterable[tuple[Prediction, str]]) -> dict[str, Any] | None:
        pairs = list(pairs)
        if not pairs:
            return None
        return {
            "n": len(pairs),
            "affirm_a_finding": sum(affirms(answer) for _, answer in pairs) / len(pairs),
            "same_answer": sum(answer == prediction.prediction for prediction, answer in pairs) / len(pairs),
        }

    return {
        "n": len(probed),
        "own_picture": summarize((p, p.prediction) for p in probed),
        **{
            name: None if answers is None else summarize((p, answers[p.id]) for p in probed if p.id in answers)
            for name, answers in uninformative.items()
        },
        "other_modality": summarize(
            (p, answers[p.id])
            for answers, is_other_modality in zip(shuffled, other_modality, strict=False)
            for p in probed
            if is_other_modality.get(p.id)
        ),
    }
