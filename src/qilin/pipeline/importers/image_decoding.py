"""Image files read, hashed and decoded in numbered pieces: nearly all the time of an import.

In: a list of paths on disk, one a line. Out: for each, in the same order, what the file holds or why it cannot be used.
Bytes are written here only where no file holds them: of images stored in another format, and of parts cut out.
"""

import hashlib
import json
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

from qilin.core.errors import RunError
from qilin.dataset.import_rows import RejectedRow
from qilin.imaging.archive_paths import BOX, read_through
from qilin.imaging.decode import BadImage, Encoded, read_image
from qilin.pipeline.execution.sharded_map import line

FILES_A_PIECE = 256  # a second or two of one core
LIST = "files.jsonl"


class FileList:
    """The paths written down one after the other. `pieces` says where those of each piece begin and end, `hash` stands
    for all of them and for what they hold, as far as size and time of a file tell."""

    def __init__(self, folder: Path) -> None:
        self.file = (folder / LIST).open("wb")
        self.digest = hashlib.sha256()
        self.starts = [0]
        self.count = 0

    def add(self, path: Path) -> None:
        # workers may stand in other folders; a .. stays one: in a zip it must lead nowhere
        written = line([str(path.absolute()), stamp(path)])
        self.file.write(written)
        self.digest.update(written)
        self.count += 1
        if self.count % FILES_A_PIECE == 0:
            self.starts.append(self.file.tell())

    def pieces(self) -> list[tuple[int, int, int]]:
        """(number, first byte, last byte) of each piece; the list is closed."""
        end = self.file.tell()
        self.file.close()
        ends = [*self.starts[1:], end] if self.starts[-1] != end else self.starts[1:]
        return [(n, first, last) for n, (first, last) in enumerate(zip(self.starts, ends, strict=False))]

    def size(self, piece: int) -> int:
        """How many files a piece has."""
        return min(FILES_A_PIECE, self.count - piece * FILES_A_PIECE)

    def piece_of(self, number: int) -> int:
        """The piece that a file is in."""
        return number // FILES_A_PIECE

    @property
    def hash(self) -> str:
        return self.digest.hexdigest()


def stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of the file that a path leads to or through; None where there is none."""
    for place in (path, *path.parents):
        try:
            found = place.stat()
        except (OSError, ValueError):  # not here: perhaps the rest goes on inside a zip or an image
            continue
        return (found.st_size, found.st_mtime_ns) if S_ISREG(found.st_mode) else None
    return None


def look_at_files(folder: Path, decode: bool, piece: tuple[int, int, int]) -> Iterator[dict[str, Any] | RejectedRow]:
    """The step: {content, fault} of each file, and where it is decoded {image_id, format, width, height, phash, at}.

    `content` is the hash of what was read, None where nothing was; `at` (offset, length) is where the bytes to store
    stand in the piece's own file, None where they are those that were read. Raises RunError for a file that was there
    when it was listed and is not now: a machine of a cluster that does not see it must not pass for a missing image.
    """
    number, first, last = piece
    made = made_file(folder, number)
    part = made.with_name(f".{made.name}.{uuid.uuid4().hex}")
    try:
        with part.open("wb") as out:
            for path, listed in read_list(folder, first, last):
                yield look_at_file(path, listed, decode, out)
        if part.stat().st_size:
            part.replace(made)
    finally:
        part.unlink(missing_ok=True)


def read_list(folder: Path, first: int, last: int) -> Iterator[tuple[Path, Any]]:
    with (folder / LIST).open("rb") as file:
        file.seek(first)
        while file.tell() < last:
            path, listed = json.loads(file.readline().decode("utf-8", "surrogatepass"))
            yield Path(path), listed


def look_at_file(path: Path, listed: Any, decode: bool, out: BinaryIO) -> dict[str, Any]:
    try:
        data = read_through(path)
    except BadImage as error:
        if listed and not stamp(path):
            raise RunError(
                f"{path}: was there when the rows were read; {socket.gethostname()} does not see it (a cluster needs "
                "one file system for all)"
            ) from None
        return {"content": None, "fault": error.reason}
    found = {"content": hashlib.sha256(data).hexdigest(), "fault": None}
    if not decode:
        return found
    try:
        stored = read_image(data)
    except BadImage as error:
        return found | {"fault": error.reason}
    at = None
    if stored.bytes != data or path.name.startswith(BOX):
        at = (out.tell(), len(stored.bytes))
        out.write(stored.bytes)
    return found | {
        "image_id": hashlib.sha256(stored.bytes).hexdigest(), "format": stored.format, "width": stored.width,
        "height": stored.height, "phash": stored.phash, "at": at,
    }  # fmt: skip


def made_file(folder: Path, number: int) -> Path:
    return folder / f"made-{number:05d}.bin"


def read_again(folder: Path, path: Path, number: int, facts: dict[str, Any]) -> Encoded:
    """A decoded image with its bytes, from its file or from what its piece has kept. Raises RunError where they are
    others by now."""
    again = f"remove {folder} and run the same command again"
    try:
        if facts["at"]:
            with made_file(folder, number).open("rb") as file:
                file.seek(facts["at"][0])
                data = file.read(facts["at"][1])
        else:
            data = read_through(path)
    except BadImage as error:
        raise RunError(f"{error}; it could be read before: {again}") from None
    if hashlib.sha256(data).hexdigest() != facts["image_id"]:
        raise RunError(f"{path}: has changed since it was decoded: {again}")
    return Encoded(data, facts["format"], facts["width"], facts["height"], facts["phash"])
