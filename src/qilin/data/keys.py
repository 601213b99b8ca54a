"""Keys of rows in little memory: 64-bit fingerprints of texts, and a set of keys that lives on disk.

In: names, ids, texts. Out: integers that stand for them, in arrays of 8 bytes each; or, where every key must be found
again exactly, a temporary sqlite file. A million rows must not make a million Python objects that stay.
"""

import hashlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def fingerprint(text: str) -> int:
    """64 bits that stand for a text. Of 24 million texts two are alike by chance in one of 60,000 cases."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def fingerprints(texts: Iterable[str]) -> np.ndarray:
    """(N,) uint64."""
    return np.fromiter(map(fingerprint, texts), dtype=np.uint64)


class KeysOnDisk:
    """Keys with a small value each, in a sqlite file that is thrown away: memory does not grow with their number.

    Exact, where fingerprints are only nearly so. `path` is removed by `close`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        # one transaction without a journal: a file that nobody reads after a crash needs no way back
        self.table = sqlite3.connect(path, isolation_level=None)
        self.table.execute("pragma journal_mode = off")
        self.table.execute("pragma synchronous = off")
        self.table.execute("create table keys (key text primary key, value text) without rowid")
        self.table.execute("begin")

    def add(self, key: str, value: str = "") -> bool:
        """Note a key; False where it was there (its value stays)."""
        return self.table.execute("insert or ignore into keys values (?, ?)", (key, value)).rowcount > 0

    def put(self, key: str, value: str) -> None:
        """Note a key with its value, whatever it had."""
        self.table.execute("insert into keys values (?, ?) on conflict (key) do update set value = excluded.value",
                           (key, value))  # fmt: skip

    def get(self, key: str) -> str | None:
        found = self.table.execute("select value from keys where key = ?", (key,)).fetchone()
        return found[0] if found else None

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def close(self) -> None:
        self.table.close()
        self.path.unlink(missing_ok=True)
