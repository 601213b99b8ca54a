"""Files: atomic writes, JSON, hashes, data URIs, and Qilin's cache folder.

In: paths and contents. Out: files that are complete or absent, even if the process is killed or the disk fills up.
"""

import base64
import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError


def write_atomic(path: Path, content: str | bytes | Iterable[str]) -> None:
    """Write a temporary file next to `path` and rename it: readers see the old content or the new, never a part of it.

    Two processes may write the same path at once; the last rename wins. Lone surrogates in a text are kept as they are.
    Raises OSError (a full disk, no permission) and leaves `path` as it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            with temporary.open("w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
                file.writelines([content] if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON with Chinese as it is and a final newline; values that JSON lacks (paths, dates) become strings."""
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str) + "\n"


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises UserError that names the file where it is missing or does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {' '.join(str(error).split())}") from None


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_uri(data: bytes, mime_type: str) -> str:
    """Bytes as a `data:` URI, for HTML pages and OpenAI-compatible requests."""
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"


def cache_dir(*parts: str) -> Path:
    """A folder below Qilin's cache: $QILIN_CACHE, else $XDG_CACHE_HOME/qilin, else ~/.cache/qilin. Not created here."""
    root = os.environ.get("QILIN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qilin"
    return Path(root, *parts)
