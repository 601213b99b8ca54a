"""What is known of a source while it is imported: which files hold which content, what is linked to what.

In: rows, one after the other, then what their image files hold. Out: contents with the places they were found in, the
images of each row, faults, splits. It lives in a folder beside the dataset that is being made, so that memory does
not grow with the images; what was found out about them stays there when the import is stopped.
"""

import hashlib
import json
import shutil
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.hash_tables import fingerprint
from qilin.dataset.import_rows import ImageFile, ImportRow
from qilin.dataset.schema import text_of
from qilin.dataset.splits import Links
from qilin.imaging.decode import MISSING_FILE, EncodedImage
from qilin.pipeline.execution.sharded_map import read_pieces, run_sharded
from qilin.pipeline.execution.workers import Workers
from qilin.pipeline.importers.image_decoding import FileList, decode_files, reload_image


class ImportIndex:
    """The notes of one import: first `note` every row, then `look` once, then ask. A context manager; its folder goes
    at the end, unless the work was interrupted: then images that were decoded stay for the next run."""

    def __init__(self, folder: Path, decode: bool) -> None:
        self.folder, self.decode = folder.resolve(), decode
        self.rows = self.whole = 0  # `whole`: figures that stand for a panel of theirs
        # of each row with images or none: how many files it has, their numbers one after the other, what else ties it
        self.counts_of_rows, self.files_of_rows, self.others = array("L"), array("Q"), array("Q")
        self.grouped: list[bool] = []
        self.splits: list[str | None] = []
        self.looked = False

    def __enter__(self) -> "Survey":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files = FileList(self.folder)
        file = self.folder / "notes.sqlite"
        file.unlink(missing_ok=True)
        self.table = sqlite3.connect(file, isolation_level=None)
        self.table.execute("pragma journal_mode = off")
        self.table.execute("pragma synchronous = off")
        # content: sha256 of the bytes. The number of a file is its rowid less one.
        self.table.execute("create table files (path text primary key, content text, fault text, about text)")
        # first: the number of the first file that holds it; facts: what look_at_file says of it as an image
        self.table.execute(
            "create table contents (content text primary key, first integer, image_id text, fault text, facts text) "
            "without rowid"
        )
        self.table.create_function("parts", 1, lambda path: "\1".join(Path(path).parts), deterministic=True)
        self.table.execute("begin")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.table.close()
        self.files.file.close()
        unfinished = kind is not None and self.decode and any(self.pieces.glob("rows-*"))
        # a person's mistake that shows after the look is in the rows: mended, they are others
        if unfinished and not (self.looked and kind and issubclass(kind, UserError)):
            (self.folder / "notes.sqlite").unlink(missing_ok=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pieces(self) -> Path:
        return self.folder / "images"

    def note(self, row: ImportRow, split: str | None) -> None:
        """A row: its files and what it ties together."""
        self.files_of_rows.extend([self.note_image(file) for file in row.images])
        self.counts_of_rows.append(len(row.images))
        opening = hashlib.sha256(text_of(row.messages[0]).encode()).hexdigest()
        self.others.append(fingerprint(f"group {row.group}" if row.group else f"text {opening}"))
        self.grouped.append(bool(row.group))
        self.splits.append(split)

    def note_image(self, file: ImageFile) -> int:
        """The number of an image's file, listed where it is met for the first time."""
        if known := self.ask("select rowid from files where path = ?", str(file.path)):
            return int(known[0]) - 1
        self.whole += file.whole
        self.files.add(file.path)
        about = json.dumps(asdict(file) | {"path": str(file.path)}, ensure_ascii=False)
        self.table.execute("insert into files (path, about) values (?, ?)", (str(file.path), about))
        return self.files.count - 1

    def look(self, workers: Callable[[int], Workers | None], on_files: Callable[[int], None]) -> None:
        """Read every file, and decode it where that was asked for, in pieces; `workers(number of pieces)` do them.

        `on_files` is told how many files more have been looked at.
        """
        pieces = self.files.pieces()
        run_sharded(
            partial(decode_files, self.folder, self.decode), pieces, self.pieces,
            {"step": "import", "files": self.files.hash, "decode": self.decode}, workers(len(pieces)),
            lambda number: on_files(self.files.size(number)),
        )  # fmt: skip
        for n, found in enumerate(read_pieces(self.pieces)):
            content, fault = found.pop("content"), found.pop("fault")
            seen = None if content else fault  # what is wrong with a content belongs to all files that hold it
            self.table.execute("update files set content = ?, fault = ? where rowid = ?", (content, seen, n + 1))
            if content:
                facts = (content, n, found.get("image_id"), fault, json.dumps(found))
                self.table.execute("insert or ignore into contents values (?, ?, ?, ?, ?)", facts)
        self.table.execute("create index by_content on files (content)")
        self.looked = True

    def links(self) -> Links:
        """What ties rows to others: their images' contents and groups, or else the opening question."""
        rows = self.table.execute("select content from files order by rowid")
        keys = array("Q", (fingerprint(f"image {content}") if content else 0 for (content,) in rows))
        links, place = Links(), 0
        noted = zip(self.counts_of_rows, self.others, self.grouped, self.splits, strict=True)
        for count, other, grouped, split in noted:
            ties = [keys[n] for n in self.files_of_rows[place : place + count] if keys[n]]
            place += count
            links.join_keys([*ties, other] if grouped or not ties else ties, split)
        return links

    def images(self) -> Iterator[tuple[EncodedImage, list[ImageFile]]]:
        """Each content that is an image, with the files that hold it, in the order in which they were met."""
        found = self.table.execute("select content, first, facts from contents where fault is null order by first")
        for content, first, facts in found:
            rows = self.table.execute("select about from files where content = ? order by rowid", (content,))
            files = [image_file(about) for (about,) in rows]
            yield reload_image(self.folder, files[0].path, self.files.piece_of(first), json.loads(facts)), files

    def image_ids(self, row: ImportRow) -> tuple[tuple[str, ...], str | None]:
        """(the ids of a row's images, None), or ((), why one of them cannot be used)."""
        ids = []
        for file in row.images:
            image_id, *faults = self.ask(
                "select image_id, files.fault, contents.fault from files left join contents using (content) "
                "where path = ?",
                str(file.path),
            )
            if fault := faults[0] or faults[1]:
                return (), fault
            ids.append(image_id)
        return tuple(ids), None

    def counts(self) -> dict[str, int]:
        """How many files are here or have a fault, and how many different images are in them."""
        here, faults = self.ask("select count(content), count(fault) from files")
        (images,) = self.ask("select count(*) from contents where fault is null")
        return {"images": images, "files": here, "faults": faults}

    def a_missing_file(self) -> str | None:
        """The first path at which there was nothing."""
        found = self.ask("select path from files where fault = ? order by rowid limit 1", MISSING_FILE)
        return found[0] if found else None

    def licences(self) -> set[str]:
        """All licences that files here say."""
        found = self.table.execute(
            "select distinct json_extract(about, '$.license') from files where content is not null"
        )
        return {licence for (licence,) in found if licence}

    def lines(self) -> Iterable[str]:
        """A line of name and content for each file, in the order of the paths: what the input's hash is made of."""
        # by their parts, as paths are compared: sqlite sorts on disk
        rows = self.table.execute("select path, content from files where content is not null order by parts(path)")
        for path, content in rows:
            yield f"{Path(path).name} {content}\n"

    def ask(self, words: str, *values: Any) -> Any:
        return self.table.execute(words, values).fetchone()


def image_file(about: str) -> ImageFile:
    found = json.loads(about)
    return ImageFile(**found | {"path": Path(found["path"])})
