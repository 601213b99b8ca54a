"""Rows of conversations and instructions as samples, whichever program wrote them.

In: a row and its RowLayout. Out: an ImportRow: a question for a single exchange, a `chat` sample for several. Images
stand where <image>, <img>NAME</img> or an image part is; rows whose places and images disagree are rejected.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qilin.dataset.import_rows import ImageFile, ImportRow, guess_answer_type
from qilin.dataset.schema import IMAGE_TOKEN, text_of
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.embedded_images import embedded_image
from qilin.pipeline.importers.row_layouts import OTHER_MEDIA, TOOL_ROLES, RowLayout, parse_list
from qilin.pipeline.importers.rows import SPLIT_NAMES, RowError, detect_lang, find_image
from qilin.pipeline.importers.table_files import cell_text, name_text

IMG_TAG = re.compile(r"(?:Picture \d+:\s*)?<img>(.*?)</img>\n?", re.DOTALL)  # Qwen-VL's and early ms-swift's
OTHER_TOKEN = re.compile(r"<(video|audio)>")
KINDS = ("caption", "context", "inline", "report", "vqa", "chat")
PATIENT_FIELDS = ("group", "patient_id", "patient", "subject_id", "患者编号", "病人编号", "患者ID", "病历号", "住院号")
ADDED_TOKENS = "rows with images and no place for them: the images precede the first question"


@dataclass
class Turn:
    """A message in progress. `references`: what its own image parts name, None for those of the images' field."""

    role: str
    content: list[dict[str, str]] = field(default_factory=list)
    references: list[Any] = field(default_factory=list)

    def add_text(self, text: str) -> None:
        if text:
            self.content.append({"type": "text", "text": text})

    def add_image(self, reference: Any = None) -> None:
        self.content.append({"type": "image"})
        self.references.append(reference)


@dataclass(frozen=True)
class DialogSource:
    """What the rows of one file share: the prefix of their ids, where their images are, and their split."""

    layout: RowLayout
    prefix: str
    folders: tuple[Path, ...]
    split: str | None = None
    is_export: bool = False  # rows that `qilin data export` wrote: their texts, ids and kinds stay as they are


def parse_dialog(
    row: Mapping[str, Any], number: int, source: DialogSource, config: ImportConfig
) -> Iterator[ImportRow]:
    """The sample of one row. Raises RowError with the reason why there is none."""
    if any(row.get(name) for name in OTHER_MEDIA):
        raise RowError("videos and audio are not read")
    if row.get("objects") and re.search("<ref-object>|<bbox>|<cls-label>", str(row)):
        raise RowError("names and boxes of `objects` in place of <ref-object> and <bbox>, which are not read")
    turns = [make_turn(role, content, source) for role, content in row_turns(row, source.layout)]
    images, note = place_images(turns, row_images(row, source.layout), config)
    messages = tuple(
        {"role": turn.role, "content": turn.content} for turn in turns if turn.content or turn.role != "system"
    )
    answers = [text_of(message) for message in messages if message["role"] == "assistant"]
    questions = [text_of(message) for message in messages if message["role"] == "user"]
    kind = row_kind(row, source, config, len(answers))
    if kind == "vqa" and not any(question.strip() for question in questions):
        raise RowError("empty question")
    row_id = name_text(row.get("id"))
    license = cell_text(row.get("license")) or config.license
    yield ImportRow(
        sample_id=row_id if source.is_export and row_id else f"{source.prefix}-{row_id or number}",
        kind=kind,  # type: ignore[arg-type]
        images=tuple(as_file(image, source, config, license) for image in images),
        messages=messages,
        answer_type=row_answer_type(row, kind, answers),
        choices=tuple(map(str, row.get("choices") or ())) if isinstance(row.get("choices"), list) else (),
        question_type=cell_text(row.get("question_type")) or None,
        lang=cell_text(row.get("lang")) if source.is_export else detect_lang(" ".join([*questions, *answers])),
        group=next((text for name in PATIENT_FIELDS if (text := name_text(row.get(name)))), ""),
        split=source.split or SPLIT_NAMES.get(cell_text(row.get("split")).lower()),
        license=cell_text(row.get("license_tier")) if source.is_export else license,
        note=note,
    )  # fmt: skip


def row_kind(row: Mapping[str, Any], source: DialogSource, config: ImportConfig, exchanges: int) -> str:
    if source.is_export and row.get("kind") in KINDS:
        return str(row["kind"])
    return "chat" if exchanges > 1 else config.kind


def row_answer_type(row: Mapping[str, Any], kind: str, answers: list[str]) -> Any:
    if row.get("answer_type") in ("open", "closed", "choice"):
        return row["answer_type"]
    return guess_answer_type(answers[0]) if kind == "vqa" and answers else None


# --- turns ------------------------------------------------------------------------------------------------------------


def row_turns(row: Mapping[str, Any], layout: RowLayout) -> Iterator[tuple[str, Any]]:
    """(role, content) of every turn; a content is a text or a list of parts. Raises RowError."""
    turns = list(TURNS_OF[layout.name](row, layout))
    system = cell_text(row.get(layout.system)) if layout.system else ""
    if system and not any(role == "system" for role, _ in turns):
        yield "system", system
    yield from turns


def listed_turns(row: Mapping[str, Any], layout: RowLayout, name: str = "") -> Iterator[tuple[str, Any]]:
    """The turns of a list of objects with a role and a content."""
    turns = parse_list(row.get(name or layout.messages))
    if not turns:
        raise RowError(f"{name or layout.messages} is missing, empty or not a list")
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise RowError("a turn is not an object")
        role = str(turn.get(layout.role_key) or "").strip()
        if role.lower() in TOOL_ROLES or turn.get("tool_calls"):
            raise RowError("a turn of a tool (function call or its result), which is not trained on")
        if turn.get("loss") in (False, 0) and turn.get("loss") is not None:
            raise RowError("a turn that is marked as not to be trained on (loss)")
        known = layout.roles.get(role) or layout.roles.get(role.lower())
        if not known:
            raise RowError(f"{layout.role_key} of a turn is none of {', '.join(['user', 'assistant', 'system'])}")
        yield known, turn.get(layout.content_key)


def paired_turns(row: Mapping[str, Any], layout: RowLayout) -> Iterator[tuple[str, Any]]:
    """The turns of a list of objects with a question and its answer each."""
    for pair in parse_list(row.get(layout.messages)) or ():
        if not isinstance(pair, Mapping):
            raise RowError("a turn is not an object")
        yield "user", pair.get(layout.role_key)
        yield "assistant", pair.get(layout.content_key)


def instruction_turns(row: Mapping[str, Any], layout: RowLayout) -> Iterator[tuple[str, Any]]:
    """The turns of an instruction with its answer, after those of its history."""
    for pair in history_pairs(row.get(layout.history)) if layout.history else ():
        yield "user", pair[0]
        yield "assistant", pair[1]
    prompt, query = row.get(layout.prompt), row.get(layout.query) if layout.query else None
    if isinstance(query, str) and query.strip() and not isinstance(prompt, list):
        prompt = f"{prompt}\n{query}" if cell_text(prompt) else query
    yield "user", prompt
    yield "assistant", row.get(layout.response)


def history_pairs(value: Any) -> list[tuple[Any, Any]]:
    """The earlier exchanges: [[question, answer], …], also written as JSON text, or as objects."""
    pairs = []
    for item in parse_list(value) or ():
        if isinstance(item, Mapping) and len(item) == 2:
            item = list(item.values())
        if not isinstance(item, list) or len(item) != 2:
            raise RowError("history is not a list of pairs of a question and its answer")
        pairs.append((item[0], item[1]))
    return pairs


def completion_turns(row: Mapping[str, Any], layout: RowLayout) -> Iterator[tuple[str, Any]]:
    """TRL's prompt and completion: texts, or lists of messages."""
    for name, role in ((layout.prompt, "user"), (layout.response, "assistant")):
        if parse_list(row.get(name)):
            yield from listed_turns(row, RowLayout("messages", role_key="role", content_key="content"), name)
        else:
            yield role, row.get(name)


TURNS_OF = {
    "messages": listed_turns,
    "sharegpt": listed_turns,
    "pairs": paired_turns,
    "prompt-completion": completion_turns,
    "alpaca": instruction_turns,
    "query-response": instruction_turns,
}


# --- images -----------------------------------------------------------------------------------------------------------


def make_turn(role: str, content: Any, source: DialogSource) -> Turn:
    """A turn with its texts and the places of its images. Raises RowError."""
    turn = Turn(role)
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        add_part(turn, part, source)
    if role != "user" and turn.references:
        raise RowError("an image outside a question")
    return turn


def add_part(turn: Turn, part: Any, source: DialogSource) -> None:
    """A text, or a part in the form of Hugging Face, OpenAI or Qwen-VL. Raises RowError for any other."""
    if isinstance(part, str):
        add_text_with_tokens(turn, part, source)
        return
    if part is None or isinstance(part, int | float):
        turn.add_text("" if part is None else str(part))
        return
    if not isinstance(part, Mapping) or not {"type", "text", "image"} & set(part):
        raise RowError("the content of a turn is neither a text nor a list of parts")
    part_type = part.get("type") or ("image" if part.get("image") else "text")
    if part_type == "text":
        add_text_with_tokens(turn, part.get("text") or "", source)
    elif part_type in ("image", "image_url"):
        reference = next(
            (part[name] for name in ("image", "image_url", "url", "path", "bytes") if part.get(name)), None
        )
        turn.add_image(reference.get("url") if isinstance(reference, Mapping) and "url" in reference else reference)
    else:
        raise RowError(f"a part of type {cell_text(part_type)[:20]}, which is not read")


def add_text_with_tokens(turn: Turn, text: str, source: DialogSource) -> None:
    """A text whose <image> and <img>NAME</img> become image parts. Each stands on a line of its own or beside the
    text; the white space between is not part of the text."""
    if OTHER_TOKEN.search(text):
        raise RowError("videos and audio are not read")
    pieces = re.split(f"({re.escape(IMAGE_TOKEN)}|{IMG_TAG.pattern})", text, flags=re.DOTALL)
    for index in range(0, len(pieces), 3):
        piece = pieces[index]
        if not source.is_export:
            piece = piece.strip()
        else:  # the line breaks that the export put around each token
            piece = piece[1:] if index and piece.startswith("\n") else piece
            piece = piece[:-1] if index + 1 < len(pieces) and piece.endswith("\n") else piece
        turn.add_text(piece)
        if index + 1 < len(pieces):
            turn.add_image((pieces[index + 2] or "").strip() or None)


def row_images(row: Mapping[str, Any], layout: RowLayout) -> list[Any]:
    """What the field of images holds, as a list without empty items."""
    value = row.get(layout.images) if layout.images else None
    parsed = parse_list(value)
    items = parsed if parsed is not None else [value]
    return [item for item in items if item not in (None, "", b"") and item != {"bytes": None, "path": None}]


def place_images(turns: list[Turn], images: list[Any], config: ImportConfig) -> tuple[list[Any], str | None]:
    """(the images in the order of their places, a note for the summary). Raises RowError if the numbers differ."""
    references = [reference for turn in turns for reference in turn.references]
    named = [reference for reference in references if reference is not None]
    if named and len(named) == len(references):
        if len(images) not in (0, len(named)):
            raise RowError("the row lists other images than its parts name")
        return named, None
    if named:
        raise RowError("some images are named where they stand and others are not")
    if len(references) == len(images):
        return images, None
    if references and not images:
        raise RowError("an <image> token but no image")
    if references:
        raise RowError(f"{'more' if len(references) > len(images) else 'fewer'} <image> tokens than images")
    first = next((turn for turn in turns if turn.role == "user"), None)
    if first is None:
        raise RowError("no question")
    first.content = [{"type": "image"}] * len(images) + first.content
    return images, ADDED_TOKENS


def as_file(image: Any, source: DialogSource, config: ImportConfig, license: str | None) -> ImageFile:
    """The file of an image that a row names or holds. Raises RowError."""
    if embedded := embedded_image(image, config):
        return embedded
    if isinstance(image, Mapping):
        image = image.get("path") or image.get("url")
    if not isinstance(image, str) or not image.strip():
        raise RowError("image is neither a path nor an image's bytes")
    return find_image(image.strip(), source.folders, config, license=license)
