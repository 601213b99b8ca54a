"""Rows sorted into heaps on disk by a key, so that what belongs together can be looked at in little memory.

In: rows with their keys. Out: files of JSON lines; all rows of one key lie in the same file, in the order they came in.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROWS_A_HEAP = 20_000  # about so many; a row of a long context has some 5 KB
MOST = 512  # files open at once


def into_heaps(folder: Path, rows: Iterable[tuple[int, Any]], total: int) -> list[str]:
    """The files of a folder, made of (key, row) pairs; `total` says about how many rows will come."""
    folder.mkdir(parents=True, exist_ok=True)
    heaps = [folder / f"heap-{n:04d}.jsonl" for n in range(min(MOST, 1 + total // ROWS_A_HEAP))]
    files = []
    try:
        files = [heap.open("wb") for heap in heaps]
        for key, row in rows:
            files[key % len(files)].write(line(row))
    finally:
        for file in files:
            file.close()
    return [str(heap) for heap in heaps]


def line(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def read_heap(heap: str) -> Iterable[Any]:
    with open(heap, encoding="utf-8", errors="surrogatepass") as lines:
        yield from map(json.loads, lines)
