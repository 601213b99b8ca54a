"""Words for many keys, on disk: what a step has found out about samples or pictures, for all the processes that use it.

In: keys with the reason, split or name that each has. Out: two arrays and a list in a folder, opened without being read
into memory: some 10 bytes a key there, next to none here.
"""

import json
from array import array
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from qilin.data.keys import fingerprint


class TableWriter:
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

    def table(self) -> "Table":
        """What was added so far, in memory."""
        keys, firsts = np.unique(np.frombuffer(self.keys, dtype=np.uint64), return_index=True)
        return Table(keys, np.frombuffer(self.codes, dtype=np.uint16)[firsts], tuple(self.words))

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        made = self.table()
        np.save(folder / "keys.npy", made.keys)
        np.save(folder / "codes.npy", made.codes)
        (folder / "words.json").write_text(json.dumps(list(self.words), ensure_ascii=False), encoding="utf-8")
        return folder


@dataclass(frozen=True)
class Table:
    """A saved table, its arrays mapped from disk."""

    keys: np.ndarray
    codes: np.ndarray
    words: tuple[str, ...]

    def get(self, key: str) -> str | None:
        wanted = np.uint64(fingerprint(key))
        place = int(np.searchsorted(self.keys, wanted))
        found = place < len(self.keys) and self.keys[place] == wanted
        return self.words[int(self.codes[place])] if found else None


def open_table(folder: Path) -> Table:
    """A table, kept open: a process asks it for every sample of every piece."""
    return mapped(folder, (folder / "words.json").stat().st_mtime_ns)


@lru_cache(maxsize=8)
def mapped(folder: Path, changed: int) -> Table:
    words = tuple(json.loads((folder / "words.json").read_text(encoding="utf-8")))
    return Table(np.load(folder / "keys.npy", mmap_mode="r"), np.load(folder / "codes.npy", mmap_mode="r"), words)
