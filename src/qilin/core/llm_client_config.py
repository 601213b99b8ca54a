"""The options that every command with an OpenAI-compatible service shares. Free of torch and of the openai package.

`ServiceConfig` is nested with `option(flatten=True)`, so its flags are `--endpoint`, `--model`, `--budget` and so on.
`qilin.core.llm_client.make_endpoint` turns it into the endpoint that requests are sent to.
"""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from qilin.core.config import config_class, option

API_KEY_VARIABLES = ("QILIN_API_KEY", "OPENAI_API_KEY")
KEY_HELP = f"\n\nthe API key is read from the environment: {API_KEY_VARIABLES[0]}, else {API_KEY_VARIABLES[1]}"

EXTRA_HELP = """more fields of every request, as a JSON object: '{"enable_thinking": false}'"""
RESERVED_FIELDS = ("model", "messages", "stream", "n")  # a reply of another form could not be read
SECRET_FIELD = re.compile(r"(?i)((?:^|&)[^=&]*(?:key|token|secret|password|sig|auth|code)[^=&]*=)[^&]*")


@config_class
class ServiceConfig:
    """Where a model is served and how much may be asked of it."""

    endpoint: str = option(help="base URL of an OpenAI-compatible service, up to and including /v1")
    model: str = option(help="name of the model at that endpoint")
    cache: Path | None = option(default=None, help="SQLite file of replies; a cached reply costs nothing")
    concurrency: int = option(
        default=16, help="maximum number of concurrent requests; lowered automatically when the service returns 429"
    )
    timeout: float = option(default=120.0, help="seconds to wait for one reply")
    budget: int | None = option(
        default=None, help="stop after this many tokens, prompt and completion; run the command again to continue"
    )
    price_in: float = option(default=0.0, help="price of a million prompt tokens, to show the cost")
    price_out: float = option(default=0.0, help="price of a million completion tokens")
    extra: str | None = option(default=None, help=EXTRA_HELP)

    def __post_init__(self) -> None:
        parse_extra(self.extra)


def parse_extra(text: str | None, name: str = "extra") -> dict[str, Any]:
    """The fields that --extra adds to every request. Raises ValueError unless it is a JSON object."""
    if text is None:
        return {}
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ValueError(f"""{name} is {text[:80]!r}; expected a JSON object such as '{{"enable_thinking": false}}'""")
    if reserved := [field for field in fields if field in RESERVED_FIELDS]:
        raise ValueError(f"{name} sets {', '.join(reserved)}; expected fields other than {', '.join(RESERVED_FIELDS)}")
    return fields


def public_address(url: str) -> str:
    """An endpoint's address as it may be shown and stored: no user name, password, fragment or value of a key."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "://".join((url.partition("://")[0], url.rpartition("@")[2])) if "@" in url else url
    if not parts.netloc:
        return url.rpartition("@")[2]
    query = SECRET_FIELD.sub(r"\1***", parts.query)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))
