"""What a score must beat: answers given without looking, or by looking at training pictures that resemble this one.

In: training questions, answers and pictures. Out: answers of the commonest-answer and nearest-neighbour controls, the
mean picture, and derangements for shuffled pictures.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qilin.evaluate.wording import plain

THUMBNAIL = 16  # pixels a side


@dataclass(frozen=True)
class Known:
    """One question of the training data with its answer and its first picture ("" for none)."""

    question: str
    answer: str
    question_type: str | None = None
    image_id: str = ""


@dataclass
class CommonestAnswer:
    """The commonest training answer to the same question; for an unknown one, to its question type, then of all."""

    by_question: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    by_type: dict[str | None, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def learn(self, rows: Iterable[Known]) -> CommonestAnswer:
        """Count the training answers; returns itself."""
        for row in rows:
            self.by_question[plain(row.question)][row.answer] += 1
            self.by_type[row.question_type][row.answer] += 1
        return self

    def knows(self, question: str) -> bool:
        """Whether the question was asked in training, word for word after normalisation."""
        return plain(question) in self.by_question

    def answer(self, question: str, question_type: str | None = None) -> str:
        """The commonest answer; ties go to the one met first. "" if nothing was learnt."""
        counts = self.by_question.get(plain(question)) or self.by_type.get(question_type)
        counts = counts or sum(self.by_type.values(), Counter())
        return counts.most_common(1)[0][0] if counts else ""


@dataclass
class NearestNeighbour:
    """The answer of the training row with the most similar question and, among those, the most similar thumbnail.

    Question similarity is the Jaccard index of character pairs; pictures are compared by Euclidean distance of
    16 x 16 grey thumbnails (values 0 to 1). A question without picture takes the commonest answer of its best question.
    """

    rows: dict[str, list[Known]] = field(default_factory=lambda: defaultdict(list))
    pairs: dict[str, frozenset[str]] = field(default_factory=dict)
    thumbnails: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)

    def learn(self, rows: Iterable[Known], thumbnails: Mapping[str, NDArray[np.float32]]) -> NearestNeighbour:
        """Keep the training rows and the thumbnails of their pictures (image_id -> (256,)); returns itself."""
        for row in rows:
            self.rows[plain(row.question)].append(row)
        self.pairs = {question: _letter_pairs(question) for question in self.rows}
        self.thumbnails = thumbnails
        return self

    def answer(self, question: str, thumbnail: NDArray[np.float32] | None) -> str:
        """The neighbour's answer; "" if nothing was learnt."""
        if not self.rows:
            return ""
        rows = self.rows[self._closest_question(plain(question))]
        with_picture = [row for row in rows if row.image_id in self.thumbnails]
        if thumbnail is None or not with_picture:
            return Counter(row.answer for row in rows).most_common(1)[0][0]
        theirs = np.stack([self.thumbnails[row.image_id] for row in with_picture])  # (rows, 256)
        return with_picture[int(np.argmin(((theirs - thumbnail) ** 2).sum(axis=1)))].answer

    def _closest_question(self, question: str) -> str:
        if question in self.pairs:
            return question
        if question not in self.found:
            mine = _letter_pairs(question)
            self.found[question] = max(
                self.pairs, key=lambda q: len(mine & self.pairs[q]) / max(1, len(mine | self.pairs[q]))
            )
        return self.found[question]


def _letter_pairs(text: str) -> frozenset[str]:
    return frozenset(text[i : i + 2] for i in range(len(text) - 1)) or frozenset((text,))


def thumbnail(picture: Image.Image) -> NDArray[np.float32]:
    """A picture as 256 grey values, 0 to 1."""
    small = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32).ravel() / np.float32(255)


def mean_picture(pictures: Iterable[Image.Image], side: int = 336) -> Image.Image | None:
    """The average of pictures, each stretched to side x side: a picture that shows nothing. None if there are none."""
    total, count = np.zeros((side, side, 3), dtype=np.float64), 0
    for picture in pictures:
        total += np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR), dtype=np.float64)
        count += 1
    return Image.fromarray((total / count).round().astype(np.uint8)) if count else None


def derangements(items: Sequence[str], count: int, seed: int) -> list[dict[str, str]]:
    """`count` seeded maps that send every item to another one; [] where there are fewer than two items."""
    distinct = sorted(set(items))
    if len(distinct) < 2:
        return []
    rng = np.random.default_rng(seed)
    maps = []
    for _ in range(count):
        order = rng.permutation(len(distinct))
        # Each item goes to its successor in a random cycle: no item can stay where it is.
        maps.append({distinct[order[i]]: distinct[order[(i + 1) % len(order)]] for i in range(len(order))})
    return maps
