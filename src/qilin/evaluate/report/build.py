"""`qilin report EVALUATION [...]`: a page from finished evaluations: one, several runs with their spread, a baseline.

In: folders that `qilin evaluate` wrote. Out: one page. The answers are scored again with the present scorer, from the
stored controls, so that old and new evaluations stand side by side under the same rules; no model is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import shorten
from qilin.dataset.reader import Dataset, open_dataset
from qilin.evaluate.compare import align, compare_predictions, system_name
from qilin.evaluate.config import ReportConfig, ScoreConfig
from qilin.evaluate.report.report import write_report
from qilin.evaluate.reproduce import read_scores
from qilin.evaluate.results import Prediction, Verdict, read_predictions
from qilin.evaluate.score import score_file
from qilin.evaluate.scoring.captions import FactSource, read_fact_source
from qilin.evaluate.scoring.intervals import assign_clusters

RUN_METRICS = (
    ("accuracy, all", ("all", "accuracy", "value")),
    ("accuracy, closed", ("closed", "accuracy", "value")),
    ("accuracy, open", ("open", "accuracy", "value")),
    ("exact match", ("all", "exact", "value")),
    ("caption fact F1", ("captions", "fact_f1")),
    ("gain over blind", ("gain", "over_blind", "value")),
    ("gain over shuffled images", ("gain", "over_shuffled", "value")),
    ("gain over nearest neighbor", ("gain", "over_nearest_neighbour", "value")),
)


@dataclass(frozen=True)
class Evaluation:
    """One finished evaluation, scored again."""

    path: Path
    scores: Mapping[str, Any]
    predictions: Sequence[Prediction]
    verdicts: Sequence[Verdict]


def report_command(config: ReportConfig) -> Path:
    """Writes the page of one or more evaluations and prints its path."""
    evaluations = [read_evaluation(path) for path in config.evaluations]
    first = evaluations[0]
    stored = first.scores["manifest"]
    dataset = open_dataset(config.dataset or Path(stored["dataset"]["path"]))
    facts = read_fact_source(dataset.path)
    baseline = read_evaluation(config.baseline) if config.baseline else None
    path = write_report(
        config.out,
        first.scores,
        first.predictions,
        first.verdicts,
        dataset,
        str((stored.get("model") or {}).get("path") or first.path.name),
        stored.get("label"),
        facts,
        config.language,
        runs_table(evaluations) if len(evaluations) > 1 else None,
        baseline_table(first, baseline, facts, dataset) if baseline else None,
    )
    print(f"report: {path}")
    return path


def read_evaluation(path: Path) -> Evaluation:
    """An evaluation folder, scored again from its predictions and controls. Raises UserError for any other folder."""
    if not (path / "predictions.jsonl").is_file():
        raise UserError(f"{path}: has no predictions.jsonl; expected a folder that qilin evaluate wrote")
    stored = read_scores(path / "scores.json")["manifest"]
    if not isinstance(stored.get("dataset"), dict) or not isinstance(stored["dataset"].get("path"), str):
        raise UserError(
            f"{path / 'scores.json'}: manifest.dataset.path is missing; expected a folder of qilin evaluate"
        )
    settings = stored["settings"]
    scores, rows = score_file(
        ScoreConfig(file=path, resamples=settings.get("resamples", 2000), seed=settings.get("seed", 0))
    )
    scores["manifest"] = {**stored, **scores["manifest"], "scorer_of_scores_json": stored.get("scorer")}
    verdicts = [Verdict(row["correct"], row["rule"]) for row in rows]
    return Evaluation(path, scores, read_predictions(path / "predictions.jsonl"), verdicts)


def runs_table(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """{"names", "rows": [{"name", "values", "mean", "deviation", "lowest", "highest"}]} over evaluations of one split.

    Raises UserError for evaluations of other questions.
    """
    questions = {(p.id, p.question, p.reference) for p in evaluations[0].predictions}
    for other in evaluations[1:]:
        difference = questions ^ {(p.id, p.question, p.reference) for p in other.predictions}
        if difference:
            example = shorten(min(difference)[0])
            raise UserError(
                f"{other.path}: other questions than {evaluations[0].path}, such as {example}; give one split"
            )
    types = dict.fromkeys(name for e in evaluations for name in e.scores["by_question_type"])
    metrics = [*RUN_METRICS, *((name, ("by_question_type", name, "accuracy", "value")) for name in types)]
    rows = []
    for name, keys in metrics:
        values = [value_at(e.scores, keys) for e in evaluations]
        numbers = [value for value in values if value is not None]
        if numbers:
            rows.append({
                "name": name, "values": values, "mean": mean(numbers),
                "deviation": stdev(numbers) if len(numbers) > 1 else None,
                "lowest": min(numbers), "highest": max(numbers),
            })  # fmt: skip
    return {"names": [system_name(e.path) for e in evaluations], "rows": rows}


def value_at(scores: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    """The value under nested keys; None where one of them is missing or null."""
    value: Any = scores
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def baseline_table(first: Evaluation, baseline: Evaluation, facts: FactSource, dataset: Dataset) -> dict[str, Any]:
    """{"name", "rows", "answers"}: paired differences to another system, and its answer to each shared question."""
    files = [e.path / "predictions.jsonl" for e in (first, baseline)]
    a, b = align(first.predictions, baseline.predictions, files)
    phash = dataset.image_table(("image_id", "phash"))
    hashes = dict(zip(phash.column(0).to_pylist(), phash.column(1).to_pylist(), strict=True))
    cluster = assign_clusters([p.image_ids for p in a], [p.group for p in a], hashes)
    result, _, scores_b = compare_predictions(a, b, cluster, facts)
    answers = {
        p.id: {"text": p.prediction, "mark": f"{value:.2f}" if p.is_caption else "✓" if value else "✗"}
        for p, (_, value) in zip(b, scores_b, strict=True)
    }
    titles = (("all questions", "all"), ("closed", "closed"), ("open", "open"), ("captions (fact F1)", "captions"))
    rows = [*((title, result[name]) for title, name in titles), *result["by_question_type"].items()]
    return {"name": system_name(baseline.path), "rows": rows, "answers": answers}
