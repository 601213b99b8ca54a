"""One layout for every model folder, the released llava-hf one: names of tensors, files, settings old and new."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from builders.tiny import tiny_language, tiny_vision
from qilin.convert.llava_to_hf import disk_names
from qilin.convert.run import convert
from qilin.convert.weight_files import Reader, list_weights
from qilin.model.config import ConvertConfig
from qilin.model.llava import LoadedModel, compose, load_model
from qilin.model.saving import save_model


def made(home: Path, vision: str, language: str) -> LoadedModel:
    return compose(
        str(tiny_vision(home / vision, vision, width=64)),
        str(tiny_language(home / language, language, tie=vision == "siglip")),
        template="chatml" if language == "qwen3" else "v1",
        system=None,
        pad_square=True,
    )


@pytest.mark.parametrize(("vision", "language"), [("clip", "llama"), ("siglip", "qwen3")])
def test_names_are_llava_hfs(tmp_path: Path, vision: str, language: str) -> None:
    loaded = made(tmp_path, vision, language)
    save_model(tmp_path / "model", loaded.model, loaded.processor)
    names = {weight.name: weight.shape for weight in list_weights(tmp_path / "model")}
    # What the converter makes of LLaVA's layout: the two ways to a folder agree to the last name.
    assert names == disk_names(loaded.model.config)
    assert "vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.bias" in names
    assert ("language_model.lm_head.weight" in names) == (vision == "clip")  # tied: written once
    model, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for (name, one), other in zip(loaded.model.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other), name
    # Saved again after loading, as a later stage does, it is the same file.
    again = load_model(tmp_path / "model", "cpu")
    save_model(tmp_path / "again", again.model, again.processor)
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}.keys() == files.keys()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_settings_stand_under_old_names_too(tmp_path: Path) -> None:
    loaded = made(tmp_path, "clip", "llama")
    loaded.model.config.text_config.rope_parameters["rope_theta"] = 5e5
    save_model(tmp_path / "model", loaded.model, loaded.processor)

    def read(name: str) -> dict[str, Any]:
        return dict(json.loads((tmp_path / "model" / name).read_text(encoding="utf-8")))

    config, words = read("config.json"), read("tokenizer_config.json")
    assert config["text_config"]["rope_theta"] == 5e5
    assert config["torch_dtype"] == config["text_config"]["torch_dtype"] == "float32"
    assert words["additional_special_tokens"] == ["<image>"]
    assert "extra_special_tokens" not in words
    assert words["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 has no TokenizersBackend
    assert read("preprocessor_config.json") == read("processor_config.json")["image_processor"]
    again = load_model(tmp_path / "model", "cpu")
    text = "图中<image>有异常吗？"
    assert again.processor.tokenizer(text)["input_ids"] == loaded.processor.tokenizer(text)["input_ids"]
    assert again.model.config.text_config.rope_parameters["rope_theta"] == 5e5


def test_folders_of_before_are_still_read(tmp_path: Path) -> None:
    """Without `vision_model.` in its names: opened as it is, and taken out to LLaVA's layout like the new one."""
    loaded = made(tmp_path, "clip", "llama")
    loaded.model.save_pretrained(tmp_path / "old")
    loaded.processor.save_pretrained(tmp_path / "old")
    save_model(tmp_path / "new", loaded.model, loaded.processor)
    old, new = load_model(tmp_path / "old", "cpu").model, load_model(tmp_path / "new", "cpu").model
    assert "vision_tower.pre_layrnorm.weight" in {weight.name for weight in list_weights(tmp_path / "old")}
    for (name, one), other in zip(old.named_parameters(), new.parameters(), strict=True):
        assert torch.equal(one, other), name
    reader, found = Reader(), {}
    for kind in ("old", "new"):
        out = convert(ConvertConfig(source=str(tmp_path / kind), out=tmp_path / f"{kind}-llava", to="llava"))
        found[kind] = {weight.name: reader.get(weight) for weight in list_weights(out)}
    assert found["old"].keys() == found["new"].keys()
    assert all(torch.equal(tensor, found["new"][name]) for name, tensor in found["old"].items())
