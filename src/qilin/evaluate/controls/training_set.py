"""What a model could have seen: training questions, answers and images, for controls and for honest subsets.

In: the dataset folder a model learnt from. Out: a Training row, the commonest answers, the mean image,
and what of a split is near a training image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qilin.dataset.contamination import match_images
from qilin.dataset.reader import Dataset
from qilin.evaluate.controls.blind import CommonestAnswer, Known, mean_image
from qilin.evaluate.items import Item, items_of
from qilin.evaluate.predict import image_of

# The mean image is an average: more images than this change it by less than a grey level.
IMAGES_IN_MEAN = 512


@dataclass(frozen=True)
class Training:
    """The training split of a dataset: questions with answers, and the images they are about."""

    data: Dataset
    known: Sequence[Known]
    image_ids: Sequence[str]  # in order of first use


def read_training(data: Dataset, caption_prompt: str) -> Training | None:
    """The `train` split of a dataset folder; None where it has none."""
    if "train" not in data.splits():
        return None
    known: list[Known] = []
    image_ids: dict[str, None] = {}
    for item in items_of(data.samples("train"), caption_prompt):
        known.append(
            Known(item.question, item.reference, item.question_type, item.image_ids[0] if item.image_ids else "")
        )
        image_ids.update(dict.fromkeys(item.image_ids))
    return Training(data, known, list(image_ids))


def commonest_answers(training: Training, items: Sequence[Item]) -> tuple[dict[str, str], dict[str, bool]]:
    """Item id -> the commonest training answer, and item id -> whether its question was asked in training."""
    control = CommonestAnswer().learn(training.known)
    answers = {item.id: control.answer(item.question, item.question_type) for item in items}
    return answers, {item.id: control.knows(item.question) for item in items}


def average_image(training: Training, seed: int) -> Image.Image | None:
    """The mean of the training images, or of 512 of them drawn by seed; None if there are none."""
    ids = list(training.image_ids)
    if len(ids) > IMAGES_IN_MEAN:
        chosen = np.random.default_rng(seed).choice(len(ids), IMAGES_IN_MEAN, replace=False)
        ids = [ids[i] for i in sorted(chosen)]
    image = image_of(training.data)
    return mean_image(image(image_id) for image_id in ids)


def phashes(data: Dataset) -> dict[str, str]:
    """image_id -> perceptual hash of every image in a dataset folder."""
    table = data.image_table(("image_id", "phash"))
    return dict(zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True))


def near_training(training: Training, items: Sequence[Item], ours: Mapping[str, str]) -> dict[str, bool]:
    """Item id -> whether one of its images, or a near-duplicate of one, was in training."""
    theirs = phashes(training.data)
    ids = {image_id for item in items for image_id in item.image_ids}
    near = match_images({i: ours[i] for i in ids}, {i: theirs[i] for i in training.image_ids})
    return {item.id: any(image_id in near for image_id in item.image_ids) for item in items}
