"""Answers: batched as one by one, streamed as batched, ended where the template ends them, sure between 0 and 1."""

import functools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.tiny import tiny_language, tiny_png, tiny_vision
from qilin.core.errors import UserError
from qilin.dataset.schema import assistant, user
from qilin.imaging.decode import to_rgb
from qilin.model.generate import Request, answer_all, answer_batch, ends_of, pieces, prepare, stream, text_from
from qilin.model.llava import LoadedModel, compose


def make(home: Path, language: str, template: str) -> LoadedModel:
    made = compose(
        str(tiny_vision(home / "clip")),
        str(tiny_language(home / language, language)),
        template=template,
        system="",
        pad_square=True,
    )
    made.model.eval()
    torch.manual_seed(0)
    for parameter in made.model.model.multi_modal_projector.parameters():
        torch.nn.init.normal_(parameter, std=1.0)  # loud images, so that another image is another answer
    return made


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return make(tmp_path_factory.mktemp("model"), "llama", "v1")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """With a tokenizer whose tokens may be parts of a character."""
    return make(tmp_path_factory.mktemp("model"), "qwen2", "chatml")


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    images = [to_rgb(tiny_png(n)) for n in range(4)]
    talk = [user("图中有异常吗？", 1), assistant("没有。"), user("这是什么模态的图像？请详细说明。", 1)]
    return [
        *(Request([user("图中有异常吗？", 1)], [image]) for image in images),
        Request([user("高血压应注意什么？")]),
        Request([user("两张图片相同吗？", 2)], images[:2]),
        Request(talk, images[2:]),
    ]


def test_batched_equals_one_by_one(loaded: LoadedModel, requests: list[Request]) -> None:
    alone = [answer_batch(loaded, [request], 16)[0] for request in requests]
    for batch in (2, 7):
        together = list(answer_all(loaded, requests, batch=batch, max_new_tokens=16))
        assert [answer.text for answer in together] == [answer.text for answer in alone]
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.confidence == pytest.approx(theirs.confidence, rel=1e-4)
    assert len({answer.text for answer in alone[:4]}) > 1  # control: the answers do depend on the image


def test_confidence_is_the_mean_probability_of_what_was_said(loaded: LoadedModel, requests: list[Request]) -> None:
    """Against a plain forward over prompt and answer."""
    request = requests[0]
    inputs = prepare(loaded, [request])
    answer = answer_batch(loaded, [request], 6)[0]
    with torch.no_grad():
        made = loaded.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        logits = loaded.model(input_ids=made, pixel_values=inputs["pixel_values"]).logits.log_softmax(-1)
    start = inputs["input_ids"].shape[1]
    each = logits[0, start - 1 : -1].gather(-1, made[0, start:, None])
    assert answer.confidence == pytest.approx(float(each.mean().exp()), rel=1e-4)
    assert 0 < answer.confidence < 1


def say_only(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, text: str, template_end: int | list[int]
) -> list[int]:
    """Make the model say `text` and then noise for ever, with the given end tokens. Returns the tokens of `text`."""
    tokenizer = loaded.processor.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    noise = tokenizer.encode("肺", add_special_tokens=False)  # one token or several
    step = {"n": 0}
    plain = loaded.model.forward

    @functools.wraps(plain)  # generate reads its signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **kwargs)
        token = ids[step["n"]] if step["n"] < len(ids) else noise[(step["n"] - len(ids)) % len(noise)]
        step["n"] += 1
        out.logits = torch.full_like(out.logits, -10.0)
        out.logits[..., token] = 10.0
        return out

    monkeypatch.setattr(loaded.model, "forward", forward)
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", template_end)
    return ids


@pytest.mark.parametrize("said", ["左侧。", "见 <b>影</b>，10⁻³ 😀 。", "  两 侧 \n ", "一\n 二\n\n三", ""])
def test_an_answer_ends_at_its_end_token(
    byte_level: LoadedModel, requests: list[Request], monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def batched() -> str:
        return answer_batch(byte_level, requests[:1], 80)[0].text

    def streamed() -> str:
        return "".join(stream(byte_level, requests[0], 80))

    end = byte_level.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ends_of(byte_level.model) == {end}
    for ask in (batched, streamed):
        with monkeypatch.context() as patch:
            say_only(byte_level, patch, said + "<|im_end|>", end)
            assert ask() == said.strip()
        with monkeypatch.context() as patch:  # control: with another end token it goes on
            say_only(byte_level, patch, said + "<|im_end|>", end - 1)
            assert ask().endswith("肺肺")


def test_several_end_tokens(loaded: LoadedModel, requests: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    end = loaded.processor.tokenizer.encode("\n", add_special_tokens=False)
    say_only(loaded, monkeypatch, "左侧。\n", [2, *end])
    assert ends_of(loaded.model) == {2, *end}
    assert answer_batch(loaded, requests[:1], 60)[0].text == "左侧。"


def test_streamed_pieces_joined_are_the_batch_answer(loaded: LoadedModel, requests: list[Request]) -> None:
    for request in requests:
        parts = list(stream(loaded, request, 24))
        assert "".join(parts) == answer_batch(loaded, [request], 24)[0].text
        assert len(parts) > 1
        assert all(parts)


def test_characters_come_whole(byte_level: LoadedModel) -> None:
    """A character of several byte tokens appears when its last byte does; what never gets whole still appears."""
    loaded, tokenizer = byte_level, byte_level.processor.tokenizer
    ids = tokenizer.encode("龘😀 骨", add_special_tokens=False)  # unseen: bytes
    assert len(ids) > 5
    assert list(pieces(loaded, iter(ids))) == ["龘", "😀", " 骨"]
    broken = ids[: len(tokenizer.encode("龘", add_special_tokens=False)) + 2]
    assert "".join(pieces(loaded, iter(broken))) == text_from(loaded, broken)
    assert list(pieces(loaded, iter([]))) == []


def threads_of_ours() -> int:
    return sum(thread.name.endswith("(work)") for thread in threading.enumerate())


def test_closing_early_stops_the_model(
    loaded: LoadedModel, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    plain = loaded.model.forward

    @functools.wraps(plain)  # generate reads its signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        time.sleep(0.005)
        return plain(*args, **kwargs)

    monkeypatch.setattr(loaded.model, "forward", forward)
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", None)
    started = stream(loaded, requests[0], 1500)
    assert next(started)
    assert threads_of_ours() == 1
    started.close()
    assert threads_of_ours() == 0
    made = len(steps)
    assert made < 200
    time.sleep(0.05)
    assert len(steps) == made


def test_a_failure_in_the_thread_reaches_the_reader(
    loaded: LoadedModel, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loaded.model.forward
    calls = []

    @functools.wraps(plain)  # generate reads its signature
    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory, say")
        return plain(*args, **kwargs)

    monkeypatch.setattr(loaded.model, "forward", forward)
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", None)
    got: list[str] = []
    with pytest.raises(RuntimeError, match="out of memory, say"):
        got.extend(stream(loaded, requests[0], 50))
    assert len(calls) == 4
    assert threads_of_ours() == 0


def test_requests_that_cannot_be_asked(loaded: LoadedModel) -> None:
    image = to_rgb(tiny_png(0))
    for request, words in (
        (Request([]), "must end with the user's turn"),
        (Request([user("图", 1), assistant("肺")], [image]), "must end with the user's turn"),
        (Request([user("图", 1)]), "1 image parts for 0 images"),
        (Request([user("图", 1)], [image, image]), "1 image parts for 2 images"),
        (Request([user("图中<image>是什么", 1)], [image]), "literal <image>"),
    ):
        with pytest.raises(UserError, match=words):
            answer_batch(loaded, [request], 4)
        with pytest.raises(UserError, match=words):
            list(stream(loaded, request, 4))


def test_a_model_without_a_template(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.processor, "chat_template", None)
    with pytest.raises(UserError, match="no chat template"):
        answer_batch(loaded, [Request([user("图")])], 4)


@pytest.mark.parametrize("language", ["llama", "qwen2"])
def test_a_stage_one_model_stops_at_its_line_end(tmp_path: Path, language: str) -> None:
    """Taught one caption in the plain template, the model says it and stops, well before the limit."""
    from qilin.dataset.schema import Sample
    from qilin.model.processing import encode_sample

    made = compose(
        str(tiny_vision(tmp_path / "clip")),
        str(tiny_language(tmp_path / "language", language, width=64)),
        template="plain",
        system="",
        pad_square=True,
    )
    caption, image = "双肺纹理清晰。", to_rgb(tiny_png(1))
    encoded = encode_sample(Sample("s", "caption", ("x",), (user(images=1), assistant(caption))), made.processor)
    ids = torch.tensor([encoded.ids])
    labels = torch.where(torch.tensor([encoded.learn]), ids, -100)
    pixels = torch.as_tensor(made.processor.image_processor(images=[image])["pixel_values"][0])[None]
    optimizer = torch.optim.Adam(made.model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = made.model(input_ids=ids, pixel_values=pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.model.eval()
    assert answer_batch(made, [Request([user("说什么都行", 1)], [image])], 60)[0].text == caption
    assert "".join(stream(made, Request([user(images=1)], [image]), 60)) == caption
