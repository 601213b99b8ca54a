"""Splits that never separate rows which share an image or a group: a connected component belongs to one split.

In: for each row, in order, the keys (images, groups) that it connects. Out: a split for every row, drawn by a hash of
its component and a seed, so it is the same on every machine. Some 60 bytes of memory per row, however long the keys.
"""

from array import array
from collections.abc import Iterable

import numpy as np

from qilin.dataset.hash_tables import fingerprint
from qilin.dataset.schema import SPLITS

UNASSIGNED = -1  # a row or component for which no source names a split


def image_key(image: object) -> str:
    """The key of an image. Its prefix is part of the hash that orders components: another one gives other splits."""
    return f"picture {image}"


def connecting_keys(images: Iterable[object], group: str | None, fallback: str) -> list[str]:
    """The keys of a row: its images and its group; `fallback` for a row with neither."""
    return [*map(image_key, images), *([f"group {group}"] if group else [])] or [fallback]


class SplitGroups:
    """Rows and the keys that connect them, added one after the other."""

    def __init__(self) -> None:
        self.keys = array("Q")
        self.key_rows = array("q")  # the row of each key
        self.source_splits = array("b")  # per row: index into SPLITS, or UNASSIGNED

    def __len__(self) -> int:
        return len(self.source_splits)

    def add(self, keys: Iterable[str], split: str | None = None) -> None:
        """Add a row: the keys that it connects, at least one, and the split that its source names."""
        self.add_fingerprints(map(fingerprint, keys), split)

    def add_fingerprints(self, keys: Iterable[int], split: str | None = None) -> None:
        """`add` for keys that are fingerprints already."""
        for key in keys:
            self.keys.append(key)
            self.key_rows.append(len(self))
        self.source_splits.append(SPLITS.index(split) if split else UNASSIGNED)

    def assign(self, validation: float = 0, test: float = 0, seed: int = 0) -> list[str]:
        """The split of each row. A component takes the split that the source names for its first row that has one.

        The other components are ordered by a seeded hash: test is filled up to its share of their rows, then
        validation, and train takes the rest. A component that would leave a share further from its target than without
        it is skipped, so one large patient cannot fill the test set.
        """
        if not len(self):
            return []
        rows, keys = (np.frombuffer(self.key_rows, dtype=np.int64), np.frombuffer(self.keys, dtype=np.uint64))
        components, names = label_components(rows, keys, len(self))
        splits = np.full(len(names), UNASSIGNED, dtype=np.int8)
        source_splits = np.frombuffer(self.source_splits, dtype=np.int8)
        named_rows = np.flatnonzero(source_splits != UNASSIGNED)[::-1]  # reversed: the first row is written last
        splits[components[named_rows]] = source_splits[named_rows]
        sizes = np.bincount(components, minlength=len(names))
        unassigned = np.flatnonzero(splits == UNASSIGNED)
        unassigned = unassigned[np.argsort(mix_hashes(names[unassigned], seed), kind="stable")]
        num_rows = int(sizes[unassigned].sum())
        for split, share in (("test", test), ("validation", validation)):
            remaining = share * num_rows
            for component in unassigned:
                if remaining < 0.5:  # not even a single row fits
                    break
                if splits[component] == UNASSIGNED and remaining >= sizes[component] / 2:
                    splits[component] = SPLITS.index(split)
                    remaining -= sizes[component]
        splits[splits == UNASSIGNED] = SPLITS.index("train")
        return [SPLITS[index] for index in splits[components]]


def label_components(rows: np.ndarray, keys: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(component of each row, smallest key of each component) of the graph whose edges are (rows[i], keys[i])."""
    distinct_keys, columns = np.unique(keys, return_inverse=True)
    labels = connected_components(rows, columns.astype(np.int64), num_rows, len(distinct_keys))
    names = np.full(int(labels.max(initial=-1)) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(names, labels[num_rows:], distinct_keys)
    return labels[:num_rows], names


def connected_components(rows: np.ndarray, columns: np.ndarray, num_rows: int, num_columns: int) -> np.ndarray:
    """The component of each row, then of each column, of the bipartite graph whose edges are (rows[i], columns[i])."""
    from scipy.sparse import coo_array, csgraph

    size = num_rows + num_columns
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns + num_rows)), shape=(size, size))
    return np.asarray(csgraph.connected_components(graph, directed=False)[1])


def mix_hashes(keys: np.ndarray, seed: int) -> np.ndarray:
    """The keys mixed with a seed by the finalizer of splitmix64: a pseudorandom order."""
    golden = 0x9E3779B97F4A7C15
    with np.errstate(over="ignore"):
        mixed = keys ^ np.uint64((seed + 1) * golden % 2**64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))
