"""Paths that go on through a file: `images.zip/a/b.jpg` is an image in the zip, `f1.jpg/box=0,0,90,80` a part of f1.

In: a path. Out: bytes. Nothing is unpacked to disk, so a zip cannot write anywhere, and a million images stay where
they are. A part is cut out when it is read and comes as PNG.
"""

import io
import zipfile
from functools import lru_cache
from pathlib import Path

from PIL import ImageOps

from qilin.imaging.decode import MISSING, BadImage, decode, flat, read_bytes
from qilin.imaging.panels import Box

LARGEST = 512 << 20  # bytes of one image inside a zip, unpacked: a zip of kilobytes can claim gigabytes
BOX = "box="


def read_through(path: Path) -> bytes:
    """The bytes of a file, of a zip's member, or of a part of either. Raises BadImage."""
    if path.name.startswith(BOX):
        return cut(read_through(path.parent), path.name)
    zipped = next((parent for parent in path.parents if parent.suffix.lower() == ".zip" and parent.is_file()), None)
    if zipped is None:
        return read_bytes(path)
    return read_member(zipped, path.relative_to(zipped).as_posix())


def read_member(zipped: Path, name: str) -> bytes:
    archive = open_zip(zipped, zipped.stat().st_mtime_ns)
    if archive is None:
        raise BadImage(f"zip is damaged: {zipped.name}", str(zipped))
    try:
        if archive.getinfo(name).file_size > LARGEST:
            raise BadImage("image in the zip is too large", f"{zipped}: {name}")
        data = archive.read(name)
    except KeyError:
        raise BadImage(MISSING, f"{zipped}: {name}") from None
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError) as error:  # a password, a CRC
        raise BadImage("image in the zip cannot be read", f"{zipped}: {name}: {error}") from None
    if not data:
        raise BadImage("image file is empty", f"{zipped}: {name}")
    return data


@lru_cache(maxsize=64)
def open_zip(path: Path, changed: int) -> zipfile.ZipFile | None:
    """An open zip, kept open: its list of a million names is read once. None where it is none."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError):
        return None


@lru_cache(maxsize=64)
def names_in(path: Path, changed: int) -> dict[str, str]:
    """Last part of each member's name, and its whole name -> the member; the first of a name counts."""
    archive = open_zip(path, changed)
    found: dict[str, str] = {}
    for name in archive.namelist() if archive else ():
        if not name.endswith("/"):
            found.setdefault(name, name)
            found.setdefault(name.rpartition("/")[2], name)
    return found


def part_of(path: Path, box: Box) -> Path:
    return path / (BOX + ",".join(map(str, box)))


def cut(data: bytes, words: str) -> bytes:
    """A part of an encoded image, as PNG."""
    image, _, _ = decode(data)
    buffer = io.BytesIO()
    left, top, right, bottom = map(int, words.removeprefix(BOX).split(","))
    flat(ImageOps.exif_transpose(image)).crop((left, top, right, bottom)).save(buffer, "PNG")
    return buffer.getvalue()
