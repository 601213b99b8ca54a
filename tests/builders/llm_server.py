"""A local imitation of an OpenAI-compatible service: replies by a function, fails on demand."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qilin.core.llm_parameters import parameters_of


@dataclass
class FakeService:
    """`answer(body)` returns the reply's text; `failures` are HTTP statuses to return first; the rest is recorded."""

    answer: Callable[[dict[str, Any]], str]
    failures: list[int] = field(default_factory=list)
    logprobs: bool = True  # whether the service supports them
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)  # Authorization headers
    paths: list[str] = field(default_factory=list)
    max_concurrent: int = 0
    url: str = ""
    # (status, body) in place of the usual reply, None for that one; sees the request's body
    respond: Callable[[dict[str, Any]], tuple[int, Any] | None] = lambda body: None


def completion(
    text: Any, finish: str | None = "stop", logprobs: Any = None, usage: Any = None, **message: Any
) -> dict[str, Any]:
    """A chat completion with one choice; `message` adds fields to its message."""
    choice = {"index": 0, "finish_reason": finish, "logprobs": logprobs,
              "message": {"role": "assistant", "content": text, **message}}  # fmt: skip
    usage = usage or {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


@contextmanager
def serve(service: FakeService) -> Iterator[FakeService]:
    """Serve on a free local port; yields the service with its `url`."""
    lock, active = threading.Lock(), [0]
    parameters_of.cache_clear()  # a port may be used again: what its last service accepted does not hold

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                service.requests.append(body)
                service.keys.append(self.headers.get("Authorization", ""))
                service.paths.append(self.path)
                active[0] += 1
                service.max_concurrent = max(service.max_concurrent, active[0])
                status = service.failures.pop(0) if service.failures else 200
            if status == 200 and (special := service.respond(body)) is not None:
                status, reply = special
            elif status == 200 and body.get("logprobs") and not service.logprobs:
                status, reply = 400, {"error": {"message": "logprobs is not supported"}}
            elif status != 200:
                reply = {"error": {"message": f"requested failure {status}"}}
            else:
                text = service.answer(body)
                token = {"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}
                logprobs = {"content": [token, token]} if body.get("logprobs") else None
                reply = completion(text, logprobs=logprobs)
            data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
            with lock:
                active[0] -= 1
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status in (429, 500, 503):
                self.send_header("Retry-After-Ms", "10")
            self.end_headers()
            with contextlib.suppress(OSError):  # the client closed the connection
                self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None: ...

    with serve_http(Handler) as address:
        service.url = f"{address}/v1"
        yield service


class Server(ThreadingHTTPServer):
    daemon_threads = True  # a hanging request does not keep the test process alive
    request_queue_size = 64  # with the default of 5, a sixth waiting client is refused and retries after seconds

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests; its traceback would land in another test's output."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextmanager
def serve_http(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answer requests with `handler` on a free local port; yields the address."""
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class HtmlHandler(BaseHTTPRequestHandler):
    """Answers every request with an HTML page, on /slow after a second."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if "/slow" in self.path:
            time.sleep(1)
        data = b"<html>Please log in</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client closed the connection
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None: ...
