"""Splits that divide neither a picture nor a group: everything that is linked goes to one side, whole.

In: the keys (pictures, groups) that each row ties together. Out: a split for every key, drawn by a hash of its
component and a seed: the same on every machine.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable


class Components:
    """Connected components over keys, by union and find; some may be tied to a split that their source names."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.rows: Counter[str] = Counter()  # root -> rows in its component
        self.named: dict[str, str] = {}  # root -> the split its source names

    def root(self, key: str) -> str:
        """The key that stands for the component `key` is in: its smallest."""
        self.parent.setdefault(key, key)
        top = key
        while self.parent[top] != top:
            top = self.parent[top]
        while self.parent[key] != top:  # shorten the way for the next search
            self.parent[key], key = top, self.parent[key]
        return top

    def join(self, keys: Iterable[str], split: str | None = None) -> None:
        """Tie the keys of one row together. `split`: where its source puts it; a component keeps the first."""
        top, *others = sorted({self.root(key) for key in keys})
        for other in others:
            self.parent[other] = top
            self.rows[top] += self.rows.pop(other, 0)
            if other in self.named:
                self.named.setdefault(top, self.named.pop(other))
        self.rows[top] += 1
        if split:
            self.named.setdefault(top, split)

    def assign(self, validation: float, test: float, seed: int) -> dict[str, str]:
        """root -> split. Components that no source has placed are taken in the order of a seeded hash: test is filled
        to its share of the rows, then validation, the rest trains. A component is passed over where it would leave a
        share further off than without it, so one big patient cannot swallow the test set.
        """
        free = [top for top in self.rows if top not in self.named]
        free.sort(key=lambda top: hashlib.sha256(f"{seed} {top}".encode()).digest())
        total = sum(self.rows[top] for top in free)
        placed = dict(self.named)
        for split, share in (("test", test), ("validation", validation)):
            room = share * total
            for top in free:
                if top not in placed and room >= self.rows[top] / 2:
                    placed[top] = split
                    room -= self.rows[top]
        return {top: placed.get(top, "train") for top in self.rows}
