"""The web service: OpenAI's chat API on one model, health, metrics and its own description.

In: an engine and the access rules. Out: a Starlette application. Each route is a few lines here; what they do stands in
the modules that they call.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
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
from qilin.serve.api.chat import ChatService, chat_completions
from qilin.serve.api.chat_schema import parse_chat_body
from qilin.serve.api.errors import ApiError
from qilin.serve.api.metrics import engine_registry
from qilin.serve.api.openapi import openapi_document
from qilin.serve.api.page import page_routes
from qilin.serve.api.security import Access, SecurityMiddleware

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class ApiConfig:
    """What the application serves and to whom. `audit` is None without a log."""

    service: ChatService
    access: Access
    audit: AuditLog | None = None
    shutdown_seconds: float = 30.0
    warnings: tuple[str, ...] = ()  # what users of this model must know; the page shows them


def make_app(config: ApiConfig) -> Starlette:
    """GET /v1/models, /health, /metrics, /openapi.json; POST /v1/chat/completions; and the chat page at /."""
    service, engine = config.service, config.service.engine
    registry = engine_registry(engine)
    model = {"id": service.model_name, "object": "model", "created": 0, "owned_by": "qilin"}

    async def get_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{**model, "max_model_len": engine.context}]})

    async def get_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != service.model_name:
            raise ApiError(404, f"there is no model {name!r}; this server has {service.model_name!r}")
        return JSONResponse(model)

    async def get_health(request: Request) -> Response:
        working = engine.thread.is_alive() and not engine.closing
        status = {"status": "ok" if working else "stopping", "version": __version__}
        return JSONResponse(status, 200 if working else 503)

    async def get_metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def get_openapi(request: Request) -> Response:
        return JSONResponse(openapi_document(service.model_name))

    async def post_chat(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "expected Content-Type: application/json")
        body = parse_chat_body(await request.body())
        return await chat_completions(request, service, body, request.state.owner)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close, config.shutdown_seconds)

    handlers: list[tuple[str, str, Handler]] = [
        ("GET", "/v1/models", get_models),
        ("GET", "/v1/models/{name:path}", get_model),
        ("POST", "/v1/chat/completions", audited(post_chat, config.audit)),
        ("GET", "/health", get_health),
        ("GET", "/metrics", get_metrics),
        ("GET", "/openapi.json", get_openapi),
        *page_routes(service, config.warnings),
    ]
    return Starlette(
        routes=[Route(path, answer_errors(handler), methods=[method]) for method, path, handler in handlers],
        middleware=[Middleware(SecurityMiddleware, access=config.access)],
        exception_handlers={HTTPException: http_error},
        lifespan=lifespan,
    )


def answer_errors(handler: Handler) -> Handler:
    """The handler, with its ApiErrors as responses."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            return error.response()
        except ClientDisconnect:
            return Response(status_code=499)

    return handle


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


async def http_error(request: Request, error: Exception) -> Response:
    """404 and 405 of the router in OpenAI's form."""
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()
