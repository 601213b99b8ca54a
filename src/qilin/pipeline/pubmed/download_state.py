"""What has been fetched from the article store, what was refused, what is missing: an sqlite file beside the articles.

In: outcomes, one article at a time. Out: what is still to be done, and counts. Every article is written whole, in one
transaction: after a crash it is either done or not begun.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qilin.core.errors import UserError

# have; refused: not wanted (licence, retracted, kind); missing: the store has not got it; moved: a newer version took
# its place; failed: to be tried again
State = Literal["have", "refused", "missing", "moved", "failed"]
TABLES = """
create table if not exists articles (
    number integer primary key, version integer, state text, detail text, licence text, kind text, rules text);
create table if not exists files (
    number integer, version integer, name text, state text, detail text, md5 text, bytes integer,
    primary key (number, version, name));
create table if not exists wanted (number integer primary key, version integer, run integer);
"""


@dataclass(frozen=True)
class FileOutcome:
    """One file of an article."""

    name: str
    state: State
    detail: str = ""
    md5: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Outcome:
    """One article: what became of it, and of its files."""

    number: int
    version: int
    state: State
    detail: str = ""
    licence: str = ""
    kind: str = ""
    files: tuple[FileOutcome, ...] = ()


class Ledger:
    """An open ledger; close it when done. `rules`: what is wanted of articles; by others, they are judged again."""

    def __init__(self, path: Path, rules: str) -> None:
        self.rules = rules
        self.base = sqlite3.connect(path)
        try:
            self.base.executescript(TABLES)
        except sqlite3.OperationalError:  # the disk, not the file
            self.base.close()
            raise
        except sqlite3.DatabaseError as error:
            self.base.close()
            raise UserError(f"{path}: not a ledger ({error}); name another folder or remove the file") from None

    def close(self) -> None:
        self.base.close()

    def want_nothing(self) -> None:
        with self.base:
            self.base.execute("delete from wanted")

    def want(self, articles: Iterable[tuple[int, int]]) -> None:
        """More articles that this run is about; version 0 is the newest. A later mention of a newer version counts."""
        with self.base:
            self.base.executemany(
                "insert into wanted (number, version) values (?, ?) on conflict (number) do update set version = "
                "max(version, excluded.version)",
                articles,
            )

    def count_wanted(self) -> int:
        return int(self.base.execute("select count(*) from wanted").fetchone()[0])

    def left(self, refresh: bool, limit: int | None) -> Iterator[tuple[int, int]]:
        """Wanted articles that are not settled: failed, here in another version, or judged by other rules."""
        after = -1
        given = 0
        settled = "" if refresh else (
            "and not exists (select 1 from articles a where a.number = w.number and a.state != 'failed' "
            "and a.rules = :rules and (w.version = 0 or a.version = w.version))"
        )  # fmt: skip
        while rows := self.base.execute(
            f"select number, version from wanted w where number > :after {settled} order by number limit 1000",
            {"after": after, "rules": self.rules},
        ).fetchall():
            for number, version in rows:
                if limit is not None and given >= limit:
                    return
                given += 1
                after = number
                yield number, version

    def version(self, number: int) -> int | None:
        """The version of an article that is here."""
        row = self.base.execute("select version from articles where number = ? and state = 'have'", (number,))
        found = row.fetchone()
        return int(found[0]) if found else None

    def files(self, number: int, version: int) -> dict[str, str]:
        """Name -> md5 of the files that were had of a version."""
        asked = "select name, md5 from files where number = ? and version = ? and state = 'have'"
        return dict(self.base.execute(asked, (number, version)).fetchall())

    def write(self, outcome: Outcome) -> None:
        """Keep an article's outcome; files of an older version are marked as moved."""
        o = outcome
        with self.base:
            self.base.execute(
                "insert or replace into articles values (?, ?, ?, ?, ?, ?, ?)",
                (o.number, o.version, o.state, o.detail, o.licence, o.kind, self.rules),
            )
            if o.state == "have":
                self.base.execute(
                    "update files set state = 'moved', detail = ? where number = ? and version != ?",
                    (f"PMC{o.number}.{o.version}", o.number, o.version),
                )
            self.base.executemany(
                "insert or replace into files values (?, ?, ?, ?, ?, ?, ?)",
                [(o.number, o.version, f.name, f.state, f.detail, f.md5, f.bytes) for f in o.files],
            )

    def counts(self) -> dict[str, list[tuple[str, str, int]]]:
        """{"articles", "files"}: (state, detail, count) over everything the ledger knows."""
        return {
            table: self.base.execute(
                f"select state, case state when 'have' then '' when 'moved' then '' else detail end as d, count(*) "
                f"from {table} group by state, d order by state, count(*) desc"
            ).fetchall()
            for table in ("articles", "files")
        }

    def count_articles(self, state: State) -> int:
        return int(self.base.execute("select count(*) from articles where state = ?", (state,)).fetchone()[0])

    def bytes(self) -> int:
        return int(self.base.execute("select coalesce(sum(bytes), 0) from files where state = 'have'").fetchone()[0])


@contextmanager
def open_ledger(path: Path, rules: str) -> Iterator[Ledger]:
    ledger = Ledger(path, rules)
    try:
        yield ledger
    finally:
        ledger.close()


def as_text(rows: Sequence[tuple[str, str, int]]) -> list[str]:
    """Counts in words: "refused 12: licence CC BY-NC-ND"."""
    return [f"{state} {count:,}" + (f": {detail}" if detail else "") for state, detail, count in rows]
