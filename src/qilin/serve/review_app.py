"""The review page's service: five addresses, each behind the token; it reads the drawn samples and adds decisions.

In: a Review, the file of decisions, a reviewer, a token. Out: a Starlette application. No path of a request ever
becomes a path of the disk: images are asked for by id, and only those of the drawn samples are given.
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
from qilin.pipeline.review.decisions import KINDS, Decision, add_decision, sample_hash, latest, read_decisions
from qilin.pipeline.review.sampling import Review, shown

PAGE = Path(__file__).with_name("review.html")
LONGEST = 1 << 20  # bytes of a request
Answer = Callable[[Request], Awaitable[Response]]


class Bad(Exception):
    """A request that cannot be done, in words for the page."""


def review_app(review: Review, decisions: Path, reviewer: str, token: str) -> Starlette:
    """The application: GET /, /rows, /rows/N, /images/ID and POST /decide."""
    numbers = {(sample.sample_id, sample_hash(sample)): n for n, sample in enumerate(review.samples)}
    images = {image_id for sample in review.samples for image_id in sample.image_ids}

    def own() -> dict[int, Decision]:
        """What this reviewer has decided, by the row's number; read anew, for others may write to the file too."""
        held = latest(read_decisions(decisions))
        return {numbers[key]: found[reviewer] for key, found in held.items() if key in numbers and reviewer in found}

    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        html = PAGE.read_text(encoding="utf-8").replace("{{nonce}}", nonce)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    async def rows(request: Request) -> Response:
        made = own()
        return JSONResponse(
            {
                "dataset": review.data.path.resolve().name,
                "reviewer": reviewer,
                "rows": [made[n].decision if n in made else None for n in range(len(review.samples))],
            }
        )

    async def row(request: Request) -> Response:
        n = int(request.path_params["n"])
        if n >= len(review.samples):
            raise Bad(f"there is no row {n}")
        made = own().get(n)
        said = {"decision": made.decision, "reason": made.reason, "texts": made.texts} if made else None
        return JSONResponse(shown(review, n) | {"made_before": said})

    async def image(request: Request) -> Response:
        image_id = request.path_params["image_id"]
        if image_id not in images:
            return Response("no such image", 404)
        found = review.data.image(image_id)
        kept = {"Cache-Control": "private, max-age=86400, immutable"}  # an id is the hash of its bytes
        return Response(found.bytes, media_type=f"image/{found.format.lower()}", headers=kept)

    async def decide(request: Request) -> Response:
        made = decision_from(await body_of(request), review, reviewer)
        add_decision(decisions, made)
        return JSONResponse({"kept": made.decision})

    routes = [
        Route("/", guarded(page, token)),
        Route("/rows", guarded(rows, token)),
        Route("/rows/{n:int}", guarded(row, token)),
        Route("/images/{image_id}", guarded(image, token)),
        Route("/decide", guarded(decide, token), methods=["POST"]),
    ]
    return Starlette(routes=routes)


def guarded(answer: Answer, token: str) -> Answer:
    """The answer for whoever knows the token, in the address or in a header; what cannot be done comes as words."""

    async def checked(request: Request) -> Response:
        given = request.headers.get("x-token") or request.query_params.get("token") or ""
        if not secrets.compare_digest(given.encode(), token.encode()):
            response: Response = Response("the address lacks its token; use the one that was printed", 403)
        else:
            try:
                response = await answer(request)
            except Bad as error:
                response = JSONResponse({"error": str(error)}, 400)
            except OSError as error:
                words = f"{error.filename or 'the decision'}: {error.strerror}; nothing was kept"
                response = JSONResponse({"error": words}, 500)
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"  # the token stands in the address
        return response

    return checked


async def body_of(request: Request) -> Mapping[str, Any]:
    """A request's JSON object; another site's form cannot send one."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Bad("expected application/json")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > LONGEST:
            raise Bad(f"the request is longer than {LONGEST:,} bytes")
    try:
        found = json.loads(data)
    except ValueError:
        raise Bad("the request is not JSON") from None
    if not isinstance(found, dict):
        raise Bad("expected an object")
    return found


def decision_from(asked: Mapping[str, Any], review: Review, reviewer: str) -> Decision:
    """A request as a decision about a row that was shown, as it was shown. Raises Bad."""
    n, kind, reason = asked.get("n"), asked.get("decision"), asked.get("reason") or ""
    if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < len(review.samples):
        raise Bad(f"there is no row {n!r}")
    sample = review.samples[n]
    if asked.get("row") != sample_hash(sample):
        raise Bad("the row is not the one that was shown; reload the page")
    if kind not in (*KINDS, "undo") or not isinstance(reason, str):
        raise Bad(f"decision is {kind!r}; expected accept, fix, reject or undo")
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    made = Decision(sample.sample_id, sample_hash(sample), kind, reviewer, now, reason.strip()[:500])
    return replace(made, texts=fixed_texts(sample, asked.get("texts"))) if kind == "fix" else made


def fixed_texts(sample: Sample, given: Any) -> dict[str, str]:
    """The texts of a fix that are new; the sample with them must still be sound."""
    parts = text_fields(sample)
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise Bad("a fix needs its texts")
    unknown = [place for place in given if place not in parts]
    if unknown:
        raise Bad(f"there is no text {unknown[0]!r} in this row")
    made = {place: text.strip() for place, text in given.items() if text.strip() != parts[place]}
    if not made:
        raise Bad("nothing was changed: accept it, or change its text")
    if not all(made.values()):
        raise Bad("a text would be empty: reject the row")
    new = with_texts(sample, made)
    if len(set(new.choices)) < len(new.choices):
        raise Bad("two options would be the same")
    if problem := sample_problem(new):
        raise Bad(problem)
    return made
