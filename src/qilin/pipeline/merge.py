"""`qilin data merge`: several dataset folders as one, nothing divided that they share, contexts in a wanted share.

In: dataset folders. Out: one, whose sample ids begin with the folder each came from; an image that several hold stands
once, with all its origins. What shares an image or an article goes to one split: test before validation before train.
"""

import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.progress import ProgressBars
from qilin.dataset.hash_tables import FingerprintMapBuilder, fingerprint, open_fingerprint_map
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import CAPTION_KINDS, SPLITS, Sample, sample_row, text_of
from qilin.dataset.splits import SplitGroups
from qilin.pipeline.execution.dataset_map import write_dataset, step_settings, is_complete, shard_ranges, reject
from qilin.pipeline.execution.sharded_map import run_sharded
from qilin.pipeline.execution.workers import make_workers

SAMPLES_PER_SHARD = 2048


@config_class
class MergeConfig:
    """Which folders, and how much of their text may be contexts."""

    out: Path = option(help="the dataset folder to make; must be new or empty, or this work interrupted")
    sources: tuple[Path, ...] = option(default=(), help="the dataset folders, one or more")
    context: float | None = option(
        default=None,
        help="the share of contexts in the characters of captions, mentions, reports and contexts; what is too much of "
        "either is left out by a seeded draw (ChiMed-VL's paper: 0.726 of its tokens)",
    )
    seed: int = option(default=0, help="with --context: decides what is left out")
    workers: int = option(default=0, help="processes; 0 is one a core, 1 works in this one")
    cluster: str | None = option(default=None, help="a dask scheduler whose workers do it, such as tcp://10.0.0.1:8786")
    json: bool = option(default=False, help="print the summary as JSON")

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("no dataset folder is named; expected OUT SOURCE …")
        names = Counter(path.resolve().name for path in self.sources)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"two folders are called {twice[0]}; sample ids begin with that name: rename one")
        if self.context is not None and not 0 < self.context < 1:
            raise ValueError(f"context is {self.context:g}; expected a share between 0 and 1, such as 0.726")


def merge(given: MergeConfig) -> None:
    """Make the folder, or say that it is there."""
    sources = [open_dataset(path.resolve()) for path in given.sources]
    made_by = step_settings(sources, {"step": "merge", "context": given.context, "seed": given.seed})
    fresh = not is_complete(given.out, made_by)
    if fresh:
        folder = given.out.resolve().with_name(f".{given.out.name}.rules")
        pieces = [(str(data.path), *piece) for data in sources for piece in shard_ranges(data, SAMPLES_PER_SHARD)]
        with ProgressBars(transient=True) as progress:
            task = progress.add_task("merging", total=len(pieces))
            limits = limits_of(sources, given.context, given.seed)
            joined(sources).save(folder / "moved")
            work = partial(merged, folder, limits, given.seed)
            workers = make_workers(given.workers, given.cluster, most=len(pieces))
            run_sharded(work, pieces, folder / "pieces", made_by, workers, lambda number: progress.advance(task))
            write_dataset(sources, folder / "pieces", given.out, made_by)
        shutil.rmtree(folder)
    print_summary(given, open_dataset(given.out), fresh)


def joined(sources: Sequence[Dataset]) -> FingerprintMapBuilder:
    """The split of each sample that must leave its own, because of what it shares with others."""
    links, columns = SplitGroups(), ("sample_id", "image_ids", "group")

    def rows() -> Iterator[tuple[str, str, dict[str, Any]]]:
        for split in reversed(SPLITS):  # the split that is met first takes all
            for data in sources:
                for row in data.stream_rows(split, columns=columns):
                    yield split, f"{data.path.name}/{row['sample_id']}", row

    for split, name, row in rows():
        ties = [f"image {image_id}" for image_id in row["image_ids"]]
        ties += [f"group {row['group']}"] if row["group"] else []
        links.add(ties or [f"sample {name}"], split)
    moved = FingerprintMapBuilder()
    for (split, name, _), new in zip(rows(), links.assign(), strict=True):
        if new != split:
            moved.add(name, new)
    return moved


def limits_of(sources: Sequence[Dataset], context: float | None, seed: int) -> dict[bool, int]:
    """{whether it is a context: the largest draw that stays}, so that contexts make the wanted share of the characters.

    What there is too much of is taken in the order of its draws until its share is full: 16 bytes a sample.
    Raises UserError where there is no text of either side.
    """
    if context is None:
        return {}
    draws, lengths = {True: array("Q"), False: array("Q")}, {True: array("L"), False: array("L")}
    for data in sources:
        for split in data.splits():
            for row in data.stream_rows(split, columns=("sample_id", "kind", "messages")):
                if row["kind"] in CAPTION_KINDS:
                    draws[row["kind"] == "context"].append(draw(f"{data.path.name}/{row['sample_id']}", seed))
                    lengths[row["kind"] == "context"].append(told(row["messages"]))
    total = {side: sum(found) for side, found in lengths.items()}
    if not all(total.values()):
        missing = "contexts" if not total[True] else "captions or mentions"
        raise UserError(f"--context {context:g}: there are no {missing} to mix")
    wanted = {True: total[False] * context / (1 - context), False: total[True] * (1 - context) / context}
    limits = {}
    for side in (True, False):
        order = np.argsort(np.array(draws[side], dtype=np.uint64))
        full = np.cumsum(np.array(lengths[side], dtype=np.int64)[order])
        kept = int(np.searchsorted(full, wanted[side], side="right"))
        limits[side] = int(np.array(draws[side], dtype=np.uint64)[order[max(kept, 1) - 1]])
    return limits


def draw(name: str, seed: int) -> int:
    return fingerprint(f"{seed} {name}")


def told(messages: Sequence[Any]) -> int:
    """Characters of what the assistant says."""
    return sum(len(part["text"] or "") for m in messages if m["role"] == "assistant" for part in m["content"])


def merged(
    folder: Path, limits: dict[bool, int], seed: int, piece: tuple[str, str, int, int]
) -> Iterator[dict[str, Any] | RejectedRow]:
    """The step: samples of one folder under their new names, in their splits, less what is too much."""
    path, split, start, stop = piece
    data, moved = open_dataset(Path(path)), open_fingerprint_map(folder / "moved")
    for sample in data.stream(split, start, stop):
        name = f"{data.path.name}/{sample.sample_id}"
        made = replace(sample, sample_id=name)
        if left_out(made, limits, seed):
            yield reject(
                made, f"more {'contexts' if sample.kind == 'context' else 'captions and mentions'} than wanted"
            )
        else:
            yield {"split": moved.get(name) or split, "sample": sample_row(made)}


def left_out(sample: Sample, limits: dict[bool, int], seed: int) -> bool:
    if not limits or sample.kind not in CAPTION_KINDS:
        return False
    return draw(sample.sample_id, seed) > limits[sample.kind == "context"]


def print_summary(given: MergeConfig, made: Dataset, fresh: bool) -> None:
    """What came together."""
    counts = made.manifest["counts"]
    letters: Counter[bool] = Counter()
    for split in made.splits():
        for sample in made.stream(split):
            if sample.kind in CAPTION_KINDS:
                letters[sample.kind == "context"] += len(text_of(sample.messages[-1]))
    share = letters[True] / letters.total() if letters.total() else None
    if given.json:
        said = {"out": str(given.out), "made": fresh, "hash": made.hash, "context": share}
        print(json.dumps(said | counts, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    samples = ", ".join(f"{split} {count:,}" for split, count in counts["samples"].items())
    console.print(f"{'made' if fresh else 'already there:'} {given.out}: {counts['pictures']:,} images; {samples}")
    if share is not None:
        console.print(f"contexts make {share:.1%} of the characters of captions, mentions, reports and contexts")
    for reason, count in counts["dropped_reasons"].items():
        console.print(f"left out {count:,}: {reason}")
