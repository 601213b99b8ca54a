"""The LLM client against a local mock service: order, cache, retries, budget, rejected requests, rate limiting."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from math import exp
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.llm_server import FakeService, HtmlHandler, serve, serve_http
from qilin.core.errors import RunError, UserError
from qilin.core.llm_client import ChatRequest, ConcurrencyLimiter, Endpoint, complete_all, limiter_for


def echo(body: dict[str, Any]) -> str:
    return f"答{body['messages'][-1]['content']}"


def chat_requests(count: int) -> list[ChatRequest]:
    return [ChatRequest([{"role": "user", "content": str(i)}]) for i in range(count)]


def test_replies_are_in_order_concurrent_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILIN_API_KEY", "secret-word")
    with serve(FakeService(echo)) as service:
        endpoint = Endpoint(service.url, "m", cache=tmp_path / "cache.sqlite", concurrency=4)
        indices: list[int] = []
        replies = complete_all(endpoint, chat_requests(20), lambda index, reply: indices.append(index))
        assert [reply.text for reply in replies] == [f"答{i}" for i in range(20)]
        assert sorted(indices) == list(range(20))
        assert replies[0].confidence == pytest.approx(exp(-0.5))
        assert len(service.requests) == 20
        assert service.keys[0] == "Bearer secret-word"
        repeated = complete_all(endpoint, chat_requests(21))
        assert len(service.requests) == 21
        assert [reply.cached for reply in repeated] == [True] * 20 + [False]
        assert b"secret-word" not in (tmp_path / "cache.sqlite").read_bytes()
        complete_all(Endpoint(service.url, "other", cache=endpoint.cache), chat_requests(1))
        assert len(service.requests) == 22


def test_failed_requests_are_retried() -> None:
    with serve(FakeService(echo, failures=[503, 429])) as service:
        assert complete_all(Endpoint(service.url, "m", concurrency=1), chat_requests(1))[0].text == "答0"
        assert len(service.requests) == 3
    with serve(FakeService(echo, failures=[500] * 9)) as service, pytest.raises(RunError, match="after 2 retries"):
        complete_all(Endpoint(service.url, "m", retries=2), chat_requests(1))


def test_replies_before_an_error_are_cached(tmp_path: Path) -> None:
    with serve(FakeService(echo)) as service:
        endpoint = Endpoint(service.url, "m", cache=tmp_path / "c.sqlite", concurrency=1, budget=40)
        with pytest.raises(RunError, match=r"budget is spent \(45 tokens used of 40\) after 3 of 10"):
            complete_all(endpoint, chat_requests(10))
        assert len(service.requests) == 3
        complete_all(Endpoint(service.url, "m", cache=tmp_path / "c.sqlite"), chat_requests(10))
        assert len(service.requests) == 10


def test_requests_in_flight_when_the_budget_is_spent_are_cached(tmp_path: Path) -> None:
    """They are billed: discarded, they would be sent and billed twice."""

    def first_immediately(body: dict[str, Any]) -> str:
        time.sleep(0.0 if body["messages"][-1]["content"] == "0" else 0.3)
        return echo(body)

    with serve(FakeService(first_immediately)) as service:
        endpoint = Endpoint(service.url, "m", cache=tmp_path / "c.sqlite", concurrency=3, budget=1)
        with pytest.raises(RunError, match="after 3 of 10 replies"):
            complete_all(endpoint, chat_requests(10))
        assert len(service.requests) == 3
        complete_all(Endpoint(service.url, "m", cache=tmp_path / "c.sqlite"), chat_requests(10))
        assert len(service.requests) == 10


def test_rejected_requests_are_user_errors(tmp_path: Path) -> None:
    with serve(FakeService(echo, failures=[401])) as service, pytest.raises(UserError, match="QILIN_API_KEY"):
        complete_all(Endpoint(service.url, "m"), chat_requests(1))
    with serve(FakeService(echo, failures=[404])) as service, pytest.raises(UserError, match="model m"):
        complete_all(Endpoint(service.url, "m"), chat_requests(1))
    with pytest.raises(UserError, match="expected a URL"):
        complete_all(Endpoint("localhost:8000", "m"), chat_requests(1))
    for endpoint in (Endpoint("http://x/v1", "m", concurrency=0), Endpoint("http://x/v1", "m", timeout=0)):
        with pytest.raises(UserError, match="expected at least 1 request"):
            complete_all(endpoint, chat_requests(1))
    with pytest.raises(RunError, match="is the service running"):
        complete_all(Endpoint("http://127.0.0.1:9/v1", "m", retries=0), chat_requests(1))
    (tmp_path / "c").write_text("not a database, but long enough to be opened as one " * 20)
    with pytest.raises(UserError, match="cannot open or create a cache"):
        complete_all(Endpoint("http://127.0.0.1:9/v1", "m", cache=tmp_path), chat_requests(1))
    with pytest.raises(UserError, match="not a cache"):
        complete_all(Endpoint("http://127.0.0.1:9/v1", "m", cache=tmp_path / "c"), chat_requests(1))


def test_a_service_without_logprobs_is_supported() -> None:
    with serve(FakeService(echo, logprobs=False)) as service:
        reply = complete_all(Endpoint(service.url, "m"), chat_requests(1))[0]
        assert (reply.text, reply.confidence) == ("答0", None)


def test_services_that_return_html_or_time_out() -> None:
    with serve_http(HtmlHandler) as base:
        with pytest.raises(RunError, match="OpenAI-compatible"):
            complete_all(Endpoint(f"{base}/v1", "m", retries=0), chat_requests(1))
        with pytest.raises(RunError, match="no answer"):
            complete_all(Endpoint(f"{base}/slow/v1", "m", retries=0, timeout=0.2), chat_requests(1))


def test_a_429_lowers_the_concurrency() -> None:
    limiter = ConcurrencyLimiter(16)
    limiter.decrease()
    limiter.decrease()
    assert limiter.limit == 4
    for _ in range(4):
        limiter.increase()
    assert 4.5 < limiter.limit < 5
    for _ in range(10):
        limiter.decrease()
    assert limiter.limit == 1
    for _ in range(1000):
        limiter.increase()
    assert limiter.limit == 16
    with serve(FakeService(echo, failures=[429] * 6)) as service:
        replies = complete_all(Endpoint(service.url, "m", concurrency=4), chat_requests(12))
        assert [reply.text for reply in replies] == [f"答{i}" for i in range(12)]
        assert service.max_concurrent <= 4


def test_the_concurrency_limit_persists_between_calls() -> None:
    """A long run sends its requests shard by shard: every shard after the first starts at the limit learned before."""
    lock, active, rejected = threading.Lock(), [0], [0]

    class LimitedHandler(BaseHTTPRequestHandler):
        """Serves two requests at a time and answers 429 to the others."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                active[0] += 1
                busy = active[0] > 2
                rejected[0] += busy
            time.sleep(0.01)
            text = {"choices": [{"index": 0, "finish_reason": "stop",
                    "message": {"role": "assistant", "content": echo(body)}}], "id": "1", "object": "chat.completion",
                    "created": 0, "model": "m"}  # fmt: skip
            data = json.dumps({} if busy else text).encode()
            with lock:
                active[0] -= 1
            self.send_response(429 if busy else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Retry-After-Ms", "5")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None: ...

    def count_rejections(reset_limiter: bool) -> list[int]:
        limiter_for.cache_clear()
        counts = []
        for _ in range(4):
            if reset_limiter:
                limiter_for.cache_clear()
            rejected[0] = 0
            assert len(complete_all(Endpoint(f"{base}/v1", "m", concurrency=16, retries=50), chat_requests(24))) == 24
            counts.append(rejected[0])
        return counts

    with serve_http(LimitedHandler) as base:
        persistent, reset = count_rejections(False), count_rejections(True)
    assert sum(persistent[1:]) < sum(reset[1:]) / 2, (persistent, reset)


def test_json_mode_is_requested() -> None:
    with serve(FakeService(echo)) as service:
        complete_all(Endpoint(service.url, "m"), [ChatRequest([{"role": "user", "content": "1"}], json=True)])
        assert service.requests[0]["response_format"] == {"type": "json_object"}
