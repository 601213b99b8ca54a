"""The web service of the review page, behind the checks of the chat server: host, origin, key, size of a body.

In: a ReviewSession, the file of decisions, and who may review. Out: a Starlette application. No part of a request
becomes a file path: images are requested by id, and only those of the session's samples are served.
"""

import asyncio
import gzip
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qilin.dataset.sample_texts import text_fields, with_texts
from qilin.dataset.schema import Sample, sample_problem
from qilin.imaging.medical import MedicalImage, open_medical
from qilin.pipeline.review.decisions import (
    DECISIONS,
    Decision,
    add_decision,
    current_decisions,
    read_decisions,
    sample_hash,
)
from qilin.pipeline.review.sampling import ReviewSession, to_page_json
from qilin.serve.api.chat_schema import parse_object
from qilin.serve.api.errors import ApiError
from qilin.serve.api.image_store import describe, select_frame, view_pixels
from qilin.serve.api.responses import (
    FOLDER,
    POLICY,
    Handler,
    answer_errors,
    http_error,
    read_files,
    static_file,
    view_side,
)
from qilin.serve.api.security import Access, SecurityMiddleware

PAGE = Path(__file__).with_name("review_page")
MAX_REQUEST_BYTES = 1 << 20
MAX_REASON_LENGTH = 500  # characters
OPEN_IMAGES = 16  # decoded images that are kept


class BadRequest(ApiError):
    """A request that cannot be executed; the page shows the message."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


def review_app(session: ReviewSession, path: Path, access: Access) -> Starlette:
    """GET / and /static, which hold no data; GET /samples, /samples/INDEX, /images/ID/…, POST /decide behind a key.

    The reviewer is the name of the key.
    """
    indexes = {(sample.sample_id, sample_hash(sample)): index for index, sample in enumerate(session.samples)}
    image_ids = {image_id for sample in session.samples for image_id in sample.image_ids}
    files = read_files(FOLDER) | read_files(PAGE)

    def reviewer_decisions(reviewer: str) -> dict[int, Decision]:
        """A reviewer's decisions by sample index; read on every request, because others may append to the file."""
        current = current_decisions(read_decisions(path))
        return {indexes[key]: row[reviewer] for key, row in current.items() if key in indexes and reviewer in row}

    @lru_cache(maxsize=OPEN_IMAGES)
    def open_image(image_id: str) -> MedicalImage:
        return open_medical(session.data.image(image_id).bytes)

    async def get_page(request: Request) -> Response:
        return static_file(files, "review.html", {"Content-Security-Policy": POLICY})

    async def get_file(request: Request) -> Response:
        return static_file(files, request.path_params["name"])

    async def get_samples(request: Request) -> Response:
        reviewer = request.state.owner
        decisions = reviewer_decisions(reviewer)
        return JSONResponse(
            {
                "dataset": session.data.path.resolve().name,
                "reviewer": reviewer,
                "decisions": [
                    decisions[index].decision if index in decisions else None for index in range(len(session.samples))
                ],
            }
        )

    async def get_sample(request: Request) -> Response:
        index = int(request.path_params["index"])
        if index >= len(session.samples):
            raise BadRequest(f"there is no sample {index}")
        decision = reviewer_decisions(request.state.owner).get(index)
        fields = ("decision", "reason", "texts")
        previous = {name: getattr(decision, name) for name in fields} if decision else None
        return JSONResponse(to_page_json(session, index) | {"previous": previous})

    def image_of(request: Request) -> MedicalImage:
        image_id = request.path_params["image_id"]
        if image_id not in image_ids:
            raise ApiError(404, "no such image")
        return open_image(image_id)

    async def get_image_info(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(lambda: describe(image_of(request))))

    async def get_image_pixels(request: Request) -> Response:
        options = dict(request.query_params)
        side = view_side(options)
        body, headers = await asyncio.to_thread(lambda: view_pixels(select_frame(image_of(request), options), side))
        headers |= {"Content-Encoding": "gzip", "Cache-Control": "private, max-age=3600, immutable"}
        return Response(gzip.compress(body, 1), media_type="application/octet-stream", headers=headers)

    async def post_decision(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise BadRequest("expected application/json")  # a form of another site cannot send it
        decision = parse_decision_request(parse_object(await request.body()), session, request.state.owner)
        try:
            add_decision(path, decision)
        except OSError as error:
            message = f"{error.filename or 'the decision'}: {error.strerror}; nothing was saved"
            raise ApiError(500, message) from None
        return JSONResponse({"saved": decision.decision})

    routes: list[tuple[str, str, Handler]] = [
        ("GET", "/", get_page),
        ("GET", "/static/{name}", get_file),
        ("GET", "/samples", get_samples),
        ("GET", "/samples/{index:int}", get_sample),
        ("GET", "/images/{image_id}/info", get_image_info),
        ("GET", "/images/{image_id}/pixels", get_image_pixels),
        ("POST", "/decide", post_decision),
    ]
    return Starlette(
        routes=[Route(path, answer_errors(handler), methods=[method]) for method, path, handler in routes],
        middleware=[Middleware(SecurityMiddleware, access=access)],
        exception_handlers={HTTPException: http_error},
    )


def parse_decision_request(body: Mapping[str, Any], session: ReviewSession, reviewer: str) -> Decision:
    """A request as a decision about a sample of the session, as it was shown. Raises BadRequest."""
    index, name, reason = body.get("index"), body.get("decision"), body.get("reason") or ""
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(session.samples):
        raise BadRequest(f"there is no sample {index!r}")
    sample = session.samples[index]
    if body.get("hash") != sample_hash(sample):
        raise BadRequest("the sample differs from the one that was shown; reload the page")
    if name not in (*DECISIONS, "undo"):
        raise BadRequest(f"decision is {name!r}; expected accept, fix, reject or undo")
    if not isinstance(reason, str):
        raise BadRequest(f"reason is {reason!r}; expected a text")
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    decision = Decision(sample.sample_id, sample_hash(sample), name, reviewer, now, reason.strip()[:MAX_REASON_LENGTH])
    return replace(decision, texts=parse_fix(sample, body.get("texts"))) if name == "fix" else decision


def parse_fix(sample: Sample, texts: Any) -> dict[str, str]:
    """The changed texts of a fix. Raises BadRequest unless the sample with them is valid."""
    fields = text_fields(sample)
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise BadRequest("a fix needs its texts")
    unknown = [field for field in texts if field not in fields]
    if unknown:
        raise BadRequest(f"the sample has no text {unknown[0]!r}")
    changed = {field: text.strip() for field, text in texts.items() if text.strip() != fields[field]}
    if not changed:
        raise BadRequest("nothing was changed: accept the sample, or change a text")
    if not all(changed.values()):
        raise BadRequest("a text is empty: reject the sample instead")
    fixed = with_texts(sample, changed)
    if len(set(fixed.choices)) < len(fixed.choices):
        raise BadRequest("two options are the same")
    if problem := sample_problem(fixed):
        raise BadRequest(problem)
    return changed
