"""Splits that divide neither an image nor a group: everything that is linked goes to one side, whole.

In: for each row, in order, the keys (images, groups) that it ties together. Out: a split for every row, drawn by a
hash of its component and a seed: the same on every machine. Some 60 bytes a row, whatever the keys are.
"""

from array import array
from collections.abc import Iterable

import numpy as np

from qilin.dataset.hash_tables import fingerprint
from qilin.dataset.schema import SPLITS

FREE = -1  # a component that no source has placed


class SplitGroups:
    """Rows and the keys that tie them together, added one after the other."""

    def __init__(self) -> None:
        self.keys = array("Q")
        self.rows = array("q")  # the row of each key
        self.named = array("b")  # a row: the place in SPLITS that its source names, or FREE

    def __len__(self) -> int:
        return len(self.named)

    def add(self, keys: Iterable[str], split: str | None = None) -> None:
        """Add a row: the keys that it ties together, at least one. `split`: where its source puts it."""
        self.add_fingerprints(map(fingerprint, keys), split)

    def add_fingerprints(self, keys: Iterable[int], split: str | None = None) -> None:
        """`join`, of keys that are fingerprints already."""
        for key in keys:
            self.keys.append(key)
            self.rows.append(len(self.named))
        self.named.append(SPLITS.index(split) if split else FREE)

    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """(component of each row, the smallest key of each component)."""
        keys, place = np.unique(np.frombuffer(self.keys, dtype=np.uint64), return_inverse=True)
        labels = connected_components(np.frombuffer(self.rows, dtype=np.int64), place.astype(np.int64), len(self), len(keys))
        names = np.full(int(labels.max(initial=-1)) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(names, labels[len(self) :], keys)
        return labels[: len(self)], names

    def assign(self, validation: float = 0, test: float = 0, seed: int = 0) -> list[str]:
        """The split of each row. A component keeps the split that the first of its rows is put in by its source; the
        others are taken in the order of a seeded hash: test is filled to its share of their rows, then validation, the
        rest trains. A component is passed over where it would leave a share further off than without it, so one big
        patient cannot swallow the test set.
        """
        if not len(self):
            return []
        labels, names = self.components()
        placed = np.full(len(names), FREE, dtype=np.int8)
        named = np.frombuffer(self.named, dtype=np.int8)
        firsts = np.flatnonzero(named != FREE)[::-1]  # backwards, so that the first row of a component is written last
        placed[labels[firsts]] = named[firsts]
        sizes = np.bincount(labels, minlength=len(names))
        free = np.flatnonzero(placed == FREE)
        free = free[np.argsort(scattered(names[free], seed), kind="stable")]
        total = int(sizes[free].sum())
        for split, share in (("test", test), ("validation", validation)):
            room = share * total
            for top in free:
                if room < 0.5:  # not even a row of its own fits
                    break
                if placed[top] == FREE and room >= sizes[top] / 2:
                    placed[top] = SPLITS.index(split)
                    room -= sizes[top]
        placed[placed == FREE] = SPLITS.index("train")
        return [SPLITS[n] for n in placed[labels]]


def connected_components(rows: np.ndarray, keys: np.ndarray, number_of_rows: int, number_of_keys: int) -> np.ndarray:
    """The component of each row, then of each key, of a graph whose edges are (row, key)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = number_of_rows + number_of_keys
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, keys + number_of_rows)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1])


def scattered(keys: np.ndarray, seed: int) -> np.ndarray:
    """The keys well mixed with a seed (the finaliser of splitmix64), for an order that looks like chance."""
    golden = 0x9E3779B97F4A7C15
    with np.errstate(over="ignore"):
        mixed = keys ^ np.uint64((seed + 1) * golden % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))
