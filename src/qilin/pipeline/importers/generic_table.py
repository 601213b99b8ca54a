"""Any table of images and text (CSV, TSV, JSON, JSONL, Excel, Parquet), its columns named by flags or by their headers.

In: a table with a column of image paths or images, and questions with answers, captions, or both. Out: a `vqa` row per
question and a `caption` row per caption. A flag that contains {column} is a template filled from the row, so that a
table of labels needs no rewriting: --ask '投照体位是什么？' --answer '{projection}位'.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError, suggest
from qilin.dataset.import_rows import CAPTION_INSTRUCTION, ImageFile, ImportRow, RejectedRow, guess_answer_type
from qilin.dataset.schema import assistant, user
from qilin.pipeline.importers.column_aliases import ALIASES, ANSWER_TYPE_NAMES, match_columns
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.embedded_images import embedded_image, is_image_cell
from qilin.pipeline.importers.excel_rows import EXCEL_SUFFIXES
from qilin.pipeline.importers.row_layouts import ROWS_TO_LOOK_AT
from qilin.pipeline.importers.rows import SPLIT_NAMES, RowError, convert_rows, find_image, table_image_folders
from qilin.pipeline.importers.source_tables import Table, find_tables_of
from qilin.pipeline.importers.table_files import (
    PLACEHOLDER,
    TABLE_SUFFIXES,
    cell_text,
    check_file,
    column_names,
    fill_template,
    name_text,
    read_rows,
)

TEXT_FIELDS = ("question", "ask", "answer", "caption", "choices")  # whose cells stay as they are written
ANSWER_TYPES = ("open", "closed", "choice")
CHOICE_LETTER = re.compile(r"[(（]?[A-Ha-h甲乙丙丁戊己庚辛](?![a-z\u4e00-\u9fff])")


def inputs(config: ImportConfig) -> list[Path]:
    """The tables. Raises UserError if there is none."""
    if not config.source.is_dir():
        check_file(config.source, "a CSV, TSV, JSON, JSONL, Excel or Parquet table", TABLE_SUFFIXES)
    return [table.path for table in find_tables_of(config.source).tables]


def read(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Every row of every table. Raises UserError if the named columns do not fit a table."""
    inputs(config)
    offsets: Counter[str] = Counter()
    for table in find_tables_of(config.source).tables:
        yield from read_table(table, config, offsets)


def read_table(table: Table, config: ImportConfig, offsets: Counter[str]) -> Iterator[ImportRow | RejectedRow]:
    """Every row as a question, a caption, or both. `offsets`: the rows so far of the tables with the same name."""
    columns = table_columns(table, config)
    folders = table_image_folders(config, table.path)
    offset = offsets[table.name]

    def convert(row: Mapping[str, Any], number: int) -> Iterator[ImportRow]:
        offsets[table.name] = offset + number
        return parse_row(row, number + offset, columns, config, table, folders)

    yield from convert_rows(table.path, config, convert)


def table_columns(table: Table, config: ImportConfig) -> dict[str, str]:
    """The columns of a table; of the kinds of file that can hold images, the first rows are looked at."""
    names = column_names(table.path, config.encoding)
    rows: list[Mapping[str, Any]] = []
    if table.path.suffix.lower() not in (".csv", ".tsv", ".txt", *EXCEL_SUFFIXES):
        rows = first_rows(table.path, config.encoding)
    return resolve_columns(config, names, [name for name in names if is_image_column(rows, name)])


@lru_cache(maxsize=8)
def first_rows(path: Path, encoding: str | None) -> list[Mapping[str, Any]]:
    """The first rows that can be read; cached, because a JSON list is parsed as a whole."""
    rows = (row for _, row in read_rows(path, encoding) if not isinstance(row, RejectedRow))
    return list(islice(rows, ROWS_TO_LOOK_AT))


def is_image_column(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether the cells of a column are images."""
    values = [value for row in rows if (value := row.get(name)) not in (None, "", [])]
    return bool(values) and all(map(is_image_cell, values))


def resolve_columns(config: ImportConfig, names: list[str], image_columns: Sequence[str] = ()) -> dict[str, str]:
    """field -> its column or template, from the flags, from the names in ALIASES, or because it holds images.

    Raises UserError for a column that does not exist (with the closest one), and if there is nothing to train on.
    """
    columns = {}
    for field in (*ALIASES, "ask"):
        value = getattr(config, field)
        is_template = value and ("{" in value or field == "ask")
        for name in PLACEHOLDER.findall(value) if is_template else [value] if value else []:
            if name not in names:
                hint = suggest(name, names, otherwise=f"its columns are {', '.join(names) or 'none'}")
                raise UserError(f"{config.source}: no column {name!r} (--{field.replace('_', '-')}); {hint}")
        if value:
            columns[field] = value
    if "image" not in columns and image_columns:
        columns["image"] = image_columns[0]
    columns |= match_columns(names, columns)
    if config.ask and not config.question:
        columns.pop("question", None)
    if config.ask:
        columns["question"] = config.ask
    prefix = f"{config.source}: its columns are {', '.join(names) or 'none'}"
    if "question" in columns and "answer" not in columns:
        raise UserError(f"{prefix}: there are questions but no answers; name their column with --answer")
    if "answer" in columns and "question" not in columns:
        raise UserError(f"{prefix}: there are answers but no questions; name a column with --question, or use --ask")
    if not {"answer", "caption"} & set(columns):
        raise UserError(f"{prefix}: name the texts to train on with --question and --answer, or with --caption")
    if "image" not in columns and not config.text_only:
        raise UserError(f"{prefix}: name the image column with --image, or use --text-only")
    return columns


def parse_row(
    row: Mapping[str, Any], number: int, columns: Mapping[str, str], config: ImportConfig, table: Table,
    folders: tuple[Path, ...],
) -> Iterator[ImportRow]:  # fmt: skip
    """The samples in one row of the table. Raises RowError."""
    cells = {field: read_cell(row, column, field) for field, column in columns.items()}
    images = image_files(row, cells, columns, config, folders)
    sample_id = f"{table.name}-{cells.get('id') or number}"
    question, answer, caption = (cells.get(field, "") for field in ("question", "answer", "caption"))
    if config.ask and not answer and caption:
        question = ""  # a table of captions in which only some rows have the label that --ask asks for
    if bool(question) != bool(answer):
        raise RowError("empty answer" if question else "empty question")
    if not (answer or caption):
        raise RowError("neither question and answer nor caption")
    split = SPLIT_NAMES.get(cells.get("split_column", "").lower())
    if cells.get("split_column") and not split:
        raise RowError("split is none of train, validation, test")
    split = table.split or split
    common: dict[str, Any] = {
        "images": images, "lang": config.lang, "group": cells.get("group", ""), "split": split,
        "license": cell_text(row.get("license")) or config.license,
    }  # fmt: skip
    if answer:
        choices = split_list(row.get(columns["choices"])) if "choices" in columns else ()
        if choices and not matches_a_choice(answer, choices):
            raise RowError("the answer is none of the choices")
        yield ImportRow(
            sample_id=sample_id,
            kind="vqa",
            messages=(user(question, len(images)), assistant(answer)),
            answer_type=parse_answer_type(cells.get("answer_type", ""), choices, answer),  # type: ignore[arg-type]
            choices=choices,
            question_type=cells.get("question_type") or None,
            **common,
        )
    if caption:
        messages = (user(CAPTION_INSTRUCTION, len(images)), assistant(caption))
        yield ImportRow(sample_id=f"{sample_id}-caption", kind="caption", messages=messages, **common)


def read_cell(row: Mapping[str, Any], column: str, field: str) -> str:
    """A cell's text. A column with {placeholders} is a template; a question may also be a text without any."""
    if column not in row and (field in ("ask", "question") or PLACEHOLDER.search(column)):
        return fill_template(row, column)
    return (cell_text if field in TEXT_FIELDS else name_text)(row.get(column))


def split_list(value: Any) -> tuple[str, ...]:
    """The items of a JSON list, or of a text separated by ';'."""
    items = value if isinstance(value, list) else cell_text(value).replace("；", ";").split(";")
    return tuple(text for item in items if (text := cell_text(item)))


def image_files(
    row: Mapping[str, Any], cells: Mapping[str, str], columns: Mapping[str, str], config: ImportConfig,
    folders: tuple[Path, ...],
) -> tuple[ImageFile, ...]:  # fmt: skip
    """The row's images with what the row states about them. Raises RowError for a row without an image."""
    column = columns.get("image", "")
    value = row.get(column)
    embedded = [embedded_image(item, config) for item in (value if isinstance(value, list) else [value])]
    facts = {
        "modality": cells.get("modality") or None,
        "body_part": cells.get("body_part") or None,
        "license": cell_text(row.get("license")) or config.license,
        "url": cell_text(row.get("url")) or None,
        "attribution": cell_text(row.get("attribution")) or None,
    }
    if embedded and all(embedded):
        return tuple(replace(image, **facts) for image in embedded if image)  # type: ignore[arg-type]
    names = (cells["image"],) if "{" in column and cells["image"] else split_list(plain_names(value))
    names = tuple(name for name in names if name != "None")
    if not names and not config.text_only:
        raise RowError("row without image (--text-only keeps such rows)")
    return tuple(find_image(name, folders, config, **facts) for name in names)


def plain_names(value: Any) -> Any:
    """A cell of image names; {"bytes": null, "path": …} of the hub is its path."""
    if isinstance(value, Mapping):
        return value.get("path")
    return [plain_names(item) for item in value] if isinstance(value, list) else value


def matches_a_choice(answer: str, choices: tuple[str, ...]) -> bool:
    """Whether an answer shares its text with a choice, or begins with a letter that may name one (B, AC, 乙)."""
    return any(choice in answer or answer in choice for choice in choices) or bool(CHOICE_LETTER.match(answer))


def parse_answer_type(stated: str, choices: tuple[str, ...], answer: str) -> str:
    """The stated type, else the one that choices and answer imply. Raises RowError for an unknown stated type."""
    stated = ANSWER_TYPE_NAMES.get(stated, stated.lower())
    if stated and stated not in ANSWER_TYPES:
        raise RowError(f"answer_type is none of {', '.join(ANSWER_TYPES)}")
    return stated or ("choice" if choices else guess_answer_type(answer))
