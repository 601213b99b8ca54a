"""Keeps the measured lengths of a run's samples on disk: measuring a million takes minutes.

In: a file of the cache, a table with a row of seven numbers per sample, and what was cut or dropped. Out: the same.
"""

import contextlib
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from qilin.core.files import write_atomic


def read_cache(file: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Table and statistics of `write_cache`; None if the file is absent or damaged, so that it is measured again."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            table, statistics = arrays["table"], json.loads(str(arrays["statistics"]))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
    valid = table.ndim == 2 and table.shape[1] == 7 and isinstance(statistics, dict)
    return (table, statistics) if valid and {"counts", "dropped"} <= set(statistics) else None


def write_cache(file: Path, table: np.ndarray, statistics: dict[str, Any]) -> None:
    """Write the cache atomically. Where it cannot be written (a full disk, no permission) nothing happens: the
    lengths are measured again next time."""
    buffer = io.BytesIO()
    np.savez(buffer, table=table, statistics=np.array(json.dumps(statistics, ensure_ascii=False)))
    with contextlib.suppress(OSError):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(file, buffer.getvalue())
