"""The engine on image-text models of other architectures than Llava: answers equal one-by-one generate."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.image_text_models import ARCHITECTURES, image_text_model
from builders.tiny import tiny_png
from qilin.dataset.schema import user
from qilin.imaging.decode import to_rgb
from qilin.model.generate import Request, answer_batch, decode_answer, prepare_inputs
from qilin.model.llava import load_model
from qilin.serve.engine.engine import Engine, Event, Finish, GenerationRequest, Increment
from qilin.serve.engine.limits import EngineLimits
from qilin.serve.engine.prompt import prepare_prompt

LIMITS = EngineLimits(image_cache_bytes=1 << 24, prefix_cache_bytes=1 << 24, kv_bytes=1 << 24, prefill_tokens=16)


def ask(text: str, *images: tuple[int, int]) -> Request:
    return Request([user(text, len(images))], [to_rgb(tiny_png(index, side)) for index, side in images])


# Images of different sizes; the text without an image comes after one with images, whose positions it must not take.
REQUESTS = (
    ask("图中有异常吗？", (0, 40)),
    ask("这张图片是什么模态？", (1, 90)),
    ask("高血压应注意什么？"),
    ask("相同吗？", (1, 40), (2, 64)),
    ask("图中有异常吗？", (3, 40)),
)


class Receiver:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.done = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finish):
            self.done.set()

    def finish(self) -> Finish:
        assert self.done.wait(30), "no answer after 30 s"
        assert isinstance(self.events[-1], Finish)
        return self.events[-1]

    def ids(self) -> list[int]:
        self.finish()
        return [event.token.id for event in self.events if isinstance(event, Increment)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_equal_generate(tmp_path: Path, name: str) -> None:
    loaded = load_model(image_text_model(tmp_path / name, name))
    engine = Engine(loaded, LIMITS)
    engine.start()
    receivers = [Receiver() for _ in REQUESTS]
    for request, receiver in zip(REQUESTS, receivers, strict=True):
        engine.submit(GenerationRequest(prepare_prompt(loaded, request), 8), receiver)
    for receiver in receivers:
        receiver.finish()  # Qwen keeps a state of its positions in the model, which generate would change meanwhile
    for request, receiver in zip(REQUESTS, receivers, strict=True):
        answer = answer_batch(loaded, [request], 8)[0]
        assert decode_answer(loaded, receiver.ids()) == answer.text
        assert receiver.finish().confidence == pytest.approx(answer.confidence, rel=1e-4)
    check_second_question(engine, loaded, keeps_prefixes=name != "gemma3")
    scored, expected = score(engine, loaded, REQUESTS[1], [70, 80, 90])
    assert scored == pytest.approx(expected, rel=1e-4)
    other, _ = score(engine, loaded, ask("这张图片是什么模态？", (2, 90)), [70, 80, 90])
    assert other != pytest.approx(scored, rel=1e-4)  # control: another image has other log probabilities
    engine.close(10)


def check_second_question(engine: Engine, loaded: Any, keeps_prefixes: bool) -> None:
    """A further question about images that were asked about: from the prefix cache, equal to generate, and never from
    another image's prefix. Caches with sliding windows keep no prefix."""
    texts = []
    for index in (1, 4):
        receiver = Receiver()
        request = ask("与上一张相比，左侧还是右侧更明显？", (index, 40), (2, 64))
        engine.submit(GenerationRequest(prepare_prompt(loaded, request), 8), receiver)
        receiver.finish()
        answer = answer_batch(loaded, [request], 8)[0]
        assert decode_answer(loaded, receiver.ids()) == answer.text
        assert receiver.finish().confidence == pytest.approx(answer.confidence, rel=1e-4)
        assert (receiver.finish().cached_tokens > 0) == (keeps_prefixes and index == 1)
        texts.append(receiver.finish().confidence)
    assert texts[0] != texts[1]


def score(engine: Engine, loaded: Any, request: Request, answer: list[int]) -> tuple[list[float], list[float]]:
    """Log probabilities of an answer by the engine, and by forward passes of the model, one for each token."""
    receiver = Receiver()
    prompt = prepare_prompt(loaded, request, answer)
    engine.submit(GenerationRequest(prompt, 1, answer_ids=tuple(answer)), receiver)
    logprobs = list(receiver.finish().logprobs)
    inputs = prepare_inputs(loaded, [request])
    expected = []
    for token in answer:
        with torch.inference_mode():
            logits = loaded.model(**inputs).logits[0, -1].float().log_softmax(-1)
        expected.append(float(logits[token]))
        for key, value in (
            ("input_ids", token),
            ("attention_mask", 1),
            ("mm_token_type_ids", 0),
            ("token_type_ids", 0),
        ):
            if key in inputs:
                inputs[key] = torch.cat([inputs[key], torch.tensor([[value]])], dim=1)
    return logprobs, expected
