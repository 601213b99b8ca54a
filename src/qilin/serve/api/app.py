"""The web service: OpenAI's chat API on one model, health, metrics and its own description.

In: an engine and the access rules. Out: a Starlette application. Each route is a few lines here; what they do stands in
the modules that they call.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qilin import __version__
from qilin.serve.api.audit import AuditLog
from qilin.serve.api.chat import CLIENT_GONE, ChatService, chat_completions
from qilin.serve.api.chat_schema import parse_chat_body
from qilin.serve.api.errors import ApiError
from qilin.serve.api.metrics import engine_registry
from qilin.serve.api.openapi import openapi_document
from qilin.serve.api.page import page_routes
from qilin.serve.api.responses import Handler, answer_errors, http_error
from qilin.serve.api.security import Access, SecurityMiddleware
from qilin.serve.api.upstream import Upstream
from qilin.serve.api.upstream_chat import PASSED_FIELDS
from qilin.serve.engine.engine import Engine


@dataclass(frozen=True)
class ApiConfig:
    """What the application serves and to whom. `audit` is None without a log."""

    service: ChatService
    access: Access
    audit: AuditLog | None = None
    shutdown_seconds: float = 30.0
    warnings: tuple[str, ...] = ()  # what users of this model must know; the page shows them
    compared: tuple[ChatService, ...] = ()  # further models, which the page compares with the first


def make_app(config: ApiConfig) -> Starlette:
    """GET /v1/models, /health, /metrics, /openapi.json; POST /v1/chat/completions; and the chat page at /."""
    service, engine = config.service, config.service.engine
    registry = engine_registry(engine)
    services = {one.model_name: one for one in (service, *config.compared)}
    models = {
        name: {"id": name, "object": "model", "created": 0, "owned_by": "qilin", "max_model_len": one.engine.context,
               "occlusion_map": one.can_map}
        for name, one in services.items()
    }  # fmt: skip

    async def get_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": list(models.values())})

    async def get_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in models:
            raise ApiError(404, f"there is no model {name!r}; this server has {', '.join(models)}")
        return JSONResponse(models[name])

    async def get_health(request: Request) -> Response:
        if isinstance(engine, Upstream):
            status = "ok" if await engine.is_working() else "the upstream server does not answer"
        else:
            status = "ok" if engine.thread.is_alive() and not engine.closing else "stopping"
        return JSONResponse({"status": status, "version": __version__}, 200 if status == "ok" else 503)

    async def get_metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def get_openapi(request: Request) -> Response:
        return JSONResponse(openapi_document(service.model_name))

    async def post_chat(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "expected Content-Type: application/json")
        passed_fields = PASSED_FIELDS if any(isinstance(one.engine, Upstream) for one in services.values()) else ()
        body, passed = parse_chat_body(await request.body(), passed_fields)
        answering = services.get(body.model, service)  # which refuses a name that is not its own
        if passed and not isinstance(answering.engine, Upstream):
            raise ApiError(400, f"{next(iter(passed))} is not supported; leave it out", next(iter(passed)))
        return await chat_completions(request, answering, body, passed, request.state.owner)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.gather(*(close_engine(one.engine, config.shutdown_seconds) for one in services.values()))

    handlers: list[tuple[str, str, Handler]] = [
        ("GET", "/v1/models", get_models),
        ("GET", "/v1/models/{name:path}", get_model),
        ("POST", "/v1/chat/completions", audited(post_chat, config.audit)),
        ("GET", "/health", get_health),
        ("GET", "/metrics", get_metrics),
        ("GET", "/openapi.json", get_openapi),
        *page_routes(service, config.warnings, config.compared),
    ]
    return Starlette(
        routes=[Route(path, answer_errors(handler), methods=[method]) for method, path, handler in handlers],
        middleware=[Middleware(SecurityMiddleware, access=config.access)],
        exception_handlers={HTTPException: http_error},
        lifespan=lifespan,
    )


async def close_engine(engine: Engine | Upstream, seconds: float) -> None:
    """Let running answers end, for so long."""
    if isinstance(engine, Upstream):
        await engine.close(seconds)
    else:
        await asyncio.to_thread(engine.close, seconds)


def audited(handler: Handler, audit: AuditLog | None) -> Handler:
    """The handler, with a line in the audit log after its response was sent or refused."""
    if audit is None:
        return handler

    async def handle(request: Request) -> Response:
        def write(status: int) -> None:
            client = request.client.host if request.client else ""
            hashes, finishes = getattr(request.state, "hashes", None), getattr(request.state, "finishes", [])
            audit.write(request.state.owner, client, request.url.path, status, hashes, finishes)

        await asyncio.to_thread(audit.check)
        try:
            response = await handler(request)
        except ApiError as error:
            write(error.status)
            raise
        except ClientDisconnect:
            write(CLIENT_GONE)
            raise
        if (stream := getattr(response, "body_iterator", None)) is None:
            write(response.status_code)
        else:
            response.body_iterator = then(stream, lambda: write(response.status_code))  # type: ignore[attr-defined]
        return response

    return handle


async def then(stream: AsyncIterator[Any], action: Callable[[], None]) -> AsyncIterator[Any]:
    """The stream, and the action at its end or when its client has gone."""
    try:
        async for item in stream:
            yield item
    finally:
        action()
