"""Controls that do not see the image: most frequent training answer, mean image, blank image, shuffled images.

In: training questions and answers; images. Out: answers, images, and derangements of image ids. The control that
compares images with training images is in nearest_neighbor.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from qilin.text.normalize import normalize_text

# Side in pixels of a control image; the model rescales it like any other.
SIDE = 336


@dataclass(frozen=True)
class TrainingAnswer:
    """One question of the training data with its answer and its first image ("" for none)."""

    question: str
    answer: str
    question_type: str | None = None
    image_id: str = ""


@dataclass
class MostFrequentAnswer:
    """The most frequent training answer to the same question; for a new question, to its question type, then of all."""

    by_question: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    by_type: dict[str | None, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def fit(self, rows: Iterable[TrainingAnswer]) -> MostFrequentAnswer:
        """Counts the training answers; returns itself."""
        for row in rows:
            self.by_question[normalize_text(row.question)][row.answer] += 1
            self.by_type[row.question_type][row.answer] += 1
        return self

    def contains(self, question: str) -> bool:
        """Whether the normalized question occurs in the training data."""
        return normalize_text(question) in self.by_question

    def answer(self, question: str, question_type: str | None = None) -> str:
        """The most frequent answer, the first one among equals; "" without training answers."""
        counts = self.by_question.get(normalize_text(question)) or self.by_type.get(question_type)
        counts = counts or sum(self.by_type.values(), Counter())
        return counts.most_common(1)[0][0] if counts else ""


def blank_image() -> Image.Image:
    """A black image."""
    return Image.new("RGB", (SIDE, SIDE))


def mean_image(images: Iterable[Image.Image], side: int = SIDE) -> Image.Image | None:
    """The pixel mean of images, each stretched to side x side; None without images."""
    total, count = np.zeros((side, side, 3), dtype=np.float64), 0
    for image in images:
        total += np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR), dtype=np.float64)
        count += 1
    return Image.fromarray((total / count).round().astype(np.uint8)) if count else None


def derangements(values: Sequence[str], count: int, seed: int) -> list[dict[str, str]]:
    """`count` seeded maps that send every value to another one; [] for fewer than two distinct values."""
    distinct = sorted(set(values))
    if len(distinct) < 2:
        return []
    rng = np.random.default_rng(seed)
    maps = []
    for _ in range(count):
        order = rng.permutation(len(distinct))
        # Each value goes to its successor in a random cycle, so no value maps to itself.
        maps.append({distinct[order[i]]: distinct[order[(i + 1) % len(order)]] for i in range(len(order))})
    return maps
