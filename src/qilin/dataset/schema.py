"""Rows of a dataset folder, Image and Sample, with their Arrow schemas and the messages that samples hold.

In: rows of the importers or of parquet files. Out: frozen dataclasses and the same rows as Arrow takes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

SPLITS = ("train", "validation", "test")
CAPTION_KINDS = ("caption", "context", "inline", "report")  # targets of stage 1
MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Provenance:
    """Where an image came from; one image may have several of these."""

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
    """One thing to learn or to be asked: a caption, one independent question, or one whole conversation.

    `messages` are in Hugging Face form: [{"role", "content": [{"type": "image"} | {"type": "text", "text": …}]}];
    the images of `image_ids` fill the image parts in order.
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


PROVENANCE_TYPE = pa.struct([(name, pa.string()) for name in ("source", "source_id", "url", "license", "attribution")])
IMAGE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("bytes", pa.binary()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.string()),
        ("modality", pa.string()),
        ("body_part", pa.string()),
        ("provenance", pa.list_(PROVENANCE_TYPE)),
        ("license_tier", pa.string()),
        ("deidentified", pa.string()),
    ]
)
MESSAGE_TYPE = pa.struct(
    [("role", pa.string()), ("content", pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())])))]
)
TRANSLATION_TYPE = pa.struct([(name, pa.string()) for name in ("model", "prompt", "glossary", "checks")])
SAMPLE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("kind", pa.string()),
        ("image_ids", pa.list_(pa.string())),
        ("messages", pa.list_(MESSAGE_TYPE)),
        ("answer_type", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("question_type", pa.string()),
        ("lang", pa.string()),
        ("source", pa.string()),
        ("group", pa.string()),
        ("license_tier", pa.string()),
        ("translation", TRANSLATION_TYPE),
    ]
)


def user(text: str = "", images: int = 0) -> dict[str, Any]:
    """A user message: `images` image parts, then the text (left out where empty)."""
    content: list[dict[str, str]] = [{"type": "image"}] * images
    return {"role": "user", "content": content + ([{"type": "text", "text": text}] if text else [])}


def assistant(text: str) -> dict[str, Any]:
    """An assistant message: what the model is to say."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, its image parts left out."""
    return "".join(part.get("text") or "" for part in message["content"] if part["type"] == "text")


def count_images(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many images the messages ask for."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def sample_problem(sample: Sample) -> str | None:
    """Why a sample cannot be learnt from or asked, in words for dropped.jsonl; None if it is sound."""
    marks = count_images(sample.messages)
    if marks != len(sample.image_ids):
        return f"{marks} image marks for {len(sample.image_ids)} images"
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
    row = {name: getattr(sample, name) for name in SAMPLE_SCHEMA.names}
    return row | {"image_ids": list(sample.image_ids), "choices": list(sample.choices)}


def sample_from_row(row: Mapping[str, Any]) -> Sample:
    """A parquet row back to a Sample; the nulls that Arrow puts into image parts are dropped."""
    messages = tuple(
        {
            "role": message["role"],
            "content": [{k: v for k, v in p.items() if v is not None} for p in message["content"]],
        }
        for message in row["messages"]
    )
    fields = {name: row[name] for name in SAMPLE_SCHEMA.names}
    fields |= {"messages": messages, "image_ids": tuple(row["image_ids"]), "choices": tuple(row["choices"] or ())}
    return Sample(**fields)


def image_row(image: ImageRecord) -> dict[str, Any]:
    """A Image as the parquet row of PICTURE_SCHEMA."""
    row = {name: getattr(image, name) for name in IMAGE_SCHEMA.names}
    return row | {"provenance": [vars(item) for item in image.provenance]}


def image_from_row(row: Mapping[str, Any]) -> ImageRecord:
    """A parquet row back to a Image."""
    fields = {name: row[name] for name in IMAGE_SCHEMA.names}
    return ImageRecord(**fields | {"provenance": tuple(Provenance(**item) for item in row["provenance"])})
