"""The rows of the dataset folders that a run trains on, and those it validates on.

In: the recipe. Out: a SourceRows per dataset folder and weight of its kinds. Held-out rows are separated by whole
images and groups (articles, patients): none of them occurs on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset, open_dataset, verify_files
from qilin.dataset.splits import SplitGroups, connecting_keys
from qilin.train.config import DataSource, TrainConfig

Purpose = Literal["training", "validation"]


@dataclass(frozen=True)
class SourceRows:
    """Rows of one split of a dataset folder that are used, with equal weights."""

    dataset: Dataset
    split: str
    rows: np.ndarray  # indices into the split
    weight: float = 1.0  # how often each row occurs per epoch


def open_sources(config: TrainConfig, purpose: Purpose) -> list[SourceRows]:
    """The rows to train on, or to validate on. Raises UserError where there are none."""
    validation = config.validate
    assert validation is not None or purpose == "training", "the recipe does not validate"
    if validation is not None and purpose == "validation" and isinstance(validation.split, str):
        return open_split(config, validation.split)
    sources = [rows for source in config.data for rows in open_source(config, source, source.split)]
    if validation is None or isinstance(validation.split, str):
        return sources
    masks = held_out_masks(sources, validation.split, config.seed)
    selected = [
        replace(source, rows=source.rows[mask == (purpose == "validation")])
        for source, mask in zip(sources, masks, strict=True)
    ]
    if not any(len(source.rows) for source in selected):
        total = sum(len(source.rows) for source in sources)
        action = "validate on" if purpose == "validation" else "train on"
        raise UserError(
            f"validate.split is {validation.split}, which leaves none of {total:,} samples to {action}, since whole "
            "images and groups (articles, patients) are held out; change the share, or name a split"
        )
    return selected


def verify_sources(config: TrainConfig) -> None:
    """Read every data file of the recipe and compare its sha256, whether or not it was verified before."""
    for source in config.data:
        verify_files(open_dataset(source.path), always=True)


def open_split(config: TrainConfig, split: str) -> list[SourceRows]:
    """A split of those datasets that have it, with the kinds of samples that are trained on."""
    sources = [source for source in config.data if split in open_dataset(source.path).splits()]
    if not sources:
        available = "; ".join(
            f"{source.path} has {', '.join(open_dataset(source.path).splits()) or 'none'}" for source in config.data
        )
        raise UserError(
            f"validate.split is {split!r}, so there is nothing to validate on: {available}; name one of these, or a "
            "share to hold out, such as validate.split=0.05"
        )
    return [rows for source in sources for rows in open_source(config, source, split)]


def open_source(config: TrainConfig, source: DataSource, split: str) -> list[SourceRows]:
    """The rows of a split that the recipe uses, one item for each weight among their kinds.

    Raises UserError for an unknown split or one without these kinds.
    """
    dataset = open_dataset(source.path)
    verify_files(dataset)
    if split not in dataset.splits():
        raise UserError(f"{source.path}: no split {split!r}; it has {', '.join(dataset.splits()) or 'none'}")
    kinds = source.kinds or config.kinds
    column = np.array(dataset.table(split).column("kind").to_pylist())
    rows = np.flatnonzero(np.isin(column, kinds)) if kinds else np.arange(len(column))
    if not len(rows):
        raise UserError(
            f"{source.path}: no samples of kind {', '.join(kinds)} in split {split}; it has "
            f"{', '.join(sorted(set(column)))}"
        )
    weights = np.array([getattr(config.kind_weights, kind) for kind in column[rows]])
    return [
        SourceRows(dataset, split, rows[weights == weight], weight * source.weight) for weight in np.unique(weights)
    ]


def held_out_masks(sources: Sequence[SourceRows], share: float, seed: int) -> list[np.ndarray]:
    """For each source a bool per row, True for held-out ones: about `share` of all samples, linked ones together."""
    links = SplitGroups()
    for number, source in enumerate(sources):
        table = source.dataset.table(source.split).take(source.rows)
        columns = (table.column(name).to_pylist() for name in ("image_ids", "group"))
        for row, (images, group) in enumerate(zip(*columns, strict=True)):
            links.add(connecting_keys(images, group, f"row {number} {row}"))
    mask = np.array(links.assign(validation=share, seed=seed)) == "validation"
    return np.split(mask, np.cumsum([len(source.rows) for source in sources])[:-1])
