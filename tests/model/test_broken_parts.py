"""Model folders that lack weights, hold something else, or need code of their own: one line, before anything runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders.tiny import tiny_language, tiny_llava, tiny_vision
from qilin.core.errors import UserError
from qilin.model.llava import LoadedModel, check_feature_layer, compose, load_model
from qilin.model.saving import save_model


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny_language(folder / "llama")
    tiny_vision(folder / "clip")
    loaded = tiny_llava(folder)
    (folder / "llava").mkdir()
    save_model(folder / "llava", loaded.model, loaded.processor)
    return folder


def compose_parts(vision: Path, language: Path) -> LoadedModel:
    return compose(str(vision), str(language), template="v1", system="", pad_square=True)


def without(source: Path, folder: Path, text: str) -> Path:
    """A copy whose weight file lacks the tensors with `text` in their name."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if text not in name}
    assert 0 < len(rest) < len(tensors)
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_config(source: Path, folder: Path, **values: object) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("text", ["layers.0.mlp.up_proj", "model.norm", "lm_head", "embed_tokens"])
def test_missing_weights_of_a_language_model_are_named(parts: Path, tmp_path: Path, text: str) -> None:
    broken = without(parts / "llama", tmp_path / "broken", text)
    message = refusal(lambda: compose_parts(parts / "clip", broken))
    assert text in message
    assert str(broken) in message


def test_missing_weights_of_an_encoder_are_named(parts: Path, tmp_path: Path) -> None:
    broken = without(parts / "clip", tmp_path / "broken", "layers.2.mlp.fc2.bias")
    assert "layers.2.mlp.fc2.bias" in refusal(lambda: compose_parts(broken, parts / "llama"))


def test_an_encoder_without_the_parts_behind_its_features(parts: Path, tmp_path: Path) -> None:
    """What a classifier's checkpoint lacks is not used."""
    compose_parts(without(parts / "clip", tmp_path / "clip", "post_layernorm"), parts / "llama")


@pytest.mark.parametrize("old_names", [False, True])
def test_a_llava_gives_its_vision_tower(parts: Path, tmp_path: Path, old_names: bool) -> None:
    source = parts / "llava"
    if old_names:  # as in the files of 2023 and 2024: no `model.` before the parts
        source = shutil.copytree(parts / "llava", tmp_path / "llava")
        tensors = load_file(source / "model.safetensors")
        assert any(name.startswith("vision_tower.vision_model.") for name in tensors)
        renamed = {name.replace("vision_tower.vision_model.", "model.vision_tower."): t for name, t in tensors.items()}
        save_file(renamed, source / "model.safetensors", metadata={"format": "pt"})
    loaded = compose_parts(source, parts / "llama")
    assert str(source) in loaded.notes[0]
    expected = compose_parts(parts / "clip", parts / "llama").model.model.vision_tower.state_dict()
    weights = loaded.model.model.vision_tower.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    incomplete = without(parts / "llava", tmp_path / "incomplete", "vision_model.encoder.layers.1")
    assert "would be random" in refusal(lambda: compose_parts(incomplete, parts / "llama"))


@pytest.mark.parametrize("text", ["multi_modal_projector.linear_2", "vision_tower", "language_model.model.layers.1"])
def test_missing_weights_of_a_llava(parts: Path, tmp_path: Path, text: str) -> None:
    assert load_model(parts / "llava", "cpu").model is not None
    broken = without(parts / "llava", tmp_path / "broken", text)
    assert "would be random" in refusal(lambda: load_model(broken, "cpu"))


def test_a_git_lfs_pointer(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "llama", tmp_path / "pointer")
    file = tmp_path / "pointer" / "model.safetensors"
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13476\n"
    file.with_name("pytorch_model.bin").write_text(pointer)
    compose_parts(parts / "clip", tmp_path / "pointer")  # a pointer beside the weights that are read is no obstacle
    file.write_text(pointer)
    message = refusal(lambda: compose_parts(parts / "clip", tmp_path / "pointer"))
    assert "git-lfs" in message
    assert str(file) in message


def test_half_a_file(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "clip", tmp_path / "half")
    file = tmp_path / "half" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:9000])
    message = refusal(lambda: compose_parts(tmp_path / "half", parts / "llama"))
    assert "9,000 bytes" in message
    assert str(file) in message


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors"])
def test_quantized_weights(parts: Path, tmp_path: Path, method: str) -> None:
    values = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    broken = with_config(parts / "llama", tmp_path / "broken", quantization_config=values)
    assert method in refusal(lambda: compose_parts(parts / "clip", broken))


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 999), ("hidden_size", 64), ("intermediate_size", 8)])
def test_a_config_of_other_weights(parts: Path, tmp_path: Path, key: str, value: int) -> None:
    broken = with_config(parts / "llama", tmp_path / "broken", **{key: value})
    message = refusal(lambda: compose_parts(parts / "clip", broken))
    assert "config.json implies" in message
    assert str(value) in message


def test_code_of_a_folder_is_never_run(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    broken = with_config(
        parts / "llama",
        tmp_path / "broken",
        model_type="own_language_model",
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    )
    (broken / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "'own_language_model'" in refusal(lambda: compose_parts(parts / "clip", broken))
    # control: a folder whose type transformers has is read without its code
    compose_parts(parts / "clip", with_config(parts / "llama", tmp_path / "known", auto_map={"AutoConfig": "code.C"}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("layer", [0, 4, -4, [1, 9]])
def test_a_feature_layer_that_the_encoder_lacks(parts: Path, layer: int | list[int]) -> None:
    config = load_model(parts / "llava", "cpu").model.config
    for valid in (1, 3, -1, -3, [1, -2]):
        config.vision_feature_layer = valid
        check_feature_layer(config)
    config.vision_feature_layer = layer
    assert "has 3 layers" in refusal(lambda: check_feature_layer(config))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", b"1.5"),
        ("tokenizer_config.json", b'{"tokenizer_class": "LlamaTokenizer", "model_max_length": "x"}'),
        ("tokenizer.json", b"true"),
        ("tokenizer.json", b'{"normalizer": 3}'),
        ("config.json", b"[]"),
    ],
)
def test_odd_values_in_a_language_models_files(parts: Path, tmp_path: Path, file: str, content: bytes) -> None:
    source = shutil.copytree(parts / "llama", tmp_path / "llama")
    (source / file).write_bytes(content)
    assert str(source) in refusal(lambda: compose_parts(parts / "clip", source))
