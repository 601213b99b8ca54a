"""`qilin data apply-review`: the decisions of a review applied to the dataset that was reviewed.

In: a dataset folder and its decisions. Out: a dataset folder in which rejected samples are refused with the reviewer's
reason, fixed ones have their new texts, and both fixed and accepted ones say who read them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.progress import ProgressBars
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.sample_texts import text_fields, with_texts
from qilin.dataset.schema import Sample
from qilin.pipeline.execution.dataset_map import SAMPLES_PER_SHARD, RejectedRow, map_dataset, shard_ranges, reject
from qilin.pipeline.execution.workers import make_workers
from qilin.pipeline.review.decisions import Latest, agreement, decisions_path, sample_hash, latest, read_decisions, verdict


@config_class
class ApplyConfig:
    """Whose decisions, on which dataset."""

    source: Path = option(help="the dataset folder that was reviewed")
    out: Path = option(help="the dataset folder to make; must be new or empty, or this work interrupted")
    decisions: Path | None = option(default=None, help="the file of decisions (default: SOURCE.decisions.jsonl)")
    only_read: bool = option(default=False, help="keep only what somebody accepted or fixed")
    workers: int = option(default=0, help="processes; 0 is one a core, 1 works in this one")
    cluster: str | None = option(default=None, help="a dask scheduler whose workers do it, such as tcp://10.0.0.1:8786")
    json: bool = option(default=False, help="print the summary as JSON")


@dataclass(frozen=True)
class Work:
    held: Latest
    only_read: bool


def apply(given: ApplyConfig) -> None:
    """Make the folder, or say that it is there. Raises UserError where there is nothing to apply."""
    path = given.decisions or decisions_path(given.source)
    held = latest(read_decisions(path))
    if not held:
        raise UserError(f"{path}: no decisions; make some with `qilin data review {given.source}`")
    data = open_dataset(given.source)
    stale = stale_rows(data, held)
    if stale == len(held):
        raise UserError(f"{path}: its {stale:,} decisions are about other rows than those of {given.source}")
    step = partial(applied, Work(held, given.only_read))
    words = json.dumps(sorted((made.__dict__ for own in held.values() for made in own.values()), key=str), default=str)
    made_by = {
        "step": "apply",
        "decisions": hashlib.sha256(words.encode()).hexdigest()[:24],
        "only_read": given.only_read,
    }
    with ProgressBars(transient=True) as progress:
        pieces = len(shard_ranges(data, SAMPLES_PER_SHARD))
        task = progress.add_task("applying", total=pieces)
        workers = make_workers(given.workers, given.cluster, max_workers=pieces)
        made, fresh = map_dataset(
            given.source, given.out, step, made_by, workers, lambda number: progress.advance(task)
        )
    tell(given, made, fresh, held, stale)


def stale_rows(data: Dataset, held: Latest) -> int:
    """How many decided rows the dataset has no more, or not any more as they were seen."""
    wanted = {sample_id for sample_id, _ in held}
    seen = {
        (sample.sample_id, sample_hash(sample))
        for split in data.splits()
        for sample in data.stream(split)
        if sample.sample_id in wanted
    }
    return len(held.keys() - seen)


def applied(work: Work, rows: list[tuple[str, Sample]]) -> Iterator[tuple[str, Sample] | RejectedRow]:
    """The step: samples as the reviewers want them."""
    for split, sample in rows:
        own = work.held.get((sample.sample_id, sample_hash(sample)))
        if own is None:
            yield reject(sample, "review: nobody read it") if work.only_read else (split, sample)
            continue
        said = verdict(own)
        readers = ", ".join(sorted(own))
        if said.decision == "reject":
            yield reject(sample, f"review: {said.reason or 'rejected'}", reviewer=said.reviewer, when=said.when)
        elif said.decision == "fix":
            texts = {place: text for place, text in (said.texts or {}).items() if place in text_fields(sample)}
            yield split, marked(with_texts(sample, texts), f"fixed by {said.reviewer}, read by {readers}")
        else:
            yield split, marked(sample, f"accepted by {readers}")


def marked(sample: Sample, word: str) -> Sample:
    """The sample, saying in its `translation` (how its words were made and checked) who read it."""
    how = {name: value for name, value in (sample.translation or {}).items() if value}
    return replace(sample, translation=how | {"checks": "; ".join(filter(None, (how.get("checks"), word)))})


def tell(given: ApplyConfig, made: Dataset, fresh: bool, held: Latest, stale: int) -> None:
    """What was decided and what came of it."""
    counts = made.manifest["counts"]
    kinds = Counter(verdict(own).decision for own in held.values())
    agreed = agreement(held)
    if given.json:
        said: dict[str, Any] = {"out": str(given.out), "made": fresh, "decided": dict(kinds), "stale": stale}
        print(json.dumps(said | {"agreement": agreed} | counts, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{'made' if fresh else 'already there:'} {given.out}: {sum(counts['samples'].values()):,} samples")
    console.print(", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items())))
    if stale:
        console.print(f"{stale:,} decisions are about rows that are not there as they were seen; not applied")
    for line in in_words(agreed):
        console.print(line)


def in_words(agreed: list[dict[str, Any]]) -> list[str]:
    """The agreement of reviewers, a line for each two."""
    return [
        f"{' and '.join(pair['reviewers'])}: {pair['same']:.0%} of {pair['rows']:,} rows alike"
        + (f", kappa {pair['kappa']:.2f}" if pair["kappa"] is not None else "")
        for pair in agreed
    ]
