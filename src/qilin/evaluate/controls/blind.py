"""What a score must beat without looking: the commonest answer, the mean image, a blank one, shuffled images.

In: training questions and answers, images. Out: answers, images, and derangements. The control that does look at
training images is in neighbours.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from qilin.text.normalize import plain

# Pixels a side of an image that shows nothing; the model scales it as any other.
SIDE = 336


@dataclass(frozen=True)
class Known:
    """One question of the training data with its answer and its first image ("" for none)."""

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


def blank_image() -> Image.Image:
    """A black image."""
    return Image.new("RGB", (SIDE, SIDE))


def mean_image(images: Iterable[Image.Image], side: int = SIDE) -> Image.Image | None:
    """The average of images, each stretched to side x side: an image that shows nothing. None if there are none."""
    total, count = np.zeros((side, side, 3), dtype=np.float64), 0
    for image in images:
        total += np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR), dtype=np.float64)
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
