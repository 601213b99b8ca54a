"""Conversations in LLaVA's layout: `id`, `image` (one, several or none), `conversations` of human and gpt turns with
<image> tokens; and the published data sets that use it (PubMedVision, LLaVA-Med, ChiMed-VL).

In: a JSON list or JSONL file. Out: a `vqa` or `caption` row for a single exchange, a `chat` row for several. Rows whose
marks and images disagree are rejected, each with its own reason.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import ImportRow, RejectedRow, guess_answer_type
from qilin.dataset.schema import IMAGE_TOKEN, assistant, text_of
from qilin.pipeline.importers.column_maps import ColumnMap, map_row
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.rows import article_id, convert_rows, detect_lang, find_image, image_folders
from qilin.pipeline.importers.table_files import check_file, name_text, read_rows

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
MISSPELLED_FIELD = "conversatons"  # in LLaVA-Med's alignment file


def inputs(config: ImportConfig) -> list[Path]:
    """The file of conversations. Raises UserError if it does not exist."""
    return [check_file(config.source, "the JSON or JSONL file of conversations")]


# --- LLaVA's layout --------------------------------------------------------------------------------------------------


def read_llava(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Every conversation. A repeated id gets a number as suffix, because such files use the image's name as id."""
    (path,) = inputs(config)
    id_counts: Counter[str] = Counter()
    folders = (config.images or path.parent,)
    for parsed in convert_rows(path, config, lambda row, number: [parse_conversation(row, number, config, folders)]):
        if isinstance(parsed, ImportRow):
            id_counts[parsed.sample_id] += 1
            count = id_counts[parsed.sample_id]
            if count > 1:
                parsed = dataclasses.replace(parsed, sample_id=f"{parsed.sample_id}.{count}")
        yield parsed


def parse_conversation(
    row: Mapping[str, Any], number: int, config: ImportConfig, folders: tuple[Path, ...],
    add_image_tokens: bool = False, modality: str | None = None, body_part: str | None = None,
) -> ImportRow | RejectedRow:  # fmt: skip
    """One row of the file as an ImportRow, or the reason for its rejection. `folders`: where its images are."""
    names = image_names(row)
    turns = row.get("conversations")
    reason = "image is neither a path nor a list of paths" if names is None else turns_problem(turns)
    if reason or names is None or not isinstance(turns, list):
        return RejectedRow(row, reason or "conversations is not a list")
    reason, missing_tokens = check_image_tokens(turns, len(names), add_image_tokens or config.add_image_tokens)
    if reason:
        return RejectedRow(row, reason)
    first_question = next((index for index, turn in enumerate(turns) if ROLES[turn["from"]] == "user"), 0)
    messages = [parse_turn(turn, missing_tokens if index == first_question else 0) for index, turn in enumerate(turns)]
    answers = [text_of(message) for message in messages if message["role"] == "assistant"]
    kind = "chat" if len(answers) > 1 else config.kind
    if kind == "vqa" and not any(text_of(message).strip() for message in messages if message["role"] == "user"):
        return RejectedRow(row, "empty question")
    return ImportRow(
        sample_id=f"{config.source.stem}-{name_text(row.get('id')) or number}",
        kind=kind,
        images=tuple(
            find_image(name, folders, config, modality=modality, body_part=body_part, license=config.license)
            for name in names
        ),
        messages=tuple(messages),
        answer_type=guess_answer_type(answers[0]) if kind == "vqa" and answers else None,
        lang=config.lang,
        license=config.license,
    )


def image_names(row: Mapping[str, Any]) -> list[str] | None:
    """The names of the row's images; [] for a row of text only; None if the field has another type."""
    value = row.get("image") or row.get("images") or []
    names = [value] if isinstance(value, str) else value
    return names if isinstance(names, list) and all(isinstance(name, str) and name for name in names) else None


def turns_problem(turns: Any) -> str | None:
    """Why the turns cannot be read; None if they can."""
    if not isinstance(turns, list) or not turns:
        return "conversations is missing, empty or not a list"
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return "a turn without a text in value"
        if turn.get("from") not in ROLES:
            return f"from of a turn is none of {', '.join(ROLES)}"
    return None


def check_image_tokens(turns: list[dict[str, str]], images: int, add_tokens: bool) -> tuple[str | None, int]:
    """(why the <image> tokens do not match the images, or None; how many to add before the first question)"""
    if any(IMAGE_TOKEN in turn["value"] for turn in turns if ROLES[turn["from"]] != "user"):
        return "an <image> token outside a question", 0
    num_tokens = sum(turn["value"].count(IMAGE_TOKEN) for turn in turns)
    if num_tokens == images:
        return None, 0
    if num_tokens == 0 and add_tokens:
        return None, images
    if num_tokens == 0:
        return "an image but no <image> token (--add-image-tokens prepends it)", 0
    if images == 0:
        return "an <image> token but no image", 0
    return f"{'more' if num_tokens > images else 'fewer'} <image> tokens than images", 0


def parse_turn(turn: Mapping[str, str], missing_tokens: int) -> dict[str, Any]:
    """A turn as a message. A single token moves before the text, as in LLaVA's loader; several keep their positions."""
    role, value = ROLES[turn["from"]], turn["value"]
    if role != "user":
        return assistant(value.strip()) | {"role": role}
    if value.count(IMAGE_TOKEN) == 1:
        value = IMAGE_TOKEN + value.replace(IMAGE_TOKEN, "").strip()
    content: list[dict[str, str]] = [{"type": "image"}] * missing_tokens
    for index, text in enumerate(value.split(IMAGE_TOKEN)):
        content += [{"type": "image"}] if index else []
        content += [{"type": "text", "text": text.strip()}] if text.strip() else []
    return {"role": role, "content": content}


# --- published data sets ---------------------------------------------------------------------------------------------


def read_pubmedvision(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Conversations whose images have no marks, in English or Chinese."""
    yield from read_published(config, modality_and_body_part)


def read_llava_med(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Conversations with a `domain` object whose applicable domains are true; a single one is the modality."""

    def modality(row: Mapping[str, Any]) -> tuple[str | None, None]:
        domains = row.get("domain")
        names = [name for name, applies in domains.items() if applies] if isinstance(domains, dict) else []
        return (names[0] if len(names) == 1 else None), None

    yield from read_published(config, modality)


def modality_and_body_part(row: Mapping[str, Any]) -> tuple[str | None, str | None]:
    return row.get("modality"), row.get("body_part")


def read_published(
    config: ImportConfig, image_facts: Callable[[Mapping[str, Any]], tuple[str | None, str | None]]
) -> Iterator[ImportRow | RejectedRow]:
    """Conversations with resolved images. `image_facts` returns a row's modality and body part. Missing marks are added
    first."""
    (path,) = inputs(config)
    folders = image_folders(config, path.parent, ("", "images"))

    def convert(row: Mapping[str, Any], number: int) -> Iterator[ImportRow | RejectedRow]:
        if MISSPELLED_FIELD in row:
            row = {"conversations": row[MISSPELLED_FIELD], **row}
        modality, body_part = image_facts(row)
        parsed = parse_conversation(row, number, config, folders, True, modality, body_part)
        if isinstance(parsed, RejectedRow):
            yield parsed
            return
        text = " ".join(str(turn.get("value")) for turn in row["conversations"])
        yield dataclasses.replace(
            parsed,
            sample_id=f"{path.stem}-{number}-{name_text(row.get('id'))}".rstrip("-"),
            lang=detect_lang(text),
            group=article_id(parsed.images[0].name) if parsed.images else "",
        )

    yield from convert_rows(path, config, convert)


# Possible names of the image, text, question and answer fields in ChiMed-VL's files; the first that exists is used.
IMAGE_FIELDS = ("image", "images", "img", "image_path", "image_name", "picture", "图片")
TEXT_FIELDS = {
    "caption": ("caption", "text", "description", "report", "描述"),
    "context": ("context", "背景"),
    "inline": ("inline", "inline_text"),
}
QUESTION_FIELDS = ("question", "instruction", "query", "prompt", "input", "问题")
ANSWER_FIELDS = ("answer", "response", "output", "回答", "答案")


def read_chimed_vl(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """The released files, as conversations or as rows of fields. Raises UserError, listing the fields, for others."""
    (path,) = inputs(config)
    first_row = next((row for _, row in read_rows(path, config.encoding) if not isinstance(row, RejectedRow)), {})
    if "conversations" in first_row or MISSPELLED_FIELD in first_row:
        yield from read_published(config, modality_and_body_part)
        return
    column_map = guess_column_map(set(first_row))
    if column_map is None:
        raise UserError(
            f"{path}: its rows have the fields {', '.join(map(str, first_row)) or 'none'}; expected `conversations`, "
            f"or an image ({', '.join(IMAGE_FIELDS)}) with a text ({', '.join(TEXT_FIELDS['caption'])}) or a question "
            "and an answer; `qilin data import folder` takes any table whose columns you name"
        )
    seen_texts: set[tuple[str, ...]] = set()
    yield from convert_rows(
        path, config,
        lambda row, number: map_row(row, f"{path.stem}-{number}", path, column_map, config, seen_texts),
    )  # fmt: skip


def guess_column_map(fields: set[str]) -> ColumnMap | None:
    """The map of rows with these fields, if they name an image and a text or a question with its answer."""

    def template(names: Sequence[str]) -> str:
        return next((f"{{{name}}}" for name in names if name in fields), "")

    image, question, answer = template(IMAGE_FIELDS), template(QUESTION_FIELDS), template(ANSWER_FIELDS)
    texts = {kind: template(names) for kind, names in TEXT_FIELDS.items() if template(names)}
    if not (question and answer):
        question = answer = ""
    if not image or not (texts or question):
        return None
    return ColumnMap("", (), image, id=template(("id",)), texts=texts, question=question, answer=answer)
