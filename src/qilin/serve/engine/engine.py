"""Answers many requests at once on one model: continuous batching over the stock model's forward.

In: prompts with sampling settings and an owner. Out: events, passed to each request's callback. One thread owns the
model. In every turn it runs one piece of one waiting prompt, then one decoding pass that adds a token to all running
rows; rows join when their prompt is done and leave when their answer is.

Owners take turns, so that one client's queue does not delay another's first request.
"""

import asyncio
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from qilin.core.errors import QilinError
from qilin.model.generate import eos_token_ids
from qilin.model.llava import LoadedModel
from qilin.serve.engine.limits import EngineLimits, token_bytes
from qilin.serve.engine.prefill import Prefill, Prefiller, has_rope_deltas, score_answer
from qilin.serve.engine.prompt import Prompt
from qilin.serve.engine.rows import RowBatch, can_batch
from qilin.serve.engine.sampling import ChosenToken, SamplingSettings, choose_tokens, make_generator
from qilin.serve.engine.text_stream import TextStream

log = logging.getLogger(__name__)


class QueueFull(QilinError):
    """The queue is full; `retry_after` is an estimate in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the server is busy; try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Increment:
    """What one token adds to an answer; the text may be empty."""

    text: str
    token: ChosenToken


@dataclass(frozen=True)
class Finish:
    """The end of an answer. `reason`: stop, length, cancelled or error.

    `text` is what was held back; `confidence` the geometric mean of the tokens' probabilities; `logprobs` those of a
    given answer, for a scoring request.
    """

    reason: str
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    confidence: float | None = None
    logprobs: tuple[float, ...] = ()
    error: str | None = None


Event = Increment | Finish


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to generate, or, with `answer_ids` (the last tokens of the prompt), one answer to score."""

    prompt: Prompt
    max_tokens: int
    sampling: SamplingSettings = SamplingSettings()
    stop: tuple[str, ...] = ()
    owner: str = ""
    answer_ids: tuple[int, ...] = ()


@dataclass(eq=False)
class Job:
    """A request on its way. `cancel()` may be called from any thread; the callback runs in the loop, or without one in
    the engine's thread."""

    request: GenerationRequest
    callback: Callable[[Event], None]
    loop: asyncio.AbstractEventLoop | None
    stream: TextStream
    generator: torch.Generator | None
    submitted: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    prefill: Prefill | None = None
    tokens: list[ChosenToken] = field(default_factory=list)

    def cancel(self) -> None:
        """Stop the answer at the next token and free its memory."""
        self.cancelled = True

    def deliver(self, event: Event) -> None:
        """Pass an event on. A receiver that fails, because it is gone, loses its own answer only."""
        try:
            self.callback(event)
        except Exception:
            self.cancelled = True

    @property
    def total_tokens(self) -> int:
        """The row's length if the answer reaches its limit."""
        return len(self.request.prompt.ids) + self.request.max_tokens


@dataclass
class EngineCounts:
    """What the engine did since its start, for /metrics."""

    requests: int = 0
    rejected: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0  # from submission to the end, all requests together
    first_token_seconds: float = 0.0  # from submission to the first token


class Engine:
    """The scheduler. Create, `start()`, `submit()` from any thread, `close()`."""

    def __init__(self, loaded: LoadedModel, limits: EngineLimits) -> None:
        self.loaded, self.model, self.limits = loaded, loaded.model, limits
        self.prefiller = Prefiller(loaded, limits.image_cache_bytes, limits.prefix_cache_bytes, limits.prefill_tokens)
        self.eos_ids = eos_token_ids(loaded.model)
        self.context: int | None = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
        self.max_batch_tokens = max(1, limits.kv_bytes // token_bytes(loaded.model))
        self.counts = EngineCounts()
        self.condition = threading.Condition()
        self.waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # owner -> its jobs
        self.closing = False
        self.prefilling: Job | None = None
        self.running: list[Job] = []  # the rows of `batch`, in its order
        self.batch = RowBatch(self.max_batch_tokens)
        self.alone: list[Job] = []  # rows whose caches cannot be joined: each has its own passes
        self.deliveries: list[tuple[Job, Event]] = []  # events of this turn that an event loop is to get
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    # called from other threads

    def start(self) -> None:
        self.thread.start()

    def submit(
        self,
        request: GenerationRequest,
        callback: Callable[[Event], None],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> Job:
        """Queue a request. The callback gets its events, the last one a Finish; it must not block.

        It runs in `loop`, which the events of all its requests wake up once per token; waking it for each of them would
        keep the model waiting for Python's lock. Without a loop it runs in the engine's thread. Raises QueueFull.
        """
        stream = TextStream(self.loaded.processor.tokenizer, request.stop)
        job = Job(request, callback, loop, stream, make_generator(request.sampling))
        with self.condition:
            if self.closing or self.queue_length() >= self.limits.max_waiting:
                self.counts.rejected += 1
                raise QueueFull(self.retry_after())
            self.waiting.setdefault(request.owner, deque()).append(job)
            self.counts.requests += 1
            self.condition.notify()
        return job

    def queue_length(self) -> int:
        """Requests that wait for their first forward pass."""
        with self.condition:
            return sum(map(len, self.waiting.values()))

    def active(self) -> int:
        """Requests that are being answered."""
        return len(self.running) + len(self.alone) + (self.prefilling is not None)

    def retry_after(self) -> int:
        """Seconds until a place in the queue is likely free: the mean time of an answer."""
        ended = self.counts.requests - self.queue_length() - self.active()
        return max(1, min(60, math.ceil(self.counts.seconds / ended))) if ended > 0 else 1

    def close(self, timeout: float = 30.0) -> None:
        """Refuse new requests, finish those that run, end the rest after `timeout` seconds."""
        with self.condition:
            self.closing = True
            self.condition.notify()
        self.thread.join(timeout)
        if self.thread.is_alive():
            for job in [*self.jobs()]:
                job.cancel()
            self.thread.join(timeout)

    # called from the engine's thread

    def jobs(self) -> list[Job]:
        with self.condition:  # other threads submit meanwhile
            waiting = [job for jobs in self.waiting.values() for job in jobs]
        return [*waiting, *([self.prefilling] if self.prefilling else []), *self.running, *self.alone]

    @torch.inference_mode()
    def run(self) -> None:
        """Work until `close`."""
        while True:
            with self.condition:
                while not (self.closing or self.waiting or self.active()):
                    self.condition.wait()
                if self.closing and not self.jobs():
                    return
            self.turn()

    def turn(self) -> None:
        """One piece of a prompt and one token for each running row."""
        self.drop_cancelled()
        if self.prefilling is None:
            self.prefilling = self.next_job()
        if self.prefilling is not None:
            self.guarded([self.prefilling], self.advance_prefill)
            self.flush()
        if self.running:
            self.guarded(self.running, self.decode_batch)
        for job in list(self.alone):
            self.guarded([job], partial(self.decode_alone, job))
        self.flush()

    def deliver(self, job: Job, event: Event) -> None:
        """Pass an event on, at once or with those of other requests."""
        if job.loop is None:
            job.deliver(event)
        else:
            self.deliveries.append((job, event))

    def flush(self) -> None:
        """Wake the event loops up once for all events that wait for them."""
        deliveries, self.deliveries = self.deliveries, []
        for loop in {job.loop for job, _ in deliveries}:
            assert loop is not None
            rows = [(job, event) for job, event in deliveries if job.loop is loop]
            try:
                loop.call_soon_threadsafe(deliver_all, rows)
            except RuntimeError:  # the loop has ended
                for job, _ in rows:
                    job.cancel()

    def guarded(self, jobs: Sequence[Job], action: Callable[[], None]) -> None:
        """Run an action; an exception ends these jobs and nothing else."""
        jobs = list(jobs)
        try:
            action()
        except Exception as error:  # any failure of a forward pass: the server must outlive it
            log.exception("a forward pass failed")
            self.counts.failed += len(jobs)
            if isinstance(error, torch.OutOfMemoryError | MemoryError):
                self.prefiller.clear()
            message = "the model ran out of memory" if isinstance(error, MemoryError) else "the model failed"
            self.remove([(job, Finish("error", error=message)) for job in jobs])

    def drop_cancelled(self) -> None:
        cancelled = [job for job in self.jobs() if job.cancelled]
        if cancelled:
            self.counts.cancelled += len(cancelled)
            self.remove([(job, Finish("cancelled")) for job in cancelled])

    def next_job(self) -> Job | None:
        """The next owner's first request, if its row fits beside the running ones."""
        with self.condition:
            if not self.waiting or self.active() >= self.limits.max_rows:
                return None
            owner = next(iter(self.waiting))
            longest = max(job.total_tokens for job in [*self.running, *self.alone, self.waiting[owner][0]])
            if self.active() and longest * (self.active() + 1) > self.max_batch_tokens:
                return None
            job = self.waiting[owner].popleft()
            self.waiting.move_to_end(owner)
            if not self.waiting[owner]:
                del self.waiting[owner]
            return job

    def advance_prefill(self) -> None:
        """The next piece of the current prompt; after the last one, its first token."""
        job = self.prefilling
        assert job is not None
        keep = len(job.request.answer_ids) + 1
        if job.prefill is None:
            job.prefill = self.prefiller.start(job.request.prompt, job.request.owner, keep)
        self.prefiller.advance(job.prefill, keep)
        if not job.prefill.done:
            return
        assert job.prefill.logits is not None
        logits, job.prefill.logits, job.prefill.features = job.prefill.logits, None, None
        if job.request.answer_ids:
            logprobs = tuple(score_answer(logits, job.request.answer_ids))
            self.remove([(job, self.finish(job, "stop", logprobs))])
            return
        self.prefilling = None
        self.counts.first_token_seconds += time.monotonic() - job.submitted
        if can_batch(job.prefill.cache):
            self.batch.join(job.prefill.cache)
            self.running.append(job)
            job.prefill.cache = DynamicCache()  # its keys and values are in the batch now
        else:
            self.alone.append(job)
        self.add_tokens([job], logits[-1:])

    def decode_batch(self) -> None:
        """One forward pass that adds a token to each running row."""
        self.batch.reserve()
        ids = torch.tensor([[job.tokens[-1].id] for job in self.running], device=self.model.device)
        lengths = torch.tensor(self.batch.lengths, device=self.model.device)[:, None]  # (B, 1)
        output = self.model(
            input_ids=ids,
            past_key_values=self.batch.cache,
            attention_mask=self.batch.attention_mask(self.model.device),
            position_ids=self.positions(lengths, self.running),
            use_cache=True,
        )
        self.batch.advance()
        self.add_tokens(list(self.running), output.logits[:, -1])

    def decode_alone(self, job: Job) -> None:
        """One forward pass for a row that cannot be batched."""
        assert job.prefill is not None
        length = len(job.request.prompt.ids) + len(job.tokens) - 1
        output = self.model(
            input_ids=torch.tensor([[job.tokens[-1].id]], device=self.model.device),
            past_key_values=job.prefill.cache,
            position_ids=self.positions(torch.tensor([[length]], device=self.model.device), [job]),
            use_cache=True,
        )
        self.add_tokens([job], output.logits[:, -1])

    def positions(self, lengths: torch.Tensor, jobs: Sequence[Job]) -> torch.Tensor:
        """Positions of the rows' new tokens: (B, 1), or (3, B, 1) for a model with three position axes (M-RoPE)."""
        offsets = [job.prefill.position_offset for job in jobs if job.prefill is not None]
        positions = lengths + torch.tensor(offsets, device=lengths.device)[:, None]
        return positions.expand(3, *positions.shape) if has_rope_deltas(self.model) else positions

    def add_tokens(self, jobs: Sequence[Job], logits: torch.Tensor) -> None:
        """Choose a token for each job from (B, V) logits, report it, and let finished rows leave."""
        tokens = choose_tokens(logits, [job.request.sampling for job in jobs], [job.generator for job in jobs])
        finished = []
        for job, token in zip(jobs, tokens, strict=True):
            if not math.isfinite(token.logprob):  # NaN logits: a token chosen from them would be noise
                self.counts.failed += 1
                finished.append((job, Finish("error", error="the model's logits are not finite")))
                continue
            job.tokens.append(token)
            if token.id in self.eos_ids:
                finished.append((job, self.finish(job, "stop")))
                continue
            text = job.stream.push(token.id)
            self.deliver(job, Increment(text, token))
            if job.stream.stopped:
                finished.append((job, self.finish(job, "stop")))
            elif len(job.tokens) >= job.request.max_tokens:
                finished.append((job, self.finish(job, "length")))
        if finished:
            self.remove(finished)

    def finish(self, job: Job, reason: str, logprobs: tuple[float, ...] = ()) -> Finish:
        """The last event of a job, counted."""
        assert job.prefill is not None
        mean = sum(token.logprob for token in job.tokens) / len(job.tokens) if job.tokens else None
        event = Finish(
            reason,
            text=job.stream.finish(),
            prompt_tokens=len(job.request.prompt.ids) - len(job.request.answer_ids),
            cached_tokens=job.prefill.cached,
            completion_tokens=len(job.tokens),
            confidence=None if mean is None else math.exp(mean),
            logprobs=logprobs,
        )
        self.counts.prompt_tokens += event.prompt_tokens
        self.counts.cached_tokens += event.cached_tokens
        self.counts.completion_tokens += event.completion_tokens
        return event

    def remove(self, finished: Sequence[tuple[Job, Finish]]) -> None:
        """Take jobs out of every list, free their rows, and pass each its last event."""
        jobs = {job for job, _ in finished}
        keep = [index for index, job in enumerate(self.running) if job not in jobs]
        if len(keep) < len(self.running):
            self.running = [self.running[index] for index in self.batch.leave(keep)]
        self.alone = [job for job in self.alone if job not in jobs]
        if self.prefilling in jobs:
            self.prefilling = None
        with self.condition:
            for owner in list(self.waiting):
                self.waiting[owner] = deque(job for job in self.waiting[owner] if job not in jobs)
                if not self.waiting[owner]:
                    del self.waiting[owner]
        for job, event in finished:
            self.counts.seconds += time.monotonic() - job.submitted
            job.prefill = None
            self.deliver(job, event)


def deliver_all(rows: Sequence[tuple[Job, Event]]) -> None:
    """Pass events on, in an event loop."""
    for job, event in rows:
        job.deliver(event)


def max_answer_tokens(engine: Engine, prompt: Prompt, wanted: int | None) -> int:
    """The tokens an answer may have: as asked for, within the context and the memory for keys and values."""
    room = min(engine.context or 2**31, engine.max_batch_tokens) - len(prompt.ids)
    return max(0, min(room, wanted if wanted is not None else engine.limits.max_answer_tokens))


def warm_up(engine: Engine, prompt: Prompt) -> Finish:
    """Run one prompt through encoder and language model, so that the first user does not wait for it."""
    events: deque[Any] = deque()
    done = threading.Event()

    def receive(event: Event) -> None:
        events.append(event)
        if isinstance(event, Finish):
            done.set()

    engine.submit(GenerationRequest(prompt, max_tokens=2, owner="warm-up"), receive)
    done.wait()
    finish: Finish = events[-1]
    return finish
