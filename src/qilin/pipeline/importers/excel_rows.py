"""Rows of the first sheet of an Excel workbook as dictionaries, one at a time.

In: a path of an .xlsx or .xlsm file. Out: (number, row) pairs. The first row that is not empty is the header. A merged
cell holds for all its rows, as a reader sees it; 0012 in a column of the format 0000 stays 0012; dates are written as
ISO dates. Needs openpyxl, the extra `xlsx`.
"""

import datetime
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import check_regular_file
from qilin.dataset.import_rows import RejectedRow

NumberedRows = Iterator[tuple[int, dict[str, Any] | RejectedRow]]

EXCEL_SUFFIXES = (".xlsx", ".xlsm")
OTHER_SPREADSHEETS = (".xls", ".xlsb", ".et", ".ods", ".numbers")
ZEROS = re.compile(r"0+")
FORMULA_ERROR = re.compile(r"#[A-Z0-9/]+[!?]?")  # what a cell shows whose formula failed: #N/A, #REF!
MAX_PART_BYTES = 1 << 30  # of a sheet or of the shared texts, which openpyxl keeps in memory, after decompression


def read_excel(path: Path) -> NumberedRows:
    """The rows below the header. Raises UserError for a file that is no workbook, or has no header."""
    with open_workbook(path) as book:
        sheet = book.worksheets[0]
        spans = merged_spans(path, sheet)
        rows = iter(sheet.iter_rows())
        names, first = read_names(path, rows)
        above: dict[int, Any] = {}  # column -> value of the merged cell that is still open
        for number, cells in enumerate(rows, start=1):
            line = first + number
            values = [""] * len(names)
            for index, cell in enumerate(cells[: len(names)]):
                values[index] = cell_value(cell)
            for index in range(len(names)):
                if (line, index) in spans:
                    above[index] = (values[index], spans[line, index])
                elif index in above and line <= above[index][1]:
                    values[index] = above[index][0]
            if any(value not in ("", None) for value in values):
                yield number, dict(zip(names, values, strict=True))


def excel_columns(path: Path) -> list[str]:
    """The names in the header of the first sheet."""
    with open_workbook(path) as book:
        return read_names(path, iter(book.worksheets[0].iter_rows()))[0]


def other_sheets(path: Path) -> list[str]:
    """The names of the sheets after the first one that hold anything."""
    with open_workbook(path) as book:
        return [
            sheet.title
            for sheet in book.worksheets[1:]
            if any(value is not None for row in sheet.iter_rows(max_row=20, values_only=True) for value in row)
        ]


@contextmanager
def open_workbook(path: Path) -> Iterator[Any]:
    """An open workbook, closed at the end of the block. Raises UserError for a file that is none."""
    try:
        import openpyxl
    except ImportError:
        raise UserError(
            f"{path}: an Excel file needs openpyxl: pip install 'qilin-med[xlsx]', or save the sheet as CSV"
        ) from None
    check_regular_file(path, "an Excel file")
    try:
        with zipfile.ZipFile(path) as archive:
            size = max(member.file_size for member in archive.infolist())
        if size > MAX_PART_BYTES:
            raise UserError(f"{path}: a sheet or its texts unpack to {size:,} bytes; save it as CSV")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except UserError:
        raise
    except Exception as error:  # openpyxl raises many types for a damaged file
        raise UserError(
            f"{path}: not an Excel workbook ({error}); save it as .xlsx without a password, or as CSV"
        ) from None
    try:
        if not book.worksheets:
            raise UserError(f"{path}: the workbook has no sheet with cells")
        yield book
    finally:
        book.close()


def read_names(path: Path, rows: Iterator[Any]) -> tuple[list[str], int]:
    """(names of the columns, number of the header's row). Empty columns at the end are left out."""
    for number, cells in enumerate(rows, start=1):
        names = [str(value).strip() for value in map(cell_value, cells)]
        while names and not names[-1]:
            names.pop()
        if not names:
            continue
        repeated = sorted({name for name in names if name and names.count(name) > 1})
        if repeated:
            raise UserError(f"{path}: column {repeated[0]!r} appears twice in row {number}; rename one")
        return names, number
    raise UserError(f"{path}: the first sheet is empty")


def cell_value(cell: Any) -> Any:
    """What a person reads in the cell, as a text or a number; "" for nothing."""
    value = getattr(cell, "value", None)
    if value is None or (isinstance(value, str) and FORMULA_ERROR.fullmatch(value)):
        return ""
    if isinstance(value, datetime.datetime):
        is_date = value.time() == datetime.time()
        return value.date().isoformat() if is_date else value.isoformat(sep=" ", timespec="seconds")
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and ZEROS.fullmatch(str(cell.number_format)):
        return str(value).zfill(len(cell.number_format))
    return value


def merged_spans(path: Path, sheet: Any) -> dict[tuple[int, int], int]:
    """(row, column index) of the first cell of each merged range of several rows -> its last row.

    Read from the file itself: openpyxl knows them only of a sheet that is in memory as a whole.
    """
    from lxml import etree
    from openpyxl.utils import range_boundaries

    spans: dict[tuple[int, int], int] = {}
    with zipfile.ZipFile(path) as archive:
        name = sheet._worksheet_path
        with archive.open(name) as stream:
            events = etree.iterparse(stream, events=("end",), resolve_entities=False, no_network=True)
            for _, element in events:
                if element.tag.endswith("}mergeCell"):
                    left, top, right, bottom = range_boundaries(element.get("ref"))
                    if bottom > top:
                        spans |= {(top, column - 1): bottom for column in range(left, right + 1)}
                if element.tag.endswith("}row") or element.tag.endswith("}mergeCell"):
                    element.clear()
                    while element.getprevious() is not None:
                        del element.getparent()[0]
    return spans
