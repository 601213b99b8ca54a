"""64-bit fingerprints of texts, and two lookup tables whose memory does not grow with long keys.

FingerprintMap: fingerprint -> one of a few texts (a reason, a split), as sorted arrays that all worker processes map
from disk; 10 bytes per key. ExactKeyStore: exact keys with a value in a temporary SQLite file, for one writer.
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
    """64-bit hash of a text. Among 24 million texts, the chance of any collision is 1 in 60,000."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def fingerprints(texts: Iterable[str]) -> np.ndarray:
    """(N,) uint64."""
    return np.fromiter(map(fingerprint, texts), dtype=np.uint64)


def find_sorted(keys: np.ndarray, key: int) -> int | None:
    """The index of `key` in `keys` (N,), sorted; None if it is not there."""
    index = int(np.searchsorted(keys, np.uint64(key)))
    return index if index < len(keys) and keys[index] == key else None


@dataclass(frozen=True)
class FingerprintMap:
    """Keys, sorted by fingerprint, and for each the index of its value; the arrays may be mapped from disk."""

    keys: np.ndarray  # (N,) uint64, sorted
    codes: np.ndarray  # (N,) uint16, index into values
    values: tuple[str, ...]

    def get(self, key: str) -> str | None:
        index = find_sorted(self.keys, fingerprint(key))
        return None if index is None else self.values[int(self.codes[index])]


class FingerprintMapBuilder:
    """Collects keys and values in any order; of several values for one key the first counts."""

    def __init__(self) -> None:
        self.keys = array("Q")
        self.codes = array("H")
        self.values: dict[str, int] = {}

    def add(self, key: str, value: str) -> None:
        self.add_fingerprint(fingerprint(key), value)

    def add_fingerprint(self, key: int, value: str) -> None:
        self.keys.append(key)
        self.codes.append(self.values.setdefault(value, len(self.values)))

    def build(self) -> FingerprintMap:
        keys, first_indices = np.unique(np.frombuffer(self.keys, dtype=np.uint64), return_index=True)
        return FingerprintMap(keys, np.frombuffer(self.codes, dtype=np.uint16)[first_indices], tuple(self.values))

    def save(self, folder: Path) -> Path:
        """Write the map for `open_fingerprint_map`."""
        folder.mkdir(parents=True, exist_ok=True)
        built = self.build()
        np.save(folder / "keys.npy", built.keys)
        np.save(folder / "codes.npy", built.codes)
        (folder / "values.json").write_text(json.dumps(built.values, ensure_ascii=False), encoding="utf-8")
        return folder


def open_fingerprint_map(folder: Path) -> FingerprintMap:
    """A saved map; cached, because a worker opens it for every sample."""
    return load_fingerprint_map(folder, (folder / "values.json").stat().st_mtime_ns)


@lru_cache(maxsize=8)
def load_fingerprint_map(folder: Path, modified: int) -> FingerprintMap:
    values = tuple(json.loads((folder / "values.json").read_text(encoding="utf-8")))
    keys, codes = (np.load(folder / name, mmap_mode="r") for name in ("keys.npy", "codes.npy"))
    return FingerprintMap(keys, codes, values)


class ExactKeyStore:
    """Keys with a short value each in a temporary SQLite file, which `close` removes.

    Unlike fingerprints it is exact, and its memory does not grow with the number of keys.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        # one transaction without a journal: the file is not read after a crash, so it needs no recovery
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("pragma journal_mode = off")
        self.connection.execute("pragma synchronous = off")
        self.connection.execute("create table keys (key text primary key, value text) without rowid")
        self.connection.execute("begin")

    def add(self, key: str, value: str = "") -> bool:
        """Store a new key; False if it exists (its value stays)."""
        return self.connection.execute("insert or ignore into keys values (?, ?)", (key, value)).rowcount > 0

    def put(self, key: str, value: str) -> None:
        """Store a key, or replace its value."""
        self.connection.execute("insert or replace into keys values (?, ?)", (key, value))

    def get(self, key: str) -> str | None:
        row = self.connection.execute("select value from keys where key = ?", (key,)).fetchone()
        return row[0] if row else None

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def close(self) -> None:
        self.connection.close()
        self.path.unlink(missing_ok=True)
