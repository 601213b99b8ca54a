"""A least-recently-used cache that is bounded in bytes.

In: keys, values and the bytes that each value takes. Out: the values that are still in memory. The engine's thread is
the only user, so there is no lock.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass
class LruCache(Generic[Value]):
    """Values by key; the least recently used ones are dropped when all together exceed `max_bytes`."""

    max_bytes: int
    used_bytes: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    entries: OrderedDict[str, tuple[Value, int]] = field(default_factory=OrderedDict)

    def get(self, key: str) -> Value | None:
        """The value of a key, which becomes the most recently used one; None if there is none."""
        if key not in self.entries:
            self.misses += 1
            return None
        self.hits += 1
        self.entries.move_to_end(key)
        return self.entries[key][0]

    def put(self, key: str, value: Value, size: int) -> None:
        """Store a value of `size` bytes. A value larger than the cache is not stored."""
        if key in self.entries or size > self.max_bytes:
            return
        while self.used_bytes + size > self.max_bytes:
            _, (_, freed) = self.entries.popitem(last=False)
            self.used_bytes -= freed
            self.evictions += 1
        self.entries[key] = (value, size)
        self.used_bytes += size

    def clear(self) -> None:
        """Drop everything; the counters stay."""
        self.entries.clear()
        self.used_bytes = 0
