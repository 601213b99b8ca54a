"""The nearest-neighbour control: answer as the training question most alike did, about the image most alike.

In: training rows, items, and a way to make a vector of an image: the model's own features, or 16 x 16 grey values.
Out: item id -> answer. Questions are alike by the Jaccard index of their character pairs, images by the Euclidean
distance of their vectors.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qilin.dataset.reader import Dataset
from qilin.evaluate.controls.blind import Known
from qilin.evaluate.controls.training_set import Training
from qilin.evaluate.items import Item, write_jsonl
from qilin.evaluate.predict import progress, read_pass
from qilin.imaging.decode import to_rgb
from qilin.text.normalize import plain

THUMBNAIL = 16  # pixels a side
# Training images that are compared: more are drawn by lot. Half a GB of vectors at a width of 5,120.
MOST_IMAGES = 50_000
AT_ONCE = 32

Vector = NDArray[np.floating[Any]]
Look = Callable[[Sequence[Image.Image]], Vector]  # N images -> (N, D)


@dataclass
class Questions:
    """Training rows by their question; `alike` gives those of the most similar one."""

    rows: dict[str, list[Known]] = field(default_factory=lambda: defaultdict(list))
    pairs: dict[str, frozenset[str]] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)

    def learn(self, rows: Iterable[Known]) -> Questions:
        """Keep the training rows; returns itself."""
        for row in rows:
            self.rows[plain(row.question)].append(row)
        self.pairs = {question: _letter_pairs(question) for question in self.rows}
        return self

    def closest(self, question: str) -> str:
        """The training question most alike, in plain form; "" if nothing was learnt."""
        question = plain(question)
        if question in self.pairs or not self.pairs:
            return question if self.pairs else ""
        if question not in self.found:
            mine = _letter_pairs(question)
            self.found[question] = max(
                self.pairs, key=lambda q: len(mine & self.pairs[q]) / max(1, len(mine | self.pairs[q]))
            )
        return self.found[question]


def _letter_pairs(text: str) -> frozenset[str]:
    return frozenset(text[i : i + 2] for i in range(len(text) - 1)) or frozenset((text,))


def nearest_answers(
    questions: Questions, items: Sequence[Item], theirs: Mapping[str, Vector], ours: Mapping[str, Vector]
) -> dict[str, str]:
    """Item id -> the answer of the nearest training row. An item without an image, or whose question was asked of no
    image with a vector, takes the commonest answer to the question; "" if nothing was learnt."""
    place = {image_id: number for number, image_id in enumerate(theirs)}
    matrix = np.stack(list(theirs.values())) if theirs else np.zeros((0, 1), dtype=np.float16)  # (M, D)
    asked: dict[str, tuple[list[Known], NDArray[np.intp]]] = {}

    @lru_cache(maxsize=64)
    def distances(image_id: str) -> NDArray[np.float64]:
        return np.concatenate(
            [
                ((matrix[i : i + 4096].astype(np.float32) - ours[image_id].astype(np.float32)) ** 2).sum(axis=1)
                for i in range(0, len(matrix), 4096)
            ]
        )  # (M,)

    found = {}
    for item in items:
        question = questions.closest(item.question)
        rows = questions.rows.get(question, [])
        if question not in asked:
            seen = [row for row in rows if row.image_id in place]
            asked[question] = (seen, np.array([place[row.image_id] for row in seen], dtype=np.intp))
        seen, at = asked[question]
        if item.image_ids and seen:
            found[item.id] = seen[int(np.argmin(distances(item.image_ids[0])[at]))].answer
        else:
            found[item.id] = Counter(row.answer for row in rows).most_common(1)[0][0] if rows else ""
    return found


def images_to_compare(questions: Questions, items: Sequence[Item], seed: int) -> tuple[list[str], int]:
    """The training images that the closest questions are about, at most MOST_IMAGES by lot, and how many there
    were."""
    wanted = dict.fromkeys(questions.closest(item.question) for item in items if item.image_ids)
    ids = list(dict.fromkeys(row.image_id for q in wanted for row in questions.rows.get(q, ()) if row.image_id))
    if len(ids) <= MOST_IMAGES:
        return ids, len(ids)
    chosen = np.random.default_rng(seed).choice(len(ids), MOST_IMAGES, replace=False)
    return [ids[i] for i in sorted(chosen)], len(ids)


def vectors(data: Dataset, image_ids: Sequence[str], look: Look, tick: Callable[[], None]) -> dict[str, Vector]:
    """image_id -> its vector; `tick` is called for each image done."""
    found: dict[str, Vector] = {}
    for start in range(0, len(image_ids), AT_ONCE):
        some = image_ids[start : start + AT_ONCE]
        for image_id, vector in zip(some, look([to_rgb(data.image(i).bytes) for i in some]), strict=True):
            found[image_id] = vector
            tick()
    return found


def nearest_pass(
    path: Path, look: Callable[[], Look], training: Training, items: Sequence[Item], data: Dataset, seed: int
) -> dict[str, str]:
    """The control's answers, kept at `path`: a finished one is read again, and `look` is not called for."""
    kept = read_pass(path, {item.id for item in items})
    if len(kept) == len(items):
        return {item_id: said.prediction for item_id, said in kept.items()}
    answers = nearest_in(training, items, data, look, seed, path.stem)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, [{"id": i, "prediction": text, "confidence": None} for i, text in answers.items()])
    return answers


def nearest_in(
    training: Training, items: Sequence[Item], data: Dataset, look: Callable[[], Look], seed: int, name: str
) -> dict[str, str]:
    """Item id -> the answer of the nearest training row; `look` is called for where there are images to compare."""
    questions = Questions().learn(training.known)
    theirs, _ = images_to_compare(questions, items, seed)
    ours = list(dict.fromkeys(item.image_ids[0] for item in items if item.image_ids))
    if not (theirs and ours):
        return nearest_answers(questions, items, {}, {})
    made = look()
    with progress(name, len(theirs) + len(ours), 0, "pictures") as tick:
        seen = [vectors(training.data, theirs, made, tick), vectors(data, ours, made, tick)]
    return nearest_answers(questions, items, *seen)


def thumbnails(images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """(N, 256): images as grey values, 0 to 1."""
    small = [p.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR) for p in images]
    return np.stack([np.asarray(p, dtype=np.float32).ravel() / np.float32(255) for p in small])
