"""Texts about images that are never drawn: a truth costs microseconds, its image milliseconds.

In: a seed and a number. Out: readings (a caption with its questions) for the small language model, which has far more
to learn of words than some thousand images' captions tell it (bench/results/drawn-trials.json).
"""

from dataclasses import dataclass

import numpy as np

from qilin.demo.synthetic.captions import write_caption
from qilin.demo.synthetic.questions import write_questions
from qilin.demo.synthetic.scene import TURNS, sample_truth

UNDRAWN = 1_000_000  # keeps these truths' random numbers apart from those of the images
ROUNDS = 2  # how often questions are chosen about each text
NORMAL = 0.15  # share of truths without a finding: sides, places and sizes are learnt from the others alone


@dataclass(frozen=True)
class Reading:
    """A text to read and what is asked about it; each question sees the text and itself."""

    text: str
    asked: tuple[tuple[str, str], ...]  # (question as it follows the text, answer with its end mark)


def as_read(text: str, asked: list[tuple[str, str]]) -> Reading:
    """A text and its questions with answers, as the template v1 writes them."""
    return Reading(f"<s>USER: {text}", tuple((f"\n{q} ASSISTANT:", f" {a}</s>") for q, a in asked))


def undrawn_texts(seed: int, number: int) -> list[Reading]:
    """`number` captions with some sixteen questions each, worded as training images' are."""
    rng = np.random.default_rng([seed, UNDRAWN])
    truths = [sample_truth(rng, TURNS[index % len(TURNS)], NORMAL) for index in range(number)]
    captions = [write_caption(rng, truth) for truth in truths]
    asked: list[list[tuple[str, str]]] = [[] for _ in truths]
    for _ in range(ROUNDS):
        for question in write_questions(rng, truths, test=False):
            asked[question.image].append((question.question, question.answer))
    return [as_read(caption, mine) for caption, mine in zip(captions, asked, strict=True)]
