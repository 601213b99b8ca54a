"""The audit log: who asked, when, and about which images, without anybody's words.

In: one call for each answered request. Out: JSON lines of hashes and counts. The log is rotated by size. While it
cannot be written (a full disk), its lines wait in memory and requests are refused: no answer goes without a line.
"""

import errno
import hashlib
import json
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from qilin.core.errors import UserError
from qilin.serve.api.errors import ApiError
from qilin.serve.engine.engine import Finish

log = logging.getLogger(__name__)
MAX_BYTES = 16 << 20
BACKUPS = 20


@dataclass(frozen=True)
class PromptHashes:
    """What identifies a prompt and its images, and reveals neither."""

    prompt: str
    images: tuple[str, ...]


class AuditLog:
    """Appends one line per request; the file is readable by its owner only."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        except OSError as error:
            raise UserError(f"{path}: cannot write the audit log ({error.strerror})") from None
        self.path = path
        self.pending: list[str] = []  # lines that could not be written: at most those of the requests that ran then
        self.lock = threading.Lock()

    def write(
        self,
        owner: str,
        client: str,
        route: str,
        status: int,
        hashes: PromptHashes | None,
        finishes: Sequence[Finish],
    ) -> None:
        """One request. A line that cannot be written waits for `check`."""
        row = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "owner": owner,
            "client": client,
            "route": route,
            "status": status,
            "prompt": hashes.prompt if hashes else None,
            "images": list(hashes.images) if hashes else [],
            "finish": [finish.reason for finish in finishes],
            "tokens": sum(finish.completion_tokens for finish in finishes),
        }
        with self.lock:
            self.pending.append(json.dumps(row, ensure_ascii=False))
            self.flush()

    def check(self) -> None:
        """Raise ApiError 503 while lines wait that cannot be written."""
        with self.lock:
            if self.pending and not self.flush():
                raise ApiError(503, "the audit log cannot be written; the operator must free its disk")

    def flush(self) -> bool:
        """Write the waiting lines; whether all are written. The lock is held."""
        try:
            while self.pending:
                append_line(self.path, self.pending[0])
                del self.pending[0]
        except OSError as error:
            log.error("%s: the audit log cannot be written (%s); requests are refused", self.path, error.strerror)
            return False
        return True


def append_line(path: Path, text: str) -> None:
    """Append a line, after a rotation where it would not fit. Raises OSError, and then leaves no part of the line."""
    data = (text + "\n").encode("utf-8", "backslashreplace")
    if path.exists() and path.stat().st_size + len(data) > MAX_BYTES:
        rotate(path)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(file).st_size
        if os.write(file, data) < len(data):
            os.ftruncate(file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


def rotate(path: Path) -> None:
    """PATH becomes PATH.1, PATH.1 becomes PATH.2, …; the oldest is dropped."""
    for number in range(BACKUPS - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))
    path.replace(path.with_name(f"{path.name}.1"))


def token_hash(ids: Sequence[int]) -> str:
    """sha256 of a prompt's tokens."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
