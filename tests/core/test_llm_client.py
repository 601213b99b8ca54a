"""The LLM client against a local mock service: order, cache, retries, budget, rejected requests, rate limiting."""

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from math import exp
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.llm_server import FakeService, HtmlHandler, serve, serve_http
from qilin.core.errors import RunError, UserError
from qilin.core.llm_client import ChatRequest, Endpoint, complete_all
from qilin.core.llm_rate_limit import ConcurrencyLimiter, limiter_for, retry_delay


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


def content_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def refuse(status: int, message: str, *contents: str) -> Callable[[dict[str, Any]], tuple[int, Any] | None]:
    """A `respond` that answers requests of these contents with an error."""
    return lambda body: (status, {"error": {"message": message}}) if content_of(body) in contents else None


@pytest.mark.parametrize(
    ("status", "message", "refused_by"),
    [
        (400, "Content Exists Risk", "content filter"),
        (400, "Failed to decode the image", "service"),
        (413, "Request Entity Too Large", "service"),
        (400, "This model's maximum context length is 64 tokens, your messages resulted in 99 tokens", "service"),
    ],
)
def test_a_request_that_a_service_refuses_costs_itself(
    status: int, message: str, refused_by: str, tmp_path: Path
) -> None:
    """The first one too: the others are answered and cached."""
    with serve(FakeService(echo, respond=refuse(status, message, "0", "7"))) as service:
        endpoint = Endpoint(service.url, "m", cache=tmp_path / "c.sqlite", concurrency=2)
        replies = complete_all(endpoint, chat_requests(12))
        assert [index for index, reply in enumerate(replies) if reply.refusal] == [0, 7]
        assert message[:20] in replies[0].refusal
        assert replies[7].refused_by == refused_by
        assert replies[1].text == "答1"
        again = complete_all(endpoint, chat_requests(12))
        assert [reply.refusal for reply in again] == [reply.refusal for reply in replies]
        # what a filter refuses is cached, a text beyond the context may fit a larger one
        assert len(service.requests) == 12 + (0 if refused_by == "content filter" else 2)


def test_a_call_whose_requests_are_all_rejected_is_an_error_soon() -> None:
    with serve(FakeService(echo, respond=lambda body: (400, {"error": {"message": "no such dialect"}}))) as service:
        with pytest.raises(UserError, match="no such dialect"):
            complete_all(Endpoint(service.url, "m"), chat_requests(1))
        with pytest.raises(UserError, match="no such dialect"):
            complete_all(Endpoint(service.url, "m", concurrency=4), chat_requests(500))
        assert len(service.requests) < 40


def test_a_lone_rejected_request_is_refused_once_the_service_has_answered() -> None:
    with serve(FakeService(echo, respond=refuse(400, "odd", "a"))) as service:
        endpoint, odd = Endpoint(service.url, "m"), [ChatRequest([{"role": "user", "content": "a"}])]
        with pytest.raises(UserError, match="odd"):
            complete_all(endpoint, odd)
        complete_all(endpoint, chat_requests(1))
        assert complete_all(endpoint, odd)[0].refused_by == "service"  # a retry of one sample, say


def test_a_request_that_always_fails_is_refused_while_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qilin.core.llm_client.retry_delay", lambda error, attempt: 0.05)
    with serve(FakeService(echo, respond=refuse(500, "engine died", "3"))) as service:
        replies = complete_all(Endpoint(service.url, "m", concurrency=2), chat_requests(30))
        assert [index for index, reply in enumerate(replies) if reply.refusal] == [3]
        with pytest.raises(RunError, match="still failing"):
            complete_all(Endpoint(service.url, "m", concurrency=2), chat_requests(4)[3:])


def test_a_service_that_begins_to_reject_everything_ends_the_call(tmp_path: Path) -> None:
    respond = refuse(400, "unloaded", *map(str, range(50, 500)))
    with serve(FakeService(echo, respond=respond)) as service, pytest.raises(UserError, match="unloaded"):
        complete_all(Endpoint(service.url, "m", cache=tmp_path / "c.sqlite", concurrency=2), chat_requests(500))
    assert len(service.requests) < 90


def test_a_failure_waits_for_the_requests_in_flight(tmp_path: Path) -> None:
    """They are billed: the reply to a slow one is cached although another one found the key rejected."""

    def respond(body: dict[str, Any]) -> tuple[int, Any] | None:
        if content_of(body) == "0":
            return 401, {"error": {"message": "bad key"}}
        time.sleep(0.2)
        return None

    with serve(FakeService(echo, respond=respond)) as service:
        endpoint = Endpoint(service.url, "m", cache=tmp_path / "c.sqlite", concurrency=2)
        with pytest.raises(UserError, match="bad key"):
            complete_all(endpoint, chat_requests(6))
        assert len(service.requests) == 2
        service.respond = lambda body: None
        complete_all(endpoint, chat_requests(6))
        assert len(service.requests) == 2 + 5


def test_an_error_inside_a_reply_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qilin.core.llm_client.retry_delay", lambda error, attempt: 0.0)
    errors = [{"error": {"message": "Provider returned error", "code": 502}}, {"choices": []}, "{", ""]

    def respond(body: dict[str, Any]) -> tuple[int, Any] | None:
        return (200, errors.pop(0)) if errors else None

    with serve(FakeService(echo, respond=respond)) as service:
        assert complete_all(Endpoint(service.url, "m"), chat_requests(1))[0].text == "答0"
        assert len(service.requests) == 5


def test_parameters_are_learned_once_and_limits_kept() -> None:
    def respond(body: dict[str, Any]) -> tuple[int, Any] | None:
        if "max_tokens" in body:
            return 400, {"error": {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens"}}
        if "temperature" in body:
            return 400, {"error": {"message": "Only the default (1) value is supported.", "param": "temperature"}}
        if body["max_completion_tokens"] > 128:
            return 400, {"error": {"message": "max_completion_tokens is too large: 256, at most 128"}}
        return None

    with serve(FakeService(echo, respond=respond)) as service:
        endpoint = Endpoint(service.url, "m", concurrency=1)
        assert [reply.text for reply in complete_all(endpoint, chat_requests(5))] == [f"答{i}" for i in range(5)]
        assert len(service.requests) == 5 + 3
        assert service.requests[-1]["max_completion_tokens"] == 128
        complete_all(endpoint, [ChatRequest([{"role": "user", "content": "short"}], max_tokens=40)])
        assert service.requests[-1]["max_completion_tokens"] == 40
        assert len(service.requests) == 9


def test_the_room_of_the_context_limits_one_request() -> None:
    def respond(body: dict[str, Any]) -> tuple[int, Any] | None:
        room = 64 - len(content_of(body))
        if body["max_tokens"] <= room:
            return None
        text = f"maximum context length is 64 tokens and your request has {64 - room} input tokens"
        return 400, {"error": {"message": f"'max_tokens' is too large: {body['max_tokens']}. This model's {text}."}}

    with serve(FakeService(echo, respond=respond)) as service:
        requests = [ChatRequest([{"role": "user", "content": "a" * length}]) for length in (40, 10, 70)]
        replies = complete_all(Endpoint(service.url, "m", concurrency=1), requests)
        assert [bool(reply.refusal) for reply in replies] == [False, False, True]
        assert [body["max_tokens"] for body in service.requests] == [256, 24, 256, 54, 256]


def test_extra_fields_are_sent_and_part_of_the_cache_key(tmp_path: Path) -> None:
    with serve(FakeService(echo)) as service:
        for extra in ({}, {"enable_thinking": False}, {"enable_thinking": True}, {"enable_thinking": False}):
            endpoint = Endpoint(service.url, "m", cache=tmp_path / "c.sqlite", extra=extra)
            complete_all(endpoint, chat_requests(1))
        assert [body.get("enable_thinking") for body in service.requests] == [None, False, True]


def test_a_model_that_only_streams_is_read_from_its_stream() -> None:
    class StreamHandler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            chunks = [{"choices": [{"delta": {"content": part}}]} for part in "左肺"]
            text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
            error = json.dumps({"error": {"message": "This model only support stream mode"}})
            data = (text if body.get("stream") else error).encode()
            self.send_response(200 if body.get("stream") else 400)
            self.send_header("Content-Type", "text/event-stream" if body.get("stream") else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None: ...

    with serve_http(StreamHandler) as base:
        assert complete_all(Endpoint(f"{base}/v1", "m"), chat_requests(1))[0].text == "左肺"


def test_half_a_character_costs_its_request_or_is_replaced(tmp_path: Path) -> None:
    with serve(FakeService(lambda body: "肿块\ud83d")) as service:
        endpoint = Endpoint(service.url, "m", cache=tmp_path / "c.sqlite")
        requests = [*chat_requests(1), ChatRequest([{"role": "user", "content": "a\ud83d"}])]
        good, bad = complete_all(endpoint, requests)
        assert good.text.startswith("肿块\ufffd")
        assert "half a character" in bad.refusal
        assert len(service.requests) == 1
        assert complete_all(endpoint, requests)[0].cached


def test_a_cached_reply_of_an_earlier_version_loses_its_reasoning(tmp_path: Path) -> None:
    with serve(FakeService(echo)) as service:
        endpoint = Endpoint(service.url, "m", cache=tmp_path / "c.sqlite")
        complete_all(endpoint, chat_requests(2))
        with closing(sqlite3.connect(tmp_path / "c.sqlite")) as connection, connection:
            rows = connection.execute("select key, reply from replies order by rowid").fetchall()
            old = {**json.loads(rows[0][1]), "text": "<think>a</think>b"}
            old.pop("refusal")
            connection.execute("update replies set reply = ? where key = ?", (json.dumps(old), rows[0][0]))
            connection.execute("update replies set reply = '{' where key = ?", (rows[1][0],))
        replies = complete_all(endpoint, chat_requests(2))
        assert sorted(reply.text for reply in replies if reply.cached) == ["b"]
        assert len(service.requests) == 3  # the damaged row is asked for again


def test_retry_after_may_be_a_date() -> None:
    class Error(Exception):
        def __init__(self, value: str) -> None:
            self.headers = {"retry-after": value}

    date = formatdate(time.time() + 20, usegmt=True)
    assert 15 < retry_delay(Error(date), 0) <= 20
    assert retry_delay(Error("Wed, 21 Oct 2015 07:28:00 GMT"), 0) == 0
    assert retry_delay(Error("120"), 0) == 60
    assert retry_delay(Error("soon"), 1) == 1.0
