"""The questions to answer: one Item per assistant turn of a dataset's samples.

In: samples, and the prompt for captions that have no question of their own. Out: Items, each with the conversation up
to its question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qilin.dataset.schema import CAPTION_KINDS, Sample, count_images, text_of
from qilin.evaluate.results import Prediction

Messages = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Item:
    """One question to answer: the messages up to a user turn, and the dataset's answer to it."""

    id: str
    kind: str
    messages: Messages  # ends with the user turn
    question: str
    reference: str
    image_ids: tuple[str, ...]
    answer_type: str | None
    choices: tuple[str, ...]
    question_type: str | None
    group: str

    @property
    def is_caption(self) -> bool:
        """Whether the answer is scored as a caption."""
        return self.kind in CAPTION_KINDS

    def to_prediction(self, answer_text: str, confidence: float | None) -> Prediction:
        """A row of predictions.jsonl."""
        return Prediction(
            id=self.id,
            question=self.question,
            reference=self.reference,
            prediction=answer_text,
            answer_type=self.answer_type,
            choices=self.choices,
            image_ids=self.image_ids,
            question_type=self.question_type,
            confidence=confidence,
            kind=self.kind,
            group=self.group,
        )


# The controls read id, question, reference, image_ids and question_type, which both have.
ItemLike = Item | Prediction


def iter_items(samples: Iterable[Sample], caption_prompt: str) -> Iterator[Item]:
    """Yields every assistant turn of every sample, with the dataset's own earlier turns as history.

    Turn k > 0 of a chat has the id `sample_id#k`. A caption without a question gets `caption_prompt`.
    """
    for sample in samples:
        turn = 0
        for index, message in enumerate(sample.messages):
            if message["role"] != "assistant":
                continue
            history = add_caption_prompt(sample.messages[:index], caption_prompt)
            yield Item(
                id=sample.sample_id if turn == 0 else f"{sample.sample_id}#{turn}",
                kind=sample.kind,
                messages=history,
                question=text_of(history[-1]),
                reference=text_of(message),
                image_ids=sample.image_ids[: count_images(history)],
                answer_type=sample.answer_type,
                choices=sample.choices,
                question_type=sample.question_type,
                group=sample.group,
            )
            turn += 1


def add_caption_prompt(messages: Messages, prompt: str) -> Messages:
    """Adds the prompt to a last user turn that holds only images; other messages are returned unchanged."""
    return messages if text_of(messages[-1]).strip() else append_text(messages, prompt)


def append_text(messages: Messages, text: str) -> Messages:
    """The messages with a text part appended to the last one."""
    last = messages[-1]
    return (*messages[:-1], {**last, "content": [*last["content"], {"type": "text", "text": text}]})
