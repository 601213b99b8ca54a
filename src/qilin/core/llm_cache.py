"""The replies of a chat service in an SQLite file, so that none is paid for twice.

In: a path, the key of a request (`qilin.core.llm_client.cache_key`). Out: ChatReplies as they were received. The file
holds replies and hashes of requests, neither the address nor the API key.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from pathlib import Path

from qilin.core.errors import UserError
from qilin.core.llm_reply import ChatReply, without_reasoning


def open_cache(path: Path | None) -> sqlite3.Connection:
    """The reply cache at `path`, created if missing; in memory without a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(path or ":memory:")
    except sqlite3.OperationalError as error:
        raise UserError(f"{path}: cannot open or create a cache here ({error}); choose another file") from None
    try:
        connection.execute("create table if not exists replies (key text primary key, model text, reply text)")
    except sqlite3.OperationalError:  # a problem of the disk, not of the file
        connection.close()
        raise
    except sqlite3.DatabaseError as error:
        connection.close()
        raise UserError(f"{path}: not a cache of replies ({error}); choose another file or remove it") from None
    return connection


def cache_get(connection: sqlite3.Connection, key: str) -> ChatReply | None:
    """The cached reply of a key; None without one, or if its row cannot be read."""
    row = connection.execute("select reply from replies where key = ?", (key,)).fetchone()
    try:
        fields = {**json.loads(row[0]), "cached": True} if row else {}
        # replies of earlier versions still hold the model's reasoning
        return ChatReply(**{**fields, "text": without_reasoning(fields["text"])}) if row else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def cache_put(connection: sqlite3.Connection, key: str, model: str, reply: ChatReply) -> None:
    with connection:
        content = json.dumps(asdict(reply), ensure_ascii=False)
        connection.execute("insert or replace into replies values (?, ?, ?)", (key, model, content))
