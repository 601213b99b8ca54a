"""What every importer yields: `ImportRow`s whose images are still files, or `RejectedRow`s with the reason.

Importers only read and map; decoding, splits, licenses and writing are done once for all of them in
`qilin.pipeline.importers.run`, so a new source is one function from its config to these rows.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# The instruction before the caption in the figure of the Qilin-Med-VL paper; the recipe decides whether it is shown.
CAPTION_INSTRUCTION = "根据图中的信息，撰写一段描述性文本。"


@dataclass(frozen=True)
class ImageFile:
    """An image on disk and its metadata in the source."""

    path: Path
    name: str  # its id in the source
    modality: str | None = None
    body_part: str | None = None
    license: str | None = None
    url: str | None = None
    attribution: str | None = None
    is_whole_figure: bool = False  # the complete figure, because the panel that the name means is missing


@dataclass(frozen=True)
class ImportRow:
    """A sample before its images are decoded; `split` is None where the source has none."""

    sample_id: str
    kind: Literal["caption", "context", "inline", "report", "vqa", "chat"]
    images: tuple[ImageFile, ...]
    messages: tuple[Mapping[str, Any], ...]
    answer_type: Literal["open", "closed", "choice"] | None = None
    choices: tuple[str, ...] = ()
    question_type: str | None = None
    lang: str = "zh"
    group: str = ""
    split: str | None = None
    license: str | None = None
    note: str | None = None  # what the reader had to assume, for the summary: the same text for the same assumption


@dataclass(frozen=True)
class RejectedRow:
    """A row that cannot be used, as the source has it, and a short reason: the same text for the same problem."""

    row: Mapping[str, Any]
    reason: str


# no text holds these: half of a character (also what undecodable bytes become), and NUL
UNSTORABLE = re.compile("[\ud800-\udfff\0]")


def row_problem(row: ImportRow) -> str | None:
    """Why a row cannot be stored, as written to dropped.jsonl; None if it can."""
    for name, value in stored_fields(row):
        if value is None:
            continue
        if not isinstance(value, str):
            return f"{name} is not a text"
        if match := UNSTORABLE.search(value):
            return (
                f"{name} holds {'a NUL character' if match[0] == chr(0) else 'half a character or undecodable bytes'}"
            )
    return None


def stored_fields(row: ImportRow) -> Iterator[tuple[str, Any]]:
    """(name, value) of each text that a dataset stores of a row."""
    for name in ("sample_id", "question_type", "group", "license"):
        yield name, getattr(row, name)
    for choice in row.choices:
        yield "a choice", choice
    for message in row.messages:
        for part in message["content"]:
            yield "a text", part.get("text")
    for file in row.images:
        yield "image path", str(file.path)
        for name in ("name", "modality", "body_part", "license", "url", "attribution"):
            yield f"image {name}" if name == "name" else name, getattr(file, name)


# answers to questions with two possible answers
CLOSED_ANSWERS = frozenset(
    ("是", "否", "有", "无", "对", "错", "是的", "不是", "没有", "存在", "不存在", "包含", "不包含")
)
CLOSED_ANSWERS |= {"可以", "不可以", "正常", "异常", "不正常", "yes", "no"}


def guess_answer_type(answer: str) -> Literal["open", "closed"]:
    """For sources without answer types: closed if the answer is one of CLOSED_ANSWERS."""
    return "closed" if answer.strip().rstrip("。.").lower() in CLOSED_ANSWERS else "open"
