"""A running chat API on a tiny model, in a thread of the test process."""

import base64
import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from builders.tiny import tiny_png
from qilin.serve.address import listen
from qilin.serve.api.app import ApiConfig, make_app
from qilin.serve.api.audit import AuditLog
from qilin.serve.api.chat import ChatService
from qilin.serve.api.http_protocol import HeadTimeoutProtocol
from qilin.serve.api.keys import Keys
from qilin.serve.api.remote_images import RemoteImages
from qilin.serve.api.security import LOCAL_HOSTS, Access
from qilin.serve.engine.engine import Engine
from qilin.serve.engine.limits import EngineLimits
from qilin.serve.safeguards import Safeguards

MODEL = "tiny"
LIMITS = EngineLimits(image_cache_bytes=1 << 24, prefix_cache_bytes=1 << 24, kv_bytes=1 << 26, max_answer_tokens=8)


@dataclass
class ChatServer:
    """The server's address and engine. `post` sends a body to the chat route."""

    url: str
    engine: Engine
    service: ChatService
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return httpx2.get(self.url + path, headers=self.headers | headers, trust_env=False)

    def post(self, body: Any, **headers: str) -> httpx2.Response:
        options: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
        all_headers = {"Content-Type": "application/json"} | self.headers | headers
        return httpx2.post(
            self.url + "/v1/chat/completions", headers=all_headers, trust_env=False, timeout=60, **options
        )

    def idle(self) -> bool:
        """Whether the engine works on nothing, after at most 10 s."""
        deadline = time.monotonic() + 10
        while self.engine.active() or self.engine.queue_length():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def chat_body(text: str = "图中有异常吗？", *images: bytes, **fields: Any) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(image).decode()}}
        for image in images
    ]
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        **fields,
    }


def png(index: int = 0) -> bytes:
    return tiny_png(index)


@contextmanager
def running_chat_server(
    loaded: Any,
    limits: EngineLimits = LIMITS,
    keys: Keys | None = None,
    max_body: int = 1 << 20,
    audit: Path | None = None,
    image_hosts: tuple[str, ...] = (),
    safeguards: Safeguards | None = None,
    compared: tuple[str, ...] = (),
) -> Iterator[ChatServer]:
    """`compared` names further engines on the same model."""
    engine, *others = [Engine(loaded, limits) for _ in range(1 + len(compared))]
    for one in (engine, *others):
        one.start()
    service = ChatService(engine, MODEL, RemoteImages(frozenset(image_hosts)), safeguards=safeguards or Safeguards())
    services = [ChatService(*pair, store=service.store) for pair in zip(others, compared, strict=True)]
    with running_service(service, keys, max_body, audit, services) as url:
        yield ChatServer(url, engine, service)


@contextmanager
def running_service(
    service: ChatService,
    keys: Keys | None = None,
    max_body: int = 1 << 20,
    audit: Path | None = None,
    compared: Sequence[ChatService] = (),
) -> Iterator[str]:
    """The address of a server for a service, stopped afterwards."""
    app = make_app(
        ApiConfig(
            service,
            Access(keys or Keys(), LOCAL_HOSTS, max_body),
            AuditLog(audit) if audit else None,
            shutdown_seconds=5,
            compared=tuple(compared),
        )
    )
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        app, http=HeadTimeoutProtocol, log_level="error", timeout_graceful_shutdown=5, timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def encode_image(image: Any, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()
