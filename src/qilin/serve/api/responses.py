"""Responses that the chat server and the review page share: errors, and the files of their pages; free of torch.

In: handlers and folders of static files. Out: handlers whose errors are responses, and files under a policy that lets a
browser load nothing from anywhere else.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from qilin.imaging.errors import ImageError
from qilin.serve.api.errors import ApiError
from qilin.serve.api.image_store import MAX_VIEW_SIDE

FOLDER = Path(__file__).parents[1] / "page"
MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"  # no text can become HTML or code, by mistake either
)
Handler = Callable[[Request], Awaitable[Response]]


def answer_errors(handler: Handler) -> Handler:
    """The handler, with its ApiErrors and ImageErrors as responses."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            return error.response()
        except ImageError as error:
            return ApiError(400, str(error), "image").response()
        except ClientDisconnect:
            return Response(status_code=499)

    return handle


async def http_error(request: Request, error: Exception) -> Response:
    """404 and 405 of the router in OpenAI's form."""
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a page by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in MEDIA_TYPES}


def static_file(files: Mapping[str, bytes], name: str, headers: Mapping[str, str] | None = None) -> Response:
    """A file of a page. Raises ApiError 404."""
    if name not in files:
        raise ApiError(404, f"there is no file {name!r}")
    media_type = MEDIA_TYPES[Path(name).suffix]
    return Response(files[name], media_type=media_type, headers={"Cache-Control": "no-cache", **(headers or {})})


def view_side(options: Mapping[str, str]) -> int:
    """The longest side that a viewer asks for, in pixels. Raises ApiError 400."""
    side = options.get("max", str(MAX_VIEW_SIDE))
    if not (side.isascii() and side.isdigit()) or len(side) > 6 or int(side) < 1:
        raise ApiError(400, f"max is {side!r}; expected a number of pixels", "max")
    return int(side)
