"""Asking a service: order, cache, retries, budget, refusals, against a local stand-in."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from math import exp
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.llm_server import Service, listening, serving
from qilin.core.errors import RunError, UserError
from qilin.core.llm_client import ChatRequest, Endpoint, Gate, complete_all, gate_of


def echo(body: dict[str, Any]) -> str:
    return f"答{body['messages'][-1]['content']}"


def asks(count: int) -> list[ChatRequest]:
    return [ChatRequest([{"role": "user", "content": str(i)}]) for i in range(count)]


def test_in_order_at_once_and_once_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILIN_API_KEY", "secret-word")
    with serving(Service(echo)) as service:
        endpoint = Endpoint(service.url, "m", cache=tmp_path / "cache.sqlite", concurrency=4)
        told: list[int] = []
        replies = complete_all(endpoint, asks(20), lambda place, reply: told.append(place))
        assert [reply.text for reply in replies] == [f"答{i}" for i in range(20)]
        assert sorted(told) == list(range(20))
        assert replies[0].confidence == pytest.approx(exp(-0.5))
        assert len(service.seen) == 20
        assert service.keys[0] == "Bearer secret-word"
        again = complete_all(endpoint, asks(21))
        assert len(service.seen) == 21
        assert [reply.cached for reply in again] == [True] * 20 + [False]
        assert b"secret-word" not in (tmp_path / "cache.sqlite").read_bytes()
        complete_all(Endpoint(service.url, "other", cache=endpoint.cache), asks(1))
        assert len(service.seen) == 22


def test_failures_are_tried_again() -> None:
    with serving(Service(echo, failures=[503, 429])) as service:
        assert complete_all(Endpoint(service.url, "m", concurrency=1), asks(1))[0].text == "答0"
        assert len(service.seen) == 3
    with serving(Service(echo, failures=[500] * 9)) as service, pytest.raises(RunError, match="after 2 retries"):
        complete_all(Endpoint(service.url, "m", retries=2), asks(1))


def test_what_came_before_an_error_is_kept(tmp_path: Path) -> None:
    with serving(Service(echo)) as service:
        endpoint = Endpoint(service.url, "m", cache=tmp_path / "c.sqlite", concurrency=1, budget=40)
        with pytest.raises(RunError, match=r"budget is spent \(45 tokens, 40 were left\) after 3 of 10"):
            complete_all(endpoint, asks(10))
        assert len(service.seen) == 3
        complete_all(Endpoint(service.url, "m", cache=tmp_path / "c.sqlite"), asks(10))
        assert len(service.seen) == 10


def test_what_is_under_way_when_the_budget_is_spent_is_kept(tmp_path: Path) -> None:
    """It will be paid for: thrown away, it would be asked and paid for twice."""

    def first_at_once(body: dict[str, Any]) -> str:
        time.sleep(0.0 if body["messages"][-1]["content"] == "0" else 0.3)
        return echo(body)

    with serving(Service(first_at_once)) as service:
        endpoint = Endpoint(service.url, "m", cache=tmp_path / "c.sqlite", concurrency=3, budget=1)
        with pytest.raises(RunError, match="after 3 of 10 replies"):
            complete_all(endpoint, asks(10))
        assert len(service.seen) == 3
        complete_all(Endpoint(service.url, "m", cache=tmp_path / "c.sqlite"), asks(10))
        assert len(service.seen) == 10


def test_refusals_are_the_callers(tmp_path: Path) -> None:
    with serving(Service(echo, failures=[401])) as service, pytest.raises(UserError, match="QILIN_API_KEY"):
        complete_all(Endpoint(service.url, "m"), asks(1))
    with serving(Service(echo, failures=[404])) as service, pytest.raises(UserError, match="model m"):
        complete_all(Endpoint(service.url, "m"), asks(1))
    with pytest.raises(UserError, match="expected an address"):
        complete_all(Endpoint("localhost:8000", "m"), asks(1))
    for wrong in (Endpoint("http://x/v1", "m", concurrency=0), Endpoint("http://x/v1", "m", timeout=0)):
        with pytest.raises(UserError, match="expected at least 1 request"):
            complete_all(wrong, asks(1))
    with pytest.raises(RunError, match="is the service running"):
        complete_all(Endpoint("http://127.0.0.1:9/v1", "m", retries=0), asks(1))
    (tmp_path / "c").write_text("no database at all, though long enough to be looked at as one " * 20)
    with pytest.raises(UserError, match="no cache can be opened or made there"):
        complete_all(Endpoint("http://127.0.0.1:9/v1", "m", cache=tmp_path), asks(1))
    with pytest.raises(UserError, match="not a cache"):
        complete_all(Endpoint("http://127.0.0.1:9/v1", "m", cache=tmp_path / "c"), asks(1))


def test_a_service_without_logprobs() -> None:
    with serving(Service(echo, logprobs=False)) as service:
        reply = complete_all(Endpoint(service.url, "m"), asks(1))[0]
        assert (reply.text, reply.confidence) == ("答0", None)


class Odd(BaseHTTPRequestHandler):
    """Answers every question with a page of HTML, or not at all for a second."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if "/slow" in self.path:
            time.sleep(1)
        data = b"<html>Please log in</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has gone
            self.wfile.write(data)

    def log_message(self, *words: Any) -> None: ...


def test_services_that_lie_or_hang() -> None:
    with listening(Odd) as base:
        with pytest.raises(RunError, match="OpenAI-compatible"):
            complete_all(Endpoint(f"{base}/v1", "m", retries=0), asks(1))
        with pytest.raises(RunError, match="no answer"):
            complete_all(Endpoint(f"{base}/slow/v1", "m", retries=0, timeout=0.2), asks(1))


def test_fewer_at_once_where_the_service_asks_to_wait() -> None:
    gate = Gate(16)
    gate.narrow()
    gate.narrow()
    assert gate.limit == 4
    for _ in range(4):
        gate.widen()
    assert 4.5 < gate.limit < 5
    for _ in range(10):
        gate.narrow()
    assert gate.limit == 1
    for _ in range(1000):
        gate.widen()
    assert gate.limit == 16
    with serving(Service(echo, failures=[429] * 6)) as service:
        replies = complete_all(Endpoint(service.url, "m", concurrency=4), asks(12))
        assert [reply.text for reply in replies] == [f"答{i}" for i in range(12)]
        assert service.most_at_once <= 4


def test_the_pace_of_a_service_holds_from_one_call_to_the_next() -> None:
    """Long work asks in pieces: each but the first knows how much at once the service bears."""
    lock, inside, refused = threading.Lock(), [0], [0]

    class Narrow(BaseHTTPRequestHandler):
        """Bears two at once."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                inside[0] += 1
                busy = inside[0] > 2
                refused[0] += busy
            time.sleep(0.01)
            text = {"choices": [{"index": 0, "finish_reason": "stop",
                    "message": {"role": "assistant", "content": echo(body)}}], "id": "1", "object": "chat.completion",
                    "created": 0, "model": "m"}  # fmt: skip
            data = json.dumps({} if busy else text).encode()
            with lock:
                inside[0] -= 1
            self.send_response(429 if busy else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Retry-After-Ms", "5")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words: Any) -> None: ...

    def refusals(forget: bool) -> list[int]:
        gate_of.cache_clear()
        found = []
        for _ in range(4):
            if forget:
                gate_of.cache_clear()
            refused[0] = 0
            assert len(complete_all(Endpoint(f"{base}/v1", "m", concurrency=16, retries=50), asks(24))) == 24
            found.append(refused[0])
        return found

    with listening(Narrow) as base:
        learnt, forgot = refusals(False), refusals(True)
    assert sum(learnt[1:]) < sum(forgot[1:]) / 2, (learnt, forgot)


def test_json_is_asked_for_only_where_the_service_knows_it() -> None:
    with serving(Service(echo)) as service:
        complete_all(Endpoint(service.url, "m"), [ChatRequest([{"role": "user", "content": "1"}], json=True)])
        assert service.seen[0]["response_format"] == {"type": "json_object"}
