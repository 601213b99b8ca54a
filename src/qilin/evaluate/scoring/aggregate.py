"""From prediction rows to scores: what `qilin score` prints and `qilin evaluate` writes, by the same function.

In: rows of predictions.jsonl from any system and, where known, what the controls answered. Out: the blocks of
scores.json (DESIGN section 4), and each row's verdict. A missing value is null, with its reason beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qilin.core.files import write_atomic
from qilin.evaluate.items import is_caption, is_closed
from qilin.evaluate.scoring.answers import Verdict, exact, judge, token_f1
from qilin.evaluate.scoring.bootstrap import bootstrap_interval, compare
from qilin.evaluate.scoring.calibration import calibration, nothing_to_see
from qilin.evaluate.scoring.captions import FactSource, score_captions
from qilin.text.facts import DEFAULT_VOCABULARY

Row = Mapping[str, Any]
Answers = Mapping[str, str]  # row id -> prediction
Marks = Mapping[str, NDArray[np.float64]]  # metric -> (N,)


@dataclass(frozen=True)
class Controls:
    """What answers without looking, or from the wrong image, are; None or empty where unknown, with the reason."""

    mean_image: Answers | None = None
    blank: Answers | None = None  # to a black image, of the rows whose reference affirms a finding
    commonest: Answers | None = None
    shuffled: Sequence[Answers] = ()
    nearest: Mapping[str, Answers] = field(default_factory=dict)  # by what images were compared -> answers
    reasons: Mapping[str, str] = field(default_factory=dict)  # control -> why it is missing


@dataclass(frozen=True)
class Context:
    """What scoring knows besides the rows: clusters, controls, images, and how to draw the intervals."""

    cluster: NDArray[np.int64]  # (N,)
    controls: Controls = Controls()
    facts: FactSource = FactSource(DEFAULT_VOCABULARY, {})
    near_duplicate: Mapping[str, bool] | None = None  # row id -> one of its images has a near-duplicate in training
    known_question: Mapping[str, bool] | None = None  # row id -> its question was asked in training
    modality: Mapping[str, str | None] | None = None  # row id -> modality of its first image
    body_part: Mapping[str, str | None] | None = None  # row id -> body part of its first image
    other_modality: Sequence[Mapping[str, bool]] = ()  # a shuffle: row id -> it was shown an image of another modality
    resamples: int = 2000
    seed: int = 0


METRICS = ("exact", "accuracy")


def verdict_of(row: Row, prediction: str) -> Verdict:
    """The scorer's verdict on a prediction for a row."""
    return judge(row["question"], row["reference"], prediction, row.get("answer_type"), row.get("choices") or ())


def marks(rows: Sequence[Row], predictions: Sequence[str], verdicts: Sequence[Verdict]) -> Marks:
    """1.0 for right, 0.0 for wrong or unparsable, a row: (N,) for each of exact and accuracy."""
    return {
        "exact": np.array([exact(p, row["reference"]) for row, p in zip(rows, predictions, strict=True)], dtype=float),
        "accuracy": np.array([verdict.correct is True for verdict in verdicts], dtype=float),
    }


@dataclass(frozen=True)
class Marked:
    """Marks of the model and of every control on the same question rows, each (N,) a metric."""

    rows: Sequence[Row]
    verdicts: Sequence[Verdict]
    model: Marks
    blind: Mapping[str, Marks]  # control name -> marks
    shuffled: Sequence[Marks]
    nearest: Mapping[str, Marks]  # by what images were compared -> marks


def mark_all(rows: Sequence[Row], controls: Controls) -> Marked:
    """Score the model and every control there is."""

    def judged(predictions: Sequence[str]) -> list[Verdict]:
        return [verdict_of(row, said) for row, said in zip(rows, predictions, strict=True)]

    def of(answers: Answers) -> Marks:
        predictions = [answers[row["id"]] for row in rows]
        return marks(rows, predictions, judged(predictions))

    predictions = [row["prediction"] for row in rows]
    verdicts = judged(predictions)
    return Marked(
        rows,
        verdicts,
        marks(rows, predictions, verdicts),
        {name: of(answers) for name, answers in blind_answers(controls).items()},
        [of(answers) for answers in controls.shuffled],
        {name: of(answers) for name, answers in controls.nearest.items()},
    )


def blind_answers(controls: Controls) -> dict[str, Answers]:
    """The controls that do not look, by name; the better of them is `blind`."""
    both = {"mean image": controls.mean_image, "commonest training answer": controls.commonest}
    return {name: answers for name, answers in both.items() if answers is not None}


def best_of(values: Mapping[str, float]) -> str | None:
    """The name of the highest value, the first of equal ones; None for none."""
    return max(values, key=lambda name: values[name]) if values else None


def block(marked: Marked, chosen: NDArray[np.bool_], cluster: NDArray[np.int64], context: Context) -> dict[str, Any]:
    """{"n", "exact", "accuracy", "unparsable", "token_f1"} over the chosen rows."""
    n = int(chosen.sum())
    found: dict[str, Any] = {"n": n}
    for metric in METRICS:
        found[metric] = score_of(marked, metric, chosen, cluster, context)
    if n:
        picked: list[int] = np.flatnonzero(chosen).tolist()
        found["unparsable"] = sum(marked.verdicts[i].correct is None for i in picked)
        if any(not is_closed(marked.rows[i]) for i in picked):
            for unit in ("word", "char"):
                found[f"token_f1_{unit}"] = float(
                    np.mean([token_f1(marked.rows[i]["prediction"], marked.rows[i]["reference"], unit) for i in picked])
                )
    return found


def score_of(
    marked: Marked, metric: str, chosen: NDArray[np.bool_], cluster: NDArray[np.int64], context: Context
) -> dict[str, Any]:
    """{"value", "interval", "blind", "shuffled", …} of one metric over the chosen rows."""
    if not chosen.any():
        missing = dict.fromkeys(("value", "interval", "blind", "shuffled", "nearest"))
        return {**missing, "reason": "no such questions among the rows"}
    reasons = dict(context.controls.reasons)
    values = marked.model[metric][chosen]
    interval = bootstrap_interval(values, cluster[chosen], context.resamples, context.seed)
    blind = {name: float(by[metric][chosen].mean()) for name, by in marked.blind.items()}
    best = best_of(blind)
    shuffled = [float(by[metric][chosen].mean()) for by in marked.shuffled]
    nearest = best_accuracy(marked.nearest)
    found: dict[str, Any] = {
        "value": float(values.mean()),
        "interval": list(interval) if interval else None,
        "blind": blind[best] if best else None,
        "blind_from": best,
        "blind_each": blind,
        "shuffled": float(np.mean(shuffled)) if shuffled else None,
        "shuffles": len(shuffled),
        "nearest": float(marked.nearest[nearest][metric][chosen].mean()) if nearest else None,
    }
    why = {
        name: reasons.get(name, "not given") for name, value in (("blind", best), ("shuffled", shuffled)) if not value
    }
    if not interval:
        why["interval"] = "fewer than two independent clusters of images"
    return {**found, "reasons": why} if why else found


def score_rows(rows: Sequence[Row], context: Context) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All blocks of scores.json but the manifest, and each row's {"id", "correct", "rule"}.

    Captions stand outside `all`; their `correct` is null and their rule "caption".
    """
    caption = np.array([is_caption(row) for row in rows], dtype=bool)
    questions = [row for row, no in zip(rows, caption, strict=True) if not no]
    cluster = context.cluster[~caption]
    marked = mark_all(questions, context.controls)
    closed = np.array([is_closed(row) for row in questions], dtype=bool)
    everything = np.ones(len(questions), dtype=bool)
    scores: dict[str, Any] = {
        "all": block(marked, everything, cluster, context),
        "closed": block(marked, closed, cluster, context),
        "open": block(marked, ~closed, cluster, context),
        "captions": caption_block([row for row, yes in zip(rows, caption, strict=True) if yes], caption, context),
        "gain": gains(marked, cluster, context),
        "nearest_neighbour": nearest_block(marked, cluster, context),
        "no_near_duplicate": part(marked, cluster, context, context.near_duplicate),
        "unseen_wording": part(marked, cluster, context, context.known_question),
        "by_question_type": by_label(marked, cluster, context, lambda row: row.get("question_type")),
        "by_modality": by_label(marked, cluster, context, lambda row: (context.modality or {}).get(row["id"])),
        "by_body_part": by_label(marked, cluster, context, lambda row: (context.body_part or {}).get(row["id"])),
        "confidence": calibration([row.get("confidence") for row in questions], marked.model["accuracy"]),
        "nothing_to_see": nothing_to_see(
            rows,
            {"mean_picture": context.controls.mean_image, "blank_picture": context.controls.blank},
            context.controls.shuffled,
            context.other_modality,
            context.facts.vocabulary,
        ),
        "rules": count_rules(marked.verdicts),
    }
    verdicts = iter(marked.verdicts)
    judged = []
    for row, is_one in zip(rows, caption, strict=True):
        verdict = Verdict(None, "caption") if is_one else next(verdicts)
        judged.append({"id": row["id"], "correct": verdict.correct, "rule": verdict.rule})
    return scores, judged


def count_rules(verdicts: Sequence[Verdict]) -> dict[str, dict[str, int]]:
    """How often each rule decided, and how: {"equal": {"right": 12}, …}."""
    names = {True: "right", False: "wrong", None: "unparsable"}
    found: dict[str, dict[str, int]] = {}
    for verdict in verdicts:
        by = found.setdefault(verdict.rule, {})
        by[names[verdict.correct]] = by.get(names[verdict.correct], 0) + 1
    return dict(sorted(found.items()))


def part(
    marked: Marked, cluster: NDArray[np.int64], context: Context, excluded: Mapping[str, bool] | None
) -> dict[str, Any]:
    """The block over rows that are not excluded (by near-duplicate, by known wording); null where that is unknown."""
    if excluded is None:
        return {
            "n": None,
            "exact": None,
            "accuracy": None,
            "reason": "no training data was named: give --train DATASET, and --dataset for the images",
        }
    chosen = np.array([not excluded[row["id"]] for row in marked.rows], dtype=bool)
    return block(marked, chosen, cluster, context)


def by_label(marked: Marked, cluster: NDArray[np.int64], context: Context, label: Any) -> dict[str, Any]:
    """A block for each label that rows carry; rows without one are left out."""
    labels = [label(row) for row in marked.rows]
    return {
        name: block(marked, np.array([other == name for other in labels], dtype=bool), cluster, context)
        for name in sorted({name for name in labels if name})
    }


def nearest_block(marked: Marked, cluster: NDArray[np.int64], context: Context) -> dict[str, Any]:
    """What the nearest training question and image would have answered: the better way of comparing images, named
    in `from`, and each."""
    best = best_accuracy(marked.nearest) if marked.rows else None
    if best is None:
        reason = context.controls.reasons.get("nearest", "not given" if marked.rows else "no questions among the rows")
        return {"n": len(marked.rows), "exact": None, "accuracy": None, "reason": reason}
    found: dict[str, Any] = {"n": len(marked.rows), "from": best}
    for metric in METRICS:
        values = marked.nearest[best][metric]
        interval = bootstrap_interval(values, cluster, context.resamples, context.seed)
        found[metric] = {"value": float(values.mean()), "interval": list(interval) if interval else None}
    found["each"] = {
        name: {metric: float(by[metric].mean()) for metric in METRICS} for name, by in marked.nearest.items()
    }
    return found


def best_accuracy(controls: Mapping[str, Marks]) -> str | None:
    """The name of the control with the highest accuracy over all rows; None for none."""
    return best_of({name: float(by["accuracy"].mean()) for name, by in controls.items()})


def gains(marked: Marked, cluster: NDArray[np.int64], context: Context) -> dict[str, Any]:
    """Accuracy above the better blind control and above the nearest neighbour, paired, with interval and p-value."""
    found: dict[str, Any] = {}
    for name, rivals in (("over_blind", marked.blind), ("over_nearest_neighbour", marked.nearest)):
        best = best_accuracy(rivals) if marked.rows else None
        if best is None:
            found[name] = {"value": None, "reason": "that control is missing"}
            continue
        result = compare(marked.model["accuracy"], rivals[best]["accuracy"], cluster, context.resamples, context.seed)
        found[name] = {
            "value": result.difference,
            "interval": list(result.interval) if result.interval else None,
            "p_value": result.p_value,
            "clusters": result.clusters,
            "from": best,
        }
    return found


def caption_block(rows: Sequence[Row], caption: NDArray[np.bool_], context: Context) -> dict[str, Any]:
    """{"n", "fact_f1", …} of the captions, with the fact F1 of every control; null where there are none."""
    if not rows:
        return {"n": 0, "fact_f1": None, "reason": "no captions among the rows"}
    scores, facts = score_captions(rows, context.facts)
    per_caption = np.array([fact.f1 for fact in facts])
    cluster = context.cluster[caption]
    interval = bootstrap_interval(per_caption, cluster, context.resamples, context.seed)

    def fact_f1(answers: Answers) -> float:
        swapped = [{**row, "prediction": answers[row["id"]]} for row in rows]
        return score_captions(swapped, context.facts, only_facts=True)[0]["fact_f1"]

    controls = context.controls
    blind = {name: fact_f1(answers) for name, answers in blind_answers(controls).items()}
    nearest = {name: fact_f1(answers) for name, answers in controls.nearest.items()}
    shuffled = [fact_f1(answers) for answers in controls.shuffled]
    return {
        "n": len(rows),
        **scores,
        "fact_f1_mean": float(per_caption.mean()),
        "fact_f1_mean_interval": list(interval) if interval else None,
        "blind": max(blind.values()) if blind else None,
        "blind_each": blind,
        "shuffled": float(np.mean(shuffled)) if shuffled else None,
        "shuffles": len(shuffled),
        "nearest": max(nearest.values()) if nearest else None,
        "nearest_each": nearest,
        "facts_from": "truth record" if context.facts.truth else "reference text",
    }


def write_scores(path: Path, scores: Mapping[str, Any]) -> None:
    """scores.json, whole or not at all. Raises ValueError for scores that do not say where they come from."""
    if not scores.get("manifest"):
        raise ValueError(f"{path}: scores without a manifest are not written")
    write_atomic(path, json.dumps(scores, ensure_ascii=False, indent=2) + "\n")
