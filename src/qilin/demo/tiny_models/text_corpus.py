"""Training texts of the tiny language model: captions followed by questions with answers.

In: training samples; or a seed and a number, for texts about scenes that are never drawn (a scene takes microseconds,
its image milliseconds). A few thousand captions teach the language model too little (bench/results/drawn-trials.json).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qilin.dataset.schema import CAPTION_KINDS, Sample, text_of
from qilin.demo.synthetic.captions import write_caption
from qilin.demo.synthetic.questions import write_questions
from qilin.demo.synthetic.scene import KIND_CYCLE, sample_scene

EXTRA_SEED = 1_000_000  # separates these random numbers from those of the images
QUESTION_ROUNDS = 2  # how often questions are drawn for each extra text
NORMAL_SHARE = 0.15  # of the extra scenes have no finding; only the others teach sides, locations and sizes


@dataclass(frozen=True)
class TextExample:
    """A text and questions about it; each question attends to the text and to itself."""

    text: str
    questions: tuple[tuple[str, str], ...]  # (question as it follows the text, answer with its end-of-text token)


def to_example(text: str, questions: list[tuple[str, str]]) -> TextExample:
    """A text and its questions with answers in the format of the template v1."""
    return TextExample(f"<s>USER: {text}", tuple((f"\n{q} ASSISTANT:", f" {a}</s>") for q, a in questions))


def training_texts(samples: Sequence[Sample]) -> list[TextExample]:
    """Each image's caption followed by the image's questions, so that the model learns to answer from a text before it
    sees an image; questions about images without a caption come alone."""
    captions: dict[tuple[str, ...], list[str]] = {}
    questions: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for sample in samples:
        turns = [text_of(message) for message in sample.messages if message["role"] != "system"]
        if sample.kind in CAPTION_KINDS:
            captions.setdefault(sample.image_ids, []).append(turns[-1])
        else:
            questions.setdefault(sample.image_ids, []).extend(zip(turns[0::2], turns[1::2], strict=True))
    examples = []
    for image_ids in dict.fromkeys([*captions, *questions]):
        image_questions = questions.get(image_ids, [])
        texts = captions.get(image_ids, [""]) if image_ids else [""] * bool(image_questions)
        examples += [to_example(text, image_questions) for text in texts]
    return examples


def extra_texts(seed: int, number: int) -> list[TextExample]:
    """`number` captions of scenes that are never drawn, each with some sixteen questions."""
    rng = np.random.default_rng([seed, EXTRA_SEED])
    scenes = [sample_scene(rng, KIND_CYCLE[index % len(KIND_CYCLE)], NORMAL_SHARE) for index in range(number)]
    captions = [write_caption(rng, scene) for scene in scenes]
    questions: list[list[tuple[str, str]]] = [[] for _ in scenes]
    for _ in range(QUESTION_ROUNDS):
        for question in write_questions(rng, scenes, test=False):
            questions[question.image].append((question.question, question.answer))
    return [to_example(caption, pairs) for caption, pairs in zip(captions, questions, strict=True)]
