"""What every source reader yields: `Row`s whose images are still files, or `Refused` rows with their reason.

Readers only read and map; decoding, splitting, licences and writing happen once for all of them in
`qilin.pipeline.importers.run`, so a new source is one function from settings to these rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# The instruction before the caption in the figure of the Qilin-Med-VL paper; the recipe decides whether it is shown.
CAPTION_INSTRUCTION = "根据图中的信息，撰写一段描述性文本。"


@dataclass(frozen=True)
class ImageFile:
    """An image on disk and what its source says about it."""

    path: Path
    name: str  # as the source writes it: its id there
    modality: str | None = None
    body_part: str | None = None
    license: str | None = None
    url: str | None = None
    attribution: str | None = None
    whole: bool = False  # the whole figure, where the name means a panel that could not be had


@dataclass(frozen=True)
class ImportRow:
    """A sample before its images are decoded; `split` is None where the source has none of its own."""

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


@dataclass(frozen=True)
class RejectedRow:
    """A row that cannot be used: as it was found, and why (short, the same for the same fault)."""

    row: Mapping[str, Any]
    reason: str


# answers that settle a question with two sides
CLOSED_ANSWERS = frozenset(
    ("是", "否", "有", "无", "对", "错", "是的", "不是", "没有", "存在", "不存在", "包含", "不包含")
)
CLOSED_ANSWERS |= {"可以", "不可以", "正常", "异常", "不正常", "yes", "no"}


def guess_answer_type(answer: str) -> Literal["open", "closed"]:
    """For sources that do not say: closed where the answer is a yes, a no or one of their kin."""
    return "closed" if answer.strip().rstrip("。.").lower() in CLOSED_ANSWERS else "open"
