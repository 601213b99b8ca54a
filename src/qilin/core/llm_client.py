"""Any OpenAI-compatible service: many questions at once, retried, kept in a cache on disk, within a budget.

In: an Endpoint (where, which model, how much at once) and messages in OpenAI's form. Out: Replies in the order asked.
Every reply is kept the moment it arrives: an interrupted call goes on where it stopped, a repeated one costs nothing.
The key is read from the environment (QILIN_API_KEY, else OPENAI_API_KEY) and written nowhere.
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
from qilin.core.llm_client_config import API_KEY_VARIABLES, KEY_HELP, ServiceConfig

__all__ = ["KEY_HELP"]

KEYS = API_KEY_VARIABLES


@dataclass(frozen=True)
class Endpoint:
    """A service and how it may be used. `budget` is in tokens, read and written, as the service counts them."""

    url: str  # up to and including /v1
    model: str
    concurrency: int = 8
    retries: int = 5  # of refused connections, timeouts, 408, 409, 429 and 5xx, waiting longer each time
    timeout: float = 120.0  # seconds
    cache: Path | None = None  # an sqlite file
    budget: int | None = None
    temperature: float = 0.0
    seed: int = 0


def make_endpoint(config: ServiceConfig) -> Endpoint:
    """The endpoint of a command's service options. The token budget is left to the caller's TokenBudget."""
    return Endpoint(
        config.endpoint, config.model, concurrency=config.concurrency, timeout=config.timeout, cache=config.cache
    )


@dataclass(frozen=True)
class ChatRequest:
    """One thing to ask: messages in OpenAI's form, and how long the reply may be in tokens."""

    messages: Sequence[Mapping[str, Any]]
    max_tokens: int = 256
    json: bool = False  # ask for a JSON object, where the service knows how


@dataclass(frozen=True)
class ChatReply:
    """What came back. `confidence`: geometric mean of the token probabilities, None where the service gives none."""

    text: str
    confidence: float | None
    tokens_in: int
    tokens_out: int
    finish: str  # "stop", or "length" for a reply cut short
    cached: bool = False


def complete_all(
    endpoint: Endpoint,
    asks: Sequence[ChatRequest],
    on_reply: Callable[[int, ChatReply], None] = lambda place, reply: None,
) -> list[ChatReply]:
    """Replies in the order of the asks; `on_reply(place, reply)` is told each as it arrives.

    Raises UserError where the service refuses the request itself (address, model, key, form), RunError where it cannot
    be reached, keeps failing, or the budget is spent; what was answered until then is in the cache.
    """
    if not endpoint.url.startswith(("http://", "https://")):
        raise UserError(f"endpoint {endpoint.url!r}: expected an address such as http://127.0.0.1:8000/v1")
    if endpoint.concurrency < 1 or endpoint.timeout <= 0:
        raise UserError(
            f"concurrency is {endpoint.concurrency} and timeout {endpoint.timeout:g}; expected at least 1 request at a "
            "time and more than 0 seconds"
        )
    with closing(open_cache(endpoint.cache)) as cache:
        replies: dict[int, ChatReply] = {}
        for place, ask in enumerate(asks):
            known = look_up(cache, key_of(endpoint, ask))
            if known is not None:
                replies[place] = known
                on_reply(place, known)
        left = [place for place in range(len(asks)) if place not in replies]
        if left:
            replies |= asyncio.run(ask_left(endpoint, asks, left, cache, on_reply))
        return [replies[place] for place in range(len(asks))]


async def ask_left(
    endpoint: Endpoint,
    asks: Sequence[ChatRequest],
    left: Sequence[int],
    cache: sqlite3.Connection,
    on_reply: Callable[[int, ChatReply], None],
) -> dict[int, ChatReply]:
    """Ask what no cache knows, at most `concurrency` at once; the first error stops the rest, a spent budget lets
    what is under way arrive."""
    try:
        import openai
    except ImportError:
        raise UserError("asking a service needs the openai package: pip install 'qilin-med[endpoint]'") from None
    replies: dict[int, ChatReply] = {}
    spent = 0
    todo = iter(left)
    gate = gate_of(endpoint.url, endpoint.concurrency)
    gate.begin()
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "none")
    async with openai.AsyncOpenAI(
        base_url=endpoint.url, api_key=key, timeout=endpoint.timeout, max_retries=0
    ) as client:

        async def work() -> None:
            nonlocal spent
            for place in todo:
                if endpoint.budget is not None and spent >= endpoint.budget:
                    return  # what the others have asked for will be paid: it is waited for and kept
                reply = await ask_patiently(client, endpoint, asks[place], gate)
                spent += reply.tokens_in + reply.tokens_out
                keep(cache, key_of(endpoint, asks[place]), endpoint.model, reply)
                replies[place] = reply
                on_reply(place, reply)

        await together(work, min(endpoint.concurrency, len(left)))
    if len(replies) < len(left):
        raise RunError(
            f"{endpoint.url}: the budget is spent ({spent:,} tokens, {endpoint.budget:,} were left) after "
            f"{len(replies)} of {len(left)} replies, which are kept; a higher budget goes on there"
        )
    return replies


async def together(work: Callable[[], Coroutine[Any, Any, None]], number: int) -> None:
    """Run `work` `number` times at once, to the end of all; the first error stops the others, then is raised."""
    workers = [asyncio.create_task(work()) for _ in range(number)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


class Gate:
    """How many may ask at once: half of it where the service asks to wait, a little more with each reply."""

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(most)
        self.begin()

    def begin(self) -> None:
        """For a new event loop: nobody is inside; what was learnt of the service's patience stays."""
        self.inside = 0
        self.open = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self.open:
            await self.open.wait_for(lambda: self.inside < max(1, int(self.limit)))
            self.inside += 1

    async def __aexit__(self, *error: object) -> None:
        async with self.open:
            self.inside -= 1
            self.open.notify_all()

    def narrow(self) -> None:
        self.limit = max(1.0, self.limit / 2)

    def widen(self) -> None:
        self.limit = min(float(self.most), self.limit + 1 / self.limit)


@cache
def gate_of(url: str, most: int) -> Gate:
    """One gate a service for the life of the process: each piece of a long run begins at the pace of the last one."""
    return Gate(most)


async def ask_patiently(client: Any, endpoint: Endpoint, ask: ChatRequest, gate: Gate) -> ChatReply:
    """One request, again after what passes: refused connections, timeouts, 408, 409, 429 and 5xx."""
    import openai

    for attempt in range(endpoint.retries + 1):
        try:
            async with gate:
                reply = await ask_one(client, endpoint, ask)
            gate.widen()
            return reply
        except (openai.APIStatusError, openai.APIConnectionError) as error:
            status = getattr(error, "status_code", None)
            if status == 429:
                gate.narrow()
            if attempt == endpoint.retries or not (status is None or status in (408, 409, 429) or status >= 500):
                raise explained(error, endpoint) from None
            await asyncio.sleep(wait_of(error, attempt))
    raise AssertionError("the loop returns or raises")


def wait_of(error: Any, attempt: int) -> float:
    """Seconds to wait: what the service says, else half a second, doubled each time, up to half a minute."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return min(60.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return min(30.0, 0.5 * 2.0**attempt)


def explained(error: Any, endpoint: Endpoint) -> Exception:
    """The service's error in words for people."""
    import openai

    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return UserError(f"{endpoint.url}: the key is refused ({short(error)}); set {KEYS[0]}")
    if isinstance(error, openai.BadRequestError | openai.NotFoundError | openai.UnprocessableEntityError):
        return UserError(f"{endpoint.url}, model {endpoint.model}: the request is refused: {short(error)}")
    if getattr(error, "status_code", None) == 402 or "insufficient_quota" in str(error):
        return RunError(
            f"{endpoint.url}: the account is out of money ({short(error)}); what was answered is kept, the same "
            "command goes on when it is filled"
        )
    if isinstance(error, openai.APIConnectionError):  # timeouts are of this kind too
        return RunError(f"{endpoint.url}: no answer ({short(error)}); is the service running there?")
    return RunError(
        f"{endpoint.url}: still failing after {endpoint.retries} retries: {short(error)}; what was answered is "
        "kept, the same command goes on"
    )


async def ask_one(client: Any, endpoint: Endpoint, ask: ChatRequest) -> ChatReply:
    """One request; where a service does not know logprobs or JSON replies it is asked again without."""
    import openai

    common = {
        "model": endpoint.model,
        "messages": list(ask.messages),
        "max_tokens": ask.max_tokens,
        "temperature": endpoint.temperature,
        "seed": endpoint.seed,
    }
    extra: dict[str, Any] = {"logprobs": True} | ({"response_format": {"type": "json_object"}} if ask.json else {})
    while True:
        try:
            made = await client.chat.completions.create(**common, **extra)
            break
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            unknown = next((name for name in extra if name in str(error)), None)
            if unknown is None:
                raise
            del extra[unknown]
        except openai.APIResponseValidationError:
            raise RunError(f"{endpoint.url}: answers what is no chat completion; is it OpenAI-compatible?") from None
    if not getattr(made, "choices", None):  # a page of HTML comes as a plain text
        raise RunError(f"{endpoint.url}: a reply without choices; is this an OpenAI-compatible service?")
    choice = made.choices[0]
    tokens = (choice.logprobs.content or []) if choice.logprobs else []
    sure = exp(sum(token.logprob for token in tokens) / len(tokens)) if tokens else None
    usage = made.usage
    return ChatReply(
        (choice.message.content or "").strip(),
        sure,
        usage.prompt_tokens if usage else 0,
        usage.completion_tokens if usage else 0,
        choice.finish_reason or "",
    )


def read_json(reply: ChatReply) -> Any:
    """What a reply of JSON holds, a fence of Markdown around it taken off. Raises ValueError in words for people."""
    if reply.finish == "length":
        raise ValueError("the reply is cut short")
    try:
        return json.loads(re.sub(r"^```(?:json)?\s*|\s*```$", "", reply.text.strip()))
    except ValueError:
        raise ValueError("the reply is not JSON") from None


def short(error: Exception) -> str:
    """An error's words in one line of bounded length."""
    return " ".join(str(error).split())[:300]


def key_of(endpoint: Endpoint, ask: ChatRequest) -> str:
    """sha256 of all that decides a reply."""
    what = [endpoint.url, endpoint.model, endpoint.temperature, endpoint.seed, ask.max_tokens, list(ask.messages)]
    what += [True] if ask.json else []
    return hashlib.sha256(json.dumps(what, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def open_cache(path: Path | None) -> sqlite3.Connection:
    """The cache at `path`, made where it is not there yet; without a path one that lives as long as the call."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        cache = sqlite3.connect(path or ":memory:")
    except sqlite3.OperationalError as error:
        raise UserError(f"{path}: no cache can be opened or made there ({error}); name another file") from None
    try:
        cache.execute("create table if not exists replies (key text primary key, model text, reply text)")
    except sqlite3.OperationalError:  # the disk, not the file
        cache.close()
        raise
    except sqlite3.DatabaseError as error:
        cache.close()
        raise UserError(f"{path}: not a cache of replies ({error}); name another file or remove it") from None
    return cache


def look_up(cache: sqlite3.Connection, key: str) -> ChatReply | None:
    row = cache.execute("select reply from replies where key = ?", (key,)).fetchone()
    return ChatReply(**{**json.loads(row[0]), "cached": True}) if row else None


def keep(cache: sqlite3.Connection, key: str, model: str, reply: ChatReply) -> None:
    with cache:
        kept = json.dumps(asdict(reply), ensure_ascii=False)
        cache.execute("insert or replace into replies values (?, ?, ?)", (key, model, kept))
