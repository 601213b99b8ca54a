"""Answers: equal in batches, alone and streamed; end tokens; confidence between 0 and 1."""

import functools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.tiny import tiny_language, tiny_llava, tiny_png
from qilin.core.errors import UserError
from qilin.dataset.schema import Sample, assistant, user
from qilin.imaging.decode import to_rgb
from qilin.model.generate import (
    Request,
    answer_all,
    answer_batch,
    decode_answer,
    eos_token_ids,
    prepare_inputs,
    stream_answer,
    text_increments,
)
from qilin.model.llava import LoadedModel
from qilin.model.processing import encode_sample


def make_model(folder: Path, language: str) -> LoadedModel:
    loaded = tiny_llava(folder, language=language)
    torch.manual_seed(0)
    for parameter in loaded.model.model.multi_modal_projector.parameters():
        torch.nn.init.normal_(parameter, std=1.0)  # large image features, so that answers depend on the image
    return loaded


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return make_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """With a tokenizer whose tokens may be part of a character."""
    return make_model(tmp_path_factory.mktemp("model"), "qwen2")


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    images = [to_rgb(tiny_png(n)) for n in range(4)]
    chat = [user("图中有异常吗？", 1), assistant("没有。"), user("这是什么模态的图像？请详细说明。", 1)]
    return [
        *(Request([user("图中有异常吗？", 1)], [image]) for image in images),
        Request([user("高血压应注意什么？")]),
        Request([user("两张图片相同吗？", 2)], images[:2]),
        Request(chat, images[2:]),
    ]


def test_batched_equals_single(loaded: LoadedModel, requests: list[Request]) -> None:
    single = [answer_batch(loaded, [request], 16)[0] for request in requests]
    for batch_size in (2, 7):
        batched = list(answer_all(loaded, requests, batch_size, max_new_tokens=16))
        assert [answer.text for answer in batched] == [answer.text for answer in single]
        for one, other in zip(batched, single, strict=True):
            assert one.confidence == pytest.approx(other.confidence, rel=1e-4)
    assert len({answer.text for answer in single[:4]}) > 1  # control: the answers depend on the image


def test_confidence_is_the_geometric_mean_probability(loaded: LoadedModel, requests: list[Request]) -> None:
    """Against a plain forward pass over prompt and answer."""
    request = requests[0]
    inputs = prepare_inputs(loaded, [request])
    answer = answer_batch(loaded, [request], 6)[0]
    with torch.no_grad():
        output = loaded.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        logits = loaded.model(input_ids=output, pixel_values=inputs["pixel_values"]).logits.log_softmax(-1)
    start = inputs["input_ids"].shape[1]
    log_probs = logits[0, start - 1 : -1].gather(-1, output[0, start:, None])
    assert answer.confidence == pytest.approx(float(log_probs.mean().exp()), rel=1e-4)
    assert 0 < answer.confidence < 1


def force_answer(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, text: str, end_ids: int | list[int]
) -> list[int]:
    """Make the model generate `text` and then noise, with these end tokens. Returns the tokens of `text`."""
    tokenizer = loaded.processor.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    noise = tokenizer.encode("肺", add_special_tokens=False)  # one token or several
    step = 0
    original = loaded.model.forward

    @functools.wraps(original)  # generate reads its signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal step
        out = original(*args, **kwargs)
        token = ids[step] if step < len(ids) else noise[(step - len(ids)) % len(noise)]
        step += 1
        out.logits = torch.full_like(out.logits, -10.0)
        out.logits[..., token] = 10.0
        return out

    monkeypatch.setattr(loaded.model, "forward", forward)
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", end_ids)
    return ids


@pytest.mark.parametrize("text", ["左侧。", "见 <b>影</b>，10⁻³ 😀 。", "  两 侧 \n ", "一\n 二\n\n三", ""])
def test_an_answer_ends_at_its_end_token(
    byte_level: LoadedModel, requests: list[Request], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def batched() -> str:
        return answer_batch(byte_level, requests[:1], 80)[0].text

    def streamed() -> str:
        return "".join(stream_answer(byte_level, requests[0], 80))

    end = byte_level.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert eos_token_ids(byte_level.model) == {end}
    for generate in (batched, streamed):
        with monkeypatch.context() as patch:
            force_answer(byte_level, patch, text + "<|im_end|>", end)
            assert generate() == text.strip()
        with monkeypatch.context() as patch:  # control: with another end token generation continues
            force_answer(byte_level, patch, text + "<|im_end|>", end - 1)
            assert generate().endswith("肺肺")


def test_several_end_tokens(loaded: LoadedModel, requests: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    end = loaded.processor.tokenizer.encode("\n", add_special_tokens=False)
    force_answer(loaded, monkeypatch, "左侧。\n", [2, *end])
    assert eos_token_ids(loaded.model) == {2, *end}
    assert answer_batch(loaded, requests[:1], 60)[0].text == "左侧。"


def test_streamed_text_equals_the_batch_answer(loaded: LoadedModel, requests: list[Request]) -> None:
    for request in requests:
        increments = list(stream_answer(loaded, request, 24))
        assert "".join(increments) == answer_batch(loaded, [request], 24)[0].text
        assert len(increments) > 1
        assert all(increments)


def test_characters_are_emitted_complete(byte_level: LoadedModel) -> None:
    """A character of several byte tokens appears with its last byte; an incomplete one at the end."""
    loaded, tokenizer = byte_level, byte_level.processor.tokenizer
    ids = tokenizer.encode("龘😀 骨", add_special_tokens=False)  # not in the vocabulary: bytes
    assert len(ids) > 5
    assert list(text_increments(loaded, iter(ids))) == ["龘", "😀", " 骨"]
    broken = ids[: len(tokenizer.encode("龘", add_special_tokens=False)) + 2]
    assert "".join(text_increments(loaded, iter(broken))) == decode_answer(loaded, broken)
    assert list(text_increments(loaded, iter([]))) == []


def count_generation_threads() -> int:
    return sum(thread.name.endswith("(generate)") for thread in threading.enumerate())


def test_closing_early_stops_the_model(
    loaded: LoadedModel, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    original = loaded.model.forward

    @functools.wraps(original)  # generate reads its signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        time.sleep(0.005)
        return original(*args, **kwargs)

    monkeypatch.setattr(loaded.model, "forward", forward)
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", None)
    stream = stream_answer(loaded, requests[0], 1500)
    assert next(stream)
    assert count_generation_threads() == 1
    stream.close()
    assert count_generation_threads() == 0
    num_steps = len(steps)
    assert num_steps < 200
    time.sleep(0.05)
    assert len(steps) == num_steps


def test_an_error_in_the_thread_is_raised_to_the_reader(
    loaded: LoadedModel, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loaded.model.forward
    calls = []

    @functools.wraps(original)  # generate reads its signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return original(*args, **kwargs)

    monkeypatch.setattr(loaded.model, "forward", forward)
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", None)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream_answer(loaded, requests[0], 50))
    assert len(calls) == 4
    assert count_generation_threads() == 0


def test_invalid_requests_are_refused(loaded: LoadedModel) -> None:
    image = to_rgb(tiny_png(0))
    for request, error in (
        (Request([]), "must end with the user's turn"),
        (Request([user("图", 1), assistant("肺")], [image]), "must end with the user's turn"),
        (Request([user("图", 1)]), "1 image parts for 0 images"),
        (Request([user("图", 1)], [image, image]), "1 image parts for 2 images"),
        (Request([user("图中<image>是什么", 1)], [image]), "literal <image>"),
    ):
        with pytest.raises(UserError, match=error):
            answer_batch(loaded, [request], 4)
        with pytest.raises(UserError, match=error):
            list(stream_answer(loaded, request, 4))


def test_a_model_without_a_template(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.processor, "chat_template", None)
    with pytest.raises(UserError, match="no chat template"):
        answer_batch(loaded, [Request([user("图")])], 4)


@pytest.mark.parametrize("language", ["llama", "qwen2"])
def test_a_stage_1_model_stops_at_the_line_end(tmp_path: Path, language: str) -> None:
    """Trained on one caption with the plain template, the model generates it and stops before the limit."""
    tiny_language(tmp_path / language, language, width=64)
    loaded = tiny_llava(tmp_path, language=language, template="plain")
    caption, image = "双肺纹理清晰。", to_rgb(tiny_png(1))
    encoded = encode_sample(Sample("s", "caption", ("x",), (user(images=1), assistant(caption))), loaded.processor)
    ids = torch.tensor([encoded.ids])
    labels = torch.where(torch.tensor([encoded.loss_mask]), ids, -100)
    pixels = torch.as_tensor(loaded.processor.image_processor(images=[image])["pixel_values"][0])[None]
    optimizer = torch.optim.Adam(loaded.model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = loaded.model(input_ids=ids, pixel_values=pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loaded.model.eval()
    assert answer_batch(loaded, [Request([user("说什么都行", 1)], [image])], 60)[0].text == caption
    assert "".join(stream_answer(loaded, Request([user(images=1)], [image]), 60)) == caption
