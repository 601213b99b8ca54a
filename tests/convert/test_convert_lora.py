"""LoRA folders and projector files: merged as peft merges, kept in the form that peft loads."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from builders.llava import (
    INTERMEDIATE,
    LAYERS,
    WIDTH,
    language_tensors,
    llava_config,
    projector_tensors,
    read_bins,
    tiny_llava_checkpoint,
    vision_tensors,
    write_bins,
    write_llama_tokenizer,
)
from builders.tiny import tiny_dataset, tiny_language, tiny_llava, tiny_vision
from qilin.convert.config import ConvertConfig
from qilin.convert.run import convert
from qilin.convert.weight_files import TensorReader, list_tensors, same_bits
from qilin.core.errors import UserError
from qilin.model.llava import load_model
from qilin.model.saving import save_model
from qilin.train.config import read_recipe
from qilin.train.stage import run_stage

RANK, ALPHA = 4, 8
SHAPES = {"self_attn.q_proj": (WIDTH, WIDTH), "mlp.down_proj": (WIDTH, INTERMEDIATE)}


def base_language(folder: Path) -> Path:
    """A plain language model like Vicuna, without projector and encoder."""
    folder.mkdir()
    rows = write_llama_tokenizer(folder)
    tensors = language_tensors(rows, 4, torch.Generator().manual_seed(5))
    write_bins(folder, {name: t for name, t in tensors.items() if "inv_freq" not in name}, 2)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_adapter(folder: Path, prefix: str, **changes: Any) -> dict[str, torch.Tensor]:
    """adapter_config.json and adapter_model.bin; returns the expected change of each weight, by the module's name."""
    folder.mkdir(exist_ok=True)
    random = torch.Generator().manual_seed(6)
    matrices, deltas = {}, {}
    for n in range(LAYERS):
        for leaf, (out, into) in SHAPES.items():
            a, b = torch.randn(RANK, into, generator=random), torch.randn(out, RANK, generator=random) * 0.1
            name = f"layers.{n}.{leaf}"
            matrices[f"base_model.model.{prefix}{name}.lora_A.weight"] = a
            matrices[f"base_model.model.{prefix}{name}.lora_B.weight"] = b
            deltas[name] = (b @ a) * ALPHA / RANK
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "bias": "none",
        "base_model_name_or_path": "lmsys/vicuna-13b-v1.5",
        "target_modules": ["q_proj", "down_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    torch.save(matrices, folder / "adapter_model.bin")
    return deltas


def write_clip(folder: Path) -> Path:
    folder.mkdir()
    write_bins(folder, vision_tensors(torch.Generator().manual_seed(7), ""), 1)
    config = {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "image_size": 32,
        "patch_size": 8,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def lora(tmp_path: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A LLaVA LoRA folder on a plain language model, and its base."""
    base = base_language(tmp_path / "vicuna")
    folder = tmp_path / "llava-lora"
    deltas = write_adapter(folder, "model.")
    projector = projector_tensors("mlp2x_gelu", torch.Generator().manual_seed(8))
    torch.save({f"base_model.model.{name}": t for name, t in projector.items()}, folder / "non_lora_trainables.bin")
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    config = llava_config(rows, 4, mm_vision_tower=str(write_clip(tmp_path / "clip")))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder, base, deltas


def test_merge(lora: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    folder, base, deltas = lora
    out = convert(ConvertConfig(source=str(folder), out=tmp_path / "out", base=str(base), check=True))
    before, reader = read_bins(base), TensorReader()
    after = {weight.name: reader.read(weight) for weight in list_tensors(out)}
    for name, delta in deltas.items():
        old = before[f"model.{name}.weight"]
        torch.testing.assert_close(after[f"language_model.model.{name}.weight"], old + delta, atol=1e-6, rtol=0)
        assert delta.abs().max() > 0.1  # control
    untouched = "layers.0.self_attn.k_proj.weight"
    assert torch.equal(after[f"language_model.model.{untouched}"], before[f"model.{untouched}"])
    projector = projector_tensors("mlp2x_gelu", torch.Generator().manual_seed(8))
    assert torch.equal(after["multi_modal_projector.linear_1.weight"], projector["model.mm_projector.0.weight"])


def test_keep_writes_what_peft_loads(lora: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """The base with OUT/adapter gives the merged model's logits; without the adapter, other logits."""
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    folder, base, _ = lora
    merged = convert(ConvertConfig(source=str(folder), out=tmp_path / "merged", base=str(base)))
    unmerged = convert(ConvertConfig(source=str(folder), out=tmp_path / "kept", base=str(base), lora="keep"))
    ids, pixels = torch.tensor([[5, 6, 7, *[440] * 16, 9]]), torch.ones(1, 3, 32, 32)
    with torch.inference_mode():
        one = LlavaForConditionalGeneration.from_pretrained(merged).eval()(ids, pixels).logits
        model: Any = LlavaForConditionalGeneration.from_pretrained(unmerged).eval()
        base_logits = model(ids, pixels).logits
        other = PeftModel.from_pretrained(model, unmerged / "adapter").eval()(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(one, base_logits, atol=1e-2)
    # Merging peft's form into the converted base gives the same weights as merging during conversion.
    again = convert(ConvertConfig(source=str(unmerged / "adapter"), out=tmp_path / "again", base=str(unmerged)))
    first, second = TensorReader(), TensorReader()
    expected = {weight.name: weight for weight in list_tensors(merged)}
    for weight in list_tensors(again):
        assert torch.equal(second.read(weight), first.read(expected[weight.name])), weight.name
    metadata = json.loads((again / "qilin.json").read_text())
    assert metadata["template"] == "v1"
    assert "adapter" not in metadata
    # load_model merges the adapter into the base.
    with torch.inference_mode():
        logits = load_model(unmerged, "cpu", "fp32").model(ids, pixels).logits
    torch.testing.assert_close(logits, one, atol=1e-4, rtol=1e-5)
    with pytest.raises(UserError, match="cannot be merged into weights of 8 bits"):
        load_model(unmerged, "cpu", bits=8)


def test_keep_when_converting_back(lora: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """A LLaVA LoRA folder converted and back has the same config, adapters and projector; merging when converting back
    gives the same weights as merging first."""
    folder, base, _ = lora
    unmerged = convert(ConvertConfig(source=str(folder), out=tmp_path / "kept", base=str(base), lora="keep"))
    out = convert(ConvertConfig(source=str(unmerged), out=tmp_path / "llava-out", to="llava", lora="keep"))
    assert {path.name for path in out.iterdir()} >= {"config.json", "adapter_config.json", "tokenizer.model"}
    assert not list(out.glob("*.safetensors"))  # no base weights
    for name in ("config.json", "adapter_config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes(), name
    for name in ("adapter_model.bin", "non_lora_trainables.bin"):
        before, after = (torch.load(path / name, weights_only=True) for path in (folder, out))
        assert before.keys() == after.keys()
        assert all(same_bits(before[key], after[key]) for key in before), name
        assert not same_bits(next(iter(before.values())), next(iter(after.values())) + 1)  # control
    merged = convert(ConvertConfig(source=str(folder), out=tmp_path / "merged", base=str(base)))
    one = convert(ConvertConfig(source=str(merged), out=tmp_path / "one", to="llava"))
    two = convert(ConvertConfig(source=str(unmerged), out=tmp_path / "other", to="llava", check=True))
    reader, other = TensorReader(), TensorReader()
    expected = {weight.name: weight for weight in list_tensors(one)}
    for weight in list_tensors(two):
        assert same_bits(reader.read(weight), other.read(expected[weight.name])), weight.name


@pytest.mark.story
def test_adapters_of_a_training_run_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`qilin train` with lora and a trainable projector -> LLaVA's LoRA folder -> Hugging Face, on the same language
    model: the logits of the run's model. With another projector, other logits."""
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "cache"))
    clip = tiny_vision(tmp_path / "clip", width=64)
    language = tiny_language(tmp_path / "language")
    tiny_dataset(tmp_path / "data")
    changes = {
        "vision": str(clip), "language": str(language), "data": str(tmp_path / "data"), "out": tmp_path / "run",
        "trainable": ("projector",), "lora": {"rank": 4, "target_modules": ("q_proj", "down_proj")},
        "learning_rate": 1e-2, "learning_rates": {}, "batch_size": 8, "template": "v1", "system_prompt": "",
        "device": "cpu",
        "max_length": 512, "pack_tokens": 512, "trackers": (), "on_overlength": "truncate",
    }  # fmt: skip
    run_stage(read_recipe("small/instruct", ["vision=", "language="], changes), "test")
    run = tmp_path / "run"
    out = convert(ConvertConfig(source=str(run), out=tmp_path / "lora", to="llava", lora="keep"))
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert config.keys() <= {field.name for field in fields(LoraConfig)}
    assert "modules_to_save" not in config  # the peft versions of LLaVA fail on unknown keys
    matrices = torch.load(out / "adapter_model.bin", weights_only=True)
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in matrices
    again = convert(
        ConvertConfig(source=str(out), out=tmp_path / "again", base=str(language), vision=str(clip), system_prompt="")
    )
    trained, imported = load_model(run, "cpu", "fp32").model, load_model(again, "cpu", "fp32").model
    image = trained.config.image_token_index
    ids, pixels = torch.tensor([[5, 6, 7, *[image] * 16, 9, 11]]), torch.ones(1, 3, 32, 32)
    with torch.inference_mode():
        one, other = (model(ids, pixels).logits[..., :image] for model in (trained, imported))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        imported.model.multi_modal_projector.linear_1.weight.add_(0.1)  # control
        assert not torch.allclose(one, imported(ids, pixels).logits[..., :image], atol=1e-3)
    with pytest.raises(UserError, match="no adapter/adapter_config.json, so no LoRA to keep"):
        convert(ConvertConfig(source=str(again), out=tmp_path / "none", to="llava", lora="keep"))


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_projector_file(tmp_path: Path, prefix: str) -> None:
    """The output of LLaVA's stage 1: mm_projector.bin and config.json, for a plain language model."""
    base = base_language(tmp_path / "vicuna")
    folder = tmp_path / "stage1"
    folder.mkdir()
    projector = projector_tensors("mlp2x_gelu", torch.Generator().manual_seed(8))
    torch.save({name.replace("model.", prefix): t for name, t in projector.items()}, folder / "mm_projector.bin")
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    config = llava_config(rows, 4, mm_vision_tower=str(write_clip(tmp_path / "clip")))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="name its language model with --base"):
        convert(ConvertConfig(source=str(folder), out=tmp_path / "out", template="plain"))
    out = convert(ConvertConfig(source=str(folder), out=tmp_path / "out", template="plain", base=str(base), check=True))
    assert json.loads((out / "qilin.json").read_text())["template"] == "plain"


def test_options_without_effect_are_refused(tmp_path: Path) -> None:
    for options in ({"to": "gguf", "check": True}, {"to": "gguf", "lora": "keep"}, {"to": "llava", "base": "x"}):
        with pytest.raises(ValueError, match="have no effect with to=gguf|base requires to=hf"):
            ConvertConfig(source="x", out=tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="check compares complete models"):
        ConvertConfig(source="x", out=tmp_path, lora="keep", check=True)


def test_mismatched_parts_are_refused(lora: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    folder, base, _ = lora

    def assert_refused(error: str, **options: Any) -> None:
        with pytest.raises(UserError, match=error):
            convert(ConvertConfig(**({"source": str(folder), "out": tmp_path / "out", "base": str(base)} | options)))
        assert not (tmp_path / "out").exists()

    assert_refused("name the model it was trained on with --base", base=None)
    assert_refused("merge it first", base=None, to="llava")
    assert_refused("expected unquantized|adapts|missing|unexpected", base=str(tmp_path / "clip"))
    other = tiny_llava_checkpoint(tmp_path / "other")
    hf = convert(ConvertConfig(source=str(other), out=tmp_path / "hf"))
    assert_refused("--base of a LLaVA folder is a language model", base=str(hf))
    (folder / "non_lora_trainables.bin").rename(folder / "away.bin")
    assert_refused("no non_lora_trainables.bin")
    (folder / "away.bin").rename(folder / "non_lora_trainables.bin")
    for changes, reason in (({"use_dora": True}, "use_dora is True"), ({"bias": "all"}, "bias is 'all'")):
        write_adapter(folder, "model.", **changes)
        assert_refused(reason)
    write_adapter(folder, "model.layers.7.")
    assert_refused("is that the base it was trained on")
    (folder / "adapter_model.bin").unlink()
    assert_refused("none of adapter_model.safetensors")


@pytest.mark.story
def test_an_adapter_keeps_what_was_trained_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1, then LoRA with a trainable projector; `convert ADAPTER --base` gives the run's model and template."""
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "cache"))
    tiny_vision(tmp_path / "clip")
    tiny_language(tmp_path / "language")
    tiny_dataset(tmp_path / "data", images=3, questions=2, splits=("train",))
    base = tiny_llava(tmp_path, "clip", "language", template="plain")
    (tmp_path / "base").mkdir()
    save_model(tmp_path / "base", base.model, base.processor)
    (tmp_path / "base" / "qilin.json").write_text(json.dumps({"stage": "projector", "template": "plain"}))
    run = tmp_path / "run"
    changes = {
        "model": str(tmp_path / "base"), "data": str(tmp_path / "data"), "out": run, "trainable": ("projector",),
        "lora": {"rank": 4}, "learning_rate": 1e-2, "learning_rates": {}, "batch_size": 4, "template": "v1",
        "device": "cpu", "precision": "fp32", "trackers": (), "kinds": ("vqa",), "max_length": 512,
    }  # fmt: skip
    run_stage(read_recipe("small/instruct", [], changes), "test")
    convert(ConvertConfig(source=str(run / "adapter"), out=tmp_path / "again", base=str(tmp_path / "base")))
    trained, converted = load_model(run, "cpu", "fp32"), load_model(tmp_path / "again", "cpu", "fp32")
    expected = trained.model.state_dict()
    for name, tensor in converted.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)
    projector = "model.multi_modal_projector.linear_1.weight"
    assert not torch.allclose(expected[projector], base.model.state_dict()[projector], atol=1e-4)  # control: it moved
    assert converted.metadata["template"] == "v1"
    assert converted.processor.chat_template == trained.processor.chat_template
    assert converted.model.generation_config.eos_token_id == trained.model.generation_config.eos_token_id
    weights = run / "adapter" / "adapter_model.safetensors"  # as an earlier version wrote it
    save_file({name: tensor for name, tensor in load_file(weights).items() if "lora_" in name}, weights)
    config_file = run / "adapter" / "adapter_config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"modules_to_save": None}))
    with pytest.raises(UserError, match="also trained projector"):
        convert(ConvertConfig(source=str(run / "adapter"), out=tmp_path / "none", base=str(tmp_path / "base")))
