"""Rows of CSV and TSV files as dictionaries, as Excel, WPS, pandas and people write them.

In: an open text file. Out: (number, row) pairs, with a RejectedRow for each row that cannot be read. The delimiter is
that of a `sep=;` line, else the one that gives the header the most columns. A quote that is never closed costs its own
line: the lines that it swallowed are read again.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from qilin.core.errors import UserError
from qilin.dataset.import_rows import RejectedRow

NumberedRows = Iterator[tuple[int, dict[str, Any] | RejectedRow]]

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
OTHER_DELIMITERS = (",", ";", "\t", "|")
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')  # how Excel states the delimiter
MAX_CELL_LENGTH = 64 << 20  # characters; the csv module stops at 131,072, which a long report may exceed
UNCLOSED_QUOTE = "a quote that is not closed, or text after a closing quote"


class Lines:
    """The lines of a file, of which those of a failed record can be taken back."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.waiting: deque[str] = deque()
        self.record: list[str] = []  # the lines of the current record
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.waiting.popleft() if self.waiting else next(self.file)
        self.number += 1
        self.record.append(line)
        return line

    def begin_record(self) -> int:
        """Forget the lines of the last record; the number of the next line."""
        self.record = []
        return self.number + 1

    def take_back(self, keep: int) -> None:
        """Take back the lines of the current record, except the first `keep`."""
        self.waiting.extendleft(reversed(self.record[keep:]))
        self.number -= len(self.record) - keep


def read_header(lines: Lines, path: Path) -> tuple[str, list[str]]:
    """(delimiter, names of the columns). Empty columns at the end are left out. Raises UserError."""
    csv.field_size_limit(MAX_CELL_LENGTH)
    delimiter = None
    for line in lines:
        if match := SEPARATOR_LINE.fullmatch(line):
            delimiter = match[1]
        elif line.strip():
            break
    else:
        return ",", []
    delimiter = delimiter or guess_delimiter(line, DELIMITERS[path.suffix.lower()])
    lines.record = lines.record[-1:]
    lines.take_back(keep=0)
    try:
        names = [name.strip() for name in next(csv.reader(lines, delimiter=delimiter, strict=True))]
    except csv.Error as error:
        raise UserError(f"{path}: line 1: the header is not valid CSV: {error}") from None
    while names and not names[-1]:
        names.pop()
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise UserError(f"{path}: column {repeated[0]!r} appears twice; rename one")
    return delimiter, names


def guess_delimiter(header: str, usual: str) -> str:
    """The delimiter that divides the header into the most columns; of equal ones, the usual one."""

    def columns(delimiter: str) -> int:
        return len(next(csv.reader([header], delimiter=delimiter), []))

    return max((usual, *OTHER_DELIMITERS), key=columns)


def read_csv(file: TextIO, path: Path) -> NumberedRows:
    """CSV with a header; a row with more or fewer cells is rejected, because its columns have shifted.

    Rows of empty cells are no rows: spreadsheets write them after the last one.
    """
    lines = Lines(file)
    delimiter, names = read_header(lines, path)
    records = read_records(lines, delimiter, len(names))
    for number, (line_number, cells) in enumerate(records, start=1):
        if isinstance(cells, str):
            yield number, RejectedRow({"row": number, "line": line_number, "text": cells[:500]}, UNCLOSED_QUOTE)
        elif len(cells) < len(names) or any(cells[len(names) :]):
            row = {"row": number, "line": line_number, "cells": cells}
            yield number, RejectedRow(row, "number of cells differs from the number of columns")
        elif any(cells):
            yield number, dict(zip(names, cells, strict=False))


def read_records(lines: Lines, delimiter: str, num_columns: int) -> Iterator[tuple[int, list[str] | str]]:
    """(number of its first line, its stripped cells) of each record that is not blank, or the line that cannot be read.

    A record of several lines with another number of cells than the header was joined by a quote that is not closed.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line_number = lines.begin_record()
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error:
            cells = []
        is_joined = len(lines.record) > 1 and (len(cells) < num_columns or any(cells[num_columns:]))
        if is_joined or (not cells and lines.record[0].strip()):
            lines.take_back(keep=1)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            yield line_number, lines.record[0]
        elif cells:
            yield line_number, cells
