"""`qilin data apply-review`: applies the decisions of a review to the dataset that was reviewed.

In: a dataset folder and its decisions. Out: a dataset folder without the rejected samples and with the fixed texts; the
`translation` field of accepted and fixed samples names the reviewers.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from qilin.core.errors import UserError
from qilin.core.progress import ProgressBars
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.sample_texts import text_fields, with_texts
from qilin.dataset.schema import Sample
from qilin.pipeline.execution.dataset_map import SAMPLES_PER_SHARD, map_dataset, reject, shard_ranges
from qilin.pipeline.execution.step_output import command_line, print_summary
from qilin.pipeline.execution.workers import make_workers
from qilin.pipeline.review.config import ApplyReviewConfig
from qilin.pipeline.review.decisions import (
    CurrentDecisions,
    current_decisions,
    decisions_path,
    final_decision,
    format_agreement,
    read_decisions,
    reviewer_agreement,
    sample_hash,
)


@dataclass(frozen=True)
class ReviewStep:
    """What decides about a sample; travels to the worker processes."""

    decisions: CurrentDecisions
    reviewed_only: bool


def apply_review(config: ApplyReviewConfig) -> None:
    """Write the dataset folder unless it exists. Raises UserError if no decision applies to the source."""
    path = config.decisions or decisions_path(config.source)
    current = current_decisions(read_decisions(path))
    if not current:
        raise UserError(f"{path}: contains no decisions; record some with `qilin data review {config.source}`")
    source = open_dataset(config.source)
    stale = count_stale(source, current)
    if stale == len(current):
        raise UserError(f"{path}: its {stale:,} decisions are about other samples than those of {config.source}")
    settings = {
        "step": "apply-review",
        "command": command_line("data apply-review", config, ("source", "out")),
        "decisions": hash_decisions(current),
        "reviewed_only": config.reviewed_only,
    }
    shard_count = len(shard_ranges(source, SAMPLES_PER_SHARD))
    workers = make_workers(config.execution.workers, config.execution.cluster, shard_count)
    step = partial(apply_decisions, ReviewStep(current, config.reviewed_only))
    with ProgressBars(transient=True) as progress:
        task = progress.add_task("applying decisions", total=shard_count)
        data, is_new = map_dataset(
            config.source, config.out, step, settings, workers, lambda shard: progress.advance(task)
        )
    decision_counts = dict(Counter(final_decision(row).decision for row in current.values()))
    agreements = reviewer_agreement(current)
    lines = [", ".join(f"{name} {count:,}" for name, count in sorted(decision_counts.items()))]
    if stale:
        lines.append(f"{stale:,} decisions not applied: their samples are missing or have changed since the review")
    extra = {"decided": decision_counts, "stale": stale, "agreement": agreements}
    print_summary(config.out, data, is_new, config.execution.json, extra, [*lines, *format_agreement(agreements)])


def count_stale(data: Dataset, current: CurrentDecisions) -> int:
    """The number of decided samples that the dataset does not contain, or contains with other fields."""
    sample_ids = {sample_id for sample_id, _ in current}
    existing = {
        (sample.sample_id, sample_hash(sample))
        for split in data.splits()
        for sample in data.stream(split)
        if sample.sample_id in sample_ids
    }
    return len(current.keys() - existing)


def hash_decisions(current: CurrentDecisions) -> str:
    rows = sorted((vars(decision) for by_reviewer in current.values() for decision in by_reviewer.values()), key=str)
    return hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()[:24]


def apply_decisions(step: ReviewStep, rows: list[tuple[str, Sample]]) -> Iterator[tuple[str, Sample] | RejectedRow]:
    """The step: samples with the reviewers' decisions applied."""
    for split, sample in rows:
        by_reviewer = step.decisions.get((sample.sample_id, sample_hash(sample)))
        if by_reviewer is None:
            yield reject(sample, "review: not reviewed") if step.reviewed_only else (split, sample)
            continue
        decision = final_decision(by_reviewer)
        reviewers = ", ".join(sorted(by_reviewer))
        if decision.decision == "reject":
            reason = f"review: {decision.reason or 'rejected'}"
            yield reject(sample, reason, reviewer=decision.reviewer, when=decision.when)
        elif decision.decision == "fix":
            texts = {field: text for field, text in (decision.texts or {}).items() if field in text_fields(sample)}
            yield split, add_check(with_texts(sample, texts), f"fixed by {decision.reviewer}, read by {reviewers}")
        else:
            yield split, add_check(sample, f"accepted by {reviewers}")


def add_check(sample: Sample, check: str) -> Sample:
    """The sample with one more entry in its `translation`, which records how its texts were made and checked."""
    translation = {name: value for name, value in (sample.translation or {}).items() if value}
    checks = "; ".join(filter(None, (translation.get("checks"), check)))
    return replace(sample, translation=translation | {"checks": checks})
