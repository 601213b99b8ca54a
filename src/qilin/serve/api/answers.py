"""The answers of one request while they are generated, by our engine or by another server.

In: an engine or an upstream puts events into a queue. Out: chat.py makes responses of them.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qilin.serve.api.audit import PromptHashes
from qilin.serve.api.errors import ApiError
from qilin.serve.engine.engine import Finish, Increment


@dataclass(frozen=True)
class Passage:
    """What an upstream server's chunk adds to an answer, with its tokens' log probabilities as OpenAI writes them."""

    text: str
    logprobs: list[dict[str, Any]]


AnswerEvent = Increment | Passage | Finish | ApiError


@dataclass(frozen=True)
class Answers:
    """The events of `count` choices in one queue, as (choice, event); each choice ends with a Finish, all of them with
    an ApiError. `started` is set once it is known that the request is not refused; `cancel` may be called twice."""

    hashes: PromptHashes
    count: int
    queue: "asyncio.Queue[tuple[int, AnswerEvent]]"
    started: asyncio.Event
    cancel: Callable[[], None]
