"""Files of predictions, of Qilin and of other systems: JSONL, JSON, CSV, TSV and xlsx.

In: a file, and optionally which of its columns holds what and a file with the references. Out: Predictions, the name of
the file's format, and what was left out or guessed. A row that cannot be read costs only itself, and is counted, if at
most one in MIN_ROWS_PER_FAULT is such a row; otherwise the file is refused with the first of them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qilin.core.errors import UserError
from qilin.core.files import (
    MAX_LINE_BYTES,
    check_regular_file,
    describe_json,
    parse_json,
    parse_jsonl_row,
    read_text,
    shorten,
)
from qilin.evaluate.foreign_rows import (
    Format,
    dataset_references,
    find_format,
    parse_fields,
    parse_list,
    reference_row,
    select_columns,
)
from qilin.evaluate.results import Prediction, RowNotes

if TYPE_CHECKING:  # Arrow takes 30 MB
    from qilin.dataset.reader import Dataset

EXPECTED = "rows with id, question, reference, prediction"
MIN_ROWS_PER_FAULT = 20
MAX_TABLE_BYTES = 1 << 30
MAX_INTEGER_DIGITS = 4000  # Python converts 4,300; a longer one stays the text that it is
TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx")
OTHER_SUFFIXES = {".xls": "an old Excel file", ".pkl": "a pickle, which can run code", ".parquet": "a Parquet file"}

Rows = Iterator[tuple[str, Any]]  # ("FILE, line N", row or the UserError that says why there is none)


@dataclass(frozen=True)
class PredictionFile:
    """The predictions of a file, the name of its layout, and notes for the reader: what was left out or guessed."""

    predictions: list[Prediction]
    layout: str
    notes: list[str] = field(default_factory=list)


def read_prediction_file(
    path: Path,
    fields: Sequence[str] = (),
    references: Path | None = None,
    dataset: Dataset | None = None,
    caption_prompt: str = "",
) -> PredictionFile:
    """The predictions in a file, or in the predictions.jsonl of an evaluation folder.

    `fields`: FIELD=COLUMN assignments. Fields that a row lacks are taken by id from `references`, a file, else from the
    samples of `dataset`. Raises UserError that names the file, the row and the field.
    """
    path = check_prediction_path(path)
    mapping, notes = parse_fields(fields), RowNotes()
    known = read_references(references) if references else None
    predictions: list[Prediction] = []
    first_use: dict[str, str] = {}  # id -> "line N"
    faults: list[UserError] = []
    layout: tuple[str, Format] | None = None
    is_table = path.suffix.lower() in TABLE_SUFFIXES
    number = 0
    for number, (where, row) in enumerate(read_rows(path), 1):
        if isinstance(row, UserError):
            faults.append(row)
            continue
        if layout is None:
            layout = find_format(row | dict.fromkeys(mapping))
        name, convert = layout
        try:
            row = convert_row(row, convert, mapping, where)
            if "id" not in row and (is_table or mapping or not convert.is_ours):
                row["id"] = str(number)
            if known is None and needs_reference(row) and dataset is not None:
                known = dataset_references(dataset, caption_prompt)
            if known is not None:
                row = known.get(str(row.get("id")), {}) | {k: v for k, v in row.items() if v is not None}
            check_reference(row, where, name, references)
            prediction = Prediction.from_row(row, where, notes)
        except UserError as error:
            faults.append(error)
            continue
        line = where.rpartition(", ")[2]
        if prediction.id in first_use:
            used = f"{where}: id {shorten(prediction.id)[1:-1]} was used on {first_use[prediction.id]}"
            raise UserError(f"{used}; expected unique ids")
        first_use[prediction.id] = line
        predictions.append(prediction)
    if faults and (len(faults) * MIN_ROWS_PER_FAULT > number or not predictions):
        raise faults[0]
    if not predictions:
        raise UserError(f"{path}: no rows; expected {EXPECTED}")
    messages = notes.messages()
    if faults:
        messages.append(f"{len(faults)} of {number} rows cannot be read and are left out, the first: {faults[0]}")
    assert layout is not None
    return PredictionFile(predictions, layout[0], messages)


def check_prediction_path(path: Path) -> Path:
    """The file to read. Raises UserError for a folder that is no evaluation and for formats that are not read."""
    if path.is_dir():
        if (path / "predictions.jsonl").is_file():
            return path / "predictions.jsonl"
        suffixes = (".jsonl", ".json", *TABLE_SUFFIXES)
        files = [file for file in sorted(islice(path.rglob("*"), 2000)) if file.suffix in suffixes and file.is_file()]
        hint = f"name one of its files, such as {files[0]}" if files else "it holds no JSONL, JSON, CSV, TSV or xlsx"
        raise UserError(f"{path}: is a folder without predictions.jsonl; expected a file of predictions; {hint}")
    if path.suffix.lower() in OTHER_SUFFIXES:
        file_type = OTHER_SUFFIXES[path.suffix.lower()]
        raise UserError(f"{path}: is {file_type}; expected JSONL, JSON, CSV, TSV or xlsx: save it as one of them")
    check_regular_file(path, f"a file of {EXPECTED}")
    return path


def convert_row(row: Mapping[str, Any], layout: Format, mapping: Mapping[str, str], where: str) -> dict[str, Any]:
    """A row under our names; the columns that the caller named count before those of the format."""
    selected = select_columns(row, mapping, where)
    try:
        converted = layout.convert(row)
    except (LookupError, TypeError, AttributeError, RecursionError):
        missing = [name for name in layout.fields if name not in row]
        if set(mapping) >= {"question", "reference", "prediction"}:
            converted = {}
        else:
            raise UserError(
                f"{where}: field {', '.join(missing)} is missing; it has {shorten(list(row), 200)}"
            ) from None
    return converted | selected


def needs_reference(row: Mapping[str, Any]) -> bool:
    """Whether a row of predictions lacks its reference."""
    return row.get("reference") is None and "prediction" in row


def check_reference(row: Mapping[str, Any], where: str, layout: str, references: Path | None) -> None:
    """Raises UserError, with what to do, for a row whose reference is in another file."""
    if not needs_reference(row):
        return
    row_id = shorten(str(row.get("id")))
    if references is not None:
        raise UserError(f"{where}: {references} has no reference for id {row_id}")
    raise UserError(
        f"{where}: field reference is missing ({layout}, id {row_id}); name the file that has the references with "
        "--references FILE, the dataset folder with --dataset, or the column with --fields reference=COLUMN"
    )


def read_references(path: Path) -> dict[str, dict[str, Any]]:
    """id -> fields, from a file of questions with answers. Raises UserError for a file without any."""
    check_regular_file(path, "a file of questions with their reference answers")
    references: dict[str, dict[str, Any]] = {}
    for _, row in read_rows(path):
        if isinstance(row, UserError):
            raise row
        reference = reference_row(row)
        if reference is not None:
            references.setdefault(*reference)
    if not any("reference" in fields for fields in references.values()):
        raise UserError(f"{path}: no row has an id and an answer; expected id, question, reference or LLaVA's layout")
    return references


# --- rows of a file -------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> Rows:
    """The rows of a JSONL, JSON, CSV, TSV or xlsx file."""
    suffix = path.suffix.lower()
    if suffix == ".xlsx":
        return read_xlsx_rows(path)
    if suffix in (".csv", ".tsv"):
        return read_table_rows(path)
    check_regular_file(path, f"a file of {EXPECTED}")
    with path.open("rb") as file:
        head = file.read(65_536).removeprefix(b"\xef\xbb\xbf").lstrip()
    first, _, rest = head.partition(b"\n")
    is_line = first.rstrip().endswith(b"]") and rest.lstrip().startswith(b"{")  # a wrong row among right ones
    is_document = (head.startswith(b"[") and not is_line) or (head.startswith(b"{") and not is_json_line(path))
    return read_document_rows(path) if is_document else read_lines(path)


def is_json_line(path: Path) -> bool:
    """Whether the first line that is not empty is a JSON value of its own, or does not even begin a document."""
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if text:
                return text.endswith(b"}") or len(text) > 200
    return True


def read_lines(path: Path) -> Rows:
    """The rows of a JSONL file; a line that is no object is yielded as its error."""
    with path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES), b""), 1):
            where = f"{path}, line {number}"
            if len(line) >= MAX_LINE_BYTES:
                raise UserError(f"{where}: longer than {MAX_LINE_BYTES:,} bytes; expected {EXPECTED}")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield where, parse_line(text, where, number)
            except UnicodeDecodeError as error:
                yield where, UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8")
            except UserError as error:
                yield where, error


def parse_line(text: str, where: str, number: int) -> Any:
    """The object in a line; an integer of too many digits stays a text."""
    try:
        return parse_jsonl_row(text, where, EXPECTED, is_first=number == 1)
    except UserError:
        try:
            row = json.loads(text, parse_int=parse_integer)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise
        return row


def parse_integer(digits: str) -> int | str:
    """An integer, or the digits themselves if Python refuses to convert so many."""
    return int(digits) if len(digits) <= MAX_INTEGER_DIGITS else digits


def read_document_rows(path: Path) -> Rows:
    """The rows of one JSON value: a list of objects, the list that an object holds, or {id: row}."""
    text = read_text(path, f"a JSON file of {EXPECTED}")
    try:
        value = json.loads(text, parse_int=parse_integer)
    except (ValueError, RecursionError):
        value = parse_json(text, str(path))  # raises with the reason
    rows = rows_of_document(value)
    if rows is None:
        raise UserError(f"{path}: holds {describe_json(value)}; expected a list of {EXPECTED}")
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        error = UserError(f"{where}: holds {describe_json(row)}; expected an object: {EXPECTED}")
        yield where, row if isinstance(row, dict) else error


def rows_of_document(value: Any) -> list[Any] | None:
    """The rows in a JSON value; None if it holds none."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        return None
    lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
    if len(lists) == 1:
        return lists[0]
    if all(isinstance(item, dict) for item in value.values()):
        columns = list(value.values())
        if len({tuple(column) for column in columns}) == 1 and "prediction" in value:  # pandas: {column: {row: value}}
            return [{name: column[row] for name, column in value.items()} for row in columns[0]]
        return [{"id": key, **item} for key, item in value.items()]
    return [value] if "prediction" in value else None


def read_table_rows(path: Path) -> Rows:
    """The rows of a CSV or TSV file in UTF-8, UTF-16 or GB18030; a delimiter of comma, semicolon or tab."""
    check_regular_file(path, f"a table of {EXPECTED}", MAX_TABLE_BYTES)
    encoding = find_encoding(path)
    csv.field_size_limit(MAX_LINE_BYTES)
    with path.open(encoding=encoding, newline="", errors="strict") as file:
        header_line = file.readline(MAX_LINE_BYTES)
        file.seek(0)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header_line.count)
        reader = csv.reader(file, delimiter=delimiter)
        try:
            yield from table_rows(path, reader)
        except (csv.Error, UnicodeError) as error:
            raise UserError(
                f"{path}, line {reader.line_num + 1}: not a table ({error}); save it as UTF-8 CSV"
            ) from None


def find_encoding(path: Path) -> str:
    """utf-16 by its mark, utf-8, else gb18030, which Excel writes on Chinese Windows."""
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        file.seek(0)
        try:
            for line in file:
                line.decode("utf-8")
        except UnicodeDecodeError:
            return "gb18030"
    return "utf-8-sig"


def table_rows(path: Path, lines: Iterable[Sequence[Any]]) -> Rows:
    """Rows under the names of the first line; an empty cell is None."""
    names: list[str] | None = None
    for number, values in enumerate(lines, 1):
        if all(value is None or value == "" for value in values):
            continue
        if names is None:
            names = ["" if value is None else str(value).strip() for value in values]
            repeated = next((name for name in names if name and names.count(name) > 1), None)
            if repeated is not None:
                raise UserError(f"{path}: column {shorten(repeated)} occurs twice; expected one column per name")
            continue
        where = f"{path}, row {number}"
        if len(values) > len(names):
            yield where, UserError(f"{where}: has {len(values)} values for {len(names)} columns")
            continue
        cells = zip_longest(names, values)
        yield where, {name: parse_cell(name, value) for name, value in cells if name}


def parse_cell(name: str, value: Any) -> Any:
    """A cell; lists of choices and images are written as texts."""
    if value == "":
        return None
    is_list = name in ("choices", "image_ids", "image_path") and isinstance(value, str) and value.startswith(("[", "("))
    return parse_list(value) if is_list else value


def read_xlsx_rows(path: Path) -> Rows:
    """The rows of the first sheet of an xlsx file. Raises UserError where openpyxl is missing."""
    check_regular_file(path, f"an xlsx file of {EXPECTED}", MAX_TABLE_BYTES)
    try:
        import openpyxl
    except ImportError:
        raise UserError(
            f"{path}: reading xlsx needs openpyxl: pip install 'qilin-med[xlsx]'; or save it as CSV"
        ) from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        yield from table_rows(path, book.worksheets[0].iter_rows(values_only=True))
    except UserError:
        raise
    except Exception as error:  # openpyxl raises whatever a damaged file makes it stumble over
        raise UserError(f"{path}: not a readable xlsx file ({type(error).__name__}: {error})") from None
    finally:
        if "book" in locals():
            book.close()
