"""Where a server listens, and whether it may: strangers need keys.

In: an address, its port and its TLS files. Out: a listening socket, or a UserError.
"""

import socket
from pathlib import Path

from qilin.core.errors import UserError


def check_address(host: str, has_keys: bool, certificate: Path | None, key: Path | None) -> None:
    """Raise UserError for a server that strangers could use, and for half a TLS setting."""
    from qilin.serve.api.security import LOCAL_HOSTS

    if host not in LOCAL_HOSTS and not has_keys:
        raise UserError(
            f"--host is {host}: other machines can reach it, so API keys are needed: qilin serve --new-key NAME "
            "--keys keys.txt, then add --keys keys.txt"
        )
    if (certificate is None) != (key is None):
        raise UserError("--tls-certificate and --tls-key belong together; give both")
    for path in (certificate, key):
        if path is not None and not path.is_file():
            raise UserError(f"{path}: no such file")


def listen(host: str, port: int) -> socket.socket:
    """A socket whose connections send small packets at once. Raises UserError."""
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # asyncio sets this only where a socket names its protocol, which those of create_server do not; without it the
        # second event of a stream waits 40 ms for the client's acknowledgment of the first
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port}: cannot listen there ({error}); choose another --port, 0 for any") from None
