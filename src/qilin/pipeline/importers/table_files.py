"""Rows of CSV, TSV, JSON, JSONL and parquet files as dictionaries, one at a time, in whichever Chinese encoding.

In: a path. Out: (number, row) pairs counted from 1, a `Refused` in place of a row that cannot be read. UTF-8 is tried
first, then GB18030, which holds GBK and GB2312; `encoding_of` says which one it was.
"""

import codecs
import csv
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import RejectedRow

ENCODINGS = ("utf-8-sig", "gb18030")
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
KINDS = (".csv", ".tsv", ".txt", ".json", ".jsonl")
LONGEST_CELL = 64 << 20  # characters; the csv module stops at 131,072, which a long report may pass


def check_file(path: Path, expected: str) -> Path:
    """The path, if it is a file of rows. Raises UserError, naming the tables of a folder where a folder was given."""
    if path.is_dir():
        inside = sorted(item.name for item in path.iterdir() if item.suffix.lower() in KINDS)
        hint = f"; there are {', '.join(inside[:5])} in it" if inside else ""
        raise UserError(f"{path}: is a folder; name {expected}{hint}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {expected}")
    if path.suffix.lower() not in KINDS:
        raise UserError(f"{path}: cannot tell what it is by its name; expected one of {', '.join(KINDS)}")
    return path


def encoding_of(path: Path) -> str:
    """The first encoding in which the whole file makes sense. Raises UserError where none does."""
    facts = path.stat()
    return tried_encoding(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=8)
def tried_encoding(path: Path, changed: int, size: int) -> str:
    """`encoding_of`, remembered until the file changes: a table is opened several times."""
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


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RejectedRow]]:
    """Every row of a table. Raises UserError where the file as a whole cannot be read."""
    if path.suffix.lower() == ".parquet":
        yield from enumerate(parquet_rows(path), start=1)
        return
    readers = {".json": json_rows, ".jsonl": jsonl_rows}
    yield from readers.get(path.suffix.lower(), csv_rows)(path)


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, some at a time: a cell may be an image."""
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=64):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a parquet file: {error}") from None


def columns(path: Path) -> list[str]:
    """The names of all columns, in the order they are met."""
    if path.suffix.lower() in DELIMITERS:
        with path.open(encoding=encoding_of(path), newline="") as file:
            return [name.strip() for name in next(csv.reader(file, delimiter=DELIMITERS[path.suffix.lower()]), [])]
    rows = (row for _, row in read_rows(path) if not isinstance(row, RejectedRow))
    return list(dict.fromkeys(name for row in rows for name in row))


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RejectedRow]]:
    """CSV with a line of names; a row with too many or too few cells is refused, as its columns have slipped."""
    csv.field_size_limit(LONGEST_CELL)
    names = columns(path)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: column {twice[0]!r} stands there twice; rename one")
    with path.open(encoding=encoding_of(path), newline="") as file:
        reader = csv.reader(file, delimiter=DELIMITERS[path.suffix.lower()])
        next(reader, None)
        try:
            for number, cells in enumerate((cells for cells in reader if cells), start=1):
                if len(cells) != len(names):
                    found = {"row": number, "cells": cells}
                    yield number, RejectedRow(found, "number of cells differs from the number of columns")
                else:
                    yield number, dict(zip(names, (cell.strip() for cell in cells), strict=True))
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.line_num}: not valid CSV: {error}") from None


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RejectedRow]]:
    """A JSON list of objects."""
    try:
        rows = json.loads(path.read_text(encoding=encoding_of(path)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(rows, list):
        found = f"an object of {', '.join(map(repr, list(rows)[:5]))}" if isinstance(rows, dict) else repr(rows)[:60]
        raise UserError(f"{path}: expected a list of rows, found {found}")
    for number, row in enumerate(rows, start=1):
        yield (
            number,
            row if isinstance(row, dict) else RejectedRow({"row": number, "found": row}, "row is not an object"),
        )


def jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RejectedRow]]:
    """One JSON object a line; a broken line is refused alone. Empty lines are no rows."""
    with path.open(encoding=encoding_of(path)) as file:
        for number, line in enumerate((line for line in file if line.strip()), start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                yield number, RejectedRow({"row": number, "text": line[:500]}, "line is not valid JSON")
                continue
            yield (
                number,
                row if isinstance(row, dict) else RejectedRow({"row": number, "found": row}, "row is not an object"),
            )
