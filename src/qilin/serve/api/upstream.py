"""An OpenAI-compatible server (vLLM, SGLang, LMDeploy, Ollama, …) that answers in place of our engine.

In: its address, the key in QILIN_UPSTREAM_KEY, and a model's name. Out: an Upstream with what the server was found to
offer, or a one-line error that says why it cannot be used.
"""

import asyncio
import base64
import io
import ipaddress
import json
import os
import time
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import httpx2
from PIL import Image

from qilin.core.errors import RunError, UserError
from qilin.core.llm_connection import one_line, root_cause
from qilin.serve.api.fair_queue import FairQueue
from qilin.serve.engine.engine import EngineCounts

KEY_VARIABLE = "QILIN_UPSTREAM_KEY"
CONNECT_SECONDS = 10.0
HEALTH_SECONDS = 5.0  # a result of the health check is used again for so long


@dataclass(frozen=True)
class UpstreamSettings:
    """`url` up to and including /v1; `timeout` in seconds without a byte; `image_side` in pixels, the largest that is
    sent on; `control_tokens` are those of the model's own vocabulary, where it is known."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 300.0
    max_answer_tokens: int = 512
    image_side: int = 2048
    control_tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class Features:
    """What the server was found to offer."""

    context: int | None = None
    images: bool = True
    logprobs: bool = True


@dataclass
class Upstream:
    """The server, its connections and the queue in front of it. Used by the event loop's thread alone."""

    settings: UpstreamSettings
    features: Features
    queue: FairQueue
    counts: EngineCounts = field(default_factory=EngineCounts)
    health: tuple[float, bool] = (-1e9, False)  # when it was checked, and the result

    def __post_init__(self) -> None:
        self.client = httpx2.AsyncClient(
            **client_options(self.settings),
            limits=httpx2.Limits(max_connections=self.queue.max_active + 4, max_keepalive_connections=8),
        )

    @property
    def context(self) -> int | None:
        return self.features.context

    def active(self) -> int:
        """Requests that the server is answering."""
        return self.queue.active

    def queue_length(self) -> int:
        """Requests that wait for their turn."""
        return self.queue.length()

    async def is_working(self) -> bool:
        """Whether the server lists its models."""
        if time.monotonic() - self.health[0] > HEALTH_SECONDS:
            try:
                response = await self.client.get("models", timeout=CONNECT_SECONDS)
                working = response.status_code == 200
            except httpx2.HTTPError:
                working = False
            self.health = time.monotonic(), working
        return self.health[1]

    async def close(self, timeout: float) -> None:
        """Let running answers end for `timeout` seconds, then close the connections."""
        deadline = time.monotonic() + timeout
        while self.active() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await self.client.aclose()


def client_options(settings: UpstreamSettings) -> dict[str, Any]:
    """How every request to the server is made: no redirects, and no proxy to this machine itself."""
    headers = {"Authorization": f"Bearer {settings.key}"} if settings.key else {}
    return {
        "base_url": settings.url + "/",
        "headers": headers,
        "timeout": httpx2.Timeout(settings.timeout, connect=CONNECT_SECONDS, pool=None),
        "follow_redirects": False,
        "trust_env": not is_loopback(urlsplit(settings.url).hostname or ""),
    }


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def upstream_url(text: str) -> str:
    """An address as it is used, with /v1 where it has no path. Raises UserError."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  checked when it is read
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UserError(f"--upstream is {text!r}; expected an address such as http://127.0.0.1:8001/v1")
    if parts.username is not None or parts.password is not None:
        raise UserError(f"--upstream holds a password; put the server's key into {KEY_VARIABLE} and leave it out")
    return parts._replace(path=parts.path.rstrip("/") or "/v1").geturl()


def read_upstream_key() -> str | None:
    """The key from the environment. Raises UserError for one that no header can hold."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY_VARIABLE}: expected letters, digits and punctuation")
    return key or None


def list_models(client: httpx2.Client, url: str) -> list[dict[str, Any]]:
    """The models that the server names. Raises RunError in one line."""
    response = request(client, "GET", "models", url)
    if response.status_code in (401, 403):
        raise RunError(f"{url}: the server refuses the key (status {response.status_code}); set {KEY_VARIABLE}")
    try:
        response.raise_for_status()
        models = [row for row in response.json()["data"] if isinstance(row["id"], str)]
    except (ValueError, KeyError, TypeError, httpx2.HTTPStatusError):
        raise RunError(
            f"{url}/models answers with status {response.status_code} and no list of models; expected the address of "
            "an OpenAI-compatible server, usually ending in /v1"
        ) from None
    return models


def choose_model(models: list[dict[str, Any]], wanted: str | None, url: str) -> dict[str, Any]:
    """The model of that name, or the only one. Raises UserError."""
    names = [row["id"] for row in models]
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    if wanted is None and len(models) == 1:
        return models[0]
    if wanted in names:
        return models[names.index(wanted)]
    if not names:
        raise UserError(f"{url}: the server has no model loaded")
    if wanted is None:
        raise UserError(f"{url} has {len(names)} models ({listed}); name one: qilin serve MODEL --upstream URL")
    raise UserError(f"{url} has no model {wanted!r}; it has {listed}")


def connect(
    url: str, model: str | None, settings: dict[str, Any], max_active: int, max_waiting: int
) -> tuple[Upstream, list[str]]:
    """The server ready for use, and what users must know about it. Raises UserError, RunError."""
    with httpx2.Client(**client_options(UpstreamSettings(url, "", **settings))) as client:
        row = choose_model(list_models(client, url), model, url)
        context = row.get("max_model_len")
        features, warnings = find_features(client, url, row["id"], settings.get("key"))
    features = replace(features, context=context if isinstance(context, int) else None)
    upstream_settings = UpstreamSettings(url, row["id"], **settings)
    return Upstream(upstream_settings, features, FairQueue(max_active, max_waiting)), warnings


def find_features(client: httpx2.Client, url: str, model: str, key: str | None) -> tuple[Features, list[str]]:
    """Ask one question about a gray image, with log probabilities; whatever is refused is left out and tried again."""
    refusals: list[str] = []
    for images in (True, False):
        for logprobs in (True, False):
            response = request(client, "POST", "chat/completions", url, json=probe_body(model, images, logprobs))
            if response.status_code == 200:
                features = Features(images=images, logprobs=logprobs and has_logprobs(response))
                return features, feature_warnings(features, refusals[1:])
            refusals.append(f"status {response.status_code}: {error_text(response.content, key)}")
            if response.status_code in (401, 403, 404, 429) or response.status_code >= 500 and not images:
                break
    raise RunError(f"{url}: {model} does not answer ({refusals[-1]})")


def probe_body(model: str, images: bool, logprobs: bool) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (336, 336), "gray").save(buffer, "PNG")
    image = {"type": "image_url", "image_url": {"url": png_uri(buffer.getvalue())}}
    content: Any = [image, {"type": "text", "text": "图中有异常吗？"}] if images else "你好"
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 4, "temperature": 0}
    return body | ({"logprobs": True} if logprobs else {})


def png_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def has_logprobs(response: httpx2.Response) -> bool:
    try:
        return bool(response.json()["choices"][0]["logprobs"]["content"])
    except (ValueError, KeyError, IndexError, TypeError):
        return False


def feature_warnings(features: Features, refusals: list[str]) -> list[str]:
    """What is missing, for the operator and the page; `refusals` begin with that of an image alone."""
    warnings = []
    if not features.images:
        warnings.append(f"The upstream model takes no images ({refusals[0]}).")
    if not features.logprobs:
        warnings.append("The upstream server gives no log probabilities: answers have no confidence.")
    return warnings


def request(client: httpx2.Client, method: str, path: str, url: str, **options: Any) -> httpx2.Response:
    """A response of the server. Raises RunError for a server that does not answer."""
    try:
        return client.request(method, path, **options)
    except httpx2.HTTPError as error:
        cause = root_cause(error) if str(error) else type(error).__name__
        raise RunError(f"{url}: the server does not answer ({cause}); start it first") from None


def error_text(body: bytes, key: str | None) -> str:
    """The message of an error response, in one line without our key."""
    text: Any = body.decode("utf-8", "replace")
    try:
        fields = json.loads(body)
        text = fields.get("error", fields)
        if isinstance(text, dict):
            text = text.get("message") or text.get("detail")
    except (ValueError, AttributeError, RecursionError):
        pass  # not JSON: the text itself
    line = one_line(text or "no message")
    return line.replace(key, "***") if key else line
