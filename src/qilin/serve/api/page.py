"""The routes of the chat page: its files, uploaded images, and occlusion maps.

In: the chat service. Out: handlers. The page is static: files without a build step, under a policy that lets a browser
load nothing from anywhere else.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from qilin.core.errors import UserError
from qilin.serve.api.chat import MAX_IMAGES, ChatService
from qilin.serve.api.chat_schema import Message, Strict, parse_object, validate
from qilin.serve.api.content import to_request
from qilin.serve.api.errors import ApiError
from qilin.serve.api.image_store import describe, select_frame, view_pixels
from qilin.serve.api.occlusion import occlusion_map
from qilin.serve.api.responses import FOLDER, POLICY, Handler, read_files, static_file, view_side
from qilin.serve.engine.engine import QueueFull


class OcclusionBody(Strict):
    """POST /api/occlusion: a conversation, the answer to it, and the number of the image to examine, from 0.

    `model` is the one that answered; the server's first by default.
    """

    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=64)
    answer: str = Field(min_length=1, max_length=4000)
    image: int = Field(ge=0, lt=MAX_IMAGES)


class VolumeBody(Strict):
    """POST /api/volumes: the id of an uploaded series that becomes a volume."""

    image: str


class StackBody(Strict):
    """POST /api/stacks: the ids of uploaded DICOM files that become stacks of slices."""

    images: list[str] = Field(min_length=1, max_length=10_000)


def page_routes(
    service: ChatService, warnings: tuple[str, ...], others: Sequence[ChatService] = ()
) -> list[tuple[str, str, Handler]]:
    """(method, path, handler) of the page. `others` serve further models; all use the image store of the first."""
    services = {one.model_name: one for one in (service, *others)}

    def description(name: str, owner: str) -> dict[str, Any]:
        return {"id": name, **describe(service.store.get(name, owner), service.store.windowing)}

    files = read_files(FOLDER)

    async def get_page(request: Request) -> Response:
        return static_file(files, "index.html", {"Content-Security-Policy": POLICY})

    async def get_file(request: Request) -> Response:
        return static_file(files, request.path_params["name"])

    async def get_info(request: Request) -> Response:
        disclaimer = service.safeguards.policy.disclaimer.to_json()
        fields = {"warnings": list(warnings), "disclaimer": disclaimer, "owner": request.state.owner}
        return JSONResponse({"model": service.model_name, **fields})

    async def post_image(request: Request) -> Response:
        data = await request.body()
        owner = request.state.owner
        name = await asyncio.to_thread(service.store.add, data, owner)
        return JSONResponse(await asyncio.to_thread(description, name, owner))

    async def post_stack(request: Request) -> Response:
        names = validate(StackBody, parse_object(await request.body())).images
        owner = request.state.owner
        stacks = await asyncio.to_thread(service.store.stack, names, owner)
        return JSONResponse({"images": [await asyncio.to_thread(description, name, owner) for name in stacks]})

    async def post_volume(request: Request) -> Response:
        name = validate(VolumeBody, parse_object(await request.body())).image
        owner = request.state.owner
        plane = (await asyncio.to_thread(description, name, owner))["plane"]
        volume = await asyncio.to_thread(service.store.volume, name, owner)
        return JSONResponse({**await asyncio.to_thread(description, volume, owner), "plane": plane})

    async def get_pixels(request: Request) -> Response:
        image = service.store.get(request.path_params["name"], request.state.owner)
        options = dict(request.query_params)
        side = view_side(options)
        body, headers = await asyncio.to_thread(lambda: view_pixels(select_frame(image, options), side))
        body = await asyncio.to_thread(gzip.compress, body, 1)
        headers |= {"Content-Encoding": "gzip", "Cache-Control": "private, max-age=3600, immutable"}
        return Response(body, media_type="application/octet-stream", headers=headers)

    async def delete_image(request: Request) -> Response:
        service.store.remove(request.path_params["name"], request.state.owner)
        return JSONResponse({"deleted": True})

    async def post_occlusion(request: Request) -> Response:
        body = validate(OcclusionBody, parse_object(await request.body()))
        answering = services.get(body.model or service.model_name)
        if answering is None:
            raise ApiError(
                404, f"model: there is no model {body.model!r}; this server has {', '.join(services)}", "model"
            )
        sources = service.sources(request.state.owner)
        try:
            chat = await asyncio.to_thread(to_request, body.messages, sources, MAX_IMAGES)
        except UserError as error:
            raise ApiError(400, str(error), "messages") from None
        if body.image >= len(chat.images):
            raise ApiError(400, f"image is {body.image}; the messages have {len(chat.images)} images", "image")
        rows = occlusion_map(answering.local_engine, chat, body.image, body.answer, request.state.owner)
        return StreamingResponse(json_lines(rows), media_type="application/x-ndjson")

    return [
        ("GET", "/", get_page),
        ("GET", "/static/{name}", get_file),
        ("GET", "/api/info", get_info),
        ("POST", "/api/images", post_image),
        ("POST", "/api/stacks", post_stack),
        ("POST", "/api/volumes", post_volume),
        ("GET", "/api/images/{name}/pixels", get_pixels),
        ("DELETE", "/api/images/{name}", delete_image),
        ("POST", "/api/occlusion", post_occlusion),
    ]


async def json_lines(rows: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """One JSON object per line; a failure in the middle is the last line."""
    try:
        async for row in rows:
            yield json.dumps(row) + "\n"
    except (QueueFull, UserError, RuntimeError) as error:
        yield json.dumps({"error": str(error)}) + "\n"
