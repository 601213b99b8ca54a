"""uvicorn's HTTP protocol with a limit on the time that a request's head may take.

uvicorn closes idle connections after an answer, but waits without end for the head of a request: clients that send a
byte a minute would hold all connections. In: nothing. Out: a protocol class for uvicorn's `http` setting.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0


class HeadTimeoutProtocol(H11Protocol):
    """Closes a connection whose next request's head is not complete in HEAD_SECONDS."""

    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.start_head_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self.stop_head_timer()
        elif self.head_timer is None:
            self.start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_head_timer()
        super().connection_lost(exc)

    def start_head_timer(self) -> None:
        self.head_timer = self.loop.call_later(HEAD_SECONDS, self.close_connection)

    def stop_head_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def close_connection(self) -> None:
        self.head_timer = None
        self.transport.close()
