"""Images that a source holds inside its rows: bytes, {"bytes", "path"} as the Hugging Face hub stores them, base64.

In: a cell. Out: an ImageFile in the import's own folder, named by its content. The import removes the folder, or the
next one of the same command takes it up after a kill.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from qilin.core.files import write_atomic
from qilin.dataset.import_rows import ImageFile
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.rows import RowError, file_name, work_folder

DATA_URI = re.compile(r"data:[\w/+.-]*;base64,", re.IGNORECASE)
# how base64 of PNG, JPEG, GIF, WebP, BMP and TIFF files begins; no path of an image does, being this long
BASE64 = re.compile(r"(iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk|SUkqA|TU0AK)[A-Za-z0-9+/=\s]{200,}")


def extract_image(data: bytes | None, config: ImportConfig, name: str = "") -> list[ImageFile]:
    """The bytes of an image as a file named by its content; [] for none. `name`: its name in the source."""
    if not data:
        return []
    path = work_folder(config) / "embedded" / hashlib.sha256(data).hexdigest()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    return [ImageFile(path, name or path.name, license=config.license)]


def image_bytes(value: Any) -> bytes | None:
    """The bytes in an image column of the hub ({"bytes", "path"})."""
    return value.get("bytes") if isinstance(value, Mapping) else value if isinstance(value, bytes) else None


def embedded_image(value: Any, config: ImportConfig) -> ImageFile | None:
    """The image inside a cell; None where the cell only names one. Raises RowError for base64 that is damaged."""
    if isinstance(value, str):
        if match := DATA_URI.match(value):
            value = decode_base64(value[match.end() :])
        elif BASE64.fullmatch(value):
            value = decode_base64(value)
        else:
            return None
    data = image_bytes(value)
    if not isinstance(data, bytes | bytearray) or not data:
        return None
    path = value.get("path") if isinstance(value, Mapping) else None
    return extract_image(bytes(data), config, file_name(path) if isinstance(path, str) else "")[0]


def decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RowError("image is not valid base64") from None


def is_image_cell(value: Any) -> bool:
    """Whether a cell is or holds the bytes of an image, or is a list of such cells."""
    if isinstance(value, list):
        return bool(value) and all(map(is_image_cell, value))
    if isinstance(value, str):
        return bool(DATA_URI.match(value) or BASE64.fullmatch(value))
    if isinstance(value, Mapping):
        return set(value) <= {"bytes", "path"} and bool(value.get("bytes") or value.get("path"))
    return isinstance(value, bytes) and len(value) > 16


def without_bytes(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as dropped.jsonl records it: without the images inside it."""
    return {name: value for name, value in row.items() if not holds_bytes(value)}


def holds_bytes(value: Any) -> bool:
    """Whether a cell holds bytes, at any depth."""
    if isinstance(value, Mapping):
        return any(map(holds_bytes, value.values()))
    return any(map(holds_bytes, value)) if isinstance(value, list) else isinstance(value, bytes | bytearray)
