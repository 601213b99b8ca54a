"""A stand-in for the Hugging Face hub on this machine: repositories, and the files of their commits in memory.

In: the names that exist and the token that may write. Out: an address for HF_ENDPOINT, and what was created and
committed.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_write"


@dataclass
class HubState:
    """What the server holds: repository -> path -> content, and whether it is private."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    fail_with: int | None = None  # status of the next commit


@contextmanager
def hub_server(*existing: str) -> Iterator[HubState]:
    """Serves until the block ends. `existing` are names of repositories."""
    state = HubState(files={name: {} for name in existing})

    class Handler(BaseHTTPRequestHandler):
        def reply(self, status: int, value: Any = None) -> None:
            body = json.dumps(value or {}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            name = "/".join(self.path.split("?")[0].split("/")[3:5])
            known = name in state.files
            self.reply(200 if known else 404, {"id": name, "sha": "0" * 40, "modelId": name, "siblings": []})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self.reply(401, {"error": "Invalid username or password."})
            if self.path == "/api/repos/create":
                values = json.loads(body)
                name = f"{values.get('organization') or 'owner'}/{values['name']}"
                if values.get("organization") == "others":
                    return self.reply(403, {"error": "You don't have the rights to create a model here."})
                state.files[name], state.private[name] = (
                    {},
                    values.get("private") or values.get("visibility") == "private",
                )
                return self.reply(200, {"url": f"{state.url}/{name}"})
            if self.path == "/api/validate-yaml":
                return self.reply(200, {"errors": [], "warnings": []})
            name = "/".join(self.path.split("/")[3:5])
            if "/preupload/" in self.path:
                rows = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                return self.reply(200, {"files": rows})
            if state.fail_with:
                return self.reply(state.fail_with, {"error": "something broke"})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    state.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.reply(200, {"commitOid": "1" * 40, "commitUrl": f"{state.url}/{name}/commit/{'1' * 40}"})

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
