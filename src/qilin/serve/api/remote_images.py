"""Images by address, from hosts that the operator allows; without such hosts, none.

In: a URL from a request. Out: the file's bytes. A server that fetches what strangers name can be led to the inside of
its network, so the address that a name resolves to must be public, the connection goes to that very address,
redirects are not followed, and size and time are bounded.
"""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httpx2

from qilin.serve.api.errors import ApiError

TIMEOUT = 10.0  # seconds for the whole download
MAX_BYTES = 32 << 20


@dataclass(frozen=True)
class RemoteImages:
    """The allowed hosts, as they stand in a URL."""

    hosts: frozenset[str] = frozenset()

    def fetch(self, url: str, param: str) -> bytes:
        """The bytes behind an https address. Raises ApiError 400."""
        parts = split_url(url, param)
        host = parts.hostname or ""
        if parts.scheme != "https" or host not in self.hosts or parts.username or parts.port not in (None, 443):
            allowed = f"an https address of {', '.join(sorted(self.hosts))}" if self.hosts else "nothing but data URIs"
            raise ApiError(400, f"{param}: this server fetches {allowed}; send the image as a data URI", param)
        address = public_address(host, param)
        try:
            return download(parts._replace(netloc=bracket(address)).geturl(), host)
        except (httpx2.HTTPError, TimeoutError, ValueError) as error:
            cause = str(error) or type(error).__name__
            raise ApiError(400, f"{param}: {host} did not deliver it ({cause})", param) from None


def split_url(url: str, param: str) -> SplitResult:
    """The parts of an address. Raises ApiError 400 for a text that is none."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  checked when it is read
    except ValueError:
        raise ApiError(400, f"{param}: {url[:80]!r} is not an address; send the image as a data URI", param) from None
    return parts


def public_address(host: str, param: str) -> str:
    """The address of a host, which must be a public one. Raises ApiError 400."""
    try:
        entries = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except OSError:
        raise ApiError(400, f"{param}: {host} has no address", param) from None
    addresses = [str(entry[4][0]) for entry in entries]
    if not addresses or not all(ipaddress.ip_address(address).is_global for address in addresses):
        raise ApiError(400, f"{param}: {host} is an address of a private network", param)
    return addresses[0]


def bracket(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def download(url: str, host: str) -> bytes:
    """The body of an address, with the certificate and the Host header of `host`. Raises ValueError or HTTPError."""
    content = b""
    client = httpx2.Client(timeout=TIMEOUT, follow_redirects=False, trust_env=False)
    options = {"headers": {"Host": host, "Accept": "image/*"}, "extensions": {"sni_hostname": host}}
    with client, client.stream("GET", url, **options) as response:  # type: ignore[arg-type]
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}")
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > MAX_BYTES:
                raise ValueError(f"larger than {MAX_BYTES:,} bytes")
    return content
