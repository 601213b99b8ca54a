"""How a service slows requests down: fewer at a time after a 429, and the wait before a retry.

In: the outcome of each request. Out: a limit of concurrent requests per service, and the seconds until the next try.
"""

import asyncio
import time
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any


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
    """One per service for the life of the process: each shard of a long run starts at the last one's limit."""
    return ConcurrencyLimiter(maximum)


def retry_delay(error: Any, attempt: int) -> float:
    """Seconds to wait: Retry-After (seconds or a date) up to 60, else 0.5 (2 after a 429) doubled with each attempt up
    to 30."""
    headers = getattr(error, "headers", None) or {}
    for name, seconds_per_unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, min(60.0, float(headers[name]) * seconds_per_unit))
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, min(60.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time()))
    except (KeyError, ValueError, TypeError, OverflowError):
        return float(min(30.0, (2.0 if getattr(error, "status", None) == 429 else 0.5) * 2.0**attempt))
