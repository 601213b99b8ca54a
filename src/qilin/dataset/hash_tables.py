"""Words for many keys, on disk: what a step has found out about samples or images, for all the processes that use it.

In: keys with the reason, split or name that each has. Out: two arrays and a list in a folder, opened without being read
into memory: some 10 bytes a key there, next to none here.
"""

import hashlib
import json
import sqlite3
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np


def fingerprint(text: str) -> int:
    """64 bits that stand for a text. Of 24 million texts two are alike by chance in one of 60,000 cases."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def fingerprints(texts: Iterable[str]) -> np.ndarray:
    """(N,) uint64."""
    return np.fromiter(map(fingerprint, texts), dtype=np.uint64)


class ExactKeyStore:
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


class FingerprintMapBuilder:
    """Keys and their words, one after the other; the first word of a key counts."""

    def __init__(self) -> None:
        self.keys = array("Q")
        self.codes = array("H")
        self.words: dict[str, int] = {}

    def add(self, key: str, word: str) -> None:
        self.add_fingerprint(fingerprint(key), word)

    def add_fingerprint(self, key: int, word: str) -> None:
        self.keys.append(key)
        self.codes.append(self.words.setdefault(word, len(self.words)))

    def table(self) -> "FingerprintMap":
        """What was added so far, in memory."""
        keys, firsts = np.unique(np.frombuffer(self.keys, dtype=np.uint64), return_index=True)
        return FingerprintMap(keys, np.frombuffer(self.codes, dtype=np.uint16)[firsts], tuple(self.words))

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        made = self.table()
        np.save(folder / "keys.npy", made.keys)
        np.save(folder / "codes.npy", made.codes)
        (folder / "words.json").write_text(json.dumps(list(self.words), ensure_ascii=False), encoding="utf-8")
        return folder


@dataclass(frozen=True)
class FingerprintMap:
    """A saved table, its arrays mapped from disk."""

    keys: np.ndarray
    codes: np.ndarray
    words: tuple[str, ...]

    def get(self, key: str) -> str | None:
        wanted = np.uint64(fingerprint(key))
        place = int(np.searchsorted(self.keys, wanted))
        found = place < len(self.keys) and self.keys[place] == wanted
        return self.words[int(self.codes[place])] if found else None


def open_fingerprint_map(folder: Path) -> FingerprintMap:
    """A table, kept open: a process asks it for every sample of every piece."""
    return mapped(folder, (folder / "words.json").stat().st_mtime_ns)


@lru_cache(maxsize=8)
def mapped(folder: Path, changed: int) -> FingerprintMap:
    words = tuple(json.loads((folder / "words.json").read_text(encoding="utf-8")))
    return FingerprintMap(np.load(folder / "keys.npy", mmap_mode="r"), np.load(folder / "codes.npy", mmap_mode="r"), words)
