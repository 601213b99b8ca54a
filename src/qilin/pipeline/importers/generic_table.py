"""Any table of images and text: CSV, TSV, JSON or JSONL, its columns named by flags.

In: a table with a column of image paths and questions with answers, captions, or both. Out: a `vqa` row for each
question, a `caption` row for each caption. A flag that holds {column} is a text filled from the row, so that a table of
labels needs no rewriting: --ask '投照体位是什么？' --answer '{projection}位'.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import CAPTION_INSTRUCTION, ImageFile, ImportRow, RejectedRow, guess_answer_type
from qilin.dataset.schema import assistant, user
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.table_files import check_file, columns, read_rows

# field of ImportConfig -> the column it is looked for in where no flag names one
COLUMNS = {
    "image": "image",
    "question": "question",
    "answer": "answer",
    "caption": "caption",
    "id": "id",
    "group": "group",
    "split_column": "split",
    "answer_type": "answer_type",
    "choices": "choices",
    "question_type": "question_type",
    "modality": "modality",
    "body_part": "body_part",
}
SPLIT_NAMES = {"val": "validation", "valid": "validation", "validate": "validation", "dev": "validation"}
SPLIT_NAMES |= {name: name for name in ("train", "validation", "test")}
ANSWER_TYPES = ("open", "closed", "choice")
ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")
LETTER = re.compile(r"[(（]?[A-Ha-h甲乙丙丁戊己庚辛](?![a-z\u4e00-\u9fff])")
HOLE = re.compile(r"\{([^{}]+)\}")


class RowFault(Exception):
    """Why one row cannot be used, short and the same for the same fault."""


def inputs(config: ImportConfig) -> list[Path]:
    """The one table. Raises UserError where it is not there."""
    return [check_file(config.source, "a CSV, TSV, JSON or JSONL table")]


def read(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Every row as a question, a caption, or both. Raises UserError where the columns do not make sense."""
    (path,) = inputs(config)
    where = find_columns(config, columns(path))
    for number, found in read_rows(path):
        if isinstance(found, RejectedRow):
            yield found
            continue
        try:
            yield from make_rows(found, number, where, config)
        except RowFault as fault:
            yield RejectedRow(found, str(fault))


def find_columns(config: ImportConfig, names: list[str]) -> dict[str, str]:
    """field -> its column or its text with {columns}; a field no flag names is looked for under its usual name.

    Raises UserError for a column that is not there (with the nearest), and where nothing could be learnt.
    """
    where = {}
    for field, usual in {**COLUMNS, "ask": ""}.items():
        given = getattr(config, field)
        wanted = HOLE.findall(given) if given and ("{" in given or field == "ask") else [given] if given else []
        for name in wanted:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"its columns are {', '.join(names) or 'none'}"
                raise UserError(f"{config.source}: no column {name!r} (--{field.replace('_', '-')}); {hint}")
        if given or usual in names:
            where[field] = given or usual
    if config.ask:
        where["question"] = config.ask
    here = f"{config.source}: its columns are {', '.join(names) or 'none'}"
    if "question" in where and "answer" not in where:
        raise UserError(f"{here}: there are questions but no answers; name their column with --answer")
    if "answer" in where and "question" not in where:
        raise UserError(f"{here}: there are answers but no questions; name their column with --question, or use --ask")
    if not {"answer", "caption"} & set(where):
        raise UserError(f"{here}: name what is to be learnt with --question and --answer, or with --caption")
    if "image" not in where and not config.text_only:
        raise UserError(f"{here}: name the images' with --image, or say --text-only")
    return where


def make_rows(
    found: Mapping[str, Any], number: int, where: Mapping[str, str], config: ImportConfig
) -> Iterator[ImportRow]:
    """The samples one row of the table holds. Raises RowFault."""
    cells = {field: cell(found, column, field in ("ask", "question")) for field, column in where.items()}
    images = image_files(found, cells, where, config)
    name = f"{config.source.stem}-{cells.get('id') or number}"
    question, answer, caption = (cells.get(field, "") for field in ("question", "answer", "caption"))
    if config.ask and not answer and caption:
        question = ""  # a table of captions where only some rows have the label that --ask asks for
    if bool(question) != bool(answer):
        raise RowFault("empty answer" if question else "empty question")
    if not (answer or caption):
        raise RowFault("neither question and answer nor caption")
    split = SPLIT_NAMES.get(cells.get("split_column", "").lower())
    if cells.get("split_column") and not split:
        raise RowFault("split is none of train, validation, test")
    licence = str(found.get("license") or "") or config.license
    common = {"images": images, "lang": config.lang, "group": cells.get("group", ""), "split": split}
    common |= {"license": licence}
    if answer:
        choices = listed(found.get(where["choices"])) if "choices" in where else ()
        if choices and not names_a_choice(answer, choices):
            raise RowFault("the answer is none of the choices")
        yield ImportRow(
            sample_id=name,
            kind="vqa",
            messages=(user(question, images=len(images)), assistant(answer)),
            answer_type=answer_type(cells.get("answer_type", ""), choices, answer),  # type: ignore[arg-type]
            choices=choices,
            question_type=cells.get("question_type") or None,
            **common,  # type: ignore[arg-type]
        )
    if caption:
        yield ImportRow(
            sample_id=f"{name}-caption",
            kind="caption",
            messages=(user(CAPTION_INSTRUCTION, images=len(images)), assistant(caption)),
            **common,  # type: ignore[arg-type]
        )


def cell(found: Mapping[str, Any], column: str, may_be_text: bool) -> str:
    """A cell's text; a column with {holes} is filled from the row and is empty where one of its cells is."""
    if column not in found and (may_be_text or HOLE.search(column)):
        parts = {name: plain(found.get(name)) for name in HOLE.findall(column)}
        return HOLE.sub(lambda hole: parts[hole[1]], column) if all(parts.values()) else ""
    return plain(found.get(column))


def plain(value: Any) -> str:
    """A JSON value as text; lists and objects are left to the fields that expect them."""
    return "" if value is None or isinstance(value, list | dict) else str(value).strip()


def listed(value: Any) -> tuple[str, ...]:
    """A JSON list, or a text divided by ';'."""
    parts = value if isinstance(value, list) else plain(value).replace("；", ";").split(";")
    return tuple(text for part in parts if (text := plain(part)))


def image_files(
    found: Mapping[str, Any], cells: Mapping[str, str], where: Mapping[str, str], config: ImportConfig
) -> tuple[ImageFile, ...]:
    """The row's images, each with what the row says about it. Raises RowFault for a row that should have one."""
    column = where.get("image", "")
    names = (cells["image"],) if "{" in column and cells["image"] else listed(found.get(column))
    if not names and not config.text_only:
        raise RowFault("row without image (--text-only keeps such rows)")
    base = config.images or config.source.parent
    return tuple(
        ImageFile(
            path=find_file(base, name),
            name=name,
            modality=cells.get("modality") or None,
            body_part=cells.get("body_part") or None,
            license=str(found.get("license") or "") or config.license,
            url=plain(found.get("url")) or None,
            attribution=plain(found.get("attribution")) or None,
        )
        for name in names
    )


def find_file(base: Path, name: str) -> Path:
    """The image's path; tables often leave the ending off, so the usual ones are tried."""
    path = base / name
    if path.suffix.lower() in ENDINGS or path.is_file():
        return path
    return next((full for ending in ENDINGS if (full := base / f"{name}{ending}").is_file()), path)


def names_a_choice(answer: str, choices: tuple[str, ...]) -> bool:
    """Whether an answer has the words of a choice, or begins with a letter that may stand for one (B, AC, 乙)."""
    return any(choice in answer or answer in choice for choice in choices) or bool(LETTER.match(answer))


def answer_type(said: str, choices: tuple[str, ...], answer: str) -> str:
    """What the row says, or what its choices and answer show. Raises RowFault for a word of another kind."""
    if said and said.lower() not in ANSWER_TYPES:
        raise RowFault(f"answer_type is none of {', '.join(ANSWER_TYPES)}")
    return said.lower() or ("choice" if choices else guess_answer_type(answer))
