"""API keys: who may use the server.

In: a file with a line `NAME sha256:HASH` for each key. Out: the name of a request's key. Keys are 256 random bits, so
their plain hash cannot be reversed; the file does not hold them.
"""

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from qilin.core.errors import UserError
from qilin.core.files import read_text

LOCAL_OWNER = "local"  # who asks where no keys are needed
LINE = re.compile(r"(?P<name>[\w.@-]{1,64}) sha256:(?P<hash>[0-9a-f]{64})")


@dataclass(frozen=True)
class Keys:
    """Hashes by name; empty where requests need no key."""

    hashes: tuple[tuple[str, str], ...] = ()

    def owner(self, authorization: str) -> str | None:
        """The name of the key in an Authorization header; None for a wrong one. Every hash is compared."""
        if not self.hashes:
            return LOCAL_OWNER
        scheme, _, key = authorization.partition(" ")
        presented = hash_key(key.strip()) if scheme.lower() == "bearer" else ""
        owner = None
        for name, stored in self.hashes:
            if hmac.compare_digest(stored, presented):
                owner = name
        return owner


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> Keys:
    """The keys of a file. Raises UserError with the line at fault."""
    hashes: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "a file of keys").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = LINE.fullmatch(text)
        if match is None:
            raise UserError(f"{path}: line {number} is not NAME sha256:HASH; {how_to_add(path)}")
        if match["name"] in hashes:
            raise UserError(f"{path}: line {number}: a second key for {match['name']}; names must be unique")
        hashes[match["name"]] = match["hash"]
    if not hashes:
        raise UserError(f"{path}: no key; {how_to_add(path)}")
    return Keys(tuple(hashes.items()))


def how_to_add(path: Path) -> str:
    return f"make a key with: qilin serve --new-key NAME --keys {path}"


def add_key(path: Path, name: str) -> str:
    """Append a new key's hash to a file, which only its owner may read, and return the key. Raises UserError."""
    if LINE.fullmatch(f"{name} sha256:{'0' * 64}") is None:
        raise UserError(f"--new-key is {name!r}; expected at most 64 letters, digits, '.', '_', '-' or '@'")
    if path.exists() and path.stat().st_size and name in dict(read_keys(path).hashes):
        raise UserError(f"{path}: there is a key for {name}; remove its line first")
    key = "qilin-" + secrets.token_urlsafe(32)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(f"{name} sha256:{hash_key(key)}\n")
    return key
