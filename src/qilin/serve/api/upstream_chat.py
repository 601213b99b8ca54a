"""One chat request, answered by an upstream server.

In: a request with decoded images and the checked body. Out: Answers, as our engine gives them. The server is always
asked to stream, so that it stops as soon as a client leaves, and its log probabilities become the confidence.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from qilin.core.llm_connection import root_cause
from qilin.model.generate import Request
from qilin.serve.api.answers import AnswerEvent, Answers, Passage
from qilin.serve.api.chat_schema import ChatBody
from qilin.serve.api.errors import ApiError
from qilin.serve.api.upstream import Upstream, error_text
from qilin.serve.api.upstream_messages import control_pattern, to_upstream_messages
from qilin.serve.engine.engine import Finish, QueueFull

log = logging.getLogger(__name__)
MAX_EVENT = 8 << 20  # bytes of one event of a stream
MAX_ERROR = 64 << 10  # bytes of an error that are read
FINISH_REASONS = ("stop", "length", "content_filter")
# fields that our engine does not implement and most servers do: they go on as they are
PASSED_FIELDS = (
    "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "response_format", "top_k", "min_p",
    "min_tokens", "reasoning_effort", "verbosity",
)  # fmt: skip


async def start_upstream_answers(
    upstream: Upstream, request: Request, body: ChatBody, passed: Mapping[str, Any], owner: str
) -> Answers:
    """Queue a request for the server. Raises ApiError for what the server cannot do, and for a full queue."""
    if request.images and not upstream.features.images:
        raise ApiError(400, "messages: the upstream model takes no images", "messages")
    if body.logprobs and not upstream.features.logprobs:
        raise ApiError(400, "logprobs: the upstream server gives none; leave it out", "logprobs")
    try:
        upstream.queue.check()
    except QueueFull as error:
        upstream.counts.rejected += 1
        raise ApiError(429, str(error), retry_after=error.retry_after) from None
    settings = upstream.settings
    pattern = control_pattern(settings.control_tokens)
    messages, hashes = await asyncio.to_thread(to_upstream_messages, request, settings.image_side, pattern)
    fields = upstream_body(upstream, body, passed) | {"messages": messages}
    transfer = Transfer(upstream, fields, body.n or 1, owner)
    task = asyncio.create_task(transfer.run())

    def cancel() -> None:
        task.cancel()

    return Answers(hashes, transfer.count, transfer.queue, transfer.started, cancel)


def upstream_body(upstream: Upstream, body: ChatBody, passed: Mapping[str, Any]) -> dict[str, Any]:
    """The request's fields but its messages. `max_tokens` is the name that all servers know."""
    fields: dict[str, Any] = {
        "model": upstream.settings.model,
        "max_tokens": body.max_completion_tokens or body.max_tokens or upstream.settings.max_answer_tokens,
        "temperature": body.temperature or 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    optional = {"top_p": body.top_p, "seed": body.seed, "stop": body.stop, "n": body.n}
    fields |= {name: value for name, value in optional.items() if value is not None}
    if upstream.features.logprobs:
        fields["logprobs"] = True
        if body.logprobs and body.top_logprobs:
            fields["top_logprobs"] = body.top_logprobs
    return fields | dict(passed)


@dataclass
class Transfer:
    """A request on its way: its events go to `queue`; cancelling the task of `run` closes the connection."""

    upstream: Upstream
    fields: dict[str, Any]
    count: int
    owner: str
    queue: "asyncio.Queue[tuple[int, AnswerEvent]]" = field(default_factory=asyncio.Queue)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    submitted: float = field(default_factory=time.monotonic)
    reasons: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    passages: int = 0
    usage: dict[str, Any] = field(default_factory=dict)

    async def run(self) -> None:
        """Wait for a turn, ask, and pass on what comes. Every failure becomes the last event."""
        counts = self.upstream.counts
        counts.requests += 1
        try:
            async with self.upstream.queue.turn(self.owner):
                await self.ask()
            finishes = self.finishes()
            counts.prompt_tokens += finishes[0][1].prompt_tokens
            counts.cached_tokens += finishes[0][1].cached_tokens
            counts.completion_tokens += finishes[0][1].completion_tokens
            for row in finishes:
                self.queue.put_nowait(row)
        except asyncio.CancelledError:
            counts.cancelled += 1
            raise
        except QueueFull as error:
            counts.rejected += 1
            self.fail(ApiError(429, str(error), retry_after=error.retry_after))
        except ApiError as error:
            counts.failed += 1
            self.fail(error)
        except httpx2.TimeoutException:
            counts.failed += 1
            self.fail(ApiError(504, f"the upstream server sent nothing for {self.upstream.settings.timeout:g} s"))
        except httpx2.HTTPError as error:
            counts.failed += 1
            cause = root_cause(error) if str(error) else type(error).__name__
            log.error("%s: %s", self.upstream.settings.url, cause)
            self.fail(ApiError(502, f"the upstream server does not answer ({cause})"))
        except Exception:  # a reply that nobody foresaw: its client must not wait for it
            counts.failed += 1
            log.exception("a reply of the upstream server could not be read")
            self.fail(ApiError(502, "the reply of the upstream server could not be read"))
        finally:
            counts.seconds += time.monotonic() - self.submitted
            self.started.set()

    def fail(self, error: ApiError) -> None:
        self.queue.put_nowait((0, error))

    async def ask(self) -> None:
        """Send the request and read the stream. Raises ApiError, HTTPError."""
        async with self.upstream.client.stream("POST", "chat/completions", json=self.fields) as response:
            if response.status_code != 200:
                raise refusal(response, await read_start(response), self.upstream.settings.key)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise ApiError(502, "the upstream server does not stream its answers")
            self.started.set()
            async for data in stream_events(response):
                if data == "[DONE]":
                    break
                self.read_chunk(data)
        if len(self.reasons) < self.count:
            raise ApiError(502, "the upstream server broke the answer off")

    def read_chunk(self, data: str) -> None:
        """Pass on the text of one chunk. Raises ApiError for one that is none."""
        try:
            chunk = json.loads(data)
            error = chunk.get("error")
            choices = chunk.get("choices") or []
            self.usage = chunk.get("usage") or self.usage
        except (ValueError, AttributeError, RecursionError):
            raise ApiError(502, "the upstream server sent a malformed chunk") from None
        if error is not None:
            text = error_text(data.encode("utf-8", "replace"), self.upstream.settings.key)
            raise ApiError(502, f"the upstream server ended the answer: {text}")
        for choice in choices:
            index = choice.get("index", 0)
            if index not in range(self.count):
                raise ApiError(502, f"the upstream server sent choice {index!r} of {self.count}")
            delta = choice.get("delta") or {}
            text = encodable(delta.get("content")) + encodable(delta.get("refusal"))
            entries = (choice.get("logprobs") or {}).get("content") or []
            self.logprobs.setdefault(index, []).extend(float(entry["logprob"]) for entry in entries)
            if text or entries:
                if not self.passages:
                    self.upstream.counts.first_token_seconds += time.monotonic() - self.submitted
                self.passages += 1
                self.queue.put_nowait((index, Passage(text, entries)))
            if reason := choice.get("finish_reason"):
                if reason not in FINISH_REASONS:
                    raise ApiError(502, f"the upstream server ended the answer: {encodable(reason)[:40]}")
                self.reasons[index] = reason

    def finishes(self) -> list[tuple[int, Finish]]:
        """The last event of each choice. The token counts of all choices stand in the first one."""
        rows = []
        for index in range(self.count):
            logprobs = self.logprobs.get(index, [])
            counted = self.usage.get("completion_tokens", sum(map(len, self.logprobs.values())) or self.passages)
            details = self.usage.get("prompt_tokens_details") or {}
            finish = Finish(
                self.reasons[index],
                prompt_tokens=integer(self.usage.get("prompt_tokens")),
                cached_tokens=integer(details.get("cached_tokens")),
                completion_tokens=0 if index else integer(counted),
                confidence=math.exp(sum(logprobs) / len(logprobs)) if logprobs else None,
            )
            rows.append((index, finish))
        return rows


def integer(value: Any) -> int:
    return value if isinstance(value, int) else 0


def encodable(text: Any) -> str:
    """A text as UTF-8 can hold it; nothing for what is no text."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else ""


def refusal(response: httpx2.Response, body: bytes, key: str | None) -> ApiError:
    """The error for our client. What concerns this server and not the request is not told in detail."""
    status = response.status_code
    if status in (400, 413, 415, 422):
        return ApiError(400, f"the upstream server refuses the request: {error_text(body, key)}")
    if status == 429:
        wait = response.headers.get("retry-after", "")
        return ApiError(429, "the upstream server is busy", retry_after=int(wait) if wait.isdecimal() else 5)
    log.error("%s: status %d: %s", response.url, status, error_text(body, key) if status < 500 else "")
    if status in (401, 403):
        return ApiError(502, "the upstream server refuses this server's key")
    if status == 404:
        return ApiError(502, "the upstream server no longer has the model")
    return ApiError(502, f"the upstream server failed (status {status})")


async def read_start(response: httpx2.Response) -> bytes:
    """The first bytes of a body."""
    content = b""
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_ERROR:
            break
    return content[:MAX_ERROR]


async def stream_events(response: httpx2.Response) -> AsyncIterator[str]:
    """The data of each server-sent event. Raises ApiError for one without end."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode("utf-8", "replace")
        if len(rest) > MAX_EVENT:
            raise ApiError(502, "the upstream server sent an event without end")
