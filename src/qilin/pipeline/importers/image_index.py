"""The index of an import: which image files exist, which hold the same content, and which rows share images or groups.

In: import rows, one after another, then the content of their image files. Out: unique images with all their source
files, the image ids or the problem of each row, and a split for each row. The index is a SQLite file next to the output
folder, so memory does not grow with the number of images; images decoded before an interruption are reused.
"""

import hashlib
import json
import shutil
import sqlite3
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.hash_tables import fingerprint
from qilin.dataset.import_rows import ImageFile, ImportRow, RejectedRow
from qilin.dataset.schema import text_of
from qilin.dataset.splits import SplitGroups, image_key
from qilin.imaging.decode import MISSING_FILE, EncodedImage
from qilin.pipeline.execution.sharded_map import read_shards, run_sharded
from qilin.pipeline.execution.workers import Workers
from qilin.pipeline.importers.image_decoding import KEEP_TEXT, FileList, decode_files, reload_image

TABLES = """
-- A file's index is its rowid - 1. content: sha256 of its bytes. facts: the ImageFile, as JSON.
create table files (path text primary key, content text, problem text, facts text);
-- first_file: the index of the first file with this content. decoded: the row of `decode_files`, as JSON.
create table contents (content text primary key, first_file integer, image_id text, problem text, decoded text)
without rowid;
-- facts of a file in rows that name another license for it than its first row
create table other_licenses (path text, facts text, primary key (path, facts)) without rowid;
"""


class ImportIndex:
    """First `add_row` every row, then `decode_images` once, then query. A context manager.

    Its folder is removed at the end, unless the import was interrupted: then decoded images stay for the next run.
    `decode=False` only hashes the files, to compare them with a dataset that exists.
    """

    def __init__(self, folder: Path, decode: bool, text_mode: str = KEEP_TEXT) -> None:
        self.folder, self.decode, self.text_mode = folder.resolve(), decode, text_mode
        self.shards = self.folder / "images"
        self.whole_figure_count = 0  # figures used in place of one of their panels
        self.notes: Counter[str] = Counter()  # what readers had to assume, with the number of rows
        self.row_digests = array("Q")  # of every row, rejected ones included
        # of each importable row: its number of images, their file indexes (concatenated), and another key that links it
        self.image_counts, self.file_indexes, self.link_keys = array("L"), array("Q"), array("Q")
        self.has_group: list[bool] = []
        self.splits: list[str | None] = []
        self.decoding_finished = False

    def __enter__(self) -> "ImportIndex":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files = FileList(self.folder)
        self.database_path = self.folder / "index.sqlite"
        self.database_path.unlink(missing_ok=True)
        self.database = sqlite3.connect(self.database_path, isolation_level=None)
        self.database.execute("pragma journal_mode = off")
        self.database.execute("pragma synchronous = off")
        self.database.executescript(TABLES)
        self.database.create_function("parts", 1, lambda path: "\1".join(Path(path).parts), deterministic=True)
        self.database.execute("begin")
        return self

    def __exit__(
        self, error_class: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.database.close()
        self.files.file.close()
        interrupted = error_class is not None and self.decode and any(self.shards.glob("rows-*"))
        # after decoding, a UserError is about the rows; once they are corrected, the list of files may be another one
        if interrupted and not (self.decoding_finished and error_class and issubclass(error_class, UserError)):
            self.database_path.unlink(missing_ok=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def row_count(self) -> int:
        return len(self.row_digests)

    def add_row(self, row: ImportRow | RejectedRow, split: str | None) -> None:
        """Record a row: its digest, its image files, and what links it to other rows. `split`: None if unassigned."""
        self.row_digests.append(row_digest(row))
        if isinstance(row, RejectedRow):
            return
        if row.note:
            self.notes[row.note] += 1
        self.file_indexes.extend([self.add_file(file) for file in row.images])
        self.image_counts.append(len(row.images))
        first_text = hashlib.sha256(text_of(row.messages[0]).encode()).hexdigest()
        self.link_keys.append(fingerprint(f"group {row.group}" if row.group else f"text {first_text}"))
        self.has_group.append(bool(row.group))
        self.splits.append(split)

    def add_file(self, file: ImageFile) -> int:
        """The index of an image file; a new file is added to the list."""
        facts = json.dumps(asdict(file) | {"path": str(file.path)}, ensure_ascii=False)
        if row := self.query("select rowid, facts from files where path = ?", str(file.path)):
            if row[1] != facts and parse_image_file(row[1]).license != file.license:
                self.database.execute("insert or ignore into other_licenses values (?, ?)", (str(file.path), facts))
            return int(row[0]) - 1
        self.whole_figure_count += file.is_whole_figure
        self.files.add(file.path)
        self.database.execute("insert into files (path, facts) values (?, ?)", (str(file.path), facts))
        return self.files.count - 1

    def decode_images(self, workers_for: Callable[[int], Workers | None], on_files: Callable[[int], None]) -> None:
        """Read every file and, if `decode`, decode it. `workers_for(number of shards)` returns the workers.

        `on_files` receives the number of files of each finished shard.
        """
        shards = self.files.shards()
        function = partial(decode_files, self.folder, self.decode)
        settings = {"step": "import", "files": self.files.hash, "decode": self.decode}
        if self.text_mode != KEEP_TEXT:
            function = partial(decode_files, self.folder, self.decode, text_mode=self.text_mode)
            settings["burned_in"] = self.text_mode
        run_sharded(
            function, shards, self.shards, settings, workers_for(len(shards)),
            lambda number: on_files(self.files.shard_size(number)),
        )  # fmt: skip
        for file_index, decoded in enumerate(read_shards(self.shards)):
            content, problem = decoded.pop("content"), decoded.pop("problem")
            # a problem of a content is stored with the content: it concerns all files that hold it
            file_problem = None if content else problem
            self.database.execute(
                "update files set content = ?, problem = ? where rowid = ?", (content, file_problem, file_index + 1)
            )
            if content:
                values = (content, file_index, decoded.get("image_id"), problem, json.dumps(decoded))
                self.database.execute("insert or ignore into contents values (?, ?, ?, ?, ?)", values)
        self.database.execute("create index by_content on files (content)")
        self.decoding_finished = True

    def split_groups(self) -> SplitGroups:
        """Rows that must share a split: those with the same image content or group, or else the same first text."""
        rows = self.database.execute("select content from files order by rowid")
        image_keys = array("Q", (fingerprint(image_key(content)) if content else 0 for (content,) in rows))
        groups, start = SplitGroups(), 0
        links = zip(self.image_counts, self.link_keys, self.has_group, self.splits, strict=True)
        for image_count, link_key, has_group, split in links:
            file_indexes = self.file_indexes[start : start + image_count]
            keys = [image_keys[file_index] for file_index in file_indexes if image_keys[file_index]]
            start += image_count
            groups.add_fingerprints([*keys, link_key] if has_group or not keys else keys, split)
        return groups

    def images(self) -> Iterator[tuple[EncodedImage, list[ImageFile]]]:
        """Each unique image with the files that hold it, in the order of the rows."""
        contents = self.database.execute(
            "select content, first_file, decoded from contents where problem is null order by first_file"
        )
        for content, first_file, decoded in contents:
            rows = self.database.execute("select facts from files where content = ? order by rowid", (content,))
            files = [parse_image_file(facts) for (facts,) in rows]
            others = self.database.execute(
                "select other_licenses.facts from other_licenses join files using (path) where content = ? "
                "order by files.rowid, other_licenses.facts",
                (content,),
            )
            files += [parse_image_file(facts) for (facts,) in others]
            shard = self.files.shard_of(first_file)
            yield reload_image(self.folder, files[0].path, shard, json.loads(decoded)), files

    def image_ids(self, row: ImportRow) -> tuple[tuple[str, ...], str | None]:
        """(the ids of a row's images, None), or ((), the problem of the first image that cannot be used)."""
        ids = []
        for file in row.images:
            image_id, *problems = self.query(
                "select image_id, files.problem, contents.problem from files left join contents using (content) "
                "where path = ?",
                str(file.path),
            )
            if problem := problems[0] or problems[1]:
                return (), problem
            ids.append(image_id)
        return tuple(ids), None

    def counts(self) -> dict[str, int]:
        """The number of readable files, of unreadable files, and of unique images."""
        readable, unreadable = self.query("select count(content), count(problem) from files")
        (images,) = self.query("select count(*) from contents where problem is null")
        return {"readable": readable, "unreadable": unreadable, "images": images}

    def first_missing_file(self) -> str | None:
        row = self.query("select path from files where problem = ? order by rowid limit 1", MISSING_FILE)
        return row[0] if row else None

    def licenses(self) -> set[str]:
        """All licenses that readable files name."""
        rows = self.database.execute(
            "select distinct json_extract(facts, '$.license') from files where content is not null union "
            "select json_extract(other_licenses.facts, '$.license') from other_licenses join files using (path) "
            "where content is not null"
        )
        return {license for (license,) in rows if license}

    def content_lines(self) -> Iterable[str]:
        """`name content` of each readable file in the order of the paths: what the hash of the input covers."""
        # sorted by path components, as pathlib compares paths; SQLite sorts on disk
        rows = self.database.execute("select path, content from files where content is not null order by parts(path)")
        for path, content in rows:
            yield f"{Path(path).name} {content}\n"

    def query(self, sql: str, *values: Any) -> Any:
        """The first row of a query, or None."""
        return self.database.execute(sql, values).fetchone()


def row_digest(row: ImportRow | RejectedRow) -> int:
    """64 bits that identify a row with all its fields: equal for the same row in a second pass over the source."""
    return fingerprint(repr(row))


def parse_image_file(facts: str) -> ImageFile:
    fields = json.loads(facts)
    return ImageFile(**fields | {"path": Path(fields["path"])})
