"""Rows of CSV, TSV, JSON, JSONL and Parquet files as dictionaries, one at a time, and the texts in their cells.

In: a path, and an encoding if one is named. Out: (number, row) pairs counted from 1, with a RejectedRow for each row
that cannot be read. `text_encoding.py` finds the encoding, `csv_rows.py` and `json_rows.py` the rows.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from qilin.core.errors import UserError
from qilin.core.files import check_regular_file
from qilin.dataset.import_rows import RejectedRow
from qilin.pipeline.importers.csv_rows import DELIMITERS, Lines, NumberedRows, read_csv, read_header
from qilin.pipeline.importers.json_rows import read_json, read_jsonl
from qilin.pipeline.importers.text_encoding import detect_encoding

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl")
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
WHOLE_NUMBER = re.compile(r"-?\d+\.0")
EMPTY_TEXTS = frozenset(("nan", "NaN", "NAN", "null", "NULL", "<NA>", "#N/A", "NaT"))
ROWS_PER_BATCH = 64  # of a Parquet file: a cell may be an image
# a column of a Parquet row group; a file of 100 kB can hold gigabytes of one repeated character
MAX_COLUMN_BYTES, MAX_COMPRESSION = 64 << 20, 1000


def check_file(path: Path, expected: str) -> Path:
    """The path, if it is a text file of rows. Raises UserError, listing the tables inside if it is a folder."""
    if path.is_dir():
        tables = sorted(item.name for item in path.iterdir() if item.suffix.lower() in TEXT_SUFFIXES)
        hint = f"; it contains {', '.join(tables[:5])}" if tables else ""
        raise UserError(f"{path}: is a folder; name {expected}{hint}")
    check_regular_file(path, expected)
    if path.suffix.lower() not in TEXT_SUFFIXES:
        raise UserError(f"{path}: unknown file type; expected one of {', '.join(TEXT_SUFFIXES)}")
    return path


def open_text(path: Path, encoding: str | None = None) -> TextIO:
    """A text file in its encoding. Undecodable bytes become lone surrogates, for which the row is rejected later."""
    codec = detect_encoding(path, encoding)
    errors = "strict" if codec.startswith(("utf-16", "utf-32")) else "surrogateescape"
    return path.open(encoding=codec, errors=errors, newline="")


def read_rows(path: Path, encoding: str | None = None) -> NumberedRows:
    """Every row of a table. Raises UserError if the file as a whole cannot be read."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from enumerate(read_parquet(path), start=1)
        return
    read = {".json": read_json, ".jsonl": read_jsonl}.get(suffix, read_csv)
    try:
        with open_text(path, encoding) as file:
            yield from read(file, path)
    except UnicodeError as error:
        raise UserError(
            f"{path}: not {detect_encoding(path, encoding)} text ({error}); name another with --encoding"
        ) from None


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, read in small batches. Raises UserError for a file that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_regular_file(path, "a parquet file")
    try:
        file = pq.ParquetFile(path)
        check_compression(path, file.metadata)
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
            yield from batch.to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a parquet file: {error}") from None


def check_compression(path: Path, metadata: Any) -> None:
    """Raise UserError for a column that would decompress to far more than a table holds."""
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            size, compressed = column.total_uncompressed_size, max(column.total_compressed_size, 1)
            if size > MAX_COLUMN_BYTES and size > MAX_COMPRESSION * compressed:
                raise UserError(
                    f"{path}: column {column.path_in_schema} has {size:,} bytes in {compressed:,} bytes of the file; "
                    f"expected at most {MAX_COMPRESSION:,} times as many"
                )


def column_names(path: Path, encoding: str | None = None) -> list[str]:
    """The names of all columns, in the order of their first appearance."""
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
