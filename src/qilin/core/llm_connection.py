"""The connection to a chat service: the key, passwords and redirects, and why a connection fails.

In: an endpoint's URL, the environment. Out: an openai client that sends the key and prompts to that host alone and
keeps the URL's password out of logs; the cause of a failed connection in words.
"""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from qilin.core.errors import UserError
from qilin.core.llm_client_config import API_KEY_VARIABLES, public_address


def open_client(url: str, timeout: float) -> Any:
    """The openai client of an endpoint: no retries, no redirects to another host, the password in a header only."""
    try:
        import openai
    except ImportError:
        raise UserError("requests to a service need the openai package: pip install 'qilin-med[endpoint]'") from None
    parts = urlsplit(url)
    credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    basic = {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"} if parts.username else {}

    async def refuse_redirect(response: Any) -> None:
        """Requests hold the key, prompts and images: no other host may get them."""
        if not response.has_redirect_location:
            return
        location = response.headers.get("location", "")
        try:
            target = response.request.url.join(location)
        except ValueError:
            target = None
        if target is None or not is_same_service(response.request.url, target):
            raise UserError(
                f"{public_address(url)}: redirects to {public_address(str(target or location))}, which is another "
                "host; nothing was sent there. If it is the right one, give it as the endpoint"
            )

    return openai.AsyncOpenAI(
        base_url=urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")),
        api_key=read_api_key(),
        timeout=timeout,
        max_retries=0,
        default_headers=basic,
        default_query=dict(parse_qsl(parts.query)),
        http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, event_hooks={"response": [refuse_redirect]}),
    )


def is_same_service(source: Any, target: Any) -> bool:
    """Whether a redirect stays on the host and port, or only goes from http to https on it."""
    if source.host != target.host:
        return False
    if source.scheme == target.scheme:
        return bool((source.port or 0) == (target.port or 0))
    return (source.scheme, target.scheme) == ("http", "https") and source.port is None and target.port is None


def read_api_key() -> str:
    """The key from the environment, "none" for services that need none."""
    name = next((name for name in API_KEY_VARIABLES if os.environ.get(name, "").strip()), None)
    key = os.environ[name].strip() if name else "none"
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{name}: the key has characters that no key has; expected letters, digits and punctuation")
    return key


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, the root last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def is_tls_refusal(error: BaseException) -> bool:
    """Whether a connection failed for a certificate or for a peer without TLS, which no retry changes."""
    texts = [str(cause) for cause in causes(error) if isinstance(cause, ssl.SSLError)]
    return any("CERTIFICATE" in text or "WRONG_VERSION" in text or "ALERT" in text.upper() for text in texts)


def root_cause(error: BaseException) -> str:
    """The text of the deepest cause that has one."""
    return [text for cause in causes(error) if (text := one_line(cause))][-1]


def one_line(error: object) -> str:
    """An error's message in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def hide_key(text: object) -> str:
    """A text without the API key, which some services repeat in their errors."""
    keys = [os.environ[name].strip() for name in API_KEY_VARIABLES if len(os.environ.get(name, "").strip()) > 3]
    shown = str(text)
    for key in keys:
        shown = shown.replace(key, "***")
    return shown
