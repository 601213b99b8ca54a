"""Rows of JSON and JSONL files, whichever of the two the name says.

In: an open text file. Out: (number, row) pairs, with a RejectedRow for each row that cannot be read. Read are a list of
objects, an object that holds one such list ({"data": [...]}), objects one per line, and the tables that pandas writes:
{"column": {"0": cell}}, {"column": [cells]} and {"columns": [...], "data": [[...]]}.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from qilin.core.errors import UserError
from qilin.dataset.import_rows import RejectedRow

NumberedRows = Iterator[tuple[int, dict[str, Any] | RejectedRow]]

NOT_JSON = "line is not valid JSON"
MAX_DEPTH = 100  # of the lists and objects in a row; real rows have 3
MAX_DIGITS = 4300  # of an integer; Python refuses to parse longer ones


def read_json(file: TextIO, path: Path) -> NumberedRows:
    """A JSON document, or JSONL under the name of one. Raises UserError if it holds no rows."""
    text = file.read()
    try:
        document = load_json(text)
    except RecursionError:
        raise UserError(f"{path}: not valid JSON: nested too deeply") from None
    except ValueError as error:
        if not is_object(text.partition("\n")[0]):
            raise UserError(f"{path}: not valid JSON: {error}") from None
        yield from parse_lines(iter(text.split("\n")))
        return
    rows = find_rows(document)
    if rows is None:
        raise UserError(f"{path}: expected a list of rows, found {describe(document)}")
    for number, row in enumerate(rows, start=1):
        yield number, check_object(row, number)


def read_jsonl(file: TextIO, path: Path) -> NumberedRows:
    """One JSON object per line; a broken line is rejected alone, an empty line is skipped. Or a JSON document."""
    start = next((line for line in file if line.strip()), "").strip()
    file.seek(0)
    if start.startswith("[") or (start.startswith("{") and not is_object(start) and is_document(file)):
        file.seek(0)
        yield from read_json(file, path)
        return
    file.seek(0)
    yield from parse_lines(file)


def parse_lines(lines: Iterator[str]) -> NumberedRows:
    for number, line in enumerate((line for line in lines if line.strip()), start=1):
        try:
            yield number, check_object(load_json(line), number)
        except (ValueError, RecursionError):
            yield number, RejectedRow({"row": number, "text": line[:500]}, NOT_JSON)


def load_json(text: str) -> Any:
    """`json.loads` in which an integer of more digits than Python parses stays text, so that it costs one row."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(text, parse_int=lambda digits: digits if len(digits) > MAX_DIGITS else int(digits))


def is_object(line: str) -> bool:
    try:
        return isinstance(load_json(line), dict)
    except (ValueError, RecursionError):
        return False


def is_document(file: TextIO) -> bool:
    """Whether the rest of a file is one JSON value over several lines."""
    try:
        return isinstance(load_json(file.read()), dict | list)
    except (ValueError, RecursionError):
        return False


def find_rows(document: Any) -> list[Any] | None:
    """The rows in a JSON document; None where it holds none, or several lists."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict) or not document:
        return None
    lists = [value for value in document.values() if isinstance(value, list)]
    of_objects = [rows for rows in lists if rows and all(isinstance(row, dict) for row in rows)]
    if len(of_objects) == 1:
        return of_objects[0]
    names, data = document.get("columns"), document.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(names, row, strict=True)) if len(row) == len(names) else row for row in data]
    columns = list(document.values())
    if all(isinstance(column, dict) for column in columns) and len({tuple(column) for column in columns}) == 1:
        return [{name: column[key] for name, column in document.items()} for key in columns[0]]
    has_cells = not any(isinstance(cell, dict | list) for column in lists for cell in column)
    if len(lists) == len(columns) > 1 and has_cells and len(set(map(len, lists))) == 1:
        return [dict(zip(document, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return None


def describe(value: Any) -> str:
    """What a document holds instead of rows."""
    return f"an object of {', '.join(map(repr, list(value)[:5]))}" if isinstance(value, dict) else repr(value)[:60]


def check_object(row: Any, number: int) -> dict[str, Any] | RejectedRow:
    if is_too_deep(row):
        return RejectedRow({"row": number}, f"nested deeper than {MAX_DEPTH} levels")
    return row if isinstance(row, dict) else RejectedRow({"row": number, "found": row}, "row is not an object")


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects are nested deeper than code that walks them recursively can follow."""
    level, depth = [value], 0
    while level := [item for container in level for item in children(container)]:
        depth += 1
        if depth > MAX_DEPTH:
            return True
    return False


def children(value: Any) -> list[Any]:
    """The lists and objects directly inside a list or an object."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, dict | list)]
