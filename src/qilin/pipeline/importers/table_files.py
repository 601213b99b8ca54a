"""Rows of CSV, TSV, JSON, JSONL, Excel, Parquet and Arrow files as dictionaries, one at a time, and their cells' texts.

In: a path, and an encoding if one is named. Out: (number, row) pairs counted from 1, with a RejectedRow for each row
that cannot be read. `text_encoding.py` finds the encoding, `*_rows.py` the rows of each kind of file.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from qilin.core.errors import UserError
from qilin.core.files import check_regular_file
from qilin.dataset.import_rows import RejectedRow
from qilin.pipeline.importers.arrow_rows import arrow_columns, read_arrow, read_parquet
from qilin.pipeline.importers.csv_rows import DELIMITERS, Lines, NumberedRows, read_csv, read_header
from qilin.pipeline.importers.excel_rows import EXCEL_SUFFIXES, OTHER_SPREADSHEETS, excel_columns, read_excel
from qilin.pipeline.importers.json_rows import read_json, read_jsonl
from qilin.pipeline.importers.tar_rows import TAR_SUFFIXES, read_tar
from qilin.pipeline.importers.text_encoding import detect_encoding

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl")
ARROW_SUFFIXES = (".parquet", ".arrow")
TABLE_SUFFIXES = (*TEXT_SUFFIXES, *EXCEL_SUFFIXES, *ARROW_SUFFIXES, *TAR_SUFFIXES)
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
WHOLE_NUMBER = re.compile(r"-?\d+\.0")
EMPTY_TEXTS = frozenset(("nan", "NaN", "NAN", "null", "NULL", "<NA>", "#N/A", "NaT"))


def check_file(path: Path, expected: str, suffixes: tuple[str, ...] = TEXT_SUFFIXES) -> Path:
    """The path, if it is a file of rows. Raises UserError, listing the tables inside if it is a folder."""
    if path.is_dir():
        tables = sorted(item.name for item in path.iterdir() if item.suffix.lower() in suffixes)
        hint = f"; it contains {', '.join(tables[:5])}" if tables else ""
        raise UserError(f"{path}: is a folder; name {expected}{hint}")
    check_regular_file(path, expected)
    if path.suffix.lower() in OTHER_SPREADSHEETS:
        raise UserError(f"{path}: this kind of spreadsheet is not read; save it as .xlsx or as CSV (UTF-8)")
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path}: unknown file type; expected one of {', '.join(suffixes)}")
    return path


def open_text(path: Path, encoding: str | None = None) -> TextIO:
    """A text file in its encoding. Undecodable bytes become lone surrogates, for which the row is rejected later."""
    codec = detect_encoding(path, encoding)
    errors = "strict" if codec.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return path.open(encoding=codec, errors=errors, newline="")


def read_rows(path: Path, encoding: str | None = None) -> NumberedRows:
    """Every row of a table. Raises UserError if the file as a whole cannot be read."""
    suffix = path.suffix.lower()
    if suffix in ARROW_SUFFIXES:
        yield from enumerate(read_parquet(path) if suffix == ".parquet" else read_arrow(path), start=1)
        return
    if suffix in (*EXCEL_SUFFIXES, *TAR_SUFFIXES):
        yield from read_excel(path) if suffix in EXCEL_SUFFIXES else read_tar(path)
        return
    read = {".json": read_json, ".jsonl": read_jsonl}.get(suffix, read_csv)
    try:
        with open_text(path, encoding) as file:
            yield from read(file, path)
    except UnicodeError as error:
        raise UserError(
            f"{path}: not {detect_encoding(path, encoding)} text ({error}); name another with --encoding"
        ) from None


def column_names(path: Path, encoding: str | None = None) -> list[str]:
    """The names of all columns, in the order of their first appearance."""
    if path.suffix.lower() in ARROW_SUFFIXES:
        return arrow_columns(path)
    if path.suffix.lower() in EXCEL_SUFFIXES:
        return excel_columns(path)
    if path.suffix.lower() in DELIMITERS:
        with open_text(path, encoding) as file:
            return read_header(Lines(file), path)[1]
    rows = (row for _, row in read_rows(path, encoding) if not isinstance(row, RejectedRow))
    return list(dict.fromkeys(name for row in rows for name in row))


def cell_text(value: Any) -> str:
    """A cell as stripped text; "" for null, not a number, lists, objects, and what spreadsheets write for nothing."""
    if isinstance(value, str):
        text = value.strip()
        return "" if text in EMPTY_TEXTS else text
    if value is None or isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return str(value).strip()


def name_text(value: Any) -> str:
    """A cell that names or identifies something. 17.0 is 17, which pandas wrote for a column with empty cells."""
    text = cell_text(value)
    return "" if text == "None" else text.removesuffix(".0") if WHOLE_NUMBER.fullmatch(text) else text


def fill_template(row: Mapping[str, Any], template: str) -> str:
    """A text with its {columns} filled; "" if one of the cells is empty. {a|b}: the first column that is not empty."""
    texts = {}
    for placeholder in PLACEHOLDER.findall(template):
        columns = [placeholder, *placeholder.split("|")]
        texts[placeholder] = next(filter(None, (cell_text(row.get(column)) for column in columns)), "")
    return PLACEHOLDER.sub(lambda match: texts[match[1]], template) if all(texts.values()) else ""
