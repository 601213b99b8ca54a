"""Requests that no client of good will sends: answered with an error that names the field, never with status 500."""

import json
import threading
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("uvicorn", reason="the serve extra is not installed")

import httpx2

from builders.chat_server import LIMITS, MODEL, ChatServer, chat_body, png
from builders.tiny import tiny_llava
from qilin.serve.api.errors import ApiError
from qilin.serve.api.image_store import ImageStore
from qilin.serve.engine.engine import Engine


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_llava(tmp_path_factory.mktemp("malformed"))


@pytest.fixture(scope="module")
def image(server: ChatServer) -> str:
    response = httpx2.post(server.url + "/api/images", content=png(), trust_env=False)
    return str(response.json()["id"])


def ask(server: ChatServer, url: str) -> httpx2.Response:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 1}
    return server.post(json.dumps(body).encode())  # escapes half a surrogate pair, which has no UTF-8


@pytest.mark.parametrize(
    "url",
    [
        "https://[",
        "https://host:999999/",
        "https://\u2100.com/",
        "qilin-image://[x",
        "data:image/png;base64,é",
        "data:image/png;base64,\ud800",
        "qilin-image:IMAGE?crop=1e308,0,1e308,1",
        "qilin-image:IMAGE?crop=0,0,1e308,-1e308",
        "qilin-image:IMAGE?crop=-1e308,0,3,3",
    ],
)
def test_addresses(server: ChatServer, image: str, url: str) -> None:
    response = ask(server, url.replace("IMAGE", image))
    assert response.status_code == 400
    assert response.json()["error"]["param"]


@pytest.mark.parametrize("side", ["²", "１２", "0", "-1", ""])
def test_sizes(server: ChatServer, image: str, side: str) -> None:
    assert server.get(f"/api/images/{image}/pixels?max={quote(side)}").status_code == 400


@pytest.mark.parametrize("origin", ["http://[", "null", "http://other", "x"])
def test_origins(server: ChatServer, origin: str) -> None:
    assert server.get("/v1/models", Origin=origin).status_code == 403


def test_own_origin(server: ChatServer) -> None:
    assert server.get("/v1/models", Origin=server.url).status_code == 200


def test_occlusion_of_a_conversation_that_is_too_long(server: ChatServer) -> None:
    body = {"messages": chat_body("字" * 5000, png())["messages"], "answer": "是", "image": 0}
    headers = {"Content-Type": "application/json"}
    response = httpx2.post(server.url + "/api/occlusion", json=body, headers=headers, trust_env=False)
    assert "more than the model takes" in response.text.splitlines()[-1]


def test_image_that_is_removed_twice() -> None:
    store = ImageStore()
    name = store.add(png(), "a")
    get, store.get = store.get, lambda *_: None  # type: ignore[method-assign,assignment]  # both have looked
    store.remove(name, "a")
    store.remove(name, "a")
    store.get = get  # type: ignore[method-assign]
    assert store.used == 0
    with pytest.raises(ApiError):
        store.get(name, "a")


def test_one_key_cannot_push_out_the_images_of_others() -> None:
    store = ImageStore()
    store.add(png(), "a")
    store.max_bytes = 6 * store.used
    names = {owner: [store.add(png(), owner)] for owner in "ab"}
    flood = [store.add(png(), "c") for _ in range(20)]
    assert store.used <= store.max_bytes
    assert [store.get(name, owner) is not None for owner in "ab" for name in names[owner]] == [True] * 2
    assert store.get(flood[-1], "c") is not None
    with pytest.raises(ApiError):
        store.get(flood[0], "c")
    with pytest.raises(ApiError):
        store.get(names["a"][0], "b")


def test_queue_is_listed_while_others_submit(loaded: Any) -> None:
    """A list of the queue that changes while it is read would end the engine's thread, and with it every answer."""
    engine = Engine(loaded, LIMITS)
    held = threading.Event()

    def list_jobs() -> None:
        engine.jobs()
        engine.queue_length()
        held.set()

    with engine.condition:
        threading.Thread(target=list_jobs, daemon=True).start()
        assert not held.wait(0.1)
    assert held.wait(5)
