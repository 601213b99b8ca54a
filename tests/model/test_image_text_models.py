"""Image-text models of other architectures than Llava: loaded without torchvision, equal to plain transformers."""

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from builders.image_text_models import ARCHITECTURES, image_text_model
from builders.tiny import tiny_dataset, tiny_language, tiny_png
from qilin.cli import main
from qilin.core.errors import UserError
from qilin.dataset.schema import assistant, user
from qilin.evaluate.config import EvaluateConfig
from qilin.evaluate.run import evaluate
from qilin.imaging.decode import to_rgb
from qilin.model.generate import (
    Request,
    answer_all,
    answer_batch,
    decode_answer,
    eos_token_ids,
    image_features,
    prepare_inputs,
    stream_answer,
)
from qilin.model.llava import LoadedModel, load_model
from qilin.model.processor import describe, open_processor

TOKENS = 8
# Sampling settings that would change greedy answers.
SAMPLING = {"do_sample": True, "temperature": 0.1, "top_k": 1, "repetition_penalty": 1.5}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("model") / request.param
    return load_model(image_text_model(folder, request.param, **SAMPLING))


@functools.cache
def requests() -> list[Request]:
    """Images of different sizes; one text without an image, two images in a turn, and an image in two turns each."""
    small, wide, large = to_rgb(tiny_png(0)), to_rgb(tiny_png(1, 30)), to_rgb(tiny_png(2, 90))
    return [
        Request([user("图中有异常吗？", 1)], [small]),
        Request([user("这张图片是什么模态？请说明。", 1)], [large]),
        Request([user("高血压应注意什么？")]),
        Request([user("相同吗？", 2)], [wide, large]),
        Request([user("图？", 1), assistant("没有。"), user("这是？", 1)], [large, small]),
    ]


def test_a_refused_image_costs_only_itself(loaded: LoadedModel) -> None:
    if loaded.model.config.model_type != "qwen2_5_vl":
        pytest.skip("takes images of any shape")
    line = Image.new("RGB", (400, 1))  # Qwen-VL's processor refuses an aspect ratio above 200
    expected = [answer_batch(loaded, [request], 2)[0] for request in requests()[:2]]
    mixed = [requests()[0], Request([user("图？", 1)], [line]), requests()[1]]
    answers = list(answer_all(loaded, mixed, 3, 2))
    assert [answers[0].text, answers[2].text] == [answer.text for answer in expected]
    assert (answers[1].text, answers[1].confidence) == ("", 0)
    assert "aspect ratio" in answers[1].refusal
    vectors = image_features(loaded, [requests()[0].images[0], line])
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True]


def test_batched_equals_single_equals_streamed(loaded: LoadedModel) -> None:
    single = [answer_batch(loaded, [request], TOKENS)[0] for request in requests()]
    batched = list(answer_all(loaded, requests(), 5, TOKENS))
    streamed = ["".join(stream_answer(loaded, request, TOKENS)) for request in requests()]
    assert [answer.text for answer in batched] == [answer.text for answer in single] == streamed
    for one, other in zip(batched, single, strict=True):
        assert one.confidence == pytest.approx(other.confidence, rel=1e-4)


def test_equals_plain_transformers(loaded: LoadedModel) -> None:
    """Token by token, by the documented path: the processor's own apply_chat_template with the images in the parts."""
    for request in requests():
        inputs = loaded.processor.apply_chat_template(
            with_images(request), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        options = {"do_sample": False, "repetition_penalty": 1.0, "temperature": None, "top_k": None}
        output = loaded.model.generate(**inputs, max_new_tokens=TOKENS, **options)
        length = inputs["input_ids"].shape[1]
        assert decode_answer(loaded, output[0, length:]) == answer_batch(loaded, [request], TOKENS)[0].text
        ours = prepare_inputs(loaded, [request])
        assert set(ours) == set(inputs)
        assert all(torch.equal(ours[name], inputs[name]) for name in inputs)


def with_images(request: Request) -> list[dict[str, Any]]:
    images = iter(request.images)
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "image": next(images)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in request.messages
    ]


def test_another_image_changes_the_log_probabilities(loaded: LoadedModel) -> None:
    own, swapped = requests()[3], Request(requests()[3].messages, requests()[3].images[::-1])
    with torch.inference_mode():
        first, second = (loaded.model(**prepare_inputs(loaded, [r])).logits[0, -1] for r in (own, swapped))
    assert not torch.allclose(first.log_softmax(-1), second.log_softmax(-1), atol=1e-4)
    vectors = image_features(loaded, requests()[3].images)
    assert vectors.shape[0] == 2
    assert (vectors[0] != vectors[1]).any()


def test_confidence_is_the_models_own_probability(loaded: LoadedModel) -> None:
    """Not one that the checkpoint's repetition penalty changed."""
    inputs = prepare_inputs(loaded, [requests()[0]])
    with torch.inference_mode():
        expected = loaded.model(**inputs).logits[0, -1].float().softmax(-1).max()
    assert answer_batch(loaded, [requests()[0]], 1)[0].confidence == pytest.approx(float(expected), rel=1e-4)


def test_manifest_shows_prompt_limits_and_stop_tokens(tmp_path: Path) -> None:
    loaded = load_model(image_text_model(tmp_path / "qwen", "qwen2.5-vl"))
    settings = describe(loaded.processor, eos_token_ids(loaded.model))
    assert settings["prompt"] == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|>"
        "<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert settings["image_processor"]["size"] == {"shortest_edge": 1024, "longest_edge": 4096}
    assert settings["stop_tokens"] == ["<|endoftext|>", "<|im_end|>"]
    assert json.dumps(settings)


def test_template_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(image_text_model(tmp_path / "gemma", "gemma3"))
    main(["template", folder, "--question", "图？", "--answer", "无。", "--turns", "1"])
    out, err = capsys.readouterr()
    shown = "<bos><start_of_turn>user\n\n\n<start_of_image><image_soft_token>×4<end_of_image>\n\n图？<end_of_turn>"
    assert "".join(out.split()) == "".join(f"{shown}\n<start_of_turn>model\n无。<end_of_turn>".split())
    assert "4 of images" in err
    main(["template", folder, "--json"])
    output = json.loads(capsys.readouterr().out)
    tokenizer = open_processor(folder).tokenizer
    ids = [token for token, supervised in zip(output["ids"], output["loss_mask"], strict=True) if supervised]
    assert tokenizer.decode(ids) == "右下肺见片状影。<end_of_turn>" * 2
    assert main(["template", folder, "--template", "v1"]) == 2
    assert "only a Llava" in capsys.readouterr().err
    (Path(folder) / "chat_template.jinja").unlink()
    assert main(["template", folder]) == 2
    assert "no chat template" in capsys.readouterr().err


@pytest.mark.long
def test_evaluate_states_how_the_model_was_asked(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "data", images=2, questions=1)
    folder = image_text_model(tmp_path / "qwen", "qwen3-vl")
    config = EvaluateConfig(
        model=str(folder), dataset=dataset, train=dataset, split="test", out=tmp_path / "out", shuffles=1, resamples=20,
        max_new_tokens=2, caption_tokens=2, batch_size=16,
    )  # fmt: skip
    asked = evaluate(config)["manifest"]["asked"]
    assert asked["processor"] == "Qwen3VLProcessor"
    assert asked["prompt"].startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>")
    assert asked["image_processor"]["size"] == {"shortest_edge": 1024, "longest_edge": 4096}
    assert asked["stop_tokens"] == ["<|endoftext|>", "<|im_end|>"]


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
@pytest.mark.parametrize("name", [name for name, parts in ARCHITECTURES.items() if parts.get("video")])
def test_opens_where_transformers_asks_for_torchvision(tmp_path: Path, name: str) -> None:
    folder = image_text_model(tmp_path / name, name)
    with pytest.raises(ImportError, match="(?i)torchvision|num2words"):
        AutoProcessor.from_pretrained(folder)
    processor = open_processor(str(folder))
    with pytest.raises(UserError, match="video"):
        processor.video_processor([])
    processor.save_pretrained(tmp_path / "saved")  # in the layout of transformers 5: one processor_config.json
    saved = open_processor(str(tmp_path / "saved"))
    assert describe(saved, {1}) == describe(processor, {1})
    assert saved.video_processor.video_processor_type == ARCHITECTURES[name]["video"]


def test_refused_in_one_line(tmp_path: Path) -> None:
    folder = image_text_model(tmp_path / "model", "qwen2.5-vl")
    loaded = load_model(folder)
    video = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}
    with pytest.raises(UserError, match="video"):
        prepare_inputs(loaded, [Request([video])])
    with pytest.raises(UserError, match="aspect ratio"):
        prepare_inputs(loaded, [Request([user("?", 1)], [requests()[0].images[0].resize((500, 2))])])
    escaped = prepare_inputs(loaded, [Request([user("<|image_pad|>？")])])
    assert loaded.model.config.image_token_id not in escaped["input_ids"]
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"chat_template\.jinja") as error:
        prepare_inputs(load_model(folder), [requests()[0]])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="processor_config.json") as error:
        open_processor(str(tiny_language(tmp_path / "text")))
    assert "\n" not in str(error.value)
