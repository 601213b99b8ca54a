"""Training texts of the tiny language model: captions followed by questions with answers.

In: training samples, those without an image as one text each; or a seed and a number, for texts about scenes that are
never drawn (a scene takes microseconds, its image milliseconds). A few thousand captions teach the language model too
little (bench/results/drawn-trials.json).
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from qilin.dataset.hash_tables import fingerprint
from qilin.dataset.schema import CAPTION_KINDS, Sample, text_of
from qilin.demo.synthetic.captions import write_caption
from qilin.demo.synthetic.questions import write_questions
from qilin.demo.synthetic.scene import KIND_CYCLE, sample_scene

EXTRA_SEED = 1_000_000  # separates these random numbers from those of the images
QUESTION_ROUNDS = 2  # how often questions are drawn for each extra text
MAX_TEXT_ONLY = 20_000  # samples without an image; more teach models of this size nothing and take hours
NORMAL_SHARE = 0.15  # of the extra scenes have no finding; only the others teach sides, locations and sizes


@dataclass(frozen=True)
class TextExample:
    """A text and questions about it; each question attends to the text and to itself."""

    text: str
    questions: tuple[tuple[str, str], ...]  # (question as it follows the text, answer with its end-of-text token)


def to_example(text: str, questions: list[tuple[str, str]]) -> TextExample:
    """A text and its questions with answers in the format of the template v1.

    The text ends with a line end, which is supervised: stage 1 (template plain) trains only the projector, so its model
    stops after a caption only if the language model has learned to end one.
    """
    if text:
        return TextExample(f"<s>USER: {text}\n", tuple((f"{q} ASSISTANT:", f" {a}</s>") for q, a in questions))
    return TextExample("<s>USER: ", tuple((f"\n{q} ASSISTANT:", f" {a}</s>") for q, a in questions))


def training_texts(samples: Iterable[Sample]) -> list[TextExample]:
    """Each image's caption followed by the image's questions, so that the model learns to answer from a text before it
    sees an image; questions about images without a caption come alone. A sample without an image is a text of its own;
    of more than MAX_TEXT_ONLY such samples, a fixed selection is used."""
    captions: dict[tuple[str, ...], list[str]] = {}
    questions: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    text_only: list[tuple[int, int, TextExample]] = []  # a heap of the smallest fingerprints, negated
    for number, sample in enumerate(samples):
        turns = [text_of(message) for message in sample.messages if message["role"] != "system"]
        if not sample.image_ids:
            example = to_example("", list(zip(turns[0::2], turns[1::2], strict=True)))
            item = (-fingerprint(sample.sample_id), number, example)
            heapq.heappush(text_only, item) if len(text_only) < MAX_TEXT_ONLY else heapq.heappushpop(text_only, item)
        elif sample.kind in CAPTION_KINDS:
            captions.setdefault(sample.image_ids, []).append(turns[-1])
        else:
            questions.setdefault(sample.image_ids, []).extend(zip(turns[0::2], turns[1::2], strict=True))
    examples = []
    for image_ids in dict.fromkeys([*captions, *questions]):
        image_questions = questions.get(image_ids, [])
        examples += [to_example(text, image_questions) for text in captions.get(image_ids, [""])]
    return examples + [example for _, _, example in sorted(text_only, key=lambda item: item[1])]


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
