"""Which rows of which dataset folders a run learns from, and which it only looks at (validation).

In: the recipe. Out: a Source a folder. What is put aside is put aside whole: no image and no group (article, patient)
is on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.splits import SplitGroups
from qilin.train.config import DataSource, TrainConfig

Part = Literal["training", "validation"]


@dataclass(frozen=True)
class Source:
    """One dataset folder's part in a run: which rows of its split are taken."""

    dataset: Dataset
    split: str
    rows: np.ndarray  # indices into the split


def open_sources(config: TrainConfig, part: Part) -> list[Source]:
    """What the recipe learns from, or what it validates on. Raises UserError where there is nothing."""
    held = config.validate
    if held is None or (part == "training" and isinstance(held.split, str)):
        assert part == "training", "asked only where the recipe validates"
        return [open_source(config, asked, asked.split) for asked in config.data]
    if isinstance(held.split, str):
        return of_split(config, held.split)
    whole = [open_source(config, asked, asked.split) for asked in config.data]
    aside = put_aside(whole, held.split, config.seed)
    wanted = part == "validation"
    found = [
        Source(source.dataset, source.split, source.rows[mine == wanted])
        for source, mine in zip(whole, aside, strict=True)
    ]
    if not any(len(source.rows) for source in found):
        total, what = sum(len(source.rows) for source in whole), "validate on" if wanted else "learn from"
        raise UserError(
            f"validate.split is {held.split}: nothing is left to {what}, since the {total:,} samples "
            "are put aside by whole images and groups (articles, patients); give another share, or name a split"
        )
    return found


def of_split(config: TrainConfig, split: str) -> list[Source]:
    """The split of those datasets that have it, with the kinds of samples that are learnt from."""
    having = [asked for asked in config.data if split in open_dataset(asked.path).splits()]
    if not having:
        there = "; ".join(
            f"{asked.path} has {', '.join(open_dataset(asked.path).splits()) or 'none'}" for asked in config.data
        )
        raise UserError(
            f"validate.split is {split!r}, so there is nothing to validate on: {there}; name one of these, "
            "or a share to put aside, such as validate.split=0.05"
        )
    return [open_source(config, asked, split) for asked in having]


def open_source(config: TrainConfig, asked: DataSource, split: str) -> Source:
    """A dataset folder and the rows of a split that the recipe takes from it."""
    dataset = open_dataset(asked.path)
    if split not in dataset.splits():
        raise UserError(f"{asked.path}: no split {split!r}; it has {', '.join(dataset.splits()) or 'none'}")
    kinds = asked.kinds or config.kinds
    column = np.array(dataset.table(split).column("kind").to_pylist())
    rows = np.flatnonzero(np.isin(column, kinds)) if kinds else np.arange(len(column))
    if not len(rows):
        raise UserError(
            f"{asked.path}: no samples of kind {', '.join(kinds)} in split {split}; it has "
            f"{', '.join(sorted(set(column)))}"
        )
    return Source(dataset, split, rows)


def put_aside(sources: Sequence[Source], share: float, seed: int) -> list[np.ndarray]:
    """For each source, which of its rows are put aside: about `share` of all samples, linked ones together."""
    links = SplitGroups()
    for number, source in enumerate(sources):
        table = source.dataset.table(source.split).take(source.rows)
        for row, (images, group) in enumerate(
            zip(table.column("image_ids").to_pylist(), table.column("group").to_pylist(), strict=True)
        ):
            names = [f"image {image}" for image in images] + ([f"group {group}"] if group else [])
            links.add(names or [f"row {number} {row}"])
    aside = np.array(links.assign(validation=share, seed=seed)) == "validation"
    return np.split(aside, np.cumsum([len(source.rows) for source in sources])[:-1])
