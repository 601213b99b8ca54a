"""The queue in front of an upstream server: so many requests at a time, the others in fair order between keys.

In: an owner that wants a turn. Out: its turn, or QueueFull at once.
"""

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qilin.serve.engine.engine import QueueFull


class FairQueue:
    """`max_active` turns at a time and `max_waiting` requests that wait; owners take turns."""

    def __init__(self, max_active: int, max_waiting: int) -> None:
        self.max_active, self.max_waiting = max_active, max_waiting
        self.active = 0
        self.waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self.ended, self.seconds = 0, 0.0

    def length(self) -> int:
        return sum(map(len, self.waiting.values()))

    def check(self) -> None:
        """Raise QueueFull if one more request could not wait."""
        if self.active >= self.max_active and self.length() >= self.max_waiting:
            mean = self.seconds / self.ended if self.ended else 1.0
            raise QueueFull(max(1, min(60, math.ceil(mean))))

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Raises QueueFull."""
        self.check()
        if self.active < self.max_active:
            self.active += 1
        else:
            await self.wait(owner)  # the turn of a request that ended passes on: `active` stays
        start = time.monotonic()
        try:
            yield
        finally:
            self.ended, self.seconds = self.ended + 1, self.seconds + time.monotonic() - start
            self.pass_on()

    async def wait(self, owner: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.setdefault(owner, deque()).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():  # it got its turn in the same moment
                self.pass_on()
            elif future in self.waiting.get(owner, ()):
                self.waiting[owner].remove(future)
                self.drop_empty(owner)
            raise

    def pass_on(self) -> None:
        """Give a turn that ended to the next owner, or back."""
        while self.waiting:
            owner = next(iter(self.waiting))
            future = self.waiting[owner].popleft()
            self.waiting.move_to_end(owner)
            self.drop_empty(owner)
            if not future.cancelled():
                future.set_result(None)
                return
        self.active -= 1

    def drop_empty(self, owner: str) -> None:
        if not self.waiting[owner]:
            del self.waiting[owner]
