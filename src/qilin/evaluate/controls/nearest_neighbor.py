"""The nearest-neighbor control: the answer of the most similar training question about the most similar image.

In: training answers, items, and a function that embeds images: the model's own features, or 16 x 16 gray thumbnails.
Out: item id -> answer. Question similarity is the Jaccard index of character bigrams; image distance is Euclidean.
M training vectors, N images, D features.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qilin.dataset.reader import Dataset
from qilin.evaluate.controls.blind import TrainingAnswer
from qilin.evaluate.controls.training_set import TrainingSet
from qilin.evaluate.items import ItemLike
from qilin.evaluate.predict import progress_bar, read_pass
from qilin.evaluate.results import write_jsonl
from qilin.imaging.decode import to_rgb
from qilin.text.normalize import normalize_text

THUMBNAIL_SIDE = 16  # pixels
# A random subset of the training images above this number: 0.5 GB of vectors at a width of 5,120.
MAX_TRAINING_IMAGES = 50_000
IMAGES_PER_BATCH = 32
VECTORS_PER_BLOCK = 4096

Vector = NDArray[np.floating[Any]]
EmbedFunction = Callable[[Sequence[Image.Image]], Vector]  # N images -> (N, D)


class QuestionIndex:
    """Training answers by normalized question, with a search for the most similar question."""

    def __init__(self, rows: Iterable[TrainingAnswer] = ()) -> None:
        self.rows: dict[str, list[TrainingAnswer]] = defaultdict(list)
        for row in rows:
            self.rows[normalize_text(row.question)].append(row)
        self._bigrams = {question: _bigrams(question) for question in self.rows}
        self._closest: dict[str, str] = {}

    def closest(self, question: str) -> str:
        """The most similar training question, normalized; "" without training answers."""
        question = normalize_text(question)
        if question in self._bigrams or not self._bigrams:
            return question if self._bigrams else ""
        if question not in self._closest:
            query = _bigrams(question)
            self._closest[question] = max(
                self._bigrams, key=lambda q: len(query & self._bigrams[q]) / max(1, len(query | self._bigrams[q]))
            )
        return self._closest[question]


def _bigrams(text: str) -> frozenset[str]:
    return frozenset(text[i : i + 2] for i in range(len(text) - 1)) or frozenset((text,))


def nearest_answers(
    index: QuestionIndex,
    items: Sequence[ItemLike],
    training_vectors: Mapping[str, Vector],
    item_vectors: Mapping[str, Vector],
) -> dict[str, str]:
    """Item id -> the answer of the nearest training row; both vector arguments map image ids to (D,).

    Without an image, or without a training image for the question: the most frequent answer to the question, or "".
    """
    row_of_image = {image_id: row for row, image_id in enumerate(training_vectors)}
    matrix = np.stack(list(training_vectors.values())) if training_vectors else np.zeros((0, 1), np.float16)  # (M, D)
    candidates: dict[str, tuple[list[TrainingAnswer], NDArray[np.intp]]] = {}  # question -> answers, matrix rows

    @lru_cache(maxsize=64)
    def distances(image_id: str) -> NDArray[np.float64]:
        query = item_vectors[image_id].astype(np.float32)
        blocks = (matrix[i : i + VECTORS_PER_BLOCK] for i in range(0, len(matrix), VECTORS_PER_BLOCK))
        return np.concatenate([((block.astype(np.float32) - query) ** 2).sum(axis=1) for block in blocks])  # (M,)

    answers = {}
    for item in items:
        question = index.closest(item.question)
        rows = index.rows.get(question, [])
        if question not in candidates:
            with_vector = [row for row in rows if row.image_id in row_of_image]
            matrix_rows = np.array([row_of_image[row.image_id] for row in with_vector], dtype=np.intp)
            candidates[question] = (with_vector, matrix_rows)
        with_vector, matrix_rows = candidates[question]
        if item.image_ids and item.image_ids[0] in item_vectors and with_vector:
            answers[item.id] = with_vector[int(np.argmin(distances(item.image_ids[0])[matrix_rows]))].answer
        else:
            answers[item.id] = Counter(row.answer for row in rows).most_common(1)[0][0] if rows else ""
    return answers


def images_to_compare(index: QuestionIndex, items: Sequence[ItemLike], seed: int) -> list[str]:
    """The training images of the closest questions; a random MAX_TRAINING_IMAGES of them if there are more."""
    questions = dict.fromkeys(index.closest(item.question) for item in items if item.image_ids)
    image_ids = list(
        dict.fromkeys(row.image_id for question in questions for row in index.rows.get(question, ()) if row.image_id)
    )
    if len(image_ids) <= MAX_TRAINING_IMAGES:
        return image_ids
    sample = np.random.default_rng(seed).choice(len(image_ids), MAX_TRAINING_IMAGES, replace=False)
    return [image_ids[i] for i in sorted(sample)]


def embed_images(
    dataset: Dataset, image_ids: Sequence[str], embed: EmbedFunction, advance: Callable[[], None]
) -> dict[str, Vector]:
    """image_id -> its vector (D,), without those that `embed` cannot compute (NaN); calls `advance` for each image."""
    vectors: dict[str, Vector] = {}
    for start in range(0, len(image_ids), IMAGES_PER_BATCH):
        batch = image_ids[start : start + IMAGES_PER_BATCH]
        for image_id, vector in zip(batch, embed([to_rgb(dataset.image(i).bytes) for i in batch]), strict=True):
            if not np.isnan(vector).any():
                vectors[image_id] = vector
            advance()
    return vectors


def nearest_neighbor_pass(
    path: Path, embed: EmbedFunction, training: TrainingSet, items: Sequence[ItemLike], dataset: Dataset, seed: int
) -> dict[str, str]:
    """The control's answers, stored at `path`; a complete file is read instead of computing them again."""
    stored = read_pass(path, {item.id for item in items})
    if len(stored) == len(items):
        return {item_id: answer.prediction for item_id, answer in stored.items()}
    answers = nearest_neighbor_answers(training, items, dataset, embed, seed, path.stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, [{"id": i, "prediction": text, "confidence": None} for i, text in answers.items()])
    return answers


def nearest_neighbor_answers(
    training: TrainingSet, items: Sequence[ItemLike], dataset: Dataset, embed: EmbedFunction, seed: int, name: str
) -> dict[str, str]:
    """Item id -> the answer of the nearest training row; `name` is the title of the progress bar."""
    index = QuestionIndex(training.answers)
    training_ids = images_to_compare(index, items, seed)
    item_ids = list(dict.fromkeys(item.image_ids[0] for item in items if item.image_ids))
    if not (training_ids and item_ids):
        return nearest_answers(index, items, {}, {})
    with progress_bar(f"images, {name.replace('_', ' ')}", len(training_ids) + len(item_ids)) as advance:
        training_vectors = embed_images(training.dataset, training_ids, embed, advance)
        return nearest_answers(index, items, training_vectors, embed_images(dataset, item_ids, embed, advance))


def embed_thumbnails(images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """(N, 256): gray thumbnails, values 0 to 1."""
    size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    small = [image.convert("L").resize(size, Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image, dtype=np.float32).ravel() / np.float32(255) for image in small])
