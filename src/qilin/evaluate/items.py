"""The rows of predictions.jsonl: made from a dataset's samples, read from any system's file.

In: samples, or a JSONL file. Out: Items to answer (one an assistant turn, history given) and rows to score.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import write_atomic
from qilin.dataset.schema import CAPTION_KINDS, Sample, count_images, text_of
from qilin.text.normalize import normalise, plain
from qilin.text.yes_no import asks_yes_no, word_polarity

ANSWER_TYPES = ("open", "closed", "choice")


@dataclass(frozen=True)
class Item:
    """One thing to answer: the messages up to a user's turn, and what the assistant says next in the data."""

    id: str
    kind: str
    messages: tuple[Mapping[str, Any], ...]  # ends with the user's turn
    question: str
    reference: str
    image_ids: tuple[str, ...]
    answer_type: str | None
    choices: tuple[str, ...]
    question_type: str | None
    group: str


def items_of(samples: Iterable[Sample], caption_prompt: str) -> Iterator[Item]:
    """Every assistant turn of every sample, earlier turns as the data has them; turn k > 0 of a chat is named id#k.

    A caption without a question is asked for with `caption_prompt`.
    """
    for sample in samples:
        turn = 0
        for place, message in enumerate(sample.messages):
            if message["role"] != "assistant":
                continue
            before = with_question(sample.messages[:place], caption_prompt)
            yield Item(
                id=sample.sample_id if turn == 0 else f"{sample.sample_id}#{turn}",
                kind=sample.kind,
                messages=before,
                question=text_of(before[-1]),
                reference=text_of(message),
                image_ids=sample.image_ids[: count_images(before)],
                answer_type=sample.answer_type,
                choices=sample.choices,
                question_type=sample.question_type,
                group=sample.group,
            )
            turn += 1


def with_question(messages: tuple[Mapping[str, Any], ...], prompt: str) -> tuple[Mapping[str, Any], ...]:
    """The messages, with the prompt put into a last user turn that holds only images."""
    last = messages[-1]
    if text_of(last).strip():
        return messages
    return (*messages[:-1], {**last, "content": [*last["content"], {"type": "text", "text": prompt}]})


def prediction_row(item: Item, prediction: str, confidence: float | None) -> dict[str, Any]:
    """A row of predictions.jsonl."""
    return {
        "id": item.id,
        "question": item.question,
        "reference": item.reference,
        "prediction": prediction,
        "answer_type": item.answer_type,
        "choices": list(item.choices),
        "image_ids": list(item.image_ids),
        "question_type": item.question_type,
        "confidence": confidence,
        "kind": item.kind,
        "group": item.group,
    }


def item_of_row(row: Mapping[str, Any]) -> Item:
    """A row of predictions.jsonl as the Item it answered, without its messages: enough to look it up in training."""
    return Item(
        id=row["id"],
        kind=row.get("kind") or "vqa",
        messages=(),
        question=row["question"],
        reference=row["reference"],
        image_ids=tuple(row.get("image_ids") or ()),
        answer_type=row.get("answer_type"),
        choices=tuple(row.get("choices") or ()),
        question_type=row.get("question_type"),
        group=row.get("group") or "",
    )


def is_caption(row: Mapping[str, Any]) -> bool:
    """Whether a row is scored as a caption: by its kind; without one, by an answer_type that is there and null."""
    kind = row.get("kind")
    if kind is not None:
        return kind in CAPTION_KINDS
    return "answer_type" in row and row["answer_type"] is None


def is_closed(row: Mapping[str, Any]) -> bool:
    """Whether a question counts as closed (choice does); where the row does not say, by question and reference."""
    if row.get("answer_type") is not None:
        return row["answer_type"] in ("closed", "choice")
    question, reference = plain(row["question"]), normalise(row["reference"])
    return bool(row.get("choices")) or (asks_yes_no(question) and word_polarity(reference) is not None)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Prediction rows from JSONL. Raises UserError with file, line and field for anything that is not one."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected JSONL rows with id, question, reference, prediction")
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    with path.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = check_row(line, f"{path}, line {number}")
                    if row["id"] in seen:
                        raise UserError(f"{path}, line {number}: id {row['id']} was used on line {seen[row['id']]}")
                    seen[row["id"]] = number
                    rows.append(row)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
    if not rows:
        raise UserError(f"{path}: no rows; expected JSONL rows with id, question, reference, prediction")
    return rows


def check_row(line: str, where: str) -> dict[str, Any]:
    """One line -> a row whose fields have the types that scoring needs."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with id, question, reference, prediction; found {line[:40]!r}")
    for name in ("id", "question", "reference", "prediction"):
        if name not in row:
            raise UserError(f"{where}: field {name} is missing; it has {', '.join(map(str, row)) or 'none'}")
    # Names and answers repeat from row to row: one copy of each keeps a hundred thousand rows small.
    row = {intern(name): intern(value) if isinstance(value, str) else value for name, value in row.items()}
    row["id"] = str(row["id"])
    # A number as an answer (2) is as good as its text; nothing else is taken for one.
    for name in ("question", "reference", "prediction"):
        if isinstance(row[name], int | float) and not isinstance(row[name], bool):
            row[name] = str(row[name])
        if row[name] is None and name == "prediction":
            row[name] = ""  # a system that gave no answer: unparsable, not absent
        if not isinstance(row[name], str):
            raise UserError(f"{where}: {name} is {row[name]!r}; expected a text")
    if not row["reference"].strip():
        raise UserError(f"{where}: reference is empty; there is nothing to score against")
    if row.get("answer_type") is not None and row["answer_type"] not in ANSWER_TYPES:
        raise UserError(f"{where}: answer_type is {row['answer_type']!r}; expected open, closed, choice or null")
    for name in ("choices", "image_ids"):
        value = row.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{where}: {name} is {value!r}; expected a list of texts")
        row[name] = value
    return row


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as JSONL, whole or not at all."""
    write_atomic(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
