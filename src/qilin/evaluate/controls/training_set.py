"""The training data of a model, for the controls and for the subsets without overlap.

In: the dataset folder that the model was trained on. Out: its questions, answers and image ids; the most frequent
answers, the mean image, and the evaluated images that are also in the training data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qilin.dataset.near_duplicates import match_images
from qilin.dataset.reader import Dataset, verify_files
from qilin.evaluate.controls.blind import MostFrequentAnswer, TrainingAnswer, mean_image
from qilin.evaluate.items import ItemLike, iter_items
from qilin.evaluate.predict import image_loader

# More images than this change the mean image by less than one gray level.
IMAGES_IN_MEAN = 512


@dataclass(frozen=True)
class TrainingSet:
    """The training split of a dataset: questions with answers, and the images they refer to."""

    dataset: Dataset
    answers: Sequence[TrainingAnswer]
    image_ids: Sequence[str]  # in order of first use


def read_training_set(dataset: Dataset, caption_prompt: str) -> TrainingSet | None:
    """The `train` split of a dataset folder; None without one. Raises UserError for damaged files."""
    if "train" not in dataset.splits():
        return None
    verify_files(dataset)
    answers: list[TrainingAnswer] = []
    image_ids: dict[str, None] = {}
    for item in iter_items(dataset.samples("train"), caption_prompt):
        first_image = item.image_ids[0] if item.image_ids else ""
        answers.append(TrainingAnswer(item.question, item.reference, item.question_type, first_image))
        image_ids.update(dict.fromkeys(item.image_ids))
    return TrainingSet(dataset, answers, list(image_ids))


def most_frequent_answers(training: TrainingSet, items: Sequence[ItemLike]) -> tuple[dict[str, str], dict[str, bool]]:
    """Item id -> most frequent training answer, and item id -> whether its question occurs in the training data."""
    control = MostFrequentAnswer().fit(training.answers)
    answers = {item.id: control.answer(item.question, item.question_type) for item in items}
    return answers, {item.id: control.contains(item.question) for item in items}


def mean_training_image(training: TrainingSet, seed: int) -> Image.Image | None:
    """The mean of the training images, or of a random IMAGES_IN_MEAN of them; None without images."""
    image_ids = list(training.image_ids)
    if len(image_ids) > IMAGES_IN_MEAN:
        sample = np.random.default_rng(seed).choice(len(image_ids), IMAGES_IN_MEAN, replace=False)
        image_ids = [image_ids[i] for i in sorted(sample)]
    return mean_image(map(image_loader(training.dataset), image_ids))


def read_hashes(dataset: Dataset) -> dict[str, str]:
    """image_id -> perceptual hash of every image in a dataset folder."""
    table = dataset.image_table(("image_id", "phash"))
    return dict(zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True))


def match_training_images(training: TrainingSet, items: Sequence[ItemLike], dataset: Dataset) -> dict[str, str]:
    """Image id -> the same or a near-duplicate training image, for those of the items' images that have one.

    `dataset` holds the items' images.
    """
    image_ids = sorted({image_id for item in items for image_id in item.image_ids})
    return match_images(dataset, image_ids, training.dataset, training.image_ids)


def has_training_image(items: Sequence[ItemLike], matches: Mapping[str, str]) -> dict[str, bool]:
    """Item id -> whether one of its images is in `matches`, the result of match_training_images."""
    return {item.id: any(image_id in matches for image_id in item.image_ids) for item in items}
