"""Splits that divide neither a picture nor a group: everything that is linked goes to one side, whole.

In: the keys (pictures, groups) that each row ties together. Out: a split for each row, decided by a hash of its
component and a seed: the same on every machine.
"""

import hashlib
from collections.abc import Iterable


class Components:
    """Connected components over keys, by union and find; some may be tied to a split that their source names."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.named: dict[str, str] = {}  # root -> the split its source names

    def root(self, key: str) -> str:
        """The smallest key of the component `key` is in."""
        self.parent.setdefault(key, key)
        top = key
        while self.parent[top] != top:
            top = self.parent[top]
        while self.parent[key] != top:  # shorten the way for the next search
            self.parent[key], key = top, self.parent[key]
        return top

    def join(self, keys: Iterable[str], split: str | None = None) -> None:
        """Tie keys together. `split`: where the source puts them; the first one named for a component holds."""
        roots = sorted({self.root(key) for key in keys})
        if not roots:
            return
        top = roots[0]
        for other in roots[1:]:
            self.parent[other] = top
            if other in self.named:
                self.named.setdefault(top, self.named.pop(other))
        if split:
            self.named.setdefault(top, split)

    def split_of(self, key: str, validation: float, test: float, seed: int) -> str:
        """The split of the component that holds `key`.

        Shares are of components and hold on average, not to the row. A component is judged by its smallest key alone,
        so rows added later leave the others where they are, unless they link two components.
        """
        top = self.root(key)
        if top in self.named:
            return self.named[top]
        drawn = int.from_bytes(hashlib.sha256(f"{seed} {top}".encode()).digest()[:8]) / 2**64
        return "test" if drawn < test else "validation" if drawn < test + validation else "train"
