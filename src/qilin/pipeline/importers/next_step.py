"""The last line of an import: a command that works for the dataset as it is.

In: the dataset and its folder. Out: one line. What `qilin demo` needs of a dataset is asked of the dataset itself.
"""

import shlex
from pathlib import Path

from qilin.dataset.reader import Dataset


def next_step(dataset: Dataset, out: Path) -> str:
    """What to do with the dataset next, by its splits and by which of them have images."""
    folder, splits = shlex.quote(str(out)), dataset.splits()
    if "train" not in splits:
        return (
            f"next: qilin evaluate MODEL {folder} --split {splits[-1]} --out evaluation, with a model folder or hub id"
        )
    with_images = dataset.splits_with_images()
    look = f"next: qilin data stats {folder} (counts and lengths)"
    if not with_images:
        return (
            f"{look}; in training it is listed beside a dataset with images, data=[IMAGES,{folder}] (docs/training.md)"
        )
    if "train" not in dataset.splits_with_images(single=True):
        return f"{look}; then qilin train with models of your choice (docs/training.md)"
    if len(with_images) < 2:
        share = dataset.suggested_share()
        return f"{look}; `qilin demo` needs images to test on: import it again with --validation {share}"
    return f"next: qilin demo --data {folder}"
