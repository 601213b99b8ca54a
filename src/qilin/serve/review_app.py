"""The web service of the review page: five routes, each behind the token.

In: a ReviewSession, the file of decisions, the reviewer's name, a token. Out: a Starlette application. No part of a
request becomes a file path: images are requested by id, and only those of the session's samples are served.
"""

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from qilin.dataset.sample_texts import text_fields, with_texts
from qilin.dataset.schema import Sample, sample_problem
from qilin.pipeline.review.decisions import (
    DECISIONS,
    Decision,
    add_decision,
    current_decisions,
    read_decisions,
    sample_hash,
)
from qilin.pipeline.review.sampling import ReviewSession, to_page_json

PAGE = Path(__file__).with_name("review.html")
MAX_REQUEST_BYTES = 1 << 20
MAX_REASON_LENGTH = 500  # characters
Handler = Callable[[Request], Awaitable[Response]]


class BadRequest(Exception):
    """A request that cannot be executed; the page shows the message."""


def review_app(session: ReviewSession, path: Path, reviewer: str, token: str) -> Starlette:
    """The application: GET /, /samples, /samples/INDEX, /images/ID and POST /decide."""
    indexes = {(sample.sample_id, sample_hash(sample)): index for index, sample in enumerate(session.samples)}
    image_ids = {image_id for sample in session.samples for image_id in sample.image_ids}

    def reviewer_decisions() -> dict[int, Decision]:
        """This reviewer's decisions by sample index; read on every request, because others may append to the file."""
        current = current_decisions(read_decisions(path))
        return {indexes[key]: row[reviewer] for key, row in current.items() if key in indexes and reviewer in row}

    async def get_page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        html = PAGE.read_text(encoding="utf-8").replace("{{nonce}}", nonce)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    async def get_samples(request: Request) -> Response:
        decisions = reviewer_decisions()
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
        decision = reviewer_decisions().get(index)
        fields = ("decision", "reason", "texts")
        previous = {name: getattr(decision, name) for name in fields} if decision else None
        return JSONResponse(to_page_json(session, index) | {"previous": previous})

    async def get_image(request: Request) -> Response:
        image_id = request.path_params["image_id"]
        if image_id not in image_ids:
            return Response("no such image", 404)
        image = session.data.image(image_id)
        caching = {"Cache-Control": "private, max-age=86400, immutable"}  # the id is the hash of the bytes
        return Response(image.bytes, media_type=f"image/{image.format.lower()}", headers=caching)

    async def post_decision(request: Request) -> Response:
        decision = parse_decision_request(await read_json_body(request), session, reviewer)
        add_decision(path, decision)
        return JSONResponse({"saved": decision.decision})

    routes = [
        Route("/", require_token(get_page, token)),
        Route("/samples", require_token(get_samples, token)),
        Route("/samples/{index:int}", require_token(get_sample, token)),
        Route("/images/{image_id}", require_token(get_image, token)),
        Route("/decide", require_token(post_decision, token), methods=["POST"]),
    ]
    return Starlette(routes=routes)


def require_token(handler: Handler, token: str) -> Handler:
    """The handler for requests with the token, in the address or in a header; errors become JSON with a message."""

    async def handle(request: Request) -> Response:
        request_token = request.headers.get("x-token") or request.query_params.get("token") or ""
        if not secrets.compare_digest(request_token.encode(), token.encode()):
            response: Response = Response("the token is missing or wrong; use the address that was printed", 403)
        else:
            try:
                response = await handler(request)
            except BadRequest as error:
                response = JSONResponse({"error": str(error)}, 400)
            except OSError as error:
                message = f"{error.filename or 'the decision'}: {error.strerror}; nothing was saved"
                response = JSONResponse({"error": message}, 500)
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"  # the address contains the token
        return response

    return handle


async def read_json_body(request: Request) -> Mapping[str, Any]:
    """The JSON object of a request. A form of another site cannot send one. Raises BadRequest."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise BadRequest("expected application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_REQUEST_BYTES:
            raise BadRequest(f"the request is longer than {MAX_REQUEST_BYTES:,} bytes")
    try:
        value = json.loads(body)
    except ValueError:
        raise BadRequest("the request is not valid JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("expected a JSON object")
    return value


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
