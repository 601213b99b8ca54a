"""Composed models: parts are unchanged, and saved folders work in plain transformers."""

import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    GenerationConfig,
    SiglipConfig,
    SiglipModel,
)

from builders.architectures import vision_encoder
from builders.tiny import PATCHES, tiny_language, tiny_llava, tiny_png, tiny_tokenizer, tiny_vision
from qilin.core.errors import RunError, UserError
from qilin.dataset.schema import assistant, user
from qilin.imaging.decode import to_rgb
from qilin.model.architectures import PARTS, part_of, set_trainable
from qilin.model.generate import Request, answer_batch, prepare_inputs
from qilin.model.llava import LoadedModel, check_feature_layer, compose, load_model, set_template

LANGUAGES = ("llama", "qwen3", "mistral")
VISIONS = ("clip", "siglip")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for name in LANGUAGES:
        tiny_language(folder / name, name)
    for name in VISIONS:
        tiny_vision(folder / name, name)
    tiny_language(folder / "tied", "llama", tie=True)
    return folder


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("language", LANGUAGES)
@torch.no_grad()
def test_parts_are_unchanged(parts: Path, vision: str, language: str) -> None:
    loaded = tiny_llava(parts, vision, language)
    language_model = AutoModelForCausalLM.from_pretrained(parts / language).eval()
    text = "胸部正位片示右下肺野片状高密度影"
    ids = loaded.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    logits, expected_logits = loaded.model(input_ids=ids).logits, language_model(input_ids=ids).logits
    assert torch.equal(logits[..., : expected_logits.shape[-1]], expected_logits)

    model, config = loaded.model, loaded.model.config
    projector = model.model.multi_modal_projector
    assert (projector.linear_1.in_features, projector.linear_2.out_features) == (32, 32)
    assert all(p.device.type == "cpu" and torch.isfinite(p).all() for p in model.parameters())
    assert all(p.std() > 0 for p in projector.parameters())  # initialized, not empty memory
    assert config.vision_feature_select_strategy == ("default" if vision == "clip" else "full")
    assert config.image_seq_length == PATCHES

    # The language model receives features of the penultimate layer, without class token, projected.
    inputs = prepare_inputs(loaded, [Request([user("图", 1)], [to_rgb(tiny_png(3))])])
    encoder = type(model.model.vision_tower).from_pretrained(parts / vision).eval()
    layers = encoder(inputs["pixel_values"], output_hidden_states=True).hidden_states
    expected = projector(layers[-2][:, 1:] if vision == "clip" else layers[-2])
    features = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    torch.testing.assert_close(features, expected[0])
    assert features.shape == (PATCHES, 32)
    wrong = projector(layers[-1][:, 1:] if vision == "clip" else layers[-1])
    assert not torch.allclose(features, wrong[0])  # control: the last layer differs


def test_feature_layer_is_applied_and_saved(parts: Path, tmp_path: Path) -> None:
    loaded = tiny_llava(parts)
    loaded.model.config.vision_feature_layer = -1
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = loaded.model.get_image_features(pixels).pooler_output[0]
        save(loaded, tmp_path)
        again = load_model(tmp_path, "cpu").model
        assert torch.equal(again.get_image_features(pixels).pooler_output[0], before)
        again.config.vision_feature_layer = -2
        assert not torch.allclose(again.get_image_features(pixels).pooler_output[0], before)


@pytest.mark.parametrize("architecture", VISIONS)
def test_the_encoder_of_an_image_text_model(parts: Path, tmp_path: Path, architecture: str) -> None:
    """Hub models hold both encoders (openai/clip-vit-large-patch14-336 does); the vision encoder is extracted."""
    small: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config_class, model_class = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[architecture]
    config: Any = config_class(vision_config=small | {"image_size": 32, "patch_size": 8}, text_config=small)
    torch.manual_seed(1)
    both: Any = model_class(config)
    both.save_pretrained(tmp_path / "both")
    loaded = compose(str(tmp_path / "both"), str(parts / "llama"), template="v1", system=None, pad_square=True)
    weights, expected = loaded.model.model.vision_tower.state_dict(), both.vision_model.state_dict()
    assert len(expected) > 20
    for name, value in expected.items():
        weight = weights.get(name, weights.get(f"vision_model.{name}"))
        assert weight is not None, name
        assert torch.equal(weight, value), name


def test_tied_embeddings_stay_tied(parts: Path, tmp_path: Path) -> None:
    loaded = tiny_llava(parts, language="tied")
    for model in (loaded.model, load_model(save(loaded, tmp_path), "cpu").model):
        assert model.config.tie_word_embeddings
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    untied = tiny_llava(parts).model
    assert untied.lm_head.weight is not untied.model.language_model.embed_tokens.weight
    assert "lm_head.weight" not in {name for name, _ in loaded.model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("dinov2-registers", 36, 4 * 4 + 4),  # 36 pixels: 4 patches of 8 and a rest; the class token is dropped
        pytest.param("dinov3", 40, 5 * 5 + 4, marks=pytest.mark.long),
    ],
)
@torch.no_grad()
def test_encoders_with_registers_and_of_any_square_size(
    parts: Path, tmp_path: Path, name: str, size: int, tokens: int
) -> None:
    """Register tokens stay among an image's tokens, as in plain transformers; compose says what vLLM does not serve."""
    vision_encoder(tmp_path / "vision", name, image_size=size)
    loaded = compose(str(tmp_path / "vision"), str(parts / "llama"), template="v1", system=None, pad_square=True)
    assert ["vLLM" in note and name.split("-")[0] in note.lower() for note in loaded.notes] == [True]
    assert not tiny_llava(parts).notes
    request = Request([user("图？", 1)], [to_rgb(tiny_png(0, 90))])
    inputs = prepare_inputs(loaded, [request])
    assert int((inputs["input_ids"] == loaded.model.config.image_token_id).sum()) == tokens
    assert inputs["pixel_values"].shape[-2:] == (size, size)
    for layer in (-1, -2, 1):
        loaded.model.config.vision_feature_layer = layer
        assert loaded.model(**inputs).logits.isfinite().all()
    loaded.model.config.vision_feature_layer = 4
    with pytest.raises(UserError, match="has 3 layers"):
        check_feature_layer(loaded.model.config)


@pytest.mark.parametrize(("padding_rows", "added_rows"), [(0, 1), (1, 0), (60, 0)])
def test_the_image_token_uses_padding_rows_or_adds_one(tmp_path: Path, padding_rows: int, added_rows: int) -> None:
    """Padding rows (Qwen's table has about 271) are used; without any, the table grows by one."""
    tokenizer = tiny_tokenizer()
    tiny_language(tmp_path / "language", tokenizer=tokenizer, padding_rows=padding_rows)
    tiny_vision(tmp_path / "clip")
    model = tiny_llava(tmp_path, language="language").model
    rows = len(tokenizer) + padding_rows + added_rows
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == rows
    assert model.config.text_config.vocab_size == rows
    assert model.config.image_token_id < rows


def test_padding_with_the_mean_color(parts: Path) -> None:
    """pad_square adds bars of the mean color; without it the image is center-cropped."""
    image = to_rgb(tiny_png(3, side=40))  # 56 x 40
    padded = tiny_llava(parts).processor.image_processor(images=[image])["pixel_values"][0]
    cropped = tiny_llava(parts, pad_square=False).processor.image_processor(images=[image])["pixel_values"][0]
    padded, cropped = torch.as_tensor(padded), torch.as_tensor(cropped)
    assert padded.shape == cropped.shape == (3, 32, 32)
    assert padded[:, :3].abs().max() < 0.05  # about zero after normalization
    assert cropped[:, :3].abs().max() > 0.5


def test_sampling_settings_are_not_inherited(parts: Path, tmp_path: Path) -> None:
    """Llama 2's chat models set temperature without do_sample, which cannot be saved again; Qwen's sample."""
    tiny_language(tmp_path / "sampling")
    (tmp_path / "sampling" / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.3, "eos_token_id": 2}), encoding="utf-8"
    )
    loaded = compose(str(parts / "clip"), str(tmp_path / "sampling"), template="v1", system=None, pad_square=True)
    again = GenerationConfig.from_pretrained(save(loaded, tmp_path / "model"))
    assert (again.temperature, again.repetition_penalty, again.eos_token_id) == (None, None, 2)


def save(loaded: LoadedModel, folder: Path) -> Path:
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return folder


TRANSFORMERS_SCRIPT = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

image, *folders = sys.argv[1:]
found = []
for folder in folders:
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    found.append(type(model).__name__)
    text = {"type": "text", "text": "图中有异常吗？"}
    for content in ([{"type": "image", "image": Image.open(image)}, text], [text]):
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )
        made = model.generate(**inputs, max_new_tokens=12)
        said = made[0, inputs["input_ids"].shape[1]:]
        found.append(processor.decode(said, skip_special_tokens=True).strip())
try:
    import qilin
except ImportError:
    print(json.dumps(found))
"""


@pytest.mark.story
def test_transformers_alone_gives_the_same_answers(parts: Path, tmp_path: Path) -> None:
    """Saved folders in a process that cannot import Qilin, with transformers alone."""
    (tmp_path / "image.png").write_bytes(tiny_png(5))
    image = to_rgb(tiny_png(5))
    requests = [Request([user("图中有异常吗？", 1)], [image]), Request([user("图中有异常吗？")])]
    folders, expected = [], []
    for vision, language, template in (
        ("clip", "llama", "plain"),
        ("siglip", "qwen3", "chatml"),
        ("clip", "tied", "v1"),
    ):
        loaded = tiny_llava(parts, vision, language, template=template)
        folders.append(str(save(loaded, tmp_path / language)))
        expected += [
            "LlavaForConditionalGeneration",
            *(answer_batch(loaded, [request], 12)[0].text for request in requests),
        ]
    # -S skips site's .pth files, which add Qilin's source; site-packages is added again without them.
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"import sys; sys.path.append({packages!r})\n{TRANSFORMERS_SCRIPT}"
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "image.png"), *folders]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    assert json.loads(process.stdout.splitlines()[-1]) == expected  # printed only where `import qilin` failed
    assert sum(bool(text) for text in expected) == len(expected)


def test_set_trainable(parts: Path) -> None:
    model = tiny_llava(parts).model
    counts = set_trainable(model, ["projector"])
    sizes = {part: sum(p.numel() for n, p in model.named_parameters() if part_of(n) == part) for part in PARTS}
    assert counts == {part: (size * (part == "projector"), size) for part, size in sizes.items()}
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {
        f"model.multi_modal_projector.linear_{n}.{name}" for n in (1, 2) for name in ("weight", "bias")
    }
    counts = set_trainable(model, ["projector", "language"])
    assert (counts["vision"][0], counts["language"][0]) == (0, sizes["language"])
    assert model.lm_head.weight.requires_grad
    assert not any(p.requires_grad for p in model.model.vision_tower.parameters())


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("language", [*LANGUAGES, "tied"])
def test_every_parameter_belongs_to_a_part(parts: Path, vision: str, language: str) -> None:
    model = tiny_llava(parts, vision, language).model
    assert {part_of(name) for name, _ in model.named_parameters()} == set(PARTS)
    with pytest.raises(AssertionError, match="belongs to no part"):
        part_of("model.extra.weight")


def test_set_template_replaces_the_template(parts: Path) -> None:
    loaded = tiny_llava(parts, template="plain")
    plain_ends = loaded.model.generation_config.eos_token_id
    assert isinstance(plain_ends, list)
    set_template(loaded.model, loaded.processor, "v1", "")
    assert loaded.model.generation_config.eos_token_id == loaded.processor.tokenizer.eos_token_id
    prompt = loaded.processor.apply_chat_template([user("肺")], add_generation_prompt=True, tokenize=False)
    assert prompt == "<s>USER: 肺 ASSISTANT:"


def test_unsuitable_parts_are_refused(parts: Path, tmp_path: Path) -> None:
    def compose_parts(vision: object, language: object, **options: Any) -> LoadedModel:
        options = {"template": "v1", "system": None, "pad_square": True} | options
        return compose(str(vision), str(language), **options)

    clip, llama = parts / "clip", parts / "llama"
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("x")
    for vision, language, error in (
        (clip, tmp_path / "gone", "gone: no such folder, and not a hub id"),
        (tmp_path / "gone", llama, "gone: no such folder"),
        (clip, empty, "not a model folder .* it holds nothing"),
        (empty, llama, "not a model folder"),
        (clip, tmp_path / "notes", "it holds readme.txt"),
        (clip, clip, "not a model folder"),
        (llama, llama, "no integer patch_size; expected a ViT"),
    ):
        with pytest.raises(UserError, match=error):
            compose_parts(vision, language)
    with pytest.raises(UserError, match=r"no token <\|im_start\|>.*use template v1"):
        compose_parts(clip, llama, template="chatml")
    with pytest.raises(UserError, match="vicuna: no such file; expected a chat template"):
        compose_parts(clip, llama, template="vicuna")


def test_other_folders_are_refused(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a model folder that transformers can load"):
        load_model(parts / "llama", "cpu")
    folder = save(tiny_llava(parts), tmp_path / "model")
    for device, error in (("graphics", "expected auto, cpu"), ("meta", "which this machine does not have")):
        with pytest.raises(UserError, match=error):
            load_model(folder, device)
    (folder / "qilin.json").write_text('{"stage": ')
    with pytest.raises(UserError, match=r"qilin\.json: not valid JSON"):
        load_model(folder, "cpu")
    (folder / "qilin.json").write_text('{"stage": "projector"}')
    assert load_model(folder, "cpu").metadata == {"stage": "projector"}
    (folder / "processor_config.json").unlink()
    with pytest.raises(UserError, match="processor"):
        load_model(folder, "cpu")


@pytest.mark.parametrize("mode", ["offline", "no network"])
def test_a_hub_id_without_a_network(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # closed port
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub retries five times
    with pytest.raises(
        UserError, match="someone/some-model: no such folder, and the download from the hub failed"
    ) as error:
        load_model("someone/some-model", "cpu")
    assert "hf download" in str(error.value)
    assert "HF_ENDPOINT" in str(error.value)
    assert "\n" not in str(error.value)


def test_modelscope(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("modelscope")
    requested = []

    def snapshot_download(name: str) -> str:
        requested.append(name)
        if name.startswith("lost/"):
            raise ConnectionError("timed out")
        return str(parts / name.split("/")[1])

    fake.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", fake)
    loaded = compose("someone/clip", "someone/llama", template="v1", system=None, pad_square=True, hub="modelscope")
    assert set(requested) == {"someone/clip", "someone/llama"}
    assert list(loaded.processor.image_processor.image_mean) == [0.5, 0.5, 0.5]  # the encoder's
    with pytest.raises(RunError, match=r"download from ModelScope failed \(timed out\); without a network, fetch"):
        load_model("lost/model", "cpu", hub="modelscope")
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(UserError, match=r"pip install 'qilin-med\[hubs\]'"):
        load_model("someone/model", "cpu", hub="modelscope")


def test_mixed_batches(parts: Path) -> None:
    """Left padding, images in the order of the requests, requests with and without images."""
    loaded = tiny_llava(parts)
    images = [to_rgb(tiny_png(n)) for n in range(3)]
    requests = [
        Request([user("图中有异常吗？", 1)], images[:1]),
        Request([user("高血压应注意什么？")]),
        Request([user("相同吗？", 1), assistant("不。"), user("为什么？", 1)], images[1:]),
    ]
    inputs = prepare_inputs(loaded, requests)
    assert inputs["pixel_values"].shape == (3, 3, 32, 32)
    counts = (inputs["input_ids"] == loaded.model.config.image_token_id).sum(1).tolist()
    assert counts == [PATCHES, 0, 2 * PATCHES]
    padding = (inputs["attention_mask"] == 0).sum(1).tolist()
    assert padding[1] > padding[0] > padding[2] == 0
    assert not inputs["attention_mask"][1, : padding[1]].any()
    alone = prepare_inputs(loaded, requests[:1])
    assert torch.equal(alone["input_ids"][0], inputs["input_ids"][0, padding[0] :])
    assert torch.equal(alone["pixel_values"][0], inputs["pixel_values"][0])
