"""LLaVA's conversations: `id`, `image` (one, several or none), `conversations` of human and gpt with <image> marks.

In: a JSON list or JSONL file. Out: one `vqa` or `caption` row where there is a single exchange, one `chat` row where
there are several. Rows whose marks and images do not agree are refused, each by its own reason.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qilin.dataset.import_rows import ImageFile, ImportRow, RejectedRow, guess_answer_type
from qilin.dataset.schema import assistant, text_of
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.table_files import check_file, read_rows

MARK = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def inputs(config: ImportConfig) -> list[Path]:
    """The one file of conversations. Raises UserError where it is not there."""
    return [check_file(config.source, "LLaVA's JSON or JSONL file of conversations")]


def read(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Every conversation. A second row of the same id gets a number behind it: such files repeat the image's name."""
    (path,) = inputs(config)
    met: Counter[str] = Counter()
    for number, found in read_rows(path):
        made = found if isinstance(found, RejectedRow) else conversation(found, number, config)
        if isinstance(made, ImportRow):
            met[made.sample_id] += 1
            times = met[made.sample_id]
            made = made if times == 1 else ImportRow(**vars(made) | {"sample_id": f"{made.sample_id}.{times}"})
        yield made


def conversation(row: Mapping[str, Any], number: int, config: ImportConfig) -> ImportRow | RejectedRow:
    """One row of the file -> a Row, or why not."""
    names = image_names(row)
    turns = row.get("conversations")
    reason = "image is neither a path nor a list of paths" if names is None else fault(turns)
    if reason or names is None or not isinstance(turns, list):
        return RejectedRow(row, reason or "conversations is no list")
    reason, missing = compare_marks(turns, len(names), config.add_missing_marks)
    if reason:
        return RejectedRow(row, reason)
    messages = [message(turn, missing if index == first_human(turns) else 0) for index, turn in enumerate(turns)]
    exchanges = [m for m in messages if m["role"] == "assistant"]
    kind = "chat" if len(exchanges) > 1 else config.kind
    if kind == "vqa" and not any(text_of(m).strip() for m in messages if m["role"] == "user"):
        return RejectedRow(row, "empty question")
    base = config.images or config.source.parent
    return ImportRow(
        sample_id=f"{config.source.stem}-{row.get('id', number)}",
        kind=kind,
        images=tuple(ImageFile(base / name, name, license=config.license) for name in names),
        messages=tuple(messages),
        answer_type=guess_answer_type(text_of(exchanges[0])) if kind == "vqa" and exchanges else None,
        lang=config.lang,
        license=config.license,
    )


def image_names(row: Mapping[str, Any]) -> list[str] | None:
    """The row's images as it names them; [] for a row of text alone; None where it cannot be told."""
    found = row.get("image") or row.get("images") or []
    names = [found] if isinstance(found, str) else found
    return names if isinstance(names, list) and all(isinstance(name, str) and name for name in names) else None


def fault(turns: Any) -> str | None:
    if not isinstance(turns, list) or not turns:
        return "conversations is missing, empty or no list"
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return "a turn without a text in value"
        if turn.get("from") not in ROLES:
            return f"a turn whose from is none of {', '.join(ROLES)}"
    return None


def compare_marks(turns: list[dict[str, str]], images: int, add_missing: bool) -> tuple[str | None, int]:
    """(why the <image> marks do not fit the images or None, how many are to be put before the first question)"""
    if any(MARK in turn["value"] for turn in turns if ROLES[turn["from"]] != "user"):
        return "an <image> mark outside a question", 0
    marks = sum(turn["value"].count(MARK) for turn in turns)
    if marks == images:
        return None, 0
    if marks == 0 and add_missing:
        return None, images
    if marks == 0:
        return "an image but no <image> mark (--add-missing-marks puts it first)", 0
    if images == 0:
        return "an <image> mark but no image", 0
    return f"{'more' if marks > images else 'fewer'} <image> marks than images", 0


def first_human(turns: list[dict[str, str]]) -> int:
    return next((index for index, turn in enumerate(turns) if ROLES[turn["from"]] == "user"), 0)


def message(turn: Mapping[str, str], missing: int) -> dict[str, Any]:
    """A turn -> a message. A lone mark goes before the words, as in LLaVA's own loader; several keep their places."""
    role, value = ROLES[turn["from"]], turn["value"]
    if role != "user":
        return assistant(value.strip()) | {"role": role}
    if value.count(MARK) == 1:
        value = MARK + value.replace(MARK, "").strip()
    content: list[dict[str, str]] = [{"type": "image"}] * missing
    for index, text in enumerate(value.split(MARK)):
        content += [{"type": "image"}] if index else []
        content += [{"type": "text", "text": text.strip()}] if text.strip() else []
    return {"role": role, "content": content}
