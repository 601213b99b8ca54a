"""Paths that continue inside a file: `images.zip/a/b.jpg` is a member of the zip, `f1.jpg/box=0,0,90,80` a crop of f1.

In: a path. Out: bytes. Nothing is extracted to disk, so a zip cannot write anywhere. Crops come as PNG.
"""

import io
import zipfile
from functools import lru_cache
from pathlib import Path

from PIL import ImageOps

from qilin.imaging.decode import MISSING_FILE, ImageError, decode, flatten, read_bytes
from qilin.imaging.panels import Box

MAX_MEMBER_BYTES = 512 << 20  # of one image in a zip after decompression: a zip of kilobytes can declare gigabytes
BOX = "box="


def read_path_or_member(path: Path) -> bytes:
    """The bytes of a file, of a zip's member, or of a crop of either. Raises ImageError."""
    if path.name.startswith(BOX):
        return crop(read_path_or_member(path.parent), path.name)
    archive = next((parent for parent in path.parents if parent.suffix.lower() == ".zip" and parent.is_file()), None)
    return read_bytes(path) if archive is None else read_member(archive, path.relative_to(archive).as_posix())


def read_member(archive_path: Path, name: str) -> bytes:
    archive = open_zip(archive_path, archive_path.stat().st_mtime_ns)
    if archive is None:
        raise ImageError(f"zip is damaged: {archive_path.name}", str(archive_path))
    try:
        if archive.getinfo(name).file_size > MAX_MEMBER_BYTES:
            raise ImageError("image in the zip is too large", f"{archive_path}: {name}")
        data = archive.read(name)
    except KeyError:
        raise ImageError(MISSING_FILE, f"{archive_path}: {name}") from None
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError) as error:  # a password, a CRC
        raise ImageError("image in the zip cannot be read", f"{archive_path}: {name}: {error}") from None
    if not data:
        raise ImageError("image file is empty", f"{archive_path}: {name}")
    return data


@lru_cache(maxsize=64)
def open_zip(path: Path, modified_ns: int) -> zipfile.ZipFile | None:
    """An open zip, cached: its directory of a million names is read once. None where the file is not a zip."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError):
        return None


@lru_cache(maxsize=64)
def member_names(path: Path, modified_ns: int) -> dict[str, str]:
    """Each member's full name and its last component -> the member; the first one of a name wins."""
    archive = open_zip(path, modified_ns)
    members: dict[str, str] = {}
    for name in archive.namelist() if archive else ():
        if not name.endswith("/"):
            members.setdefault(name, name)
            members.setdefault(name.rpartition("/")[2], name)
    return members


def crop_path(path: Path, box: Box) -> Path:
    """The path of a crop of the image at `path`."""
    return path / (BOX + ",".join(map(str, box)))


def crop(data: bytes, box_name: str) -> bytes:
    """A crop of an encoded image, as PNG. `box_name` is the last component of `crop_path`."""
    image, _, _ = decode(data)
    buffer = io.BytesIO()
    left, top, right, bottom = map(int, box_name.removeprefix(BOX).split(","))
    flatten(ImageOps.exif_transpose(image)).crop((left, top, right, bottom)).save(buffer, "PNG")
    return buffer.getvalue()
