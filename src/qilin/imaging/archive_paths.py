"""Paths that continue inside a file: `images.zip/a/b.jpg` is a member of the zip, `f1.jpg/box=0,0,90,80` a crop of f1.

In: a path. Out: bytes. Nothing is extracted to disk, so a zip cannot write anywhere. Crops come as PNG. `is_within` is
the rule for all paths that downloaded data name: they stay inside their folder, links included.
"""

import io
import lzma
import os
import struct
import unicodedata
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG

from qilin.imaging.decode import MISSING_FILE, read_bytes, to_rgb
from qilin.imaging.errors import ImageError
from qilin.imaging.panels import Box

MAX_MEMBER_BYTES = 512 << 20  # of one image in a zip after decompression: a zip of kilobytes can declare gigabytes
BOX = "box="
UTF8_FLAG = 0x800  # of a zip's member; without it, zipfile reads the name as cp437
# what zipfile raises: also for versions and names that it cannot read, and damaged streams
ZIP_ERRORS = (zipfile.BadZipFile, OSError, RuntimeError, ValueError, EOFError, zlib.error, lzma.LZMAError, struct.error)
NAME_ENCODINGS = ("utf-8", "gb18030", "big5hkscs", "cp932", "cp949")  # in which zip programs write names without it


def is_within(folder: Path, path: Path) -> bool:
    """Whether a path stays inside a folder: downloaded tables are untrusted and may contain ../../ or name links."""
    parent = real_path(path.parent)
    real = path.resolve() if path.is_symlink() or path.name in ("", "..") else parent / path.name
    return real.is_relative_to(real_path(folder))


@lru_cache(maxsize=4096)
def real_path(folder: Path) -> Path:
    """The folder without links; cached, because most images are in few folders."""
    return folder.resolve()


def path_key(name: str) -> str:
    """A name as it is compared where no file has exactly this one.

    Windows writes backslashes, macOS decomposed characters, and cameras upper-case suffixes.
    """
    return unicodedata.normalize("NFC", name.replace("\\", "/").lstrip("/").removeprefix("./")).casefold()


def read_path_or_member(path: Path) -> bytes:
    """The bytes of a file, of a zip's member, or of a crop of either. Raises ImageError."""
    if path.name.startswith(BOX):
        return crop(read_path_or_member(path.parent), path.name)
    archive = next(
        (parent for parent in path.parents if parent.suffix.lower() == ".zip" and os.path.isfile(parent)), None
    )
    if archive is not None:
        return read_member(archive, path.relative_to(archive).as_posix())
    try:
        is_file = S_ISREG(os.stat(path).st_mode)  # a FIFO would block, and /dev/zero has no end
    except PermissionError as error:
        raise ImageError("image file cannot be read", f"{path}: {error.strerror}") from None
    except (OSError, ValueError):  # also a name that is too long, or holds a NUL
        raise ImageError(MISSING_FILE, str(path)) from None
    if not is_file:
        raise ImageError("image path is not a regular file", str(path))
    return read_bytes(path)


def read_member(archive_path: Path, name: str) -> bytes:
    archive = open_zip(archive_path, archive_path.stat().st_mtime_ns)
    if archive is None:
        raise ImageError(f"zip is damaged: {archive_path.name}", str(archive_path))
    if name not in archive.NameToInfo:  # a path loses the ./ and // of a member's name
        name = find_member(archive_path, name) or name
    try:
        if archive.getinfo(name).file_size > MAX_MEMBER_BYTES:
            raise ImageError("image in the zip is too large", f"{archive_path}: {name}")
        data = archive.read(name)
    except KeyError:
        raise ImageError(MISSING_FILE, f"{archive_path}: {name}") from None
    except ZIP_ERRORS as error:  # a password, a CRC
        raise ImageError("image in the zip cannot be read", f"{archive_path}: {name}: {error}") from None
    if not data:
        raise ImageError("image file is empty", f"{archive_path}: {name}")
    return data


@lru_cache(maxsize=64)
def open_zip(path: Path, modified_ns: int) -> zipfile.ZipFile | None:
    """An open zip, cached: its directory of a million names is read once. None where the file is not a zip."""
    try:
        return zipfile.ZipFile(path)
    except ZIP_ERRORS:
        return None


def find_member(archive_path: Path, name: str) -> str | None:
    """The member of a zip that a name means, with more or fewer leading folders; None if there is none, or several.

    A name without its folders is no match: in SLAKE, every image is called source.jpg.
    """
    by_path, by_file_name = member_index(archive_path, archive_path.stat().st_mtime_ns)
    key = path_key(name)
    members = by_path.get(key, ())
    if name in members:
        return name
    if not members:
        paths = by_file_name.get(key.rpartition("/")[2], ())
        ends = [path for path in paths if f"/{path}".endswith(f"/{key}") or f"/{key}".endswith(f"/{path}")]
        members = [member for path in ends for member in by_path[path]]
    return members[0] if len(set(members)) == 1 else None


@lru_cache(maxsize=64)
def member_index(path: Path, modified_ns: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """({path_key of a member: members}, {its file name: path_keys})."""
    archive = open_zip(path, modified_ns)
    by_path: dict[str, list[str]] = {}
    by_file_name: dict[str, list[str]] = {}
    for member in archive.infolist() if archive else ():
        if member.is_dir():
            continue
        for key in set(map(path_key, possible_names(member))):
            if key not in by_path:
                by_file_name.setdefault(key.rpartition("/")[2], []).append(key)
            by_path.setdefault(key, []).append(member.filename)
    return by_path, by_file_name


def possible_names(member: zipfile.ZipInfo) -> list[str]:
    """A member's name, read in each encoding in which a zip program may have written it."""
    names = [member.filename]
    if member.flag_bits & UTF8_FLAG or member.filename.isascii():
        return names
    try:
        raw = member.filename.encode("cp437")
    except UnicodeEncodeError:
        return names
    for encoding in NAME_ENCODINGS:
        try:
            names.append(raw.decode(encoding))
        except UnicodeDecodeError:
            continue
    return names


def crop_path(path: Path, box: Box) -> Path:
    """The path of a crop of the image at `path`."""
    return path / (BOX + ",".join(map(str, box)))


def crop(data: bytes, box_name: str) -> bytes:
    """A crop of an encoded image, as PNG. `box_name` is the last component of `crop_path`."""
    image = to_rgb(data)
    buffer = io.BytesIO()
    left, top, right, bottom = map(int, box_name.removeprefix(BOX).split(","))
    cropped = image.crop((left, top, right, bottom))
    cropped.info.clear()  # Pillow would write metadata of the whole image into the crop
    cropped.save(buffer, "PNG")
    return buffer.getvalue()
