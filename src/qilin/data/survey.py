"""What the first reading of a source learns: which files hold which content, what is linked to what.

In: rows, one after the other. Out: contents with the places they were found in, the file of each picture, faults. It
lives in a sqlite file beside the dataset that is being made, so that memory does not grow with the pictures.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from qilin.data.records import text_of
from qilin.data.sources.rows import PictureFile, Row
from qilin.data.split import Links
from qilin.data.through import read_through
from qilin.imaging.pixels import BadPicture


class Survey:
    """The notes of one import; a context manager, its file goes at the end."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.links = Links()
        self.rows = self.whole = 0  # `whole`: figures that stand for a panel of theirs

    def __enter__(self) -> "Survey":
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.unlink(missing_ok=True)
        self.table = sqlite3.connect(self.file, isolation_level=None)
        self.table.execute("pragma journal_mode = off")
        self.table.execute("pragma synchronous = off")
        # content: sha256 of the bytes; image_id or fault: what became of them
        self.table.execute("create table files (path text primary key, content text, fault text, about text)")
        self.table.execute("create table contents (content text primary key, image_id text, fault text) without rowid")
        self.table.execute("create index by_content on files (content)")
        self.table.execute("begin")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.table.close()
        self.file.unlink(missing_ok=True)

    def note(self, row: Row, split: str | None) -> None:
        """A row: its files, each read once, and what it ties together."""
        for file in row.pictures:
            self.note_picture(file)
        self.links.join(self.ties(row), split)

    def note_picture(self, file: PictureFile) -> None:
        if self.ask("select 1 from files where path = ?", str(file.path)):
            return
        self.whole += file.whole
        try:
            content, fault = hashlib.sha256(read_through(file.path)).hexdigest(), None
        except BadPicture as error:
            content, fault = None, error.reason
        about = json.dumps(asdict(file) | {"path": str(file.path)}, ensure_ascii=False)
        self.table.execute("insert into files values (?, ?, ?, ?)", (str(file.path), content, fault, about))

    def ties(self, row: Row) -> list[str]:
        """What ties a row to others: its pictures' contents and its group, or else the opening question."""
        found = [self.ask("select content from files where path = ?", str(file.path)) for file in row.pictures]
        keys = [f"picture {content}" for (content,) in found if content]
        keys += [f"group {row.group}"] if row.group else []
        return keys or [f"text {hashlib.sha256(text_of(row.messages[0]).encode()).hexdigest()}"]

    def contents(self) -> Iterator[tuple[str, list[PictureFile]]]:
        """Each content with the files that hold it, in the order in which they were met."""
        firsts = "select content, min(rowid) as first from files where content is not null group by content"
        for content, _ in self.table.execute(f"{firsts} order by first"):
            rows = self.table.execute("select about from files where content = ? order by rowid", (content,))
            yield content, [picture_file(about) for (about,) in rows]

    def settle(self, content: str, image_id: str | None, fault: str | None) -> None:
        """What became of a content."""
        self.table.execute("insert into contents values (?, ?, ?)", (content, image_id, fault))

    def image_ids(self, row: Row) -> tuple[tuple[str, ...], str | None]:
        """(the ids of a row's pictures, None), or ((), why one of them cannot be used)."""
        ids = []
        for file in row.pictures:
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
        """How many contents, and how many files are here or have a fault."""
        contents, here, faults = self.ask("select count(distinct content), count(content), count(fault) from files")
        return {"contents": contents, "files": here, "faults": faults}

    def licences(self) -> set[str]:
        """All licences that files here say."""
        found = self.table.execute(
            "select distinct json_extract(about, '$.license') from files where content is not null"
        )
        return {licence for (licence,) in found if licence}

    def lines(self) -> Iterable[str]:
        """A line of name and content for each file, in the order of the paths: what the input's hash is made of."""
        rows = self.table.execute("select path, content from files where content is not null")
        for path, content in sorted(rows, key=lambda item: Path(item[0])):
            yield f"{Path(path).name} {content}\n"

    def ask(self, words: str, *values: Any) -> Any:
        return self.table.execute(words, values).fetchone()


def picture_file(about: str) -> PictureFile:
    found = json.loads(about)
    return PictureFile(**found | {"path": Path(found["path"])})
