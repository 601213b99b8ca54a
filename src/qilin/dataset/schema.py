"""Rows of a dataset folder, ImageRecord and Sample, and the messages of samples; arrow_schema.py has their columns.

In: rows of the importers or of parquet files. Out: frozen dataclasses, and the same rows as Arrow takes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SPLITS = ("train", "validation", "test")
CAPTION_KINDS = ("caption", "context", "inline", "report")  # targets of stage 1
IMAGE_TOKEN = "<image>"  # marks the place of an image in the texts of LLaVA and ShareGPT
MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Provenance:
    """One origin of an image; an image may have several."""

    source: str
    source_id: str
    url: str | None = None
    license: str | None = None
    attribution: str | None = None


@dataclass(frozen=True)
class ImageRecord:
    """An image, stored once by content. `bytes` are the encoded file (PNG, JPEG), not pixels."""

    image_id: str  # sha256 of bytes, hexadecimal
    bytes: bytes
    format: str
    width: int  # pixels
    height: int
    phash: str  # 64-bit perceptual hash, 16 hexadecimal digits
    modality: str | None = None
    body_part: str | None = None
    provenance: tuple[Provenance, ...] = ()
    license_tier: str = "unknown"
    deidentified: str | None = None


@dataclass(frozen=True)
class Sample:
    """One training or test example: a caption, one independent question, or one conversation.

    `messages` are in Hugging Face form: [{"role", "content": [{"type": "image"} | {"type": "text", "text": …}]}];
    the image parts are the images of `image_ids` in order.
    """

    sample_id: str
    kind: Literal["caption", "context", "inline", "report", "vqa", "chat"]
    image_ids: tuple[str, ...]
    messages: tuple[Mapping[str, Any], ...]
    answer_type: Literal["open", "closed", "choice"] | None = None
    choices: tuple[str, ...] = ()
    question_type: str | None = None
    lang: str = "zh"
    source: str = ""
    group: str = ""  # article or patient: never divided between splits
    license_tier: str = "unknown"
    translation: Mapping[str, str] | None = None


def user(text: str = "", images: int = 0) -> dict[str, Any]:
    """A user message: `images` image parts, then the text unless it is empty."""
    content: list[dict[str, str]] = [{"type": "image"}] * images
    return {"role": "user", "content": content + ([{"type": "text", "text": text}] if text else [])}


def user_with_labels(labels: Sequence[str], text: str) -> dict[str, Any]:
    """A user message of an image for each label, which stands before it on a line (轴位 3/8), then the text."""
    content: list[dict[str, str]] = []
    for label in labels:
        content += [{"type": "text", "text": f"{label}\n"}] if label else []
        content.append({"type": "image"})
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def assistant(text: str) -> dict[str, Any]:
    """An assistant message: the target of the model."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message without its image parts."""
    return "".join(part.get("text") or "" for part in message["content"] if part["type"] == "text")


def count_images(messages: Sequence[Mapping[str, Any]]) -> int:
    """The number of image parts in the messages."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def sample_problem(sample: Sample) -> str | None:
    """Why a sample can be neither trained on nor asked, as written to dropped.jsonl; None if it is valid."""
    num_images = count_images(sample.messages)
    if num_images != len(sample.image_ids):
        return f"{num_images} image parts for {len(sample.image_ids)} images"
    if any(IMAGE_TOKEN in text_of(message) for message in sample.messages):
        return f"{IMAGE_TOKEN} inside a text, where other programs would expect an image"
    answers = [text_of(message) for message in sample.messages if message["role"] == "assistant"]
    if not answers:
        return "no answer: no assistant message"
    if not all(answer.strip() for answer in answers):
        return "empty answer"
    roles = [message["role"] for message in sample.messages if message["role"] != "system"]
    if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        return f"turns out of order: {', '.join(roles)}; expected user, assistant, user, …"
    if sample.answer_type == "choice" and not sample.choices:
        return "answer_type is choice but there are no choices"
    return None


def sample_row(sample: Sample) -> dict[str, Any]:
    """A Sample as the parquet row of SAMPLE_SCHEMA."""
    row = {name: getattr(sample, name) for name in Sample.__dataclass_fields__}
    return row | {"image_ids": list(sample.image_ids), "choices": list(sample.choices)}


def sample_from_row(row: Mapping[str, Any]) -> Sample:
    """The Sample of a parquet row; the nulls that Arrow adds to image parts are removed."""
    messages = tuple(
        {
            "role": message["role"],
            "content": [{k: v for k, v in part.items() if v is not None} for part in message["content"]],
        }
        for message in row["messages"]
    )
    fields = {name: row[name] for name in Sample.__dataclass_fields__}
    fields |= {"messages": messages, "image_ids": tuple(row["image_ids"]), "choices": tuple(row["choices"] or ())}
    return Sample(**fields)


def image_row(image: ImageRecord) -> dict[str, Any]:
    """An ImageRecord as the parquet row of IMAGE_SCHEMA."""
    row = {name: getattr(image, name) for name in ImageRecord.__dataclass_fields__}
    return row | {"provenance": [vars(item) for item in image.provenance]}


def image_from_row(row: Mapping[str, Any]) -> ImageRecord:
    """The ImageRecord of a parquet row."""
    fields = {name: row[name] for name in ImageRecord.__dataclass_fields__}
    return ImageRecord(**fields | {"provenance": tuple(Provenance(**item) for item in row["provenance"])})
