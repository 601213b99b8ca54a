"""The engine against one-by-one generate: equal answers, whatever runs beside them, and never another image's."""

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.cache_utils import DynamicCache

from builders.tiny import tiny_llava, tiny_png, tiny_tokenizer
from qilin.dataset.schema import user
from qilin.model.generate import Answer, Request, answer_batch, decode_answer
from qilin.serve.engine.engine import Engine, Event, Finish, GenerationRequest, Increment, Job, QueueFull
from qilin.serve.engine.limits import EngineLimits
from qilin.serve.engine.prompt import prepare_prompt
from qilin.serve.engine.rows import RowBatch, RowLayer
from qilin.serve.engine.sampling import SamplingSettings
from qilin.serve.engine.text_stream import TextStream

QUESTIONS = ("图中有异常吗？", "这张图片是什么模态？", "病变位于哪一侧？左侧还是右侧，为什么？", "What is shown?")
LIMITS = EngineLimits(image_cache_bytes=1 << 24, prefix_cache_bytes=1 << 24, kv_bytes=1 << 24, prefill_tokens=16)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_llava(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def start(loaded: Any) -> Iterator[Callable[..., Engine]]:
    engines = []

    def start_engine(limits: EngineLimits = LIMITS, model: Any = None) -> Engine:
        engines.append(Engine(model or loaded, limits))
        engines[-1].start()
        return engines[-1]

    yield start_engine
    for engine in engines:
        engine.close(10)


def image(index: int) -> Image.Image:
    return Image.open(io.BytesIO(tiny_png(index))).convert("RGB")


def ask(text: str, *images: int) -> Request:
    return Request([user(text, len(images))], [image(index) for index in images])


class Receiver:
    """Collects a request's events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.done = threading.Event()
        self.started = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.started.set()
        if isinstance(event, Finish):
            self.done.set()

    def finish(self) -> Finish:
        assert self.done.wait(30), "no answer after 30 s"
        event = self.events[-1]
        assert isinstance(event, Finish)
        return event

    def ids(self) -> list[int]:
        self.finish()
        return [event.token.id for event in self.events if isinstance(event, Increment)]

    def text(self, loaded: Any) -> str:
        """The answer, decoded at once: a random model writes broken UTF-8, whose parts decode differently."""
        text = decode_answer(loaded, self.ids())
        assert "\ufffd" in text or text == "".join(event.text for event in self.events)
        return text


def submit(engine: Engine, request: Request, max_tokens: int = 12, **options: Any) -> tuple[Job, Receiver]:
    receiver = Receiver()
    prompt = prepare_prompt(engine.loaded, request)
    return engine.submit(GenerationRequest(prompt, max_tokens, **options), receiver), receiver


def expected(loaded: Any, request: Request, max_tokens: int = 12) -> Answer:
    return answer_batch(loaded, [request], max_tokens)[0]


def varied_requests() -> list[Request]:
    single = [ask(question, index) for index in range(3) for question in QUESTIONS]
    return [*single, ask("你好"), ask("两张图有什么不同？", 1, 2), ask("两张图有什么不同？", 2, 1)]


@pytest.mark.parametrize("rows", [1, 5, 32])
def test_answers_equal_generate(loaded: Any, start: Callable[..., Engine], rows: int) -> None:
    engine = start(replace(LIMITS, max_rows=rows))
    requests = varied_requests()
    # different lengths, so that rows leave at different times and the padding changes
    receivers = [submit(engine, request, 4 + index % 9)[1] for index, request in enumerate(requests)]
    for index, (request, receiver) in enumerate(zip(requests, receivers, strict=True)):
        answer = expected(loaded, request, 4 + index % 9)
        assert receiver.text(loaded) == answer.text
        assert receiver.finish().confidence == pytest.approx(answer.confidence, rel=1e-4)


def test_logits_equal_a_plain_forward(loaded: Any, start: Callable[..., Engine]) -> None:
    """Log probabilities, a finer measure than equal text, with and without a cached prefix, cold and warm bit-equal."""
    engine = start()
    request = ask(QUESTIONS[2], 4)
    inputs = prepare_prompt(loaded, request).inputs
    with torch.inference_mode():
        logprobs = loaded.model(**inputs).logits[0, -1].float().log_softmax(-1)
    values = []
    for _ in range(2):
        finish = submit(engine, request)[1]
        first = finish.events[0] if finish.finish() else None
        assert isinstance(first, Increment)
        values.append(first.token.logprob)
    assert values[0] == pytest.approx(float(logprobs.max()), abs=1e-5)
    assert values[0] == values[1]


def test_second_question_reuses_the_image(start: Callable[..., Engine]) -> None:
    engine = start()
    assert submit(engine, ask(QUESTIONS[0], 7))[1].finish().cached_tokens == 0
    finish = submit(engine, ask(QUESTIONS[1], 7))[1].finish()
    assert 16 <= finish.cached_tokens < finish.prompt_tokens
    assert engine.prefiller.images.misses == 1


def test_never_another_images_answer(loaded: Any, start: Callable[..., Engine]) -> None:
    """A, B, C, A with one question: in turn, at once, after evictions, and for two owners."""
    order = [11, 12, 13, 11, 13, 12, 11]
    answers = {index: expected(loaded, ask(QUESTIONS[0], index)).text for index in set(order)}
    assert len(set(answers.values())) == 3, "the images must have different answers for this test to mean anything"
    engine = start()
    for index in order:
        assert submit(engine, ask(QUESTIONS[0], index))[1].text(loaded) == answers[index]
    at_once = [(index, submit(engine, ask(QUESTIONS[0], index), owner=owner)[1]) for index in order for owner in "ab"]
    assert all(receiver.text(loaded) == answers[index] for index, receiver in at_once)
    entry = max(size for _, size in engine.prefiller.prefixes.entries.values())
    small = start(replace(LIMITS, prefix_cache_bytes=entry, image_cache_bytes=entry))
    for index in order:
        assert submit(small, ask(QUESTIONS[0], index))[1].text(loaded) == answers[index]
    assert small.prefiller.prefixes.evictions > 0
    assert small.prefiller.prefixes.used_bytes <= entry


def test_owners_do_not_share_a_prefix(start: Callable[..., Engine]) -> None:
    engine = start()
    assert submit(engine, ask(QUESTIONS[0], 3), owner="a")[1].finish().cached_tokens == 0
    assert submit(engine, ask(QUESTIONS[0], 3), owner="b")[1].finish().cached_tokens == 0
    assert submit(engine, ask(QUESTIONS[0], 3), owner="a")[1].finish().cached_tokens > 0


def test_image_order_is_part_of_the_key(start: Callable[..., Engine]) -> None:
    engine = start()
    submit(engine, ask(QUESTIONS[0], 1, 2))[1].finish()
    assert submit(engine, ask(QUESTIONS[0], 2, 1))[1].finish().cached_tokens == 0
    assert submit(engine, ask(QUESTIONS[1], 1, 2))[1].finish().cached_tokens > 0


def test_sampling_depends_on_the_seed_alone(start: Callable[..., Engine]) -> None:
    engine = start()
    settings = SamplingSettings(temperature=1.0, top_p=0.95, seed=5)
    alone = submit(engine, ask(QUESTIONS[0], 1), sampling=settings)[1]
    alone.finish()
    beside = [submit(engine, ask(QUESTIONS[1], index))[1] for index in range(3)]
    again = submit(engine, ask(QUESTIONS[0], 1), sampling=settings)[1]
    other = submit(engine, ask(QUESTIONS[0], 1), sampling=replace(settings, seed=6))[1]
    for receiver in (*beside, again, other):
        receiver.finish()
    assert again.ids() == alone.ids()
    assert other.ids() != alone.ids()


def test_cancel_frees_the_row(start: Callable[..., Engine]) -> None:
    engine = start()
    job, receiver = submit(engine, ask(QUESTIONS[0], 1), max_tokens=1500)
    other = submit(engine, ask(QUESTIONS[1], 2), max_tokens=20)[1]
    assert receiver.started.wait(10)
    job.cancel()
    assert receiver.finish().reason == "cancelled"
    assert other.finish().reason in ("length", "stop")
    assert engine.active() == 0
    assert engine.batch.cache is None


def test_a_failing_forward_ends_only_its_requests(loaded: Any, start: Callable[..., Engine], monkeypatch: Any) -> None:
    engine = start()
    prompt = prepare_prompt(loaded, ask(QUESTIONS[0], 1))
    broken = replace(prompt, inputs={**prompt.inputs, "pixel_values": torch.zeros(1, 3, 5, 5)}, image_hashes=("x",))
    receiver = Receiver()
    engine.submit(GenerationRequest(broken, 4), receiver)
    assert receiver.finish().error == "the model failed"
    request = ask(QUESTIONS[0], 1)
    assert submit(engine, request)[1].text(loaded) == expected(loaded, request).text


def test_a_receiver_that_fails_loses_only_its_answer(loaded: Any, start: Callable[..., Engine]) -> None:
    engine = start()

    def fail(event: Event) -> None:
        raise RuntimeError("gone")

    engine.submit(GenerationRequest(prepare_prompt(loaded, ask(QUESTIONS[0], 1)), 50), fail)
    request = ask(QUESTIONS[1], 1)
    assert submit(engine, request)[1].text(loaded) == expected(loaded, request).text


def test_a_loop_is_woken_once_for_all_rows(loaded: Any, start: Callable[..., Engine]) -> None:
    """And one that has ended loses its own answers only."""
    engine, requests = start(), [ask(question, 1) for question in QUESTIONS]

    async def answers() -> tuple[list[Receiver], int]:
        loop, receivers, wake_ups = asyncio.get_running_loop(), [Receiver() for _ in requests], 0
        original = loop.call_soon_threadsafe

        def count(*arguments: Any, **options: Any) -> Any:
            nonlocal wake_ups
            wake_ups += threading.current_thread() is engine.thread
            return original(*arguments, **options)

        loop.call_soon_threadsafe = count  # type: ignore[method-assign]
        for request, receiver in zip(requests, receivers, strict=True):
            engine.submit(GenerationRequest(prepare_prompt(loaded, request), 12), receiver, loop)
        while not all(receiver.done.is_set() for receiver in receivers):
            await asyncio.sleep(0.01)
        engine.submit(GenerationRequest(prepare_prompt(loaded, requests[0]), 2000), Receiver(), loop)
        return receivers, wake_ups

    receivers, wake_ups = asyncio.run(answers())
    assert [receiver.text(loaded) for receiver in receivers] == [expected(loaded, one).text for one in requests]
    events = sum(len(receiver.events) for receiver in receivers)
    assert wake_ups < 0.7 * events
    assert submit(engine, requests[0])[1].text(loaded) == expected(loaded, requests[0]).text
    assert engine.counts.cancelled == 1


def test_queue_is_bounded_and_owners_take_turns(start: Callable[..., Engine]) -> None:
    engine = start(replace(LIMITS, max_rows=1, max_waiting=4))
    order: list[str] = []
    receivers = []
    blocker, first = submit(engine, ask(QUESTIONS[0], 1), max_tokens=1500)
    assert first.started.wait(10)
    for owner in ("a", "a", "a", "b"):
        prompt = prepare_prompt(engine.loaded, ask(QUESTIONS[0], 1))
        receiver = Receiver()

        def receive(event: Event, owner: str = owner, receiver: Receiver = receiver) -> None:
            if isinstance(event, Finish):
                order.append(owner)
            receiver(event)

        engine.submit(GenerationRequest(prompt, 2, owner=owner), receive)
        receivers.append(receiver)
    with pytest.raises(QueueFull) as info:
        submit(engine, ask(QUESTIONS[0], 1))
    assert info.value.retry_after >= 1
    blocker.cancel()
    for receiver in receivers:
        receiver.finish()
    assert order == ["a", "b", "a", "a"]


def test_stop_string_ends_the_answer(loaded: Any, start: Callable[..., Engine]) -> None:
    tokens = submit(start(), ask(QUESTIONS[0], 1), max_tokens=30)[1].ids()
    stop = loaded.processor.tokenizer.decode(tokens[-3:])
    receiver = submit(start(), ask(QUESTIONS[0], 1), max_tokens=40, stop=(stop,))[1]
    assert receiver.finish().reason == "stop"
    assert receiver.ids() == tokens[: len(receiver.ids())]
    assert stop not in "".join(event.text for event in receiver.events)


@pytest.mark.parametrize("name", ["demo", "chatml"])
@pytest.mark.parametrize(
    "text", ["双肺纹理清晰，心影不大。\n1. 无异常\n2. 复查 2.3cm×1.8cm", "a 😀 b", " 前后 ", "𠀀骨折"]
)
def test_increments_join_to_the_decoded_text(name: str, text: str) -> None:
    tokenizer = tiny_tokenizer(name)
    stream = TextStream(tokenizer)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    increments = [*map(stream.push, ids), stream.finish()]
    assert "".join(increments) == tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()
    assert not any("\ufffd" in increment for increment in increments)


def test_text_before_a_stop_string_is_held_back() -> None:
    tokenizer = tiny_tokenizer()
    stream = TextStream(tokenizer, ["###", "。结束"])
    shown = ""
    for token in tokenizer("右肺结节。结论：##无。结束语", add_special_tokens=False).input_ids:
        shown += stream.push(token)
        assert not shown.endswith(("#", "。")) or "##无" in shown
        if stream.stopped:
            break
    assert shown + stream.finish() == "右肺结节。结论：##无"


def test_scoring_a_given_answer(loaded: Any, start: Callable[..., Engine]) -> None:
    request = ask(QUESTIONS[0], 1)
    answer_ids = tuple(loaded.processor.tokenizer("肺炎", add_special_tokens=False).input_ids)
    prompt = prepare_prompt(loaded, request, answer_ids)
    with torch.inference_mode():
        logprobs = loaded.model(**prompt.inputs).logits[0, -len(answer_ids) - 1 : -1].float().log_softmax(-1)
    truth = [float(row[token]) for row, token in zip(logprobs, answer_ids, strict=True)]
    receiver = Receiver()
    start().submit(GenerationRequest(prompt, 0, answer_ids=answer_ids), receiver)
    assert receiver.finish().logprobs == pytest.approx(truth, abs=1e-4)


def test_close_finishes_running_answers_and_refuses_new_ones(start: Callable[..., Engine]) -> None:
    engine = start()
    receiver = submit(engine, ask(QUESTIONS[0], 1), max_tokens=20)[1]
    engine.close(20)
    assert receiver.finish().reason in ("length", "stop")
    with pytest.raises(QueueFull):
        submit(engine, ask(QUESTIONS[0], 1))


def test_close_ends_what_takes_too_long(start: Callable[..., Engine]) -> None:
    engine = start()
    receiver = submit(engine, ask(QUESTIONS[0], 1), max_tokens=1800)[1]
    assert receiver.started.wait(10)
    engine.close(0.01)
    assert receiver.finish().reason == "cancelled"


def test_rows_wait_for_memory(start: Callable[..., Engine]) -> None:
    """The keys and values of all rows, at their full length, never take more than `kv_bytes`."""
    engine = start(replace(LIMITS, kv_bytes=60_000))
    lengths: list[int] = []
    original = engine.batch.join

    def join(cache: Any) -> None:
        original(cache)
        lengths.append(len(engine.batch.lengths) * max(engine.batch.lengths))

    engine.batch.join = join  # type: ignore[method-assign]
    for receiver in [submit(engine, ask(QUESTIONS[0], index), max_tokens=8)[1] for index in range(6)]:
        assert receiver.finish().reason in ("length", "stop")
    assert max(lengths) <= engine.max_batch_tokens


@pytest.mark.parametrize("language", ["qwen3", "mistral"])
def test_other_language_models(tmp_path: Any, start: Callable[..., Engine], language: str) -> None:
    """Grouped heads with query norms, and a sliding window, whose rows cannot be joined."""
    loaded = tiny_llava(tmp_path, language=language)
    if language == "mistral":
        loaded.model.config.text_config.sliding_window = 24
    engine = start(model=loaded)
    requests = [ask(question, index) for index, question in enumerate(QUESTIONS)]
    receivers = [submit(engine, request)[1] for request in requests]
    for request, receiver in zip(requests, receivers, strict=True):
        assert receiver.text(loaded) == expected(loaded, request).text


def test_a_long_prompt_does_not_hold_up_running_answers(loaded: Any, start: Callable[..., Engine]) -> None:
    """Between two pieces of a prompt, every running answer gets a token."""
    engine = start()
    running = submit(engine, ask(QUESTIONS[0], 1), max_tokens=60)[1]
    assert running.started.wait(10)
    before = len(running.events)
    tokens_before_first: list[int] = []
    prompt = prepare_prompt(loaded, ask("长" * 60))

    def receive(event: Event) -> None:
        tokens_before_first.append(len(running.events) - before)

    engine.submit(GenerationRequest(prompt, 1), receive)
    running.finish()
    assert tokens_before_first[0] >= len(prompt.ids) // LIMITS.prefill_tokens - 1


def test_rows_join_and_leave_in_place() -> None:
    """Random joins, tokens and leaves: each row keeps its own tokens, padding is zero and masked, buffers shrink."""
    random = np.random.default_rng(0)
    batch, rows = RowBatch(max_tokens=4000), list[list[int]]()
    for number in range(400):
        if len(rows) < 9 and (not rows or random.random() < 0.3):
            tokens = random.integers(1, 1000, random.integers(1, 60)).tolist()
            values = torch.tensor(tokens, dtype=torch.float32).reshape(1, 1, -1, 1).repeat(1, 2, 1, 3)
            batch.join(DynamicCache(ddp_cache_data=[(values, -values)] * 2))
            rows.append(tokens)
        elif random.random() < 0.2:
            keep = [row for row in range(len(rows)) if random.random() < 0.6]
            rows = [rows[row] for row in batch.leave(keep)]
            assert len(rows) == len(keep)
        if not rows:
            assert batch.cache is None
            continue
        mask = batch.attention_mask(torch.device("cpu"))
        batch.reserve()
        new = torch.arange(len(rows), dtype=torch.float32).reshape(-1, 1, 1, 1).repeat(1, 2, 1, 3) + number
        assert batch.cache is not None
        for layer in batch.cache.layers:
            keys, values = layer.update(new, -new)
            assert torch.equal(keys, -values)
            for row, tokens in enumerate([*row, number + index] for index, row in enumerate(rows)):
                padding = [0] * (keys.shape[2] - len(tokens))
                assert keys[row, 1, :, 2].tolist() == [*padding, *tokens]
                assert mask is None or mask[row].tolist() == [0] * len(padding) + [1] * len(tokens)
        batch.advance()
        rows = [[*row, number + index] for index, row in enumerate(rows)]
        assert batch.lengths == [len(row) for row in rows]
        assert batch.capacity[0] < 4 * len(rows) or len(rows) == 1


def test_a_row_that_does_not_fit_in_memory_changes_nothing(monkeypatch: Any) -> None:
    batch = RowBatch()
    values = torch.ones(1, 1, 5, 2)
    batch.join(DynamicCache(ddp_cache_data=[(values, values)]))
    cache = DynamicCache(ddp_cache_data=[(2 * values, values)])
    with monkeypatch.context() as patch:
        patch.setattr(RowLayer, "__init__", lambda *args: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            batch.join(cache)
    assert batch.lengths == [5]
    batch.join(cache)
    assert batch.cache is not None
    assert batch.cache.layers[0].keys[:, 0, 0, 0].tolist() == [1, 2]
