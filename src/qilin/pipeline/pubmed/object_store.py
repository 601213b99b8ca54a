"""The PubMed Central article store over HTTP: listings, inventories, metadata, and files checked by their md5.

In: the store's address (a setting: a mirror or a test server does as well) and a pace. Out: bytes and whole files.
Layout as the store has had it since August 2026: a prefix `PMC{id}.{version}/` for each version of an article,
`metadata/PMC{id}.{version}.json`, daily inventories under `inventory-reports/`.
"""

import asyncio
import csv
import gzip
import hashlib
import io
import json
import random
import re
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import httpx2
from lxml import etree

INVENTORIES = "inventory-reports/pmc-oa-opendata/metadata/"
VERSION = re.compile(r"PMC(\d+)\.(\d+)")
AGAIN = (408, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 60.0  # seconds
SLOWEST = 20  # timeouts that one file may take in all


class StoreFault(Exception):
    """One thing that could not be had. `lasting`: asking again another day is of no use."""

    def __init__(self, reason: str, lasting: bool) -> None:
        super().__init__(reason)
        self.reason, self.lasting = reason, lasting


@dataclass
class Pace:
    """At most `rate` requests a second over all tasks; everyone waits where the store asks for rest."""

    rate: float
    next: float = 0.0

    async def turn(self) -> None:
        now = time.monotonic()
        start = max(now, self.next)
        self.next = start + 1 / self.rate
        await asyncio.sleep(start - now)

    def rest(self, seconds: float) -> None:
        self.next = max(self.next, time.monotonic() + min(seconds, LONGEST_WAIT))


@dataclass
class Store:
    """An open connection to the store."""

    client: httpx2.AsyncClient
    base: str
    pace: Pace
    retries: int

    async def get(self, path: str, **query: str) -> bytes:
        """The body of a small answer. Raises StoreFault."""
        buffer = io.BytesIO()
        await self.fetch(self.address(path, **query), buffer)
        return buffer.getvalue()

    def address(self, path: str, **query: str) -> str:
        url = self.base.rstrip("/") + (f"/{quote(path)}" if path else "")
        return url + ("?" + "&".join(f"{k}={quote(v, safe='')}" for k, v in query.items()) if query else "")

    async def fetch(self, url: str, file: Any) -> None:
        """Write the answer to a file, going on after a cut connection where the store allows it. Raises StoreFault."""
        fault = ""
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(min(LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1))
            await self.pace.turn()
            try:
                async with asyncio.timeout(SLOWEST * (self.client.timeout.read or 60)):  # one that drips is none
                    if await self.read_into(url, file):
                        return
                fault = "the store asks to wait or fails"
            except (httpx2.TransportError, TimeoutError) as error:  # cut, refused, timed out
                fault = f"connection: {type(error).__name__}"
        raise StoreFault(f"{fault}, {self.retries + 1} times", lasting=False)

    async def read_into(self, url: str, file: Any) -> bool:
        """One request; False where it is to be tried again."""
        start = file.tell()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        async with self.client.stream("GET", url, headers=headers) as answer:
            if answer.status_code in AGAIN:
                self.pace.rest(wait_of(answer.headers.get("Retry-After")))
                return False
            if answer.status_code == 416:  # nothing is left: what was cut was only the goodbye, or the file changed
                file.seek(0)
                file.truncate()
                return False
            if answer.status_code not in (200, 206):
                raise StoreFault(f"HTTP {answer.status_code}", lasting=answer.status_code in (403, 404, 410))
            if answer.status_code == 200 and start:
                file.seek(0)
                file.truncate()
            async for chunk in answer.aiter_bytes():
                file.write(chunk)
        return True

    async def download(self, url: str, path: Path) -> tuple[str, int]:
        """A file whose md5 is in its address's `?md5=`, whole under its name or not there. (md5, bytes)

        A wrong md5 is asked for once more, from the beginning. Raises StoreFault.
        """
        wanted = next(iter(parse_qs(urlsplit(url).query).get("md5", [])), "").lower()
        part = path.with_name(f".{path.name}.part")
        try:
            for attempt in range(2):
                with part.open("w+b") as file:
                    await self.fetch(self.address(key_of(url)), file)
                    size = file.tell()
                    file.seek(0)
                    found = hashlib.file_digest(file, "md5").hexdigest()
                if found == wanted or (not wanted and size):
                    part.replace(path)
                    return found, size
                if not attempt:
                    await asyncio.sleep(0.5)
            raise StoreFault("file is empty" if not size else "wrong md5, twice", lasting=False)
        finally:
            part.unlink(missing_ok=True)

    async def listing(self, prefix: str, delimiter: str = "/") -> tuple[list[str], list[str]]:
        """(keys, prefixes) below a prefix, however many pages they take. Raises StoreFault."""
        keys: list[str] = []
        prefixes: list[str] = []
        more: dict[str, str] = {}
        while True:
            query = {"list-type": "2", "prefix": prefix, "delimiter": delimiter} | more
            try:
                root = etree.fromstring(await self.get("", **query), PARSER)
            except etree.XMLSyntaxError:
                raise StoreFault("a listing that is no XML", lasting=False) from None
            keys += [unquote(e.text or "") for e in root.iterfind("{*}Contents/{*}Key")]
            prefixes += [e.text or "" for e in root.iterfind("{*}CommonPrefixes/{*}Prefix")]
            token = root.findtext("{*}NextContinuationToken")
            if not token:
                return keys, prefixes
            more = {"continuation-token": token}

    async def versions(self, number: int) -> list[int]:
        """The versions of an article that the store holds, oldest first."""
        _, prefixes = await self.listing(f"PMC{number}.")
        found = [VERSION.fullmatch(prefix.rstrip("/")) for prefix in prefixes]
        return sorted(int(match.group(2)) for match in found if match and int(match.group(1)) == number)

    async def metadata(self, number: int, version: int) -> dict[str, Any]:
        """What the store says of one version. Raises StoreFault, also where it speaks of another article."""
        try:
            found = json.loads(await self.get(f"metadata/PMC{number}.{version}.json"))
        except ValueError:
            raise StoreFault("metadata is not JSON", lasting=False) from None
        if not isinstance(found, dict) or str(found.get("pmcid", "")).removeprefix("PMC") != str(number):
            raise StoreFault("metadata is of another article", lasting=False)
        return found

    async def inventory(self, date: str | None) -> AsyncIterator[Iterator[tuple[int, int]]]:
        """(id, version) of every article in the newest inventory, or in the one of a date, a part at a time."""
        if date is None:
            _, prefixes = await self.listing(INVENTORIES)
            dates = [name.rstrip("/").rpartition("/")[2] for name in prefixes]
            date = max((name for name in dates if name[:4].isdigit()), default=None)
            if date is None:
                raise StoreFault(f"no inventory under {INVENTORIES}", lasting=True)
        try:
            manifest = json.loads(await self.get(f"{INVENTORIES}{date}/manifest.json"))
            column = [name.strip() for name in manifest["fileSchema"].split(",")].index("Key")
            parts = [(part["key"], part.get("MD5checksum", "")) for part in manifest["files"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StoreFault("the inventory's manifest is not one", lasting=False) from None
        for key, md5 in parts:
            data = await self.get(key)
            if md5 not in ("", hashlib.md5(data).hexdigest()):
                raise StoreFault(f"{key} does not have its md5", lasting=False)
            yield inventory_rows(key, data, column)


PARSER = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)


def inventory_rows(key: str, data: bytes, column: int) -> Iterator[tuple[int, int]]:
    """The article versions that a gzipped part of an inventory lists, read line by line. Raises StoreFault."""
    try:
        with gzip.open(io.BytesIO(data), "rt", encoding="utf-8", newline="") as lines:
            for row in csv.reader(lines):
                match = VERSION.match(unquote(row[column]).removeprefix("metadata/"))
                if match:
                    yield int(match.group(1)), int(match.group(2))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, IndexError):
        raise StoreFault(f"{key} is no part of an inventory", lasting=False) from None


def key_of(url: str) -> str:
    """s3://bucket/PMC1.1/a.jpg?md5=… or https://host/PMC1.1/a.jpg?md5=… -> PMC1.1/a.jpg"""
    return unquote(urlsplit(url).path.lstrip("/"))


def wait_of(said: str | None) -> float:
    """Seconds of a Retry-After; one where it says none, or a date."""
    try:
        return max(0.0, float(said or 1))
    except ValueError:
        return 1.0
