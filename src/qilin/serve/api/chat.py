"""POST /v1/chat/completions: one request, its answers, plain or streamed.

In: a checked body. Out: OpenAI's response objects, with two additions for each choice: `confidence` (the geometric mean
of its tokens' probabilities) and `qilin` (qilin.serve.safeguards). When the client disconnects, its answers stop at the
next token.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from qilin.core.errors import UserError
from qilin.model.generate import Request
from qilin.serve.api.answers import AnswerEvent, Answers, Passage
from qilin.serve.api.audit import PromptHashes, token_hash
from qilin.serve.api.chat_schema import ChatBody
from qilin.serve.api.content import DecodedImages, ImageSources, last_question, read_content
from qilin.serve.api.errors import ApiError
from qilin.serve.api.image_store import ImageStore
from qilin.serve.api.remote_images import RemoteImages
from qilin.serve.api.upstream import Upstream
from qilin.serve.api.upstream_chat import start_upstream_answers
from qilin.serve.engine.engine import (
    Engine,
    Event,
    Finish,
    GenerationRequest,
    Increment,
    Job,
    QueueFull,
    max_answer_tokens,
)
from qilin.serve.engine.prompt import prepare_prompt
from qilin.serve.engine.sampling import SamplingSettings
from qilin.serve.safeguards import CheckedQuestion, Safeguards

KEEP_ALIVE = 10.0  # seconds without a token after which a stream sends a comment, so that proxies keep it open
CLIENT_GONE = 499  # nginx's status for a client that closed the connection
CONTENT_FILTER = "content_filter"  # OpenAI's finish reason where a rule refuses
MAX_IMAGES = 16


@dataclass(frozen=True)
class ChatService:
    """What a chat request needs: our engine or an upstream server, the model's name, and where images may come from."""

    engine: Engine | Upstream
    model_name: str
    remote: RemoteImages = RemoteImages()
    store: ImageStore = field(default_factory=ImageStore)
    safeguards: Safeguards = Safeguards()
    decoded: DecodedImages = field(default_factory=DecodedImages)

    def sources(self, owner: str) -> ImageSources:
        return ImageSources(self.remote, self.store, owner, self.decoded)

    @property
    def can_map(self) -> bool:
        """Whether occlusion maps can be computed: a given answer must be scored, which no upstream server does."""
        return not isinstance(self.engine, Upstream)

    @property
    def local_engine(self) -> Engine:
        """Our engine. Raises ApiError 501 where an upstream server answers."""
        if isinstance(self.engine, Upstream):
            raise ApiError(501, "an upstream server answers here, and gives no log probabilities of a given answer")
        return self.engine


async def chat_completions(
    http: HttpRequest, service: ChatService, body: ChatBody, passed: Mapping[str, Any], owner: str
) -> Response:
    """Answer one request; `passed` fields go to an upstream server. Raises ApiError."""
    if body.model != service.model_name:
        raise ApiError(404, f"model: there is no model {body.model!r}; this server has {service.model_name!r}", "model")
    try:
        request, facts = await asyncio.to_thread(read_content, body.messages, service.sources(owner), MAX_IMAGES)
    except UserError as error:
        raise ApiError(400, str(error), "messages") from None
    checked = await service.safeguards.check_question(last_question(request), request.images, facts, owner)
    if checked.refusal:
        answers = refused_answers(checked.refusal, body.n or 1)
    else:
        answers = await start_answers(service, request, body, passed, owner)
    http.state.hashes = answers.hashes
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.model_name}
    if body.stream:
        await wait_for_start(http, answers)
        chunks = stream_chunks(http, service, body, answers, checked, head)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would collect the chunks
        return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)
    return await whole_response(http, service, body, answers, checked, head)


def refused_answers(text: str, count: int) -> Answers:
    """Answers that the site's rules give instead of the model."""
    queue, started = asyncio.Queue[tuple[int, AnswerEvent]](), asyncio.Event()
    for index in range(count):
        queue.put_nowait((index, Finish(CONTENT_FILTER, text)))
    started.set()
    return Answers(PromptHashes(token_hash([]), ()), count, queue, started, lambda: None)


async def start_answers(
    service: ChatService, request: Request, body: ChatBody, passed: Mapping[str, Any], owner: str
) -> Answers:
    """Tokenize and queue. Raises ApiError."""
    if isinstance(service.engine, Upstream):
        return await start_upstream_answers(service.engine, request, body, passed, owner)
    engine = service.engine
    try:
        prompt = await asyncio.to_thread(prepare_prompt, engine.loaded, request)
    except UserError as error:
        raise ApiError(400, str(error), "messages") from None
    max_tokens = max_answer_tokens(engine, prompt, body.max_completion_tokens or body.max_tokens)
    if max_tokens < 1:
        limit = min(engine.context or engine.max_batch_tokens, engine.max_batch_tokens)
        raise ApiError(400, f"messages: {len(prompt.ids)} tokens, images included; the limit is {limit}", "messages")
    generation = GenerationRequest(prompt, max_tokens, sampling_settings(body), stop_strings(body), owner)
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, AnswerEvent]]()
    jobs: list[Job] = []

    def cancel() -> None:
        for job in jobs:
            job.cancel()

    for index in range(body.n or 1):

        def receive(event: Event, index: int = index) -> None:
            queue.put_nowait((index, event))

        seed = None if body.seed is None else body.seed + index
        settings = replace(generation.sampling, seed=seed)
        try:
            jobs.append(engine.submit(replace(generation, sampling=settings), receive, loop))
        except QueueFull as error:
            cancel()
            raise ApiError(429, str(error), retry_after=error.retry_after) from None
    started = asyncio.Event()
    started.set()
    return Answers(PromptHashes(token_hash(prompt.ids), prompt.image_hashes), len(jobs), queue, started, cancel)


async def wait_for_start(http: HttpRequest, answers: Answers) -> None:
    """Wait until a request is known not to be refused, so that a refusal has its own status and is no event of a
    stream. Raises ApiError. After KEEP_ALIVE seconds the stream starts nevertheless."""
    if answers.started.is_set():
        return
    started = asyncio.ensure_future(answers.started.wait())
    disconnect = asyncio.ensure_future(wait_for_disconnect(http))
    try:
        await asyncio.wait((started, disconnect), timeout=KEEP_ALIVE, return_when=asyncio.FIRST_COMPLETED)
        if disconnect.done():
            answers.cancel()
            raise ClientDisconnect
    except asyncio.CancelledError:
        answers.cancel()
        raise
    finally:
        started.cancel()
        disconnect.cancel()
        await asyncio.gather(started, disconnect, return_exceptions=True)
    events = [answers.queue.get_nowait() for _ in range(answers.queue.qsize())]
    for row in events:
        answers.queue.put_nowait(row)
    if events and isinstance(events[0][1], ApiError):
        raise events[0][1]


def sampling_settings(body: ChatBody) -> SamplingSettings:
    return SamplingSettings(
        temperature=body.temperature or 0.0,
        top_p=body.top_p or 1.0,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else 0,
    )


def stop_strings(body: ChatBody) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


async def whole_response(
    http: HttpRequest,
    service: ChatService,
    body: ChatBody,
    answers: Answers,
    checked: CheckedQuestion,
    head: dict[str, Any],
) -> Response:
    """All choices in one JSON object. A client that disconnects stops them."""
    collecting = asyncio.ensure_future(collect(service, answers, bool(body.logprobs)))
    disconnect = asyncio.ensure_future(wait_for_disconnect(http))
    try:
        await asyncio.wait((collecting, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=CLIENT_GONE)
        texts, logprobs, finishes = collecting.result()
    finally:
        answers.cancel()
        collecting.cancel()
        disconnect.cancel()
        await asyncio.gather(collecting, disconnect, return_exceptions=True)
    choices = []
    for index, finish in enumerate(finishes):
        check_finish(finish)
        answer = await service.safeguards.check_answer(checked, texts[index], greedy_confidence(body, finish))
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": checked.prefix + answer.text, "refusal": None},
            "finish_reason": CONTENT_FILTER if answer.refused else finish.reason,
            "logprobs": {"content": logprobs[index], "refusal": None} if body.logprobs and not answer.refused else None,
            "confidence": None if answer.refused else finish.confidence,
            "qilin": answer.info,
        }
        choices.append(choice)
    http.state.finishes = finishes
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage(finishes)})


async def collect(
    service: ChatService, answers: Answers, with_logprobs: bool
) -> tuple[list[str], list[list[dict[str, Any]]], list[Finish]]:
    """(texts, log probabilities, last events) of all choices. Raises ApiError."""
    texts, finishes = [""] * answers.count, dict[int, Finish]()
    logprobs = [list[dict[str, Any]]() for _ in range(answers.count)]
    while len(finishes) < answers.count:
        index, event = await answers.queue.get()
        if isinstance(event, ApiError):
            raise event
        texts[index] += event.text
        if isinstance(event, Finish):
            finishes[index] = event
        elif with_logprobs:
            logprobs[index] += logprob_entries(service, event)
    return texts, logprobs, [finishes[index] for index in range(answers.count)]


async def wait_for_disconnect(http: HttpRequest) -> None:
    """Return when the client closes the connection. The body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def check_finish(finish: Finish) -> None:
    """Raise ApiError for an answer that failed or that the server's shutdown ended."""
    if finish.reason == "error":
        raise ApiError(500, finish.error or "the model failed")
    if finish.reason == "cancelled":
        raise ApiError(503, "the server is shutting down")


async def stream_chunks(
    http: HttpRequest,
    service: ChatService,
    body: ChatBody,
    answers: Answers,
    checked: CheckedQuestion,
    head: dict[str, Any],
) -> AsyncIterator[str]:
    """Server-sent events: a chunk with the role, one for each piece of text, one with the finish reason, [DONE].

    Where a rule of the site may refuse a finished answer, its text comes in one piece at the end.
    """
    head = {**head, "object": "chat.completion.chunk"}
    finishes: dict[int, Finish] = {}
    texts, entries = [""] * answers.count, [list[dict[str, Any]]() for _ in range(answers.count)]
    holds = service.safeguards.policy.holds_answers
    last_sent = time.monotonic()
    http.state.finishes = []
    try:
        for index in range(answers.count):
            yield chunk(head, index, {"role": "assistant", "content": checked.prefix})
        while len(finishes) < answers.count:
            try:
                async with asyncio.timeout(KEEP_ALIVE):  # wait_for would make a task of each token
                    index, event = await answers.queue.get()
            except TimeoutError:
                yield ": waiting\n\n"
                continue
            if isinstance(event, ApiError):
                raise event
            texts[index] += event.text
            if not isinstance(event, Finish):
                new_entries = logprob_entries(service, event) if body.logprobs else []
                if holds:
                    entries[index] += new_entries
                    if time.monotonic() - last_sent > KEEP_ALIVE:
                        last_sent = time.monotonic()
                        yield ": waiting\n\n"
                elif event.text or body.logprobs:
                    yield text_chunk(head, index, body, event.text, new_entries)
                continue
            finishes[index] = event
            http.state.finishes.append(event)
            check_finish(event)
            answer = await service.safeguards.check_answer(checked, texts[index], greedy_confidence(body, event))
            if holds:
                yield text_chunk(head, index, body, answer.text, [] if answer.refused else entries[index])
            elif event.text:
                yield chunk(head, index, {"content": event.text})
            confidence = None if answer.refused else event.confidence
            reason = CONTENT_FILTER if answer.refused else event.reason
            yield chunk(head, index, {}, finish_reason=reason, confidence=confidence, qilin=answer.info)
        if body.stream_options and body.stream_options.include_usage:
            yield f"data: {to_json({**head, 'choices': [], 'usage': usage(list(finishes.values()))})}\n\n"
        yield "data: [DONE]\n\n"
    except ApiError as error:  # the status is sent; the clients read an error event
        yield f"data: {to_json(error.body())}\n\n"
    finally:
        answers.cancel()


def greedy_confidence(body: ChatBody, finish: Finish) -> float | None:
    """The confidence of an answer; None for a sampled one, to which the evaluation's calibration does not apply."""
    return None if body.temperature else finish.confidence


def text_chunk(head: dict[str, Any], index: int, body: ChatBody, text: str, entries: list[dict[str, Any]]) -> str:
    """A piece of an answer, with its log probabilities if the request asks for them."""
    logprobs = {"content": entries, "refusal": None} if body.logprobs else None
    return chunk(head, index, {"content": text}, logprobs=logprobs)


def chunk(head: dict[str, Any], index: int, delta: dict[str, str], **fields: Any) -> str:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **fields}
    return f"data: {to_json({**head, 'choices': [choice]})}\n\n"


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def usage(finishes: Sequence[Finish]) -> dict[str, Any]:
    """Token counts: the prompt once, the answers together."""
    completion = sum(finish.completion_tokens for finish in finishes)
    return {
        "prompt_tokens": finishes[0].prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": finishes[0].prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": finishes[0].cached_tokens},
    }


def logprob_entries(service: ChatService, event: Increment | Passage) -> list[dict[str, Any]]:
    """The log probabilities of an event's tokens as OpenAI writes them."""
    if isinstance(event, Passage):
        return event.logprobs
    tokenizer = service.local_engine.loaded.processor.tokenizer

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}

    token = event.token
    return [{**entry(token.id, token.logprob), "top_logprobs": [entry(*pair) for pair in token.alternatives]}]
