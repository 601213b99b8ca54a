"""Composed models: the parts are whole inside, and what is saved answers where Qilin was never heard of."""

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

from builders.tiny import PATCHES, tiny_language, tiny_png, tiny_tokenizer, tiny_vision
from qilin.core.errors import RunError, UserError
from qilin.dataset.schema import assistant, user
from qilin.imaging.decode import to_rgb
from qilin.model.generate import Request, answer_batch, prepare
from qilin.model.llava import PARTS, LoadedModel, compose, load_model, part_of, set_template, set_trainable

LANGUAGES = ("llama", "qwen3", "mistral")
VISIONS = ("clip", "siglip")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("parts")
    for kind in LANGUAGES:
        tiny_language(home / kind, kind)
    for kind in VISIONS:
        tiny_vision(home / kind, kind)
    tiny_language(home / "tied", "llama", tie=True)
    return home


def put_together(parts: Path, vision: str = "clip", language: str = "llama", **options: Any) -> LoadedModel:
    template = "chatml" if language.startswith("qwen") else "v1"
    options = {"template": template, "system": None, "pad_square": True} | options
    made = compose(str(parts / vision), str(parts / language), **options)
    made.model.eval()
    return made


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("language", LANGUAGES)
@torch.no_grad()
def test_parts_are_whole_inside(parts: Path, vision: str, language: str) -> None:
    loaded = put_together(parts, vision, language)
    alone = AutoModelForCausalLM.from_pretrained(parts / language).eval()
    text = "胸部正位片示右下肺野片状高密度影"
    ids = loaded.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ours, theirs = loaded.model(input_ids=ids).logits, alone(input_ids=ids).logits
    assert torch.equal(ours[..., : theirs.shape[-1]], theirs)

    model, config = loaded.model, loaded.model.config
    projector = model.model.multi_modal_projector
    assert (projector.linear_1.in_features, projector.linear_2.out_features) == (32, 32)
    assert all(p.device.type == "cpu" and torch.isfinite(p).all() for p in model.parameters())
    assert all(p.std() > 0 for p in projector.parameters())  # made, not left as the empty memory it was
    assert config.vision_feature_select_strategy == ("default" if vision == "clip" else "full")
    assert config.image_seq_length == PATCHES

    # The features that reach the language model: of the layer before the last, class token dropped, projected.
    inputs = prepare(loaded, [Request([user("图", 1)], [to_rgb(tiny_png(3))])])
    tower = type(model.model.vision_tower).from_pretrained(parts / vision).eval()
    layers = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    expected = projector(layers[-2][:, 1:] if vision == "clip" else layers[-2])
    found = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    torch.testing.assert_close(found, expected[0])
    assert found.shape == (PATCHES, 32)
    wrong = projector(layers[-1][:, 1:] if vision == "clip" else layers[-1])
    assert not torch.allclose(found, wrong[0])  # control: the last layer would differ


def test_another_feature_layer_is_obeyed_and_saved(parts: Path, tmp_path: Path) -> None:
    loaded = put_together(parts)
    loaded.model.config.vision_feature_layer = -1
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = loaded.model.get_image_features(pixels).pooler_output[0]
        save(loaded, tmp_path)
        again = load_model(tmp_path, "cpu").model
        assert torch.equal(again.get_image_features(pixels).pooler_output[0], before)
        again.config.vision_feature_layer = -2
        assert not torch.allclose(again.get_image_features(pixels).pooler_output[0], before)


@pytest.mark.parametrize("kind", VISIONS)
def test_the_tower_of_a_whole_image_text_model(parts: Path, tmp_path: Path, kind: str) -> None:
    """Hub models hold both towers (openai/clip-vit-large-patch14-336 does); the vision one comes out whole."""
    small: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config_of, model_of = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[kind]
    config: Any = config_of(vision_config=small | {"image_size": 32, "patch_size": 8}, text_config=small)
    torch.manual_seed(1)
    both: Any = model_of(config)
    both.save_pretrained(tmp_path / "both")
    loaded = compose(
        str(tmp_path / "both"), str(parts / "llama"), template="v1", system=None, pad_square=True
    ).model.model.vision_tower
    inside, outside = loaded.state_dict(), both.vision_model.state_dict()
    assert len(outside) > 20
    for name, value in outside.items():
        found = inside.get(name, inside.get(f"vision_model.{name}"))
        assert found is not None, name
        assert torch.equal(found, value), name


def test_tied_embeddings_stay_tied(parts: Path, tmp_path: Path) -> None:
    loaded = put_together(parts, language="tied")
    for model in (loaded.model, load_model(save(loaded, tmp_path), "cpu").model):
        assert model.config.tie_word_embeddings
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    untied = put_together(parts).model
    assert untied.lm_head.weight is not untied.model.language_model.embed_tokens.weight
    assert "lm_head.weight" not in {name for name, _ in loaded.model.named_parameters()}


@pytest.mark.parametrize(("spare", "grown"), [(0, 1), (1, 0), (60, 0)])
def test_room_for_the_image_token(tmp_path: Path, spare: int, grown: int) -> None:
    """Rows that pad the table (Qwen's has 271 or so) are used; without any, the table grows by one."""
    tokenizer = tiny_tokenizer()
    tiny_language(tmp_path / "language", tokenizer=tokenizer, spare=spare)
    tiny_vision(tmp_path / "clip")
    model = put_together(tmp_path, language="language").model
    rows = len(tokenizer) + spare + grown
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == rows
    assert model.config.text_config.vocab_size == rows
    assert model.config.image_token_id < rows


def test_a_mean_coloured_square(parts: Path) -> None:
    """pad_square keeps the whole image between bars of the mean colour; without it the middle is cut out."""
    image = to_rgb(tiny_png(3, side=40))  # 56 x 40
    padded = put_together(parts).processor.image_processor(images=[image])["pixel_values"][0]
    cropped = put_together(parts, pad_square=False).processor.image_processor(images=[image])["pixel_values"][0]
    padded, cropped = torch.as_tensor(padded), torch.as_tensor(cropped)
    assert padded.shape == cropped.shape == (3, 32, 32)
    assert padded[:, :3].abs().max() < 0.05  # normalised by the encoder's own mean and deviation: about nothing
    assert cropped[:, :3].abs().max() > 0.5


def test_a_chat_models_sampling_is_left_behind(parts: Path, tmp_path: Path) -> None:
    """Llama 2's chat models say temperature without do_sample, which cannot be saved again; Qwen's sample."""
    tiny_language(tmp_path / "chatty")
    (tmp_path / "chatty" / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.3, "eos_token_id": 2}), encoding="utf-8"
    )
    loaded = compose(str(parts / "clip"), str(tmp_path / "chatty"), template="v1", system=None, pad_square=True)
    again = GenerationConfig.from_pretrained(save(loaded, tmp_path / "model"))
    assert (again.temperature, again.repetition_penalty, again.eos_token_id) == (None, None, 2)


def save(loaded: LoadedModel, folder: Path) -> Path:
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return folder


STRANGER = """
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


def test_plain_transformers_answers_the_same(parts: Path, tmp_path: Path) -> None:
    """Saved folders in a process that cannot import Qilin: loaded, templated and asked by transformers alone."""
    (tmp_path / "picture.png").write_bytes(tiny_png(5))
    image = to_rgb(tiny_png(5))
    asked = [Request([user("图中有异常吗？", 1)], [image]), Request([user("图中有异常吗？")])]
    folders, ours = [], []
    for vision, language, template in (
        ("clip", "llama", "plain"),
        ("siglip", "qwen3", "chatml"),
        ("clip", "tied", "v1"),
    ):
        loaded = put_together(parts, vision, language, template=template)
        folders.append(str(save(loaded, tmp_path / language)))
        ours += ["LlavaForConditionalGeneration", *(answer_batch(loaded, [request], 12)[0].text for request in asked)]
    # -S leaves out site's .pth files, among them the one that puts Qilin's source there; the packages come back.
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"import sys; sys.path.append({packages!r})\n{STRANGER}"
    words = [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "picture.png"), *folders]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == ours  # printed only where `import qilin` failed
    assert sum(bool(text) for text in ours) == len(ours)


def test_what_learns(parts: Path) -> None:
    model = put_together(parts).model
    counts = set_trainable(model, ["projector"])
    sizes = {part: sum(p.numel() for n, p in model.named_parameters() if n.startswith(PARTS[part])) for part in PARTS}
    assert counts == {part: (size * (part == "projector"), size) for part, size in sizes.items()}
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {f"model.multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    counts = set_trainable(model, ["projector", "language"])
    assert (counts["vision"][0], counts["language"][0]) == (0, sizes["language"])
    assert model.lm_head.weight.requires_grad
    assert not any(p.requires_grad for p in model.model.vision_tower.parameters())


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("language", [*LANGUAGES, "tied"])
def test_every_parameter_belongs_to_a_part(parts: Path, vision: str, language: str) -> None:
    model = put_together(parts, vision, language).model
    assert {part_of(name) for name, _ in model.named_parameters()} == set(PARTS)
    with pytest.raises(AssertionError, match="belongs to no part"):
        part_of("model.extra.weight")


def test_a_stage_brings_its_own_template(parts: Path) -> None:
    loaded = put_together(parts, template="plain")
    plain_ends = loaded.model.generation_config.eos_token_id
    assert isinstance(plain_ends, list)
    set_template(loaded.model, loaded.processor, "v1", "")
    assert loaded.model.generation_config.eos_token_id == loaded.processor.tokenizer.eos_token_id
    asked = loaded.processor.apply_chat_template([user("肺")], add_generation_prompt=True, tokenize=False)
    assert asked == "<s>USER: 肺 ASSISTANT:"


def test_unsuitable_parts_are_refused(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def together(vision: object, language: object, **options: Any) -> LoadedModel:
        options = {"template": "v1", "system": None, "pad_square": True} | options
        return compose(str(vision), str(language), **options)

    clip, llama = parts / "clip", parts / "llama"
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("x")
    for vision, language, words in (
        (clip, tmp_path / "gone", "gone: no such folder, and not a hub id"),
        (tmp_path / "gone", llama, "gone: no such folder"),
        (clip, empty, "not a model folder .* it holds nothing"),
        (empty, llama, "not a model folder"),
        (clip, tmp_path / "notes", "it holds readme.txt"),
        (clip, clip, "not a model folder"),
        (llama, llama, "no whole number patch_size; expected a ViT"),
    ):
        with pytest.raises(UserError, match=words):
            together(vision, language)
    with pytest.raises(UserError, match=r"no token <\|im_start\|>.*use template v1"):
        together(clip, llama, template="chatml")
    with pytest.raises(UserError, match="expected one of plain, v1, "):
        together(clip, llama, template="vicuna")


def test_folders_that_are_no_image_text_model(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a model folder that transformers can load"):
        load_model(parts / "llama", "cpu")
    folder = save(put_together(parts), tmp_path / "model")
    for device, words in (("graphics", "expected auto, cpu"), ("meta", "which this machine does not have")):
        with pytest.raises(UserError, match=words):
            load_model(folder, device)
    (folder / "qilin.json").write_text('{"stage": ')
    with pytest.raises(UserError, match=r"qilin\.json: not JSON"):
        load_model(folder, "cpu")
    (folder / "qilin.json").write_text('{"stage": "projector"}')
    assert load_model(folder, "cpu").card == {"stage": "projector"}
    (folder / "processor_config.json").unlink()
    with pytest.raises(UserError, match="processor"):
        load_model(folder, "cpu")


@pytest.mark.parametrize("how", ["offline", "no network"])
def test_a_hub_id_without_a_network_says_what_to_do(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's library tries five times
    with pytest.raises(UserError, match="someone/some-model: not found here and not fetched from the hub") as failed:
        load_model("someone/some-model", "cpu")
    assert "hf download" in str(failed.value)
    assert "HF_ENDPOINT" in str(failed.value)
    assert "\n" not in str(failed.value)


def test_modelscope(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("modelscope")
    asked = []

    def snapshot_download(name: str) -> str:
        asked.append(name)
        if name.startswith("lost/"):
            raise ConnectionError("timed out")
        return str(parts / name.split("/")[1])

    fake.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", fake)
    made = compose("someone/clip", "someone/llama", template="v1", system=None, pad_square=True, hub="modelscope")
    assert set(asked) == {"someone/clip", "someone/llama"}
    own = made.processor.image_processor
    assert list(own.image_mean) == [0.5, 0.5, 0.5]  # the encoder's colours came along
    with pytest.raises(RunError, match="ModelScope did not deliver it .timed out.; without a network, fetch"):
        load_model("lost/model", "cpu", hub="modelscope")
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(UserError, match=r"pip install 'qilin-med\[hubs\]'"):
        load_model("someone/model", "cpu", hub="modelscope")


def test_batches_of_every_kind_prepare(parts: Path) -> None:
    """Left padding, images in the order of the requests, text alone beside images."""
    loaded = put_together(parts)
    images = [to_rgb(tiny_png(n)) for n in range(3)]
    requests = [
        Request([user("图中有异常吗？", 1)], images[:1]),
        Request([user("高血压应注意什么？")]),
        Request([user("相同吗？", 1), assistant("不。"), user("为什么？", 1)], images[1:]),
    ]
    inputs = prepare(loaded, requests)
    assert inputs["pixel_values"].shape == (3, 3, 32, 32)
    counts = (inputs["input_ids"] == loaded.model.config.image_token_id).sum(1).tolist()
    assert counts == [PATCHES, 0, 2 * PATCHES]
    padding = (inputs["attention_mask"] == 0).sum(1).tolist()
    assert padding[1] > padding[0] > padding[2] == 0
    assert not inputs["attention_mask"][1, : padding[1]].any()
    alone = prepare(loaded, requests[:1])
    assert torch.equal(alone["input_ids"][0], inputs["input_ids"][0, padding[0] :])
    assert torch.equal(alone["pixel_values"][0], inputs["pixel_values"][0])
