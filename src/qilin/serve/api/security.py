"""What every request passes before a route sees it: host, origin, API key, body size; and the headers of responses.

In: an ASGI application. Out: the same behind the checks. Written for ASGI itself, so that a body is counted while it
arrives, and nothing is kept in memory for a request that is refused.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qilin.serve.api.errors import ApiError
from qilin.serve.api.keys import Keys

OPEN_ROUTES = ("/health", "/")  # need no key: a load balancer asks for the first, the page itself asks for the key
BODY_SECONDS = 60.0  # a body must arrive in this time
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
RESPONSE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


@dataclass(frozen=True)
class Access:
    """Who may ask: keys, the hosts that requests may name, and the largest body in bytes."""

    keys: Keys
    hosts: tuple[str, ...]
    max_body: int


class SecurityMiddleware:
    """Checks a request and passes it on with `scope["state"]["owner"]` set."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                extra = [*RESPONSE_HEADERS, (b"cache-control", b"no-store")]
                message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in names)]
            await send(message)

        try:
            check_host(headers, self.access.hosts)
            check_origin(headers)
            scope.setdefault("state", {})["owner"] = self.find_owner(scope["path"], headers)
            declared = headers.get("content-length", "0")
            if not declared.isdigit() or int(declared) > self.access.max_body:
                raise too_large(self.access.max_body)
        except ApiError as error:
            await error.response()(scope, receive, send_with_headers)
            return
        await self.app(scope, limited(receive, self.access.max_body), send_with_headers)

    def find_owner(self, path: str, headers: Headers) -> str:
        """The name of the request's key. Raises ApiError 401."""
        owner = self.access.keys.owner(headers.get("authorization", ""))
        if owner is None and not is_open(path):
            raise ApiError(401, "the API key is missing or wrong; send Authorization: Bearer KEY")
        return owner or ""


def is_open(path: str) -> bool:
    return path in OPEN_ROUTES or path.startswith("/static/")


def check_host(headers: Headers, hosts: Sequence[str]) -> None:
    """Refuse names that this server does not have: a page whose name was pointed at this machine (DNS rebinding)."""
    host = host_name(headers.get("host", ""))
    if host not in hosts:
        raise ApiError(403, f"Host is {host!r}; expected {', '.join(hosts)} (qilin serve --allow-host adds a name)")


def check_origin(headers: Headers) -> None:
    """Refuse requests that a page of another site makes a browser send."""
    origin = headers.get("origin")
    cross_site = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if cross_site or (origin is not None and origin.partition("://")[2] != headers.get("host", "")):
        raise ApiError(403, "requests from pages of other sites are refused")


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit:,} bytes")


def limited(receive: Receive, limit: int) -> Receive:
    """`receive` that raises ApiError for a body that is too large or too slow."""
    size, complete = 0, False
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def receive_limited() -> Message:
        nonlocal size, complete
        if complete:
            return await receive()  # waits for the disconnect
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive in {BODY_SECONDS:.0f} s") from None
        size += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if size > limit:
            raise too_large(limit)
        return message

    return receive_limited
