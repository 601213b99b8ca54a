"""Files: checked inputs, atomic writes, JSON, hashes, data URIs, and Qilin's cache folder.

In: paths and contents. Out: files that are complete or absent, even if the process is killed or the disk fills up.
What a caller names is opened only if it is a regular file of a plausible size, and refused in one line otherwise.
"""

import base64
import hashlib
import json
import os
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError

MAX_TEXT_BYTES = 1 << 30  # of one text file that is read whole
MAX_LINE_BYTES = 64 << 20  # of one row of a JSONL file

FILE_TYPES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular_file(path: Path, expected: str = "a file", max_bytes: int | None = None) -> None:
    """Raise UserError unless `path` is a regular file, or a link to one, of at most `max_bytes`.

    A FIFO would block the reader, and /dev/zero has no end. `expected` ends the message: "a JSONL file".
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {expected}") from None
    except (OSError, ValueError) as error:  # no permission, a name too long; a name with a NUL character
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); expected {expected}") from None
    if not stat.S_ISREG(status.st_mode):
        file_type = FILE_TYPES.get(stat.S_IFMT(status.st_mode), "not a regular file")
        raise UserError(f"{path}: is {file_type}; expected {expected}")
    if max_bytes is not None and status.st_size > max_bytes:
        raise UserError(f"{path}: has {status.st_size:,} bytes; expected {expected} of at most {max_bytes:,} bytes")


def read_text(path: Path, expected: str = "a text file", max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises UserError for any other file."""
    check_regular_file(path, expected, max_bytes)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start:,}); save it as UTF-8") from None


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
    return parse_json(read_text(path, "a JSON file"), str(path))


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError for any other value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds {describe_json(value)}; expected a JSON object")
    return value


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text. Raises UserError that starts with `where`, for deep nesting and huge numbers too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where}: not valid JSON: nested too deeply") from None
    except ValueError as error:  # also a number of more than 4,300 digits
        raise UserError(f"{where}: not valid JSON: {' '.join(str(error).split())}") from None


def read_jsonl(path: Path, expected: str = "a JSON object per line") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("FILE, line N", row) per row of a JSONL file; a byte order mark, CRLF and blank lines are accepted.

    Raises UserError, with the line, for anything else.
    """
    check_regular_file(path, f"a JSONL file with {expected}")
    with path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES), b""), 1):
            where = f"{path}, line {number}"
            if len(line) >= MAX_LINE_BYTES:
                raise UserError(f"{where}: longer than {MAX_LINE_BYTES:,} bytes; expected {expected}")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
            if text:
                yield where, parse_jsonl_row(text, where, expected, is_first=number == 1)


def parse_jsonl_row(text: str, where: str, expected: str, is_first: bool = False) -> dict[str, Any]:
    """The object in one line of a JSONL file."""
    if is_first and text in ("[", "{", "[{"):
        raise UserError(f"{where}: starts a JSON document of many lines; expected JSONL: {expected}")
    row = parse_json(text, where)
    if not isinstance(row, dict):
        hint = " (a JSON file; write each row on a line of its own)" if is_first and isinstance(row, list) else ""
        raise UserError(f"{where}: holds {describe_json(row)}{hint}; expected an object: {expected}")
    return row


def describe_json(value: Any) -> str:
    """What a JSON value is, for an error: "a list of 3", "the text 'abc'"."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    return f"the {'text' if isinstance(value, str) else 'value'} {shorten(value)}"


def shorten(value: Any, length: int = 60) -> str:
    """The repr of a value for an error message, cut to `length` characters; control characters are escaped."""
    try:
        text = repr(value[: 2 * length] if isinstance(value, str | list | tuple) else value)
    except (RecursionError, ValueError):  # nested too deeply, or an integer of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= length else f"{text[: length - 1]}…"


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


def make_cache_dir(*parts: str) -> Path:
    """As `cache_dir`, created; only this user can enter Qilin's cache (mode 0700), so nobody else can plant a file.

    Where it cannot be created (a read-only home), a temporary folder of the same mode for this process.
    """
    path = cache_dir(*parts)
    try:
        cache_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="qilin-"))
