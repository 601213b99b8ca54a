"""The PubMed Central article store over HTTP: listings, inventories, metadata, and files checked by md5.

In: the store's base URL (configurable: a mirror or a test server works too) and a rate limit. Out: bytes and complete
files. Store layout since August 2026: a prefix `PMC{id}.{version}/` per article version,
`metadata/PMC{id}.{version}.json`, and daily inventories under `inventory-reports/`.
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

INVENTORY_PREFIX = "inventory-reports/pmc-oa-opendata/metadata/"
ARTICLE_VERSION = re.compile(r"PMC(\d+)\.(\d+)")
RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)
PERMANENT_STATUSES = (403, 404, 410)
MAX_WAIT = 60.0  # seconds between two tries
TIMEOUTS_PER_FILE = 20  # upper limit for the duration of one request, so that a server that drips bytes is cut off
PARSER = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)


class StoreError(Exception):
    """An object that could not be fetched. `permanent`: retrying on another day is pointless."""

    def __init__(self, reason: str, permanent: bool) -> None:
        super().__init__(reason)
        self.reason, self.permanent = reason, permanent


@dataclass
class RateLimiter:
    """At most `rate` requests per second over all tasks; all tasks wait when the store asks for a pause."""

    rate: float
    next_start: float = 0.0  # on time.monotonic()'s clock

    async def acquire(self) -> None:
        """Wait for the next free time slot."""
        now = time.monotonic()
        start = max(now, self.next_start)
        self.next_start = start + 1 / self.rate
        await asyncio.sleep(start - now)

    def pause(self, seconds: float) -> None:
        """Start no request within the next `seconds`, at most MAX_WAIT."""
        self.next_start = max(self.next_start, time.monotonic() + min(seconds, MAX_WAIT))


@dataclass
class ArticleStore:
    """A connection to the store."""

    client: httpx2.AsyncClient
    base_url: str
    limiter: RateLimiter
    retries: int

    async def get(self, path: str, **query: str) -> bytes:
        """The body of a small response. Raises StoreError."""
        buffer = io.BytesIO()
        await self.fetch(self.url_of(path, **query), buffer)
        return buffer.getvalue()

    def url_of(self, path: str, **query: str) -> str:
        url = self.base_url.rstrip("/") + (f"/{quote(path)}" if path else "")
        return url + ("?" + "&".join(f"{k}={quote(v, safe='')}" for k, v in query.items()) if query else "")

    async def fetch(self, url: str, file: Any) -> None:
        """Write the response body to a file; retries, and resumes a broken transfer if the store supports ranges.
        Raises StoreError."""
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(min(MAX_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1))
            await self.limiter.acquire()
            try:
                async with asyncio.timeout(TIMEOUTS_PER_FILE * (self.client.timeout.read or 60)):
                    if await self.fetch_once(url, file):
                        return
                reason = "the store asks to wait or fails"
            except (httpx2.TransportError, TimeoutError) as error:  # broken, refused or timed-out connection
                reason = f"connection: {type(error).__name__}"
        raise StoreError(f"{reason}, {self.retries + 1} times", permanent=False)

    async def fetch_once(self, url: str, file: Any) -> bool:
        """One request, from the file's end on; False if it should be retried."""
        start = file.tell()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        async with self.client.stream("GET", url, headers=headers) as response:
            if response.status_code in RETRIED_STATUSES:
                self.limiter.pause(retry_after(response.headers.get("Retry-After")))
                return False
            if response.status_code == 416:  # the file was already complete, or has changed: start over
                file.seek(0)
                file.truncate()
                return False
            if response.status_code not in (200, 206):
                permanent = response.status_code in PERMANENT_STATUSES
                raise StoreError(f"HTTP {response.status_code}", permanent=permanent)
            if response.status_code == 200 and start:
                file.seek(0)
                file.truncate()
            async for chunk in response.aiter_bytes():
                file.write(chunk)
        return True

    async def download(self, url: str, path: Path) -> tuple[str, int]:
        """Download a file and check the md5 in its URL's `?md5=`; returns (md5, size in bytes).

        `path` appears only when complete. After a wrong md5 the file is fetched once more from the beginning.
        Raises StoreError.
        """
        expected = next(iter(parse_qs(urlsplit(url).query).get("md5", [])), "").lower()
        part = path.with_name(f".{path.name}.part")
        try:
            for attempt in range(2):
                with part.open("w+b") as file:
                    await self.fetch(self.url_of(key_of(url)), file)
                    size = file.tell()
                    file.seek(0)
                    md5 = hashlib.file_digest(file, "md5").hexdigest()
                if md5 == expected or (not expected and size):
                    part.replace(path)
                    return md5, size
                if not attempt:
                    await asyncio.sleep(0.5)
            raise StoreError("file is empty" if not size else "wrong md5, twice", permanent=False)
        finally:
            part.unlink(missing_ok=True)

    async def list_prefix(self, prefix: str, delimiter: str = "/") -> tuple[list[str], list[str]]:
        """(keys, prefixes) below a prefix, over all result pages. Raises StoreError."""
        keys: list[str] = []
        prefixes: list[str] = []
        continuation: dict[str, str] = {}
        while True:
            query = {"list-type": "2", "prefix": prefix, "delimiter": delimiter} | continuation
            try:
                root = etree.fromstring(await self.get("", **query), PARSER)
            except etree.XMLSyntaxError:
                raise StoreError("listing is not XML", permanent=False) from None
            keys += [unquote(e.text or "") for e in root.iterfind("{*}Contents/{*}Key")]
            prefixes += [e.text or "" for e in root.iterfind("{*}CommonPrefixes/{*}Prefix")]
            token = root.findtext("{*}NextContinuationToken")
            if not token:
                return keys, prefixes
            continuation = {"continuation-token": token}

    async def versions(self, number: int) -> list[int]:
        """The versions of an article in the store, oldest first."""
        _, prefixes = await self.list_prefix(f"PMC{number}.")
        matches = [ARTICLE_VERSION.fullmatch(prefix.rstrip("/")) for prefix in prefixes]
        return sorted(int(match.group(2)) for match in matches if match and int(match.group(1)) == number)

    async def metadata(self, number: int, version: int) -> dict[str, Any]:
        """The store's metadata of an article version. Raises StoreError, also if it belongs to another article."""
        try:
            metadata = json.loads(await self.get(f"metadata/PMC{number}.{version}.json"))
        except ValueError:
            raise StoreError("metadata is not JSON", permanent=False) from None
        if not isinstance(metadata, dict) or str(metadata.get("pmcid", "")).removeprefix("PMC") != str(number):
            raise StoreError("metadata is of another article", permanent=False)
        return metadata

    async def inventory(self, date: str | None) -> AsyncIterator[Iterator[tuple[int, int]]]:
        """(id, version) of all articles in the newest inventory, or in that of `date`, one inventory file at a time."""
        if date is None:
            _, prefixes = await self.list_prefix(INVENTORY_PREFIX)
            dates = [name.rstrip("/").rpartition("/")[2] for name in prefixes]
            date = max((name for name in dates if name[:4].isdigit()), default=None)
            if date is None:
                raise StoreError(f"no inventory under {INVENTORY_PREFIX}", permanent=True)
        try:
            manifest = json.loads(await self.get(f"{INVENTORY_PREFIX}{date}/manifest.json"))
            column = [name.strip() for name in manifest["fileSchema"].split(",")].index("Key")
            files = [(file["key"], file.get("MD5checksum", "")) for file in manifest["files"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StoreError(f"manifest.json of inventory {date} is malformed", permanent=False) from None
        for key, md5 in files:
            data = await self.get(key)
            if md5 not in ("", hashlib.md5(data).hexdigest()):
                raise StoreError(f"{key} has the wrong md5", permanent=False)
            yield inventory_rows(key, data, column)


def inventory_rows(key: str, data: bytes, column: int) -> Iterator[tuple[int, int]]:
    """(id, version) of the articles in a gzipped inventory file, read line by line. Raises StoreError."""
    try:
        with gzip.open(io.BytesIO(data), "rt", encoding="utf-8", newline="") as lines:
            for row in csv.reader(lines):
                match = ARTICLE_VERSION.match(unquote(row[column]).removeprefix("metadata/"))
                if match:
                    yield int(match.group(1)), int(match.group(2))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, IndexError):
        raise StoreError(f"{key} is not an inventory file", permanent=False) from None


def key_of(url: str) -> str:
    """s3://bucket/PMC1.1/a.jpg?md5=… or https://host/PMC1.1/a.jpg?md5=… -> PMC1.1/a.jpg"""
    return unquote(urlsplit(url).path.lstrip("/"))


def retry_after(header: str | None) -> float:
    """Seconds of a Retry-After header; 1 if it is missing or a date."""
    try:
        return max(0.0, float(header or 1))
    except ValueError:
        return 1.0
