"""Finds the files of a DICOM import and reads their headers.

In: a folder. Out: file names with their numbers, and rows without any string of the source; files are known by number
from here on.
"""

import hashlib
import hmac
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qilin.core.files import check_regular_file
from qilin.dataset.import_rows import RejectedRow
from qilin.imaging.decode import FILE_LIMIT
from qilin.imaging.dicom import is_dicom, read_dicom
from qilin.imaging.errors import ImageError
from qilin.imaging.identity import header_values

Rows = Iterator[dict[str, Any] | RejectedRow]


@dataclass(frozen=True)
class DicomFile:
    """A file, or a member of a zip."""

    number: int
    path: str
    member: str = ""


def list_files(folder: Path, output_paths: Sequence[Path] = ()) -> tuple[list[DicomFile], list[str]]:
    """(files in a fixed order, folders that cannot be read). Links that leave the folder are not followed.

    `output_paths` are files and folders that the import itself writes: the output may lie in the source.
    """
    skipped = {str(path.resolve()) for path in output_paths}
    unreadable: list[str] = []
    root = folder.resolve()
    files: list[DicomFile] = []
    for parent, folders, names in os.walk(root, onerror=lambda error: unreadable.append(str(error.filename))):
        folders[:] = sorted(name for name in folders if os.path.join(parent, name) not in skipped)
        for name in sorted(names):
            path = os.path.join(parent, name)
            if path in skipped or not Path(path).resolve().is_relative_to(root):
                continue
            members = zip_members(path) if name.lower().endswith(".zip") else [""]
            files += [DicomFile(len(files) + index, path, member) for index, member in enumerate(members)]
    return files, unreadable


def listing_key(files: Sequence[DicomFile], root: Path, secret: bytes) -> str:
    """A key of the files' names, sizes and times: files are known by number, so an unfinished import goes on only with
    the same files."""
    digest = hmac.new(secret, digestmod=hashlib.sha256)
    for file in files:
        try:
            status = os.stat(file.path)
        except OSError:
            continue
        name = f"{os.path.relpath(file.path, root.resolve())}\0{file.member}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(name.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def zip_members(path: str) -> list[str]:
    """The files in a zip; none if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(item.filename for item in archive.infolist() if not item.is_dir())
    except (OSError, zipfile.BadZipFile, ValueError):
        return [""]  # read as a file, it is refused and counted


def read_file(file: DicomFile) -> bytes:
    """The bytes of a file. Raises ImageError without its name: names of folders are often names of people."""
    try:
        if file.member:
            status = os.stat(file.path)
            archive = open_zip(file.path, status.st_size, status.st_mtime_ns)
            with archive.open(file.member) as stream:
                data = stream.read(FILE_LIMIT + 1)
            if len(data) > FILE_LIMIT:
                raise ImageError("image file is too large", f"more than {FILE_LIMIT:,} bytes")
            return data
        check_regular_file(Path(file.path), "a DICOM file", FILE_LIMIT)
        return Path(file.path).read_bytes()
    except ImageError:
        raise
    except Exception as error:  # a damaged or encrypted zip, a file that went away
        raise ImageError("image file cannot be read", type(error).__name__) from None


@lru_cache(maxsize=1)
def open_zip(path: str, size: int, time: int) -> zipfile.ZipFile:
    """An open zip, kept for its next member: to read the directory of thousands of members for each takes minutes."""
    return zipfile.ZipFile(path)


def scan_shard(files: Sequence[DicomFile], secret: bytes, text_mode: str) -> Rows:
    """The header values of each file, or the reason why it is not used.

    `text_mode` header refuses by what the header says, refuse only what it declares; mask and keep refuse nothing here.
    """
    used = {"header": ("no",), "refuse": ("no", "unknown")}.get(text_mode, ("no", "unknown", "yes"))
    for file in files:
        try:
            data = read_file(file)
            if not is_dicom(data):
                raise ImageError("not a DICOM file")
            values = header_values(read_dicom(data), secret, file.number)
        except ImageError as error:
            yield RejectedRow({"file": file.number}, error.reason if error.reason == "not a DICOM file" else str(error))
            continue
        if values.burned_in not in used:
            yield RejectedRow({"file": file.number, "modality": values.modality}, "a name may be drawn into the image")
            continue
        yield {"file": file.number, **values.to_json()}
