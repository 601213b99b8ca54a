"""Image files read, hashed and decoded in shards, which takes most of the time of an import.

In: a list of image paths, one per line of `files.jsonl`. Out: for each path, in the same order, the hash of its content
and what decoding gave, or the reason why it cannot be used. Bytes are written to disk only where no source file holds
them: of images converted to another format, and of crops.
"""

import hashlib
import io
import json
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

from PIL import Image

from qilin.core.errors import RunError
from qilin.dataset.import_rows import RejectedRow
from qilin.imaging.archive_paths import BOX, read_path_or_member
from qilin.imaging.burned_in_text import without_text
from qilin.imaging.decode import EncodedImage, read_image, to_rgb
from qilin.imaging.errors import ImageError
from qilin.pipeline.execution.sharded_map import json_line

FILES_PER_SHARD = 256  # one or two seconds of work for one core
FILE_LIST = "files.jsonl"
KEEP_TEXT = "keep"


class FileList:
    """The image paths of an import, in a file that every worker reads.

    `hash` covers the paths and the size and modification time of each file, so changed inputs are detected.
    """

    def __init__(self, folder: Path) -> None:
        self.file = (folder / FILE_LIST).open("wb")
        self.digest = hashlib.sha256()
        self.shard_starts = [0]  # byte offsets
        self.count = 0

    def add(self, path: Path) -> None:
        # absolute, because workers may run in another folder; not resolved: inside a zip, `..` must not lead anywhere
        written = json_line([str(path.absolute()), file_signature(path)])
        self.file.write(written)
        self.digest.update(written)
        self.count += 1
        if self.count % FILES_PER_SHARD == 0:
            self.shard_starts.append(self.file.tell())

    def shards(self) -> list[tuple[int, int, int]]:
        """Close the list; (number, first byte, end byte) of each shard."""
        end = self.file.tell()
        self.file.close()
        ends = [*self.shard_starts[1:], end] if self.shard_starts[-1] != end else self.shard_starts[1:]
        return [(n, start, stop) for n, (start, stop) in enumerate(zip(self.shard_starts, ends, strict=False))]

    def shard_size(self, shard: int) -> int:
        """The number of files in a shard."""
        return min(FILES_PER_SHARD, self.count - shard * FILES_PER_SHARD)

    def shard_of(self, file_index: int) -> int:
        return file_index // FILES_PER_SHARD

    @property
    def hash(self) -> str:
        return self.digest.hexdigest()


def file_signature(path: Path) -> tuple[int, int] | None:
    """(size in bytes, modification time in ns) of the file that a path names or passes through; None without one."""
    for candidate in (path, *path.parents):
        try:
            status = candidate.stat()
        except (OSError, ValueError):  # not on disk: the path may continue inside a zip or an image
            continue
        return (status.st_size, status.st_mtime_ns) if S_ISREG(status.st_mode) else None
    return None


def decode_files(
    folder: Path, decode: bool, shard: tuple[int, int, int], text_mode: str = KEEP_TEXT
) -> Iterator[dict[str, Any] | RejectedRow]:
    """Process one shard: {content, problem} of each file, and {image_id, format, width, height, phash, stored} if it
    was decoded. `text_mode`: what is done with text in the pixels (keep, refuse or mask).

    `content` is the sha256 of the bytes read, None if nothing could be read. `stored` is (offset, length) of the bytes
    to store in the shard's own file, None if they are the bytes that were read. Raises RunError for a file that
    existed when it was listed and does not exist now: a cluster node that does not see it must not report it missing.
    """
    number, start, stop = shard
    path_of_bytes = decoded_bytes_path(folder, number)
    temporary = path_of_bytes.with_name(f".{path_of_bytes.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as decoded_bytes:
            for path, signature in read_file_list(folder, start, stop):
                yield decode_file(path, signature, decode, decoded_bytes, text_mode)
        if temporary.stat().st_size:
            temporary.replace(path_of_bytes)
    finally:
        temporary.unlink(missing_ok=True)


def read_file_list(folder: Path, start: int, stop: int) -> Iterator[tuple[Path, Any]]:
    """(path, file_signature) of the files listed between two byte offsets."""
    with (folder / FILE_LIST).open("rb") as file:
        file.seek(start)
        while file.tell() < stop:
            path, signature = json.loads(file.readline().decode("utf-8", "surrogatepass"))
            yield Path(path), signature


def decode_file(path: Path, signature: Any, decode: bool, decoded_bytes: BinaryIO, text_mode: str) -> dict[str, Any]:
    """One row of `decode_files`."""
    try:
        data = read_path_or_member(path)
    except ImageError as error:
        if signature and not file_signature(path):
            raise RunError(
                f"{path}: existed when the rows were read; {socket.gethostname()} does not see it (all machines of a "
                "cluster need the same file system)"
            ) from None
        return {"content": None, "problem": error.reason}
    row = {"content": hashlib.sha256(data).hexdigest(), "problem": None}
    if not decode:
        return row
    try:
        image = read_image(data)
        if text_mode != KEEP_TEXT:
            image = search_text(image, text_mode)
    except ImageError as error:
        return row | {"problem": error.reason}
    stored = None
    if image.bytes != data or path.name.startswith(BOX):
        stored = (decoded_bytes.tell(), len(image.bytes))
        decoded_bytes.write(image.bytes)
    return row | {
        "image_id": hashlib.sha256(image.bytes).hexdigest(), "format": image.format, "width": image.width,
        "height": image.height, "phash": image.phash, "stored": stored,
    }  # fmt: skip


def search_text(image: EncodedImage, text_mode: str) -> EncodedImage:
    """The image, as a PNG if text in it was masked. Raises ImageError for text that is refused."""
    masked, count = without_text(to_rgb(image.bytes), text_mode)
    if not count:
        return image
    is_gray = Image.open(io.BytesIO(image.bytes)).mode == "L"
    buffer = io.BytesIO()
    (masked.convert("L") if is_gray else masked).save(buffer, "PNG")
    return read_image(buffer.getvalue())


def decoded_bytes_path(folder: Path, shard: int) -> Path:
    return folder / f"decoded-{shard:05d}.bin"


def reload_image(folder: Path, path: Path, shard: int, row: dict[str, Any]) -> EncodedImage:
    """A decoded image with its bytes. `row` is its row of `decode_files`. Raises RunError if the bytes have changed."""
    cure = f"remove {folder} and run the same command again"
    try:
        if row["stored"]:
            offset, length = row["stored"]
            with decoded_bytes_path(folder, shard).open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        else:
            data = read_path_or_member(path)
    except ImageError as error:
        raise RunError(f"{error}; it was readable before: {cure}") from None
    if hashlib.sha256(data).hexdigest() != row["image_id"]:
        raise RunError(f"{path}: has changed since it was decoded: {cure}")
    return EncodedImage(data, row["format"], row["width"], row["height"], row["phash"])
