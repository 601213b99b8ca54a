"""Model folders have llava-hf's layout: tensor names, files, and config keys for transformers 4 and 5."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from builders.architectures import language_model, vision_encoder
from builders.image_text_models import image_text_model, write_processor
from builders.tiny import tiny_language, tiny_llava, tiny_vision
from qilin.convert.config import ConvertConfig
from qilin.convert.llava_to_hf import expected_tensors
from qilin.convert.run import convert
from qilin.convert.weight_files import TensorReader, list_tensors
from qilin.model.llava import LoadedModel, compose, load_model
from qilin.model.processing import image_tokens
from qilin.model.processor import open_processor
from qilin.model.saving import rope_keys, save_model, save_processor


def make_model(folder: Path, vision: str, language: str) -> LoadedModel:
    tiny_vision(folder / vision, vision, width=64)
    tiny_language(folder / language, language, tie=vision == "siglip")
    return tiny_llava(folder, vision, language, system=None)


@pytest.mark.parametrize(("vision", "language"), [("clip", "llama"), ("siglip", "qwen3")])
def test_tensor_names_equal_llava_hf(tmp_path: Path, vision: str, language: str) -> None:
    loaded = make_model(tmp_path, vision, language)
    save_model(tmp_path / "model", loaded.model, loaded.processor)
    names = {weight.name: weight.shape for weight in list_tensors(tmp_path / "model")}
    # The same names as in a folder that the converter writes.
    assert names == expected_tensors(loaded.model.config)
    assert "vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.bias" in names
    assert ("language_model.lm_head.weight" in names) == (vision == "clip")  # tied embeddings are written once
    model, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for (name, one), other in zip(loaded.model.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other), name
    # Loading and saving, as a later stage does, gives the same files.
    again = load_model(tmp_path / "model", "cpu")
    save_model(tmp_path / "again", again.model, again.processor)
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}.keys() == files.keys()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_config_keys_of_transformers_4(tmp_path: Path) -> None:
    loaded = make_model(tmp_path, "clip", "llama")
    loaded.model.config.text_config.rope_parameters["rope_theta"] = 5e5
    save_model(tmp_path / "model", loaded.model, loaded.processor)

    def read(name: str) -> dict[str, Any]:
        return dict(json.loads((tmp_path / "model" / name).read_text(encoding="utf-8")))

    config, tokenizer_config = read("config.json"), read("tokenizer_config.json")
    assert config["text_config"]["rope_theta"] == 5e5
    assert config["torch_dtype"] == config["text_config"]["torch_dtype"] == "float32"
    assert tokenizer_config["additional_special_tokens"] == ["<image>"]
    assert "extra_special_tokens" not in tokenizer_config
    assert tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 has no TokenizersBackend
    assert read("preprocessor_config.json") == read("processor_config.json")["image_processor"]
    again = load_model(tmp_path / "model", "cpu")
    text = "图中<image>有异常吗？"
    assert again.processor.tokenizer(text)["input_ids"] == loaded.processor.tokenizer(text)["input_ids"]
    assert again.model.config.text_config.rope_parameters["rope_theta"] == 5e5


def test_names_without_the_vision_prefix_are_read(tmp_path: Path) -> None:
    """Tensor names as transformers 5 writes them, without `vision_model.`: loaded, and converted to LLaVA's layout."""
    loaded = make_model(tmp_path, "clip", "llama")
    loaded.model.save_pretrained(tmp_path / "old")
    loaded.processor.save_pretrained(tmp_path / "old")
    save_model(tmp_path / "new", loaded.model, loaded.processor)
    old, new = load_model(tmp_path / "old", "cpu").model, load_model(tmp_path / "new", "cpu").model
    assert "vision_tower.pre_layrnorm.weight" in {weight.name for weight in list_tensors(tmp_path / "old")}
    for (name, one), other in zip(old.named_parameters(), new.parameters(), strict=True):
        assert torch.equal(one, other), name
    reader, tensors = TensorReader(), {}
    for name in ("old", "new"):
        out = convert(ConvertConfig(source=str(tmp_path / name), out=tmp_path / f"{name}-llava", to="llava"))
        tensors[name] = {weight.name: reader.read(weight) for weight in list_tensors(out)}
    assert tensors["old"].keys() == tensors["new"].keys()
    assert all(torch.equal(tensor, tensors["new"][name]) for name, tensor in tensors["old"].items())


def test_settings_under_the_names_of_transformers_4(tmp_path: Path) -> None:
    """rope_scaling and num_experts are written beside their new names, and transformers 5 reads the same model."""
    vision_encoder(tmp_path / "clip", "clip")
    for name, key, value in (("llama-rope-llama3", "rope_scaling", 8.0), ("qwen3-moe", "num_experts", 4)):
        language_model(tmp_path / name, name)
        loaded = compose(str(tmp_path / "clip"), str(tmp_path / name), template="chatml", system="", pad_square=True)
        out = tmp_path / f"out-{name}"
        out.mkdir()
        save_model(out, loaded.model, loaded.processor)
        text = json.loads((out / "config.json").read_text())["text_config"]
        assert (text[key]["factor"] if key == "rope_scaling" else text[key]) == value
        again = load_model(out, "cpu", "fp32").model
        ids = torch.arange(5, 70)[None]
        with torch.no_grad():
            assert torch.equal(again(input_ids=ids).logits, loaded.model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("left", [{}, {"patch_size": 8, "vision_feature_select_strategy": "default"}])
def test_processors_of_older_folders_are_completed(tmp_path: Path, left: dict[str, Any]) -> None:
    loaded = tiny_llava(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    save_model(out, loaded.model, loaded.processor)
    (out / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor"} | left))
    processor = load_model(out, "cpu", "fp32").processor
    assert (processor.patch_size, processor.num_additional_image_tokens) == (8, 1)
    assert image_tokens(processor) == image_tokens(loaded.processor)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({}, {"rope_theta": 10000.0}),
        ({"rope_type": "default", "rope_theta": 5e6}, {"rope_theta": 5e6}),
        (
            {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},  # Qwen2.5-VL
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
        ),
        (
            {  # Gemma 3 4B
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
    ],
)
def test_rope_by_the_names_of_transformers_4(rope: dict[str, Any], expected: dict[str, Any]) -> None:
    assert rope_keys(rope) == expected


@pytest.mark.parametrize("name", ["qwen3-vl", "gemma3"])
def test_processor_settings_by_the_names_of_transformers_4(tmp_path: Path, name: str) -> None:
    write_processor(tmp_path / "source", name)
    processor = open_processor(str(tmp_path / "source"))
    save_processor(tmp_path / "model", processor)
    read = {file.name: json.loads(file.read_text("utf-8")) for file in (tmp_path / "model").glob("*.json")}
    if name == "gemma3":
        assert read["tokenizer_config.json"]["extra_special_tokens"]["image_token"] == "<image_soft_token>"
        assert "video_preprocessor_config.json" not in read
    else:
        images = read["preprocessor_config.json"]
        assert (images["min_pixels"], images["max_pixels"]) == (32 * 32, 64 * 64)
        assert read["video_preprocessor_config.json"]["video_processor_type"] == "Qwen3VLVideoProcessor"
    again = open_processor(str(tmp_path / "model"))
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert again.chat_template == processor.chat_template


def test_a_released_architecture_has_the_names_of_its_release(tmp_path: Path) -> None:
    """Gemma 3: transformers 5 would omit `vision_model.`; version 4 would fill its encoder with random numbers."""
    loaded = load_model(image_text_model(tmp_path / "source", "gemma3"))
    save_model(tmp_path / "model", loaded.model, loaded.processor)
    names = {weight.name for weight in list_tensors(tmp_path / "model")}
    assert {"vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
            "language_model.model.layers.0.self_attn.q_proj.weight"} <= names  # fmt: skip
    text_config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))["text_config"]
    assert (text_config["rope_theta"], text_config["rope_local_base_freq"]) == (1e6, 1e4)
    again = load_model(tmp_path / "model")  # refuses missing weights
    for one, other in zip(loaded.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
