"""The server that modules of chat tests ask; each has a `loaded` model of its own."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def server(loaded: Any) -> Iterator[Any]:
    """A ChatServer on the module's model. Modules with other needs override it."""
    from builders.chat_server import running_chat_server  # needs the serve extra, without which modules are skipped

    with running_chat_server(loaded) as chat_server:
        yield chat_server
