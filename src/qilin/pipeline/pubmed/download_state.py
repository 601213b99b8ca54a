"""The download ledger: which articles were downloaded, rejected or missing, in an SQLite file beside the articles.

In: outcomes, one article at a time. Out: the articles still to do, and counts. Each article is written in one
transaction, so after a crash it is either recorded or not started.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qilin.core.errors import UserError

# have: downloaded; refused: not wanted (license, retracted, article type); missing: not in the store; moved: replaced
# by a newer version; failed: to be retried
State = Literal["have", "refused", "missing", "moved", "failed"]
TABLES = """
create table if not exists articles (
    number integer primary key, version integer, state text, detail text, license text, article_type text, rules text);
create table if not exists files (
    number integer, version integer, name text, state text, detail text, md5 text, bytes integer,
    primary key (number, version, name));
create table if not exists wanted (number integer primary key, version integer, run integer);
"""


@dataclass(frozen=True)
class FileOutcome:
    """One file of an article. `bytes` is its size."""

    name: str
    state: State
    detail: str = ""
    md5: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class ArticleOutcome:
    """The result of processing one article, with the outcomes of its files."""

    number: int  # PMC id without its prefix
    version: int
    state: State
    detail: str = ""
    license: str = ""
    article_type: str = ""
    files: tuple[FileOutcome, ...] = ()


class Ledger:
    """An open ledger; close it when done.

    `rules` identifies the selection rules of this run: articles recorded under other rules are processed again.
    """

    def __init__(self, path: Path, rules: str) -> None:
        self.rules = rules
        self.connection = sqlite3.connect(path)
        try:
            self.connection.executescript(TABLES)
        except sqlite3.OperationalError:  # a fault of the disk, not of the file
            self.connection.close()
            raise
        except sqlite3.DatabaseError as error:
            self.connection.close()
            raise UserError(
                f"{path}: not a download ledger ({error}); choose another folder or remove the file"
            ) from None

    def close(self) -> None:
        self.connection.close()

    def clear_wanted(self) -> None:
        with self.connection:
            self.connection.execute("delete from wanted")

    def add_wanted(self, articles: Iterable[tuple[int, int]]) -> None:
        """Add (number, version) of articles to process; version 0 means the newest. The higher of two versions wins."""
        with self.connection:
            self.connection.executemany(
                "insert into wanted (number, version) values (?, ?) on conflict (number) do update set version = "
                "max(version, excluded.version)",
                articles,
            )

    def count_wanted(self) -> int:
        return int(self.connection.execute("select count(*) from wanted").fetchone()[0])

    def pending(self, refresh: bool, limit: int | None) -> Iterator[tuple[int, int]]:
        """Wanted articles to process: failed, recorded in another version or under other rules, or new; with
        `refresh` all. At most `limit`."""
        last_number = -1
        yielded = 0
        condition = "" if refresh else (
            "and not exists (select 1 from articles a where a.number = w.number and a.state != 'failed' "
            "and a.rules = :rules and (w.version = 0 or a.version = w.version))"
        )  # fmt: skip
        while rows := self.connection.execute(
            f"select number, version from wanted w where number > :after {condition} order by number limit 1000",
            {"after": last_number, "rules": self.rules},
        ).fetchall():
            for number, version in rows:
                if limit is not None and yielded >= limit:
                    return
                yielded += 1
                last_number = number
                yield number, version

    def downloaded_files(self, number: int, version: int) -> dict[str, str]:
        """Name -> md5 of the downloaded files of an article version."""
        query = "select name, md5 from files where number = ? and version = ? and state = 'have'"
        return dict(self.connection.execute(query, (number, version)).fetchall())

    def record(self, outcome: ArticleOutcome) -> None:
        """Store an article's outcome; files of its other versions become 'moved'."""
        number, version = outcome.number, outcome.version
        article = (number, version, outcome.state, outcome.detail, outcome.license, outcome.article_type, self.rules)
        with self.connection:
            self.connection.execute("insert or replace into articles values (?, ?, ?, ?, ?, ?, ?)", article)
            if outcome.state == "have":
                self.connection.execute(
                    "update files set state = 'moved', detail = ? where number = ? and version != ?",
                    (f"PMC{number}.{version}", number, version),
                )
            self.connection.executemany(
                "insert or replace into files values (?, ?, ?, ?, ?, ?, ?)",
                [(number, version, f.name, f.state, f.detail, f.md5, f.bytes) for f in outcome.files],
            )

    def counts(self) -> dict[str, list[tuple[str, str, int]]]:
        """{"articles" and "files": [(state, detail, count)]} over the entire ledger."""
        return {
            table: self.connection.execute(
                f"select state, case state when 'have' then '' when 'moved' then '' else detail end as d, count(*) "
                f"from {table} group by state, d order by state, count(*) desc"
            ).fetchall()
            for table in ("articles", "files")
        }

    def count_articles(self, state: State) -> int:
        return int(self.connection.execute("select count(*) from articles where state = ?", (state,)).fetchone()[0])

    def total_bytes(self) -> int:
        """Size of all downloaded files."""
        query = "select coalesce(sum(bytes), 0) from files where state = 'have'"
        return int(self.connection.execute(query).fetchone()[0])


@contextmanager
def open_ledger(path: Path, rules: str) -> Iterator[Ledger]:
    ledger = Ledger(path, rules)
    try:
        yield ledger
    finally:
        ledger.close()


def format_counts(rows: Sequence[tuple[str, str, int]]) -> str:
    """Counts on one line: "have 3; refused 12: license CC BY-NC-ND"."""
    return "; ".join(f"{state} {count:,}" + (f": {detail}" if detail else "") for state, detail, count in rows)
