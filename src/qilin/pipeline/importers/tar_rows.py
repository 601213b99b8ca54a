"""Rows of WebDataset shards: the files of a tar that share the part of their names before the first dot.

In: the path of a tar. Out: (number, row) pairs. KEY.json gives the fields, KEY.txt or KEY.caption a caption, the image
files KEY.jpg, KEY.0.png, … the field `images`, in the order of their names. Members are read one after the other.
"""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import check_regular_file
from qilin.dataset.import_rows import RejectedRow

TAR_SUFFIXES = (".tar",)
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
CAPTION_SUFFIXES = ("txt", "caption", "text")
MAX_MEMBER_BYTES = 512 << 20


def read_tar(path: Path) -> Iterator[tuple[int, dict[str, Any] | RejectedRow]]:
    """The samples of a shard. Raises UserError for a file that is no tar."""
    check_regular_file(path, "a tar file")
    try:
        with tarfile.open(path) as archive:
            key, number = "", 0
            files: dict[str, bytes] = {}
            for member in archive:
                if not member.isfile() or member.size > MAX_MEMBER_BYTES:
                    continue
                member_key, _, suffix = split_name(member.name)
                if files and member_key != key:
                    number += 1
                    yield number, make_row(key, files)
                    files = {}
                key = member_key
                content = archive.extractfile(member)
                files[suffix] = content.read() if content else b""
            if files:
                yield number + 1, make_row(key, files)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a complete tar file ({' '.join(str(error).split())}); copy it again") from None


def split_name(name: str) -> tuple[str, str, str]:
    """a/b.0.jpg -> ("a/b", ".", "0.jpg")"""
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return folder + slash + key, dot, suffix.lower()


def make_row(key: str, files: dict[str, bytes]) -> dict[str, Any] | RejectedRow:
    """The row of a sample. An image that the row's own list leaves empty is a placeholder, not an image."""
    row: dict[str, Any] = {}
    if "json" in files:
        try:
            row = json.loads(files["json"])
        except (ValueError, RecursionError):
            return RejectedRow({"key": key}, "the JSON of the sample is not valid")
        if not isinstance(row, dict):
            return RejectedRow({"key": key}, "the JSON of the sample is not an object")
    caption = next((files[suffix] for suffix in CAPTION_SUFFIXES if suffix in files), None)
    if caption is not None and "caption" not in row:
        row["caption"] = caption.decode("utf-8", "replace").strip()
    images = [suffix for suffix in sorted(files, key=image_order) if suffix.rpartition(".")[2] in IMAGE_SUFFIXES]
    names = row.get("images")
    if isinstance(names, list) and len(names) == len(images) and all(isinstance(name, str) for name in names):
        images = [suffix for suffix, name in zip(images, names, strict=True) if name]
    row["images"] = [{"bytes": files[suffix], "path": f"{key}.{suffix}"} for suffix in images]
    return {"id": key, **row}


def image_order(suffix: str) -> tuple[int, str]:
    """2.jpg before 10.jpg."""
    start = suffix.partition(".")[0]
    return (int(start) if start.isdigit() else 0, suffix)
