"""Aggregates predictions into the blocks of scores.json; `qilin score` and `qilin evaluate` share this code.

Inputs: predictions of any system and, if available, the answers of the controls. Outputs: the blocks of scores.json and
one verdict per row. A missing value is null, with its reason beside it. N question rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qilin.core.files import to_json, write_atomic
from qilin.evaluate.results import CAPTION_VERDICT, Prediction, Score, SubsetScores, Verdict
from qilin.evaluate.scoring.answers import exact_match, judge_prediction
from qilin.evaluate.scoring.calibration import calibration, hallucination_probe
from qilin.evaluate.scoring.caption_controls import abnormal_f1, exchanged_captions, fixed_caption
from qilin.evaluate.scoring.captions import FactScore, FactSource, score_captions, statements_of_captions
from qilin.evaluate.scoring.efficacy import efficacy
from qilin.evaluate.scoring.intervals import (
    METHOD,
    PairedDifference,
    Ratio,
    compare_paired,
    compare_ratios,
    count_clusters,
    ratio_interval,
    share_interval,
    sum_by_cluster,
)
from qilin.evaluate.scoring.presence import presence_scores
from qilin.evaluate.scoring.text_metrics import token_f1
from qilin.text.facts import DEFAULT_VOCABULARY

Answers = Mapping[str, str]  # row id -> answer text
PerRowScores = Mapping[str, NDArray[np.float64]]  # metric -> (N,)

METRICS = ("exact", "accuracy")
# Reasons in scores.json, by which a reader knows why a value is null.
NOT_GIVEN = "not given"
NO_TRAINING_DATA = "no training data was named: give --train DATASET, and --dataset for the images"
FEW_CLUSTERS = "fewer than two independent clusters of images"


@dataclass(frozen=True)
class Controls:
    """Answers of the control conditions; None or empty where a control is missing, with the reason."""

    mean_image: Answers | None = None
    blank: Answers | None = None  # to a black image, of the rows whose reference affirms a finding
    most_frequent: Answers | None = None  # the most common training answer
    shuffled: Sequence[Answers] = ()  # one per derangement of the images
    nearest: Mapping[str, Answers] = field(default_factory=dict)  # image representation -> answers
    reasons: Mapping[str, str] = field(default_factory=dict)  # control -> why it is missing


@dataclass(frozen=True)
class ScoringContext:
    """What scoring needs besides the predictions: clusters, controls, image metadata, random draws."""

    cluster: NDArray[np.int64]  # one number per row, captions included
    controls: Controls = Controls()
    facts: FactSource = FactSource(DEFAULT_VOCABULARY, {})
    near_duplicate: Mapping[str, bool] | None = None  # row id -> one of its images has a near-duplicate in training
    known_question: Mapping[str, bool] | None = None  # row id -> its question occurs in training
    modality: Mapping[str, str | None] | None = None  # row id -> modality of its first image
    body_part: Mapping[str, str | None] | None = None  # row id -> body part of its first image
    other_modality: Sequence[Mapping[str, bool]] = ()  # per derangement: row id -> it got an image of another modality
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class QuestionScores:
    """Per-row scores of the model and of every control on the same N question rows."""

    predictions: Sequence[Prediction]
    verdicts: Sequence[Verdict]
    model: PerRowScores
    token_f1: PerRowScores  # word, char -> (N,)
    blind: Mapping[str, PerRowScores]  # control name -> scores
    shuffled: Sequence[PerRowScores]
    nearest: Mapping[str, PerRowScores]  # image representation -> scores
    cluster: NDArray[np.int64]  # (N,)
    context: ScoringContext


def score_predictions(
    predictions: Sequence[Prediction], context: ScoringContext
) -> tuple[dict[str, Any], list[Verdict]]:
    """All blocks of scores.json except the manifest, and one verdict per row.

    Captions are not part of `all`; their verdict is CAPTION_VERDICT.
    """
    is_caption = np.array([p.is_caption for p in predictions], dtype=bool)
    questions = [p for p in predictions if not p.is_caption]
    captions = [p for p in predictions if p.is_caption]
    scores = score_questions(questions, context.cluster[~is_caption], context)
    closed = np.array([p.is_closed for p in questions], dtype=bool)
    controls = context.controls
    blocks: dict[str, Any] = {
        "all": subset_scores(scores, np.ones(len(questions), dtype=bool)).to_json(),
        "closed": subset_scores(scores, closed).to_json(),
        "open": subset_scores(scores, ~closed).to_json(),
        "captions": caption_scores(captions, context.cluster[is_caption], context),
        "gain": gains(scores),
        "nearest_neighbour": nearest_neighbor_scores(scores),
        "no_near_duplicate": scores_without(scores, context.near_duplicate).to_json(),
        "unseen_wording": scores_without(scores, context.known_question).to_json(),
        "by_question_type": scores_by_label(scores, lambda p: p.question_type),
        "by_modality": scores_by_label(scores, lambda p: (context.modality or {}).get(p.id)),
        "by_body_part": scores_by_label(scores, lambda p: (context.body_part or {}).get(p.id)),
        "confidence": calibration(
            [p.confidence for p in questions],
            scores.model["accuracy"],
            scores.cluster,
            context.resamples,
            context.seed,
        ),
        "nothing_to_see": hallucination_probe(
            predictions,
            {"mean_picture": controls.mean_image, "blank_picture": controls.blank},
            controls.shuffled,
            context.other_modality,
            context.facts.vocabulary,
        ),
        "presence": presence_scores(questions, scores.verdicts, scores.cluster),
        "rules": count_rules(scores.verdicts),
        "clusters": describe_clusters(predictions, context.cluster),
    }
    question_verdicts = iter(scores.verdicts)
    return blocks, [CAPTION_VERDICT if p.is_caption else next(question_verdicts) for p in predictions]


def score_questions(
    questions: Sequence[Prediction], cluster: NDArray[np.int64], context: ScoringContext
) -> QuestionScores:
    """Scores the model and every available control, row by row."""

    def score(answers: Answers) -> PerRowScores:
        texts = [answers[p.id] for p in questions]
        verdicts = [judge_prediction(p, text) for p, text in zip(questions, texts, strict=True)]
        return per_row_scores(questions, texts, verdicts)

    controls = context.controls
    verdicts = [judge_prediction(p) for p in questions]
    f1 = lru_cache(maxsize=20_000)(token_f1)  # short answers repeat
    return QuestionScores(
        questions,
        verdicts,
        per_row_scores(questions, [p.prediction for p in questions], verdicts),
        {
            unit: np.array([f1(p.prediction, p.reference, unit) for p in questions])
            for unit in (() if all(p.is_closed for p in questions) else ("word", "char"))
        },
        {name: score(answers) for name, answers in blind_answers(controls).items()},
        [score(answers) for answers in controls.shuffled],
        {name: score(answers) for name, answers in controls.nearest.items()},
        cluster,
        context,
    )


def per_row_scores(
    predictions: Sequence[Prediction], answers: Sequence[str], verdicts: Sequence[Verdict]
) -> PerRowScores:
    """1.0 for correct, 0.0 for wrong or unparsable: (N,) for each metric."""
    exact = [exact_match(text, p.reference) for text, p in zip(answers, predictions, strict=True)]
    correct = [verdict.correct is True for verdict in verdicts]
    return {"exact": np.array(exact, dtype=float), "accuracy": np.array(correct, dtype=float)}


def blind_answers(controls: Controls) -> dict[str, Answers]:
    """The controls that do not use the image, by name; the better of them is `blind`."""
    answers = {"mean image": controls.mean_image, "commonest training answer": controls.most_frequent}
    return {name: by_id for name, by_id in answers.items() if by_id is not None}


def argmax(values: Mapping[str, float]) -> str | None:
    """The name of the highest value, the first of equal ones; None for an empty mapping."""
    return max(values, key=lambda name: values[name]) if values else None


def best_by_accuracy(controls: Mapping[str, PerRowScores]) -> str | None:
    """The name of the control with the highest accuracy over all rows."""
    return argmax({name: float(scores["accuracy"].mean()) for name, scores in controls.items()})


def subset_scores(scores: QuestionScores, mask: NDArray[np.bool_]) -> SubsetScores:
    """All metrics over the rows where `mask` (N,) is true."""
    selected = [p for p, is_selected in zip(scores.predictions, mask, strict=True) if is_selected]
    exact, accuracy = (metric_score(scores, metric, mask) for metric in METRICS)
    if not selected:
        return SubsetScores(0, exact, accuracy)
    f1: dict[str, float | None] = {"word": None, "char": None}
    if not all(p.is_closed for p in selected):
        f1 = {unit: float(values[mask].mean()) for unit, values in scores.token_f1.items()}
    unparsable = sum(scores.verdicts[i].correct is None for i in np.flatnonzero(mask).tolist())
    return SubsetScores(len(selected), exact, accuracy, unparsable, f1["word"], f1["char"])


def metric_score(scores: QuestionScores, metric: str, mask: NDArray[np.bool_]) -> Score:
    """One metric over the selected rows, with its interval and controls."""
    if not mask.any():
        return Score(None, reason="no such questions among the rows")
    context = scores.context
    values = scores.model[metric][mask]
    cluster = scores.cluster[mask]
    interval = share_interval(values, cluster)
    blind = {name: float(control[metric][mask].mean()) for name, control in scores.blind.items()}
    best_blind = argmax(blind)
    shuffled = mean_over_shuffles(scores.shuffled, metric)
    nearest = best_by_accuracy(scores.nearest)
    missing = [name for name, value in (("blind", best_blind), ("shuffled", scores.shuffled)) if not value]
    reasons = {name: context.controls.reasons.get(name, NOT_GIVEN) for name in missing}
    if not interval:
        reasons["interval"] = FEW_CLUSTERS
    return Score(
        value=float(values.mean()),
        interval=interval,
        blind=blind[best_blind] if best_blind else None,
        blind_from=best_blind,
        blind_each=blind,
        shuffled=float(shuffled[mask].mean()) if shuffled is not None else None,
        shuffles=len(scores.shuffled),
        nearest=float(scores.nearest[nearest][metric][mask].mean()) if nearest else None,
        reasons=reasons,
        clusters=count_clusters(cluster),
        blind_interval=share_interval(scores.blind[best_blind][metric][mask], cluster) if best_blind else None,
        shuffled_interval=share_interval(shuffled[mask], cluster) if shuffled is not None else None,
        nearest_interval=share_interval(scores.nearest[nearest][metric][mask], cluster) if nearest else None,
    )


def mean_over_shuffles(shuffled: Sequence[PerRowScores], metric: str) -> NDArray[np.float64] | None:
    """Each row's mean score over the derangements: (N,); None without any."""
    return np.mean([control[metric] for control in shuffled], axis=0) if shuffled else None


def describe_clusters(predictions: Sequence[Prediction], cluster: NDArray[np.int64]) -> dict[str, Any]:
    """The block "clusters": how many independent clusters the intervals count, and rows that name no image."""
    rows_without_image = sum(not (p.image_ids or p.group) for p in predictions)
    block: dict[str, Any] = {
        "n": count_clusters(cluster),
        "rows": len(predictions),
        "rows_without_image": rows_without_image,
        "method": METHOD,
    }
    if rows_without_image:
        block["note"] = (
            f"{rows_without_image} of {len(predictions)} rows have no image_ids or group and are treated as "
            "independent: if some are about one image, the intervals are too narrow"
        )
    return block


def scores_without(scores: QuestionScores, excluded: Mapping[str, bool] | None) -> SubsetScores:
    """The scores over the rows that are not excluded; None stands for "unknown"."""
    if excluded is None:
        return SubsetScores(None, None, None, reason=NO_TRAINING_DATA)
    return subset_scores(scores, np.array([not excluded[p.id] for p in scores.predictions], dtype=bool))


def scores_by_label(scores: QuestionScores, label: Callable[[Prediction], str | None]) -> dict[str, Any]:
    """The scores for each label; rows without a label are left out."""
    labels = [label(p) for p in scores.predictions]
    return {
        name: subset_scores(scores, np.array([other == name for other in labels], dtype=bool)).to_json()
        for name in sorted({name for name in labels if name})
    }


def count_rules(verdicts: Sequence[Verdict]) -> dict[str, dict[str, int]]:
    """How often each rule decided, by outcome: {"equal": {"right": 12}, …}."""
    counts: dict[str, dict[str, int]] = {}
    for verdict in verdicts:
        by_outcome = counts.setdefault(verdict.rule, {})
        by_outcome[verdict.outcome] = by_outcome.get(verdict.outcome, 0) + 1
    return dict(sorted(counts.items()))


def nearest_neighbor_scores(scores: QuestionScores) -> dict[str, Any]:
    """The block "nearest_neighbour": the better image representation (named in `from`) and the means of each."""
    n = len(scores.predictions)
    best = best_by_accuracy(scores.nearest) if n else None
    if best is None:
        reason = scores.context.controls.reasons.get("nearest", NOT_GIVEN if n else "no questions among the rows")
        return {"n": n, "exact": None, "accuracy": None, "reason": reason}
    block: dict[str, Any] = {"n": n, "clusters": count_clusters(scores.cluster), "from": best}
    for metric in METRICS:
        values = scores.nearest[best][metric]
        interval = share_interval(values, scores.cluster)
        block[metric] = {"value": float(values.mean()), "interval": list(interval) if interval else None}
    block["each"] = {
        name: {metric: float(control[metric].mean()) for metric in METRICS} for name, control in scores.nearest.items()
    }
    return block


def gains(scores: QuestionScores) -> dict[str, Any]:
    """Paired differences in accuracy to the better blind control, to shuffled images and to the nearest neighbor."""
    blocks: dict[str, Any] = {}
    for name, controls in (("over_blind", scores.blind), ("over_nearest_neighbour", scores.nearest)):
        best = best_by_accuracy(controls) if scores.predictions else None
        if best is None:
            blocks[name] = {"value": None, "reason": "that control is missing"}
            continue
        result = compare_paired(scores.model["accuracy"], controls[best]["accuracy"], scores.cluster)
        blocks[name] = gain_block(result, best)
    shuffled = mean_over_shuffles(scores.shuffled, "accuracy") if scores.predictions else None
    if shuffled is None:
        blocks["over_shuffled"] = {"value": None, "reason": "that control is missing"}
    else:
        result = compare_paired(scores.model["accuracy"], shuffled, scores.cluster)
        blocks["over_shuffled"] = gain_block(result, "exchanged images")
    return blocks


def gain_block(result: PairedDifference, control: str) -> dict[str, Any]:
    """One entry of "gain": the difference to a control, its interval and p-value, and the control's name."""
    return {"value": result.difference, **result.to_json(), "from": control}


def caption_scores(
    captions: Sequence[Prediction], cluster: NDArray[np.int64], context: ScoringContext
) -> dict[str, Any]:
    """{"n", "fact_f1", …} of the captions, with the fact F1 of every control; null where there are none."""
    if not captions:
        return {"n": 0, "fact_f1": None, "reason": "no captions among the rows"}
    scores, facts = score_captions(captions, context.facts)
    per_caption = np.array([fact.f1 for fact in facts])
    model = fact_ratio([facts], cluster)

    def facts_of(answers: Answers) -> list[FactScore]:
        return score_captions(captions, context.facts, answers)[1]

    controls = context.controls
    one_caption = fixed_caption(captions, context.facts)
    exchanged = exchanged_captions(captions, cluster)
    # control -> its variants -> the facts of each repetition
    control_facts: dict[str, dict[str, list[list[FactScore]]]] = {
        "blind": {name: [facts_of(answers)] for name, answers in blind_answers(controls).items()},
        "shuffled": {"exchanged images": [*map(facts_of, controls.shuffled)]} if controls.shuffled else {},
        "nearest": {name: [facts_of(answers)] for name, answers in controls.nearest.items()},
        "fixed": {"one caption for every image": [facts_of(dict.fromkeys((p.id for p in captions), one_caption))]},
        "exchanged": {"exchanged captions": [facts_of(exchanged)]} if exchanged else {},
    }
    ratios = {
        control: {name: fact_ratio(repetitions, cluster) for name, repetitions in variants.items()}
        for control, variants in control_facts.items()
    }
    block: dict[str, Any] = {
        "n": len(captions),
        "clusters": count_clusters(cluster),
        **scores,
        "fact_f1_interval": to_list(ratio_interval(model)),
        "fact_f1_mean": float(per_caption.mean()),
        "fact_f1_mean_interval": to_list(share_interval(per_caption, cluster)),
        "blind_each": {name: control.value() for name, control in ratios["blind"].items()},
        "shuffles": len(controls.shuffled),
        "nearest_each": {name: control.value() for name, control in ratios["nearest"].items()},
        "fixed_caption": one_caption,
        "facts_from": "truth record" if context.facts.truth else "reference text",
        "abnormal_controls": {},
        "gain": {},
    }
    for control, variants in ratios.items():
        best = argmax({name: ratio.value() for name, ratio in variants.items()})
        block[control] = variants[best].value() if best else None
        block[f"{control}_interval"] = to_list(ratio_interval(variants[best])) if best else None
        block["abnormal_controls"][control] = (
            max(
                float(np.mean([abnormal_f1(f) for f in repetitions])) for repetitions in control_facts[control].values()
            )
            if best
            else None
        )
        if best:
            gain = "over_nearest_neighbour" if control == "nearest" else f"over_{control}"
            block["gain"][gain] = gain_block(compare_ratios(model, variants[best]), best)
    stated, true = statements_of_captions(captions, context.facts)
    block["efficacy"] = efficacy(stated, true)
    return block


def fact_ratio(repetitions: Sequence[Sequence[FactScore]], cluster: NDArray[np.int64]) -> Ratio:
    """The micro fact F1 as a ratio of sums by cluster; (K, C) for K repetitions of the captions."""
    shared, counted = (
        np.stack([sum_by_cluster([value(fact) for fact in facts], cluster) for facts in repetitions])
        for value in (lambda fact: 2 * fact.shared, lambda fact: fact.stated + fact.true)
    )
    return Ratio(shared, counted)


def to_list(interval: tuple[float, float] | None) -> list[float] | None:
    """An interval as JSON has it."""
    return list(interval) if interval else None


def write_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """Writes scores.json atomically. Raises ValueError for scores without a manifest, whose origin is unknown."""
    if not scores.get("manifest"):
        raise ValueError(f"{path}: scores without a manifest are not written")
    write_atomic(path, to_json(scores))
