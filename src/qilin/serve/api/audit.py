"""The audit log: who asked, when, and about which images, without anybody's words.

In: one call for each answered request. Out: JSON lines of hashes and counts. The log is rotated by size.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from qilin.core.errors import UserError
from qilin.serve.engine.engine import Finish
from qilin.serve.engine.prompt import Prompt

MAX_BYTES = 16 << 20
BACKUPS = 20


class AuditLog:
    """Appends one line per request; the file is readable by its owner only."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
            handler = RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot write the audit log ({error.strerror})") from None
        self.logger = logging.Logger("qilin.audit")
        self.logger.addHandler(handler)

    def write(
        self, owner: str, client: str, route: str, status: int, prompt: Prompt | None, finishes: Sequence[Finish]
    ) -> None:
        """One request: hashes identify the prompt's tokens and the images' pixels, and reveal neither."""
        row = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "owner": owner,
            "client": client,
            "route": route,
            "status": status,
            "prompt": hashlib.sha256(json.dumps(prompt.ids).encode()).hexdigest() if prompt else None,
            "images": list(prompt.image_hashes) if prompt else [],
            "finish": [finish.reason for finish in finishes],
            "tokens": sum(finish.completion_tokens for finish in finishes),
        }
        self.logger.info(json.dumps(row, ensure_ascii=False))
