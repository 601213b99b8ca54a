"""`qilin data merge`: several dataset folders as one, with splits that stay disjoint and a chosen share of contexts.

In: dataset folders. Out: one folder, whose sample ids start with the name of the folder they are from; an image in
several folders is stored once with all its origins. Samples that share an image or an article go to one split: test
before validation before train.
"""

import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.progress import ProgressBars
from qilin.dataset.hash_tables import FingerprintMapBuilder, fingerprint, open_fingerprint_map
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.length_stats import message_length
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import CAPTION_KINDS, SPLITS, Sample, sample_row, text_of
from qilin.dataset.splits import SplitGroups, connecting_keys
from qilin.pipeline.execution.config import ExecutionConfig
from qilin.pipeline.execution.dataset_map import reject, shard_ranges, write_dataset
from qilin.pipeline.execution.sharded_map import run_sharded
from qilin.pipeline.execution.step_output import command_line, is_complete, print_summary, step_settings
from qilin.pipeline.execution.workers import make_workers

SAMPLES_PER_SHARD = 2048


@config_class
class MergeConfig:
    """Which folders, and how much of their text may be contexts."""

    out: Path = option(help="dataset folder to write; new or empty, or an interrupted run with the same options")
    sources: tuple[Path, ...] = option(help="dataset folders, at least one")
    context: float | None = option(
        default=None,
        help="share of contexts in the characters of all captions, mentions, reports and contexts; a seeded draw "
        "removes the surplus (the paper of ChiMed-VL: 0.726 of its tokens)",
    )
    seed: int = option(default=0, help="random seed of the draw, with --context")
    execution: ExecutionConfig = option(default=ExecutionConfig(), flatten=True)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("no dataset folder is named; expected OUT SOURCE …")
        names = Counter(path.resolve().name for path in self.sources)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"two folders are named {repeated[0]}; sample ids start with that name: rename one")
        if self.context is not None and not 0 < self.context < 1:
            raise ValueError(f"context is {self.context:g}; expected a share between 0 and 1, such as 0.726")


def merge(config: MergeConfig) -> None:
    """Write the merged folder unless it is complete already."""
    sources = [open_dataset(path.resolve()) for path in config.sources]
    command = command_line("data merge", config, ("out", "sources"))
    step = {"step": "merge", "command": command, "context": config.context, "seed": config.seed}
    settings = step_settings(sources, step)
    is_new = not is_complete(config.out, settings)
    if is_new:
        folder = config.out.resolve().with_name(f".{config.out.name}.rules")
        shards = [(str(data.path), *shard) for data in sources for shard in shard_ranges(data, SAMPLES_PER_SHARD)]
        with ProgressBars(transient=True) as progress:
            task = progress.add_task("merging", total=len(shards))
            max_draws = context_limits(sources, config.context, config.seed)
            find_moved_samples(sources).save(folder / "moved")
            workers = make_workers(config.execution.workers, config.execution.cluster, max_workers=len(shards))
            function = partial(merge_shard, folder, max_draws, config.seed)
            run_sharded(function, shards, folder / "shards", settings, workers, lambda number: progress.advance(task))
            write_dataset(sources, folder / "shards", config.out, settings)
        shutil.rmtree(folder)
    print_merged(config, open_dataset(config.out), is_new)


def find_moved_samples(sources: Sequence[Dataset]) -> FingerprintMapBuilder:
    """The new split of each sample that must leave its own because it shares an image or a group with another."""
    groups, columns = SplitGroups(), ("sample_id", "image_ids", "group")

    def rows() -> Iterator[tuple[str, str, dict[str, Any]]]:
        for split in reversed(SPLITS):  # a component takes the split of its first row
            for data in sources:
                for row in data.stream_rows(split, columns=columns):
                    yield split, f"{data.path.name}/{row['sample_id']}", row

    for split, sample_id, row in rows():
        groups.add(connecting_keys(row["image_ids"], row["group"], f"sample {sample_id}"), split)
    moved = FingerprintMapBuilder()
    for (split, sample_id, _), new_split in zip(rows(), groups.assign(), strict=True):
        if new_split != split:
            moved.add(sample_id, new_split)
    return moved


def context_limits(sources: Sequence[Dataset], context: float | None, seed: int) -> dict[bool, int]:
    """{is it a context: the largest draw that stays}, so that contexts make the wanted share of the characters.

    Each sample has a pseudorandom draw; the side with a surplus is filled in the order of its draws. 16 bytes of memory
    per sample. Raises UserError where there is no text on one of the sides.
    """
    if context is None:
        return {}
    draws, lengths = {True: array("Q"), False: array("Q")}, {True: array("L"), False: array("L")}
    for data in sources:
        for split in data.splits():
            for row in data.stream_rows(split, columns=("sample_id", "kind", "messages")):
                if row["kind"] in CAPTION_KINDS:
                    is_context = row["kind"] == "context"
                    draws[is_context].append(seeded_draw(f"{data.path.name}/{row['sample_id']}", seed))
                    length = sum(message_length(m) for m in row["messages"] if m["role"] == "assistant")
                    lengths[is_context].append(length)
    totals = {is_context: sum(values) for is_context, values in lengths.items()}
    if not all(totals.values()):
        missing = "contexts" if not totals[True] else "captions or mentions"
        raise UserError(f"--context {context:g}: there are no {missing} to mix")
    targets = {True: totals[False] * context / (1 - context), False: totals[True] * (1 - context) / context}
    limits = {}
    for is_context in (True, False):
        order = np.argsort(np.array(draws[is_context], dtype=np.uint64))
        cumulative = np.cumsum(np.array(lengths[is_context], dtype=np.int64)[order])
        count = int(np.searchsorted(cumulative, targets[is_context], side="right"))
        limits[is_context] = int(np.array(draws[is_context], dtype=np.uint64)[order[max(count, 1) - 1]])
    return limits


def seeded_draw(sample_id: str, seed: int) -> int:
    return fingerprint(f"{seed} {sample_id}")


def merge_shard(
    folder: Path, max_draws: dict[bool, int], seed: int, shard: tuple[str, str, int, int]
) -> Iterator[dict[str, Any] | RejectedRow]:
    """Samples of one folder under their new ids and in their new splits, without the surplus."""
    path, split, start, stop = shard
    data, moved = open_dataset(Path(path)), open_fingerprint_map(folder / "moved")
    for sample in data.stream(split, start, stop):
        renamed = replace(sample, sample_id=f"{data.path.name}/{sample.sample_id}")
        if is_surplus(renamed, max_draws, seed):
            surplus = "contexts" if sample.kind == "context" else "captions and mentions"
            yield reject(renamed, f"more {surplus} than wanted")
        else:
            yield {"split": moved.get(renamed.sample_id) or split, "sample": sample_row(renamed)}


def is_surplus(sample: Sample, max_draws: dict[bool, int], seed: int) -> bool:
    if not max_draws or sample.kind not in CAPTION_KINDS:
        return False
    return seeded_draw(sample.sample_id, seed) > max_draws[sample.kind == "context"]


def print_merged(config: MergeConfig, data: Dataset, is_new: bool) -> None:
    """Print what was merged and the share of contexts."""
    characters: Counter[bool] = Counter()
    for split in data.splits():
        for sample in data.stream(split):
            if sample.kind in CAPTION_KINDS:
                characters[sample.kind == "context"] += len(text_of(sample.messages[-1]))
    share = characters[True] / characters.total() if characters.total() else None
    lines = [f"contexts make {share:.1%} of the characters of all captions and contexts"] if share else []
    print_summary(config.out, data, is_new, config.execution.json, {"context": share}, lines)
