"""A local imitation of an OpenAI-compatible server that streams, as vLLM and Ollama do; fails on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}


@dataclass
class FakeUpstream:
    """`events` are the data of a streamed answer, or a status with a body in its place; what was asked is recorded."""

    models: Sequence[str] = ("qwen",)
    key: str = ""
    images: bool = True
    logprobs: bool = True
    events: Callable[[dict[str, Any]], Sequence[Any] | tuple[int, Any]] = lambda body: answer_events()
    pause: float = 0.0  # seconds between two events
    headers: dict[str, str] = field(default_factory=dict)  # of an error
    requests: list[dict[str, Any]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)  # a client closed its connection
    most_active: int = 0
    active: int = 0
    url: str = ""


def answer_events(*texts: str, finish: str | None = "stop") -> list[Any]:
    """The chunks of one answer."""
    rows: list[Any] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    for text in texts or ("右肺", "结节"):
        entries = [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]
        rows.append({"choices": [{"index": 0, "delta": {"content": text}, "logprobs": {"content": entries}}]})
    if finish:
        rows.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return [*rows, {"choices": [], "usage": USAGE}, "[DONE]"]


@contextmanager
def running_upstream(fake: FakeUpstream, port: int = 0) -> Iterator[FakeUpstream]:
    """Serve on a local port, by default a free one; yields the server with its `url`."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health":
                self.reply(200, {})
            elif self.is_allowed():
                self.reply(
                    200, {"object": "list", "data": [{"id": name, "max_model_len": 4096} for name in fake.models]}
                )

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.is_allowed():
                return
            if body.get("logprobs") and not fake.logprobs:
                self.reply(400, {"error": {"message": "logprobs is not supported"}})
            elif "image_url" in json.dumps(body) and not fake.images:
                self.reply(400, {"message": "qwen is not a multimodal model"})
            elif not body.get("stream"):
                logprobs = {"content": [{"token": "x", "logprob": -0.5}]} if body.get("logprobs") else None
                self.reply(200, {"choices": [{"message": {"content": "x"}, "logprobs": logprobs}]})
            else:
                self.stream(body)

        def stream(self, body: dict[str, Any]) -> None:
            with lock:
                fake.requests.append(body)
                fake.active += 1
                fake.most_active = max(fake.most_active, fake.active)
            try:
                events = fake.events(body)
                if isinstance(events, tuple):
                    self.reply(*events)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream; charset=utf-8")
                self.send_header("Connection", "close")
                self.end_headers()
                for event in events:
                    data = event if isinstance(event, str) else json.dumps(event)
                    self.wfile.write(f": comment\r\ndata: {data}\r\n\r\n".encode())
                    self.wfile.flush()
                    time.sleep(fake.pause)
                self.close_connection = True
            except OSError:
                fake.gone.set()
            finally:
                with lock:
                    fake.active -= 1

        def is_allowed(self) -> bool:
            if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                self.reply(401, {"error": {"message": f"wrong key {self.headers.get('Authorization')}"}})
                return False
            return True

        def reply(self, status: int, body: Any) -> None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in fake.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
