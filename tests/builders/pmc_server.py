"""A local imitation of PubMed Central's article store, with the faults of a network."""

import csv
import gzip
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from builders.llm_server import serve_http

PAGE_SIZE = 3  # keys or prefixes per page of a listing: small, so that clients have to follow pages


@dataclass
class FakePmcStore:
    """`objects`: key -> bytes. `faults`: key -> faults of its next requests: an HTTP status, "cut", "wrong", "slow" or
    "html"."""

    objects: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Any]] = field(default_factory=dict)
    requested: list[str] = field(default_factory=list)  # keys or listing prefixes
    ranges: list[str] = field(default_factory=list)  # Range headers
    search_results: list[int] = field(default_factory=list)
    url: str = ""

    def add(self, number: int, version: int, xml: bytes, media: dict[str, bytes], **metadata: Any) -> None:
        """Add an article version: its XML, media and metadata."""
        name = f"PMC{number}.{version}"
        files = {f"{name}/{name}.xml": xml} | {f"{name}/{file}": data for file, data in media.items()}
        self.objects |= files
        links = {key: f"s3://pmc-oa-opendata/{key}?md5={hashlib.md5(data).hexdigest()}" for key, data in files.items()}
        row = {
            "pmcid": f"PMC{number}", "version": version, "pmid": number, "is_pmc_openaccess": True,
            "is_manuscript": False, "is_retracted": False, "license_code": "CC BY",
            "xml_url": links.pop(f"{name}/{name}.xml"), "media_urls": list(links.values()),
        }  # fmt: skip
        self.objects[f"metadata/{name}.json"] = json.dumps(row | metadata).encode()

    def write_inventory(self, date: str) -> None:
        lines = io.StringIO()
        for key in self.objects:
            if key.startswith("metadata/"):
                csv.writer(lines).writerow(["pmc-oa-opendata", key.replace("/", "%2F"), "12"])
        data = gzip.compress(lines.getvalue().encode())
        base = f"inventory-reports/pmc-oa-opendata/metadata/{date}"
        manifest = {
            "fileFormat": "CSV", "fileSchema": "Bucket, Key, Size",
            "files": [{"key": f"{base}/part.csv.gz", "MD5checksum": hashlib.md5(data).hexdigest()}],
        }  # fmt: skip
        self.objects |= {f"{base}/part.csv.gz": data, f"{base}/manifest.json": json.dumps(manifest).encode()}

    def listing(self, query: dict[str, list[str]]) -> bytes:
        prefix, token = query["prefix"][0], query.get("continuation-token", [""])[0]
        names = sorted({
            key[: key.index("/", len(prefix)) + 1] if "/" in key[len(prefix) :] else key
            for key in self.objects if key.startswith(prefix)
        })  # fmt: skip
        remaining = [name for name in names if name > token]
        rows = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" if name.endswith("/")
            else f"<Contents><Key>{escape(name)}</Key></Contents>" for name in remaining[:PAGE_SIZE]
        )  # fmt: skip
        next_token = (
            f"<NextContinuationToken>{remaining[PAGE_SIZE - 1]}</NextContinuationToken>"
            if len(remaining) > PAGE_SIZE
            else ""
        )
        return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{rows}{next_token}</ListBucketResult>'.encode()

    def search(self, query: dict[str, list[str]]) -> bytes:
        start = int(query["retstart"][0])
        page = [str(n) for n in self.search_results[start : start + PAGE_SIZE]]
        return json.dumps({"esearchresult": {"count": str(len(self.search_results)), "idlist": page}}).encode()


@contextmanager
def serve_store(store: FakePmcStore) -> Iterator[FakePmcStore]:
    """Serve on a free local port; yields the store with its `url`."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            key, query = unquote(parts.path).strip("/"), parse_qs(parts.query)
            with lock:
                store.requested.append(key or query.get("prefix", [""])[0])
                faults = store.faults.get(key or query.get("prefix", [""])[0], [])
                fault = faults.pop(0) if faults else None
                if self.headers.get("Range"):
                    store.ranges.append(self.headers["Range"])
            if key == "esearch":
                return self.respond(200, store.search(query))
            if isinstance(fault, int):
                return self.respond(fault, b"requested failure")
            if fault == "html":
                return self.respond(200, b"<html>Please log in</html>")
            data = store.listing(query) if not key else store.objects.get(key)
            if data is None:
                return self.respond(404, b"<Error><Code>NoSuchKey</Code></Error>")
            if fault == "wrong":
                return self.respond(200, data[:-1] + b"?")
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            return self.respond(206 if start else 200, data[start:], fault)

        def respond(self, status: int, data: bytes, fault: str | None = None) -> None:
            if fault == "slow":
                time.sleep(1.5)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status in (429, 503):
                self.send_header("Retry-After", "0.05")
            self.end_headers()
            try:
                if fault == "cut":
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    return
                self.wfile.write(data)
            except OSError:  # the client closed the connection
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None: ...

    with serve_http(Handler) as store.url:
        yield store
