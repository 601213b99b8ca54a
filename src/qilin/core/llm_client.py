"""A client for OpenAI-compatible chat services: concurrent requests, retries, a reply cache on disk, a token budget.

In: an Endpoint and ChatRequests with messages in the OpenAI format. Out: ChatReplies in the order of the requests.
Every reply is cached on arrival, so an interrupted call resumes and a repeated one is free. The API key comes from the
environment (QILIN_API_KEY, else OPENAI_API_KEY) and is never written. The openai client's own retries are turned off:
they hide the 429s that have to lower the concurrency, and hold their slot while they wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from math import exp
from pathlib import Path
from typing import Any

from qilin.core.errors import RunError, UserError
from qilin.core.llm_client_config import API_KEY_VARIABLES, ServiceConfig


@dataclass(frozen=True)
class Endpoint:
    """A service and how it may be used."""

    url: str  # up to and including /v1
    model: str
    concurrency: int = 8
    retries: int = 5  # after connection errors, timeouts, 408, 409, 429 and 5xx, with exponential backoff
    timeout: float = 120.0  # seconds
    cache: Path | None = None  # an SQLite file
    budget: int | None = None  # tokens, prompt and completion, as the service counts them
    temperature: float = 0.0
    seed: int = 0


def make_endpoint(config: ServiceConfig) -> Endpoint:
    """The endpoint of a command's service options. The token budget is left to the caller's TokenBudget."""
    return Endpoint(
        config.endpoint, config.model, concurrency=config.concurrency, timeout=config.timeout, cache=config.cache
    )


@dataclass(frozen=True)
class ChatRequest:
    """Messages in the OpenAI format and the maximum length of the reply in tokens."""

    messages: Sequence[Mapping[str, Any]]
    max_tokens: int = 256
    json: bool = False  # request a JSON object, where the service supports it


@dataclass(frozen=True)
class ChatReply:
    """One reply; its field names are also those of the cache on disk.

    `confidence` is the geometric mean of the token probabilities, None where the service reports none. `finish` is
    "stop", or "length" for a truncated reply.
    """

    text: str
    confidence: float | None
    tokens_in: int
    tokens_out: int
    finish: str
    cached: bool = False


OnReply = Callable[[int, ChatReply], None]


def complete_all(
    endpoint: Endpoint, requests: Sequence[ChatRequest], on_reply: OnReply = lambda index, reply: None
) -> list[ChatReply]:
    """Replies in the order of the requests; calls `on_reply(index, reply)` as each one arrives.

    Raises UserError if the service rejects a request (URL, model, key, format) and RunError if it is unreachable, keeps
    failing, or the budget is spent. Replies received before the error are in the cache.
    """
    if not endpoint.url.startswith(("http://", "https://")):
        raise UserError(f"endpoint {endpoint.url!r}: expected a URL such as http://127.0.0.1:8000/v1")
    if endpoint.concurrency < 1 or endpoint.timeout <= 0:
        raise UserError(
            f"concurrency is {endpoint.concurrency} and timeout {endpoint.timeout:g}; expected at least 1 request at a "
            "time and more than 0 seconds"
        )
    replies: dict[int, ChatReply] = {}
    with closing(open_cache(endpoint.cache)) as connection:
        for index, request in enumerate(requests):
            cached = cache_get(connection, cache_key(endpoint, request))
            if cached is not None:
                replies[index] = cached
                on_reply(index, cached)
        uncached = {index: request for index, request in enumerate(requests) if index not in replies}
        if uncached:
            replies |= asyncio.run(complete_uncached(endpoint, uncached, connection, on_reply))
    return [replies[index] for index in range(len(requests))]


async def complete_uncached(
    endpoint: Endpoint, requests: Mapping[int, ChatRequest], connection: sqlite3.Connection, on_reply: OnReply
) -> dict[int, ChatReply]:
    """Send the requests, at most `concurrency` at a time, and cache each reply.

    The first error cancels the other requests. A spent budget only stops new ones: requests in flight will be billed,
    so their replies are awaited and cached.
    """
    try:
        import openai
    except ImportError:
        raise UserError("requests to a service need the openai package: pip install 'qilin-med[endpoint]'") from None
    replies: dict[int, ChatReply] = {}
    tokens_used = 0
    pending = iter(requests.items())
    limiter = limiter_for(endpoint.url, endpoint.concurrency)
    limiter.reset()
    api_key = next((os.environ[name] for name in API_KEY_VARIABLES if os.environ.get(name)), "none")
    async with openai.AsyncOpenAI(
        base_url=endpoint.url, api_key=api_key, timeout=endpoint.timeout, max_retries=0
    ) as client:

        async def worker() -> None:
            nonlocal tokens_used
            for index, request in pending:
                if endpoint.budget is not None and tokens_used >= endpoint.budget:
                    return
                reply = await complete_with_retries(client, endpoint, request, limiter)
                tokens_used += reply.tokens_in + reply.tokens_out
                cache_put(connection, cache_key(endpoint, request), endpoint.model, reply)
                replies[index] = reply
                on_reply(index, reply)

        await run_workers(worker, min(endpoint.concurrency, len(requests)))
    if len(replies) < len(requests):
        raise RunError(
            f"{endpoint.url}: the budget is spent ({tokens_used:,} tokens used of {endpoint.budget:,}) after "
            f"{len(replies)} of {len(requests)} replies, which are cached; run again with a higher budget to continue"
        )
    return replies


async def run_workers(worker: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run `count` copies of `worker` to the end; the first error cancels the others and is raised."""
    tasks = [asyncio.create_task(worker()) for _ in range(count)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class ConcurrencyLimiter:
    """How many requests may be in flight: halved by `decrease` (a 429), raised by 1 / limit with each reply."""

    def __init__(self, maximum: int) -> None:
        self.maximum, self.limit = maximum, float(maximum)
        self.reset()

    def reset(self) -> None:
        """Prepare for a new event loop: nothing is in flight; the limit stays."""
        self.active = 0
        self.condition = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self.condition:
            await self.condition.wait_for(lambda: self.active < max(1, int(self.limit)))
            self.active += 1

    async def __aexit__(self, *error: object) -> None:
        async with self.condition:
            self.active -= 1
            self.condition.notify_all()

    def decrease(self) -> None:
        self.limit = max(1.0, self.limit / 2)

    def increase(self) -> None:
        self.limit = min(float(self.maximum), self.limit + 1 / self.limit)


@cache
def limiter_for(url: str, maximum: int) -> ConcurrencyLimiter:
    """One limiter per service for the life of the process: each shard of a long run starts at the last one's limit."""
    return ConcurrencyLimiter(maximum)


async def complete_with_retries(
    client: Any, endpoint: Endpoint, request: ChatRequest, limiter: ConcurrencyLimiter
) -> ChatReply:
    """One request, retried after connection errors, timeouts, 408, 409, 429 and 5xx; a 429 lowers the concurrency."""
    import openai

    for attempt in range(endpoint.retries + 1):
        try:
            async with limiter:
                reply = await complete_once(client, endpoint, request)
            limiter.increase()
            return reply
        except (openai.APIStatusError, openai.APIConnectionError) as error:
            status = getattr(error, "status_code", None)
            if status == 429:
                limiter.decrease()
            if attempt == endpoint.retries or not (status is None or status in (408, 409, 429) or status >= 500):
                raise translate_error(error, endpoint) from None
            await asyncio.sleep(retry_delay(error, attempt))
    raise AssertionError("the loop returns or raises")


def retry_delay(error: Any, attempt: int) -> float:
    """Seconds to wait: Retry-After up to 60, else 0.5 doubled with each attempt up to 30."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    for name, seconds_per_unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return min(60.0, float(headers[name]) * seconds_per_unit)
        except (KeyError, ValueError):
            continue
    return min(30.0, 0.5 * 2.0**attempt)


def translate_error(error: Any, endpoint: Endpoint) -> Exception:
    """An openai exception as a UserError or RunError with the cause and what to do."""
    import openai

    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return UserError(f"{endpoint.url}: the API key was rejected ({one_line(error)}); set {API_KEY_VARIABLES[0]}")
    if isinstance(error, openai.BadRequestError | openai.NotFoundError | openai.UnprocessableEntityError):
        return UserError(f"{endpoint.url}, model {endpoint.model}: the request was rejected: {one_line(error)}")
    if getattr(error, "status_code", None) == 402 or "insufficient_quota" in str(error):
        return RunError(
            f"{endpoint.url}: the account has no credit ({one_line(error)}); replies are cached, add credit and run "
            "the same command again to continue"
        )
    if isinstance(error, openai.APIConnectionError):  # includes timeouts
        return RunError(f"{endpoint.url}: no answer ({one_line(error)}); is the service running?")
    return RunError(
        f"{endpoint.url}: still failing after {endpoint.retries} retries: {one_line(error)}; replies are cached, run "
        "the same command again to continue"
    )


async def complete_once(client: Any, endpoint: Endpoint, request: ChatRequest) -> ChatReply:
    """One request; repeated without logprobs or JSON mode if the service rejects that parameter by name."""
    import openai

    parameters = {
        "model": endpoint.model,
        "messages": list(request.messages),
        "max_tokens": request.max_tokens,
        "temperature": endpoint.temperature,
        "seed": endpoint.seed,
    }
    optional: dict[str, Any] = {"logprobs": True}
    if request.json:
        optional["response_format"] = {"type": "json_object"}
    while True:
        try:
            completion = await client.chat.completions.create(**parameters, **optional)
            break
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            unsupported = next((name for name in optional if name in str(error)), None)
            if unsupported is None:
                raise
            del optional[unsupported]
        except openai.APIResponseValidationError:
            raise RunError(f"{endpoint.url}: not a chat completion; is this an OpenAI-compatible service?") from None
    if not getattr(completion, "choices", None):  # the client returns an HTML page as a string
        raise RunError(f"{endpoint.url}: a reply without choices; is this an OpenAI-compatible service?")
    choice = completion.choices[0]
    tokens = (choice.logprobs.content or []) if choice.logprobs else []
    confidence = exp(sum(token.logprob for token in tokens) / len(tokens)) if tokens else None
    usage = completion.usage
    return ChatReply(
        (choice.message.content or "").strip(),
        confidence,
        usage.prompt_tokens if usage else 0,
        usage.completion_tokens if usage else 0,
        choice.finish_reason or "",
    )


def parse_json_reply(reply: ChatReply) -> Any:
    """The JSON value in a reply, without a Markdown code fence around it. Raises ValueError with a readable reason."""
    if reply.finish == "length":
        raise ValueError("the reply is cut short")
    try:
        return json.loads(re.sub(r"^```(?:json)?\s*|\s*```$", "", reply.text.strip()))
    except ValueError:
        raise ValueError("the reply is not JSON") from None


def one_line(error: Exception) -> str:
    """An error's message in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def cache_key(endpoint: Endpoint, request: ChatRequest) -> str:
    """sha256 over everything that determines a reply."""
    parts = [endpoint.url, endpoint.model, endpoint.temperature, endpoint.seed, request.max_tokens]
    parts += [list(request.messages), *([True] if request.json else [])]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def open_cache(path: Path | None) -> sqlite3.Connection:
    """The reply cache at `path`, created if missing; in memory without a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(path or ":memory:")
    except sqlite3.OperationalError as error:
        raise UserError(f"{path}: cannot open or create a cache here ({error}); choose another file") from None
    try:
        connection.execute("create table if not exists replies (key text primary key, model text, reply text)")
    except sqlite3.OperationalError:  # a problem of the disk, not of the file
        connection.close()
        raise
    except sqlite3.DatabaseError as error:
        connection.close()
        raise UserError(f"{path}: not a cache of replies ({error}); choose another file or remove it") from None
    return connection


def cache_get(connection: sqlite3.Connection, key: str) -> ChatReply | None:
    row = connection.execute("select reply from replies where key = ?", (key,)).fetchone()
    return ChatReply(**{**json.loads(row[0]), "cached": True}) if row else None


def cache_put(connection: sqlite3.Connection, key: str, model: str, reply: ChatReply) -> None:
    with connection:
        content = json.dumps(asdict(reply), ensure_ascii=False)
        connection.execute("insert or replace into replies values (?, ?, ?)", (key, model, content))
