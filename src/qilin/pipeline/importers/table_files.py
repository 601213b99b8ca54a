"""Rows of CSV, TSV, JSON, JSONL and Parquet files as dictionaries, one at a time, in UTF-8 or a Chinese encoding.

In: a path. Out: (number, row) pairs counted from 1, with a RejectedRow for each row that cannot be read. UTF-8 is tried
first, then GB18030, which includes GBK and GB2312; `detect_encoding` returns which one it is.
"""

import codecs
import csv
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import RejectedRow

NumberedRows = Iterator[tuple[int, dict[str, Any] | RejectedRow]]

ENCODINGS = ("utf-8-sig", "gb18030")
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl")
MAX_CELL_LENGTH = 64 << 20  # characters; the csv module stops at 131,072, which a long report may exceed
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
ROWS_PER_BATCH = 64  # of a Parquet file: a cell may be an image


def check_file(path: Path, expected: str) -> Path:
    """The path, if it is a text file of rows. Raises UserError, listing the tables inside if it is a folder."""
    if path.is_dir():
        tables = sorted(item.name for item in path.iterdir() if item.suffix.lower() in TEXT_SUFFIXES)
        hint = f"; it contains {', '.join(tables[:5])}" if tables else ""
        raise UserError(f"{path}: is a folder; name {expected}{hint}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {expected}")
    if path.suffix.lower() not in TEXT_SUFFIXES:
        raise UserError(f"{path}: unknown file type; expected one of {', '.join(TEXT_SUFFIXES)}")
    return path


def detect_encoding(path: Path) -> str:
    """The first of ENCODINGS in which the complete file decodes. Raises UserError if none does."""
    status = path.stat()
    return _detect_encoding(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _detect_encoding(path: Path, modified_ns: int, size: int) -> str:
    """`detect_encoding`, cached until the file changes, because a table is opened several times."""
    for encoding in ENCODINGS:
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    decoder.decode(chunk)
            decoder.decode(b"", final=True)
            return encoding
        except UnicodeDecodeError:
            continue
    raise UserError(f"{path}: is neither UTF-8 nor GB18030 text; save it as UTF-8")


def read_rows(path: Path) -> NumberedRows:
    """Every row of a table. Raises UserError if the file as a whole cannot be read."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from enumerate(read_parquet(path), start=1)
    elif suffix == ".json":
        yield from read_json_list(path)
    else:
        yield from (read_jsonl if suffix == ".jsonl" else read_csv)(path)


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, read in small batches."""
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=ROWS_PER_BATCH):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a parquet file: {error}") from None


def column_names(path: Path) -> list[str]:
    """The names of all columns, in the order of their first appearance."""
    if path.suffix.lower() in DELIMITERS:
        with path.open(encoding=detect_encoding(path), newline="") as file:
            header = next(csv.reader(file, delimiter=DELIMITERS[path.suffix.lower()]), [])
            return [name.strip() for name in header]
    rows = (row for _, row in read_rows(path) if not isinstance(row, RejectedRow))
    return list(dict.fromkeys(name for row in rows for name in row))


def read_csv(path: Path) -> NumberedRows:
    """CSV with a header; a row with more or fewer cells is rejected, because its columns have shifted."""
    csv.field_size_limit(MAX_CELL_LENGTH)
    names = column_names(path)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{path}: column {repeated[0]!r} appears twice; rename one")
    with path.open(encoding=detect_encoding(path), newline="") as file:
        reader = csv.reader(file, delimiter=DELIMITERS[path.suffix.lower()])
        next(reader, None)
        try:
            for number, cells in enumerate((cells for cells in reader if cells), start=1):
                if len(cells) != len(names):
                    row = {"row": number, "cells": cells}
                    yield number, RejectedRow(row, "number of cells differs from the number of columns")
                else:
                    yield number, dict(zip(names, (cell.strip() for cell in cells), strict=True))
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.line_num}: not valid CSV: {error}") from None


def read_json_list(path: Path) -> NumberedRows:
    """A JSON list of objects."""
    try:
        rows = json.loads(path.read_text(encoding=detect_encoding(path)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(rows, list):
        content = f"an object of {', '.join(map(repr, list(rows)[:5]))}" if isinstance(rows, dict) else repr(rows)[:60]
        raise UserError(f"{path}: expected a list of rows, found {content}")
    for number, row in enumerate(rows, start=1):
        yield number, check_object(row, number)


def read_jsonl(path: Path) -> NumberedRows:
    """One JSON object per line; a broken line is rejected alone, an empty line is skipped."""
    with path.open(encoding=detect_encoding(path)) as file:
        for number, line in enumerate((line for line in file if line.strip()), start=1):
            try:
                yield number, check_object(json.loads(line), number)
            except (ValueError, RecursionError):
                yield number, RejectedRow({"row": number, "text": line[:500]}, "line is not valid JSON")


def check_object(row: Any, number: int) -> dict[str, Any] | RejectedRow:
    return row if isinstance(row, dict) else RejectedRow({"row": number, "found": row}, "row is not an object")


def cell_text(value: Any) -> str:
    """A cell as stripped text; "" for null, lists and objects."""
    return "" if value is None or isinstance(value, list | dict) else str(value).strip()


def fill_template(row: Mapping[str, Any], template: str) -> str:
    """A text with its {columns} filled; "" if one of the cells is empty. {a|b}: the first column that is not empty."""
    texts = {}
    for placeholder in PLACEHOLDER.findall(template):
        columns = [placeholder, *placeholder.split("|")]
        texts[placeholder] = next(filter(None, (cell_text(row.get(column)) for column in columns)), "")
    return PLACEHOLDER.sub(lambda match: texts[match[1]], template) if all(texts.values()) else ""
