"""A client for OpenAI-compatible chat services: concurrent requests, retries, a reply cache on disk, a token budget.

In: an Endpoint and ChatRequests with messages in the OpenAI format. Out: ChatReplies in the order of the requests.
Every reply is cached on arrival, so an interrupted call resumes and a repeated one is free. The API key comes from the
environment (QILIN_API_KEY, else OPENAI_API_KEY) and is never written. A request that the service refuses (a content
filter, a text that is too long) costs itself; only what concerns every request ends the call. The openai client's own
retries are turned off: they hide the 429s that have to lower the concurrency, and hold their slot while they wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qilin.core.errors import QilinError, RunError, UserError
from qilin.core.llm_cache import cache_get, cache_put, open_cache
from qilin.core.llm_client_config import API_KEY_VARIABLES, ServiceConfig, parse_extra, public_address
from qilin.core.llm_connection import causes, hide_key, is_tls_refusal, one_line, open_client, root_cause
from qilin.core.llm_errors import ServiceError, error_in_completion, from_response
from qilin.core.llm_parameters import ServiceParameters, parameters_of, room_for_reply
from qilin.core.llm_rate_limit import ConcurrencyLimiter, limiter_for, retry_delay
from qilin.core.llm_reply import ChatReply, is_encodable, join_stream, read_completion, refused_reply

MAX_REJECTIONS = 20  # requests in a row that the service rejects: then all are at fault, not one
MAX_PARAMETER_CHANGES = 8  # of one request, after errors that name a parameter


@dataclass(frozen=True)
class Endpoint:
    """A service and how it may be used."""

    url: str = field(repr=False)  # up to and including /v1; may hold a password
    model: str
    concurrency: int = 8
    retries: int = 5  # after connection errors, timeouts, 408, 409, 429 and 5xx, with exponential backoff
    timeout: float = 120.0  # seconds
    cache: Path | None = None  # an SQLite file
    budget: int | None = None  # tokens, prompt and completion, as the service counts them
    temperature: float = 0.0
    seed: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)  # more fields of every request

    @property
    def address(self) -> str:
        """The URL as it may be shown and stored."""
        return public_address(self.url)


def make_endpoint(config: ServiceConfig) -> Endpoint:
    """The endpoint of a command's service options. The token budget is left to the caller's TokenBudget."""
    return Endpoint(
        config.endpoint, config.model, concurrency=config.concurrency, timeout=config.timeout, cache=config.cache,
        extra=parse_extra(config.extra),
    )  # fmt: skip


@dataclass(frozen=True)
class ChatRequest:
    """Messages in the OpenAI format and the maximum length of the reply in tokens."""

    messages: Sequence[Mapping[str, Any]]
    max_tokens: int = 256
    json: bool = False  # request a JSON object, where the service supports it


OnReply = Callable[[int, ChatReply], None]


def complete_all(
    endpoint: Endpoint, requests: Sequence[ChatRequest], on_reply: OnReply = lambda index, reply: None
) -> list[ChatReply]:
    """Replies in the order of the requests; calls `on_reply(index, reply)` as each one arrives.

    A request that the service refuses has a reply with a `refusal`. Raises UserError if it rejects all of them (URL,
    model, key, format) and RunError if it is unreachable, keeps failing, or the budget is spent. Replies received
    before the error, and those in flight, are in the cache.
    """
    check_endpoint(endpoint)
    replies: dict[int, ChatReply] = {}
    with closing(open_cache(endpoint.cache)) as connection:
        for index, request in enumerate(requests):
            reply = cache_get(connection, cache_key(endpoint, request))
            if reply is None and not is_encodable(json.dumps(list(request.messages), ensure_ascii=False)):
                reply = refused_reply("rejected", "the text to send has half a character (a lone surrogate)")
            if reply is not None:
                replies[index] = reply
                on_reply(index, reply)
        uncached = {index: request for index, request in enumerate(requests) if index not in replies}
        if uncached:
            if any(reply.cached for reply in replies.values()):
                parameters_of(endpoint.address, endpoint.model).has_answered = True
            replies |= asyncio.run(complete_uncached(endpoint, uncached, connection, on_reply))
    return [replies[index] for index in range(len(requests))]


def check_endpoint(endpoint: Endpoint) -> None:
    """Raises UserError for an address that is no URL and for limits that let nothing through."""
    try:
        parts = urlsplit(endpoint.url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that are none
        is_url = False
    if not is_url or not endpoint.url.isprintable() or " " in endpoint.url:
        shown = endpoint.address.rpartition("@")[2]
        raise UserError(f"endpoint {shown!r}: expected a URL such as http://127.0.0.1:8000/v1")
    if endpoint.concurrency < 1 or endpoint.timeout <= 0:
        raise UserError(
            f"concurrency is {endpoint.concurrency} and timeout {endpoint.timeout:g}; expected at least 1 request at a "
            "time and more than 0 seconds"
        )


@dataclass
class Progress:
    """What the workers of one call have in common."""

    replies: dict[int, ChatReply] = field(default_factory=dict)
    rejections: dict[int, ServiceError] = field(default_factory=dict)  # decided at the end: one request's, or all
    rejected_in_row: int = 0
    tokens_used: int = 0
    failure: QilinError | None = None  # ends the call once the requests in flight are answered


async def complete_uncached(
    endpoint: Endpoint,
    requests: Mapping[int, ChatRequest],
    connection: sqlite3.Connection,
    on_reply: OnReply,
) -> dict[int, ChatReply]:
    """Send the requests, at most `concurrency` at a time, and cache each reply.

    An error that concerns every request, like a spent budget, only stops new ones: requests in flight will be billed,
    so their replies are awaited and cached. A service that has answered another request refuses a rejected one for what
    it holds; otherwise the first rejection is raised.
    """
    progress, known = Progress(), parameters_of(endpoint.address, endpoint.model)
    pending = iter(requests.items())
    limiter = limiter_for(endpoint.address, endpoint.concurrency)
    limiter.reset()
    async with open_client(endpoint.url, endpoint.timeout) as client:

        async def worker() -> None:
            for index, request in pending:
                if progress.failure or (endpoint.budget is not None and progress.tokens_used >= endpoint.budget):
                    return
                try:
                    reply = await complete_with_retries(client, endpoint, request, limiter, progress)
                except ServiceError as error:
                    progress.rejections[index] = error
                    progress.rejected_in_row += 1
                    if progress.rejected_in_row >= MAX_REJECTIONS:
                        progress.failure = progress.failure or rejection(error, endpoint)
                    continue
                except QilinError as error:
                    progress.failure = progress.failure or error
                    return
                progress.rejected_in_row = 0
                known.has_answered |= not reply.refusal
                progress.tokens_used += reply.tokens_in + reply.tokens_out
                if reply.finish != "rejected":  # a service with a larger context may take it
                    cache_put(connection, cache_key(endpoint, request), endpoint.model, reply)
                progress.replies[index] = reply
                on_reply(index, reply)

        await run_workers(worker, min(endpoint.concurrency, len(requests)))
    if progress.failure:
        raise progress.failure
    if progress.rejections and not known.has_answered:
        raise rejection(next(iter(progress.rejections.values())), endpoint)
    for index, error in progress.rejections.items():
        progress.replies[index] = refused_reply("rejected", f"the service refused the request: {hide_key(error)}")
        on_reply(index, progress.replies[index])
    if len(progress.replies) < len(requests):
        raise RunError(
            f"{endpoint.address}: the budget is spent ({progress.tokens_used:,} tokens used of {endpoint.budget:,}) "
            f"after {len(progress.replies)} of {len(requests)} replies, which are cached; run again with a higher "
            "budget to continue"
        )
    return progress.replies


async def run_workers(worker: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run `count` copies of `worker` to the end; the first error cancels the others and is raised."""
    tasks = [asyncio.create_task(worker()) for _ in range(count)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def complete_with_retries(
    client: Any, endpoint: Endpoint, request: ChatRequest, limiter: ConcurrencyLimiter, progress: Progress
) -> ChatReply:
    """One request, retried after connection errors, timeouts, 408, 409, 429 and 5xx; a 429 lowers the concurrency.

    A content filter or a text beyond the context gives a refused reply. Raises ServiceError if the service rejects the
    request for another reason, and QilinError for what concerns every request.
    """
    import openai

    replies_before = len(progress.replies)
    for attempt in range(endpoint.retries + 1):
        try:
            async with limiter:
                reply = await complete_once(client, endpoint, request)
            limiter.increase()
            return reply
        except ServiceError as error:
            failure: Exception = error
            if error.kind == "filtered":
                return refused_reply(
                    "content_filter", f"the service's content filter refused the text: {hide_key(error)}"
                )
            if error.kind == "too long":
                return refused_reply("rejected", f"the text and its reply do not fit the model: {hide_key(error)}")
            if error.kind == "rejected":
                raise
            if error.kind != "retry":
                raise translate_error(error, endpoint) from None
            if error.status == 429:
                limiter.decrease()
        except openai.APIConnectionError as error:  # includes timeouts
            failure = next((cause for cause in causes(error) if isinstance(cause, QilinError)), error)
            if isinstance(failure, QilinError):  # a refused redirect
                raise failure from None
            if is_tls_refusal(error):
                break
        if attempt == endpoint.retries or progress.failure:
            break
        await asyncio.sleep(retry_delay(failure, attempt))
    if isinstance(failure, ServiceError) and failure.status != 429 and len(progress.replies) - replies_before >= 3:
        raise failure  # others were answered meanwhile: it is this request that the service cannot serve
    raise translate_error(failure, endpoint) from None


def rejection(error: ServiceError, endpoint: Endpoint) -> UserError:
    """The error of a call whose requests are all rejected."""
    text = str(error)
    hint = ""
    if "stream" in text or "thinking" in text:
        hint = """; this model may need --extra '{"enable_thinking": false}', or it answers streaming requests only"""
    return UserError(f"{endpoint.address}, model {endpoint.model}: the request was rejected: {hide_key(text)}{hint}")


def translate_error(error: Exception, endpoint: Endpoint) -> QilinError:
    """What concerns every request as a UserError or RunError with the cause and what to do."""
    reason = hide_key(one_line(error))
    if not isinstance(error, ServiceError):
        if is_tls_refusal(error):
            return RunError(
                f"{endpoint.address}: the encrypted connection was refused ({hide_key(root_cause(error))}); check that "
                "the address begins with the right one of http and https; for a service with its own certificate, set "
                "SSL_CERT_FILE to the file of its authority"
            )
        return RunError(
            f"{endpoint.address}: no answer ({reason.rstrip('.')}; {hide_key(root_cause(error))}); is the service "
            "running?"
        )
    if error.kind == "key":
        return UserError(f"{endpoint.address}: the API key was rejected ({reason}); set {API_KEY_VARIABLES[0]}")
    if error.kind == "no credit":
        return RunError(
            f"{endpoint.address}: the account has no credit ({reason}); replies are cached, add credit and run the "
            "same command again to continue"
        )
    if error.kind == "wrong":
        return rejection(error, endpoint)
    return RunError(
        f"{endpoint.address}: still failing after {endpoint.retries} retries: {reason}; replies are cached, run the "
        "same command again to continue"
    )


async def complete_once(client: Any, endpoint: Endpoint, request: ChatRequest) -> ChatReply:
    """One request, sent again while the error names a parameter that the service wants otherwise.

    Raises ServiceError, and RunError for a reply of another kind of service.
    """
    parameters = {
        "model": endpoint.model,
        "messages": list(request.messages),
        "max_tokens": request.max_tokens,
        "temperature": endpoint.temperature,
        "seed": endpoint.seed,
        "logprobs": True,
        **({"response_format": {"type": "json_object"}} if request.json else {}),
    }
    known = parameters_of(endpoint.address, endpoint.model)
    room: int | None = None  # of this request's reply, as an error about the context has it
    for _ in range(MAX_PARAMETER_CHANGES):
        body = known.body(parameters, room) | dict(endpoint.extra)
        try:
            return read_completion(await post(client, endpoint, body))
        except ServiceError as error:
            room = learn_from(error, known, body, room, endpoint)
            if known.body(parameters, room) | dict(endpoint.extra) == body:
                raise
            failure = error
    raise failure


def learn_from(
    error: ServiceError, known: ServiceParameters, body: Mapping[str, Any], room: int | None, endpoint: Endpoint
) -> int | None:
    """Learn the parameters that a rejection names; returns the tokens that the context leaves for this reply."""
    if error.kind == "too long":
        length = body.get(known.length_name, 0)
        left = room_for_reply(error, length)
        return left if left is not None and 0 < left < length else room
    if error.kind == "rejected":
        known.learn(error, body, endpoint.address, endpoint.model)
    return room


async def post(client: Any, endpoint: Endpoint, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The decoded chat completion. Raises ServiceError for an error in it, RunError if it is none at all."""
    import openai

    try:
        completion = await client.post("/chat/completions", body=dict(body), cast_to=object)
        if body.get("stream") and isinstance(completion, str):
            completion = join_stream(completion) or completion
    except openai.APIStatusError as error:
        raise from_response(error.status_code, error.response.text, error.response.headers) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, QilinError):  # a refused redirect
            raise
        raise ServiceError(500, f"a reply that is not JSON ({one_line(error)})") from None
    if isinstance(completion, str):  # the client returns an HTML page as a string
        raise RunError(
            f"{endpoint.address}: not a chat completion but {completion.strip()[:40]!r}; is this an OpenAI-compatible "
            "service?"
        )
    if fault := error_in_completion(completion):
        raise fault
    return dict(completion)


def cache_key(endpoint: Endpoint, request: ChatRequest) -> str:
    """sha256 over everything that determines a reply."""
    parts = [endpoint.address, endpoint.model, endpoint.temperature, endpoint.seed, request.max_tokens]
    parts += [list(request.messages), *([True] if request.json else [])]
    parts += [{"extra": dict(endpoint.extra)}] if endpoint.extra else []
    content = json.dumps(parts, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
