"""LoRA folders and bare projectors: merged as peft merges, kept as peft loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_mini import (
    INNER,
    LAYERS,
    WIDTH,
    eye,
    language,
    llava_config,
    llava_mini,
    projector,
    read_bins,
    words,
    write_bins,
)
from qilin.errors import UserError
from qilin.model.convert import convert
from qilin.model.settings import ConvertSettings
from qilin.model.shards import Reader, list_weights

RANK, ALPHA = 4, 8
SHAPES = {"self_attn.q_proj": (WIDTH, WIDTH), "mlp.down_proj": (WIDTH, INNER)}


def base_language(folder: Path) -> Path:
    """A plain language model, as Vicuna is: no projector, no encoder."""
    folder.mkdir()
    rows = words(folder)
    tensors = language(rows, 4, torch.Generator().manual_seed(5))
    write_bins(folder, {name: t for name, t in tensors.items() if "inv_freq" not in name}, 2)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def adapter(folder: Path, prefix: str, **changes: Any) -> dict[str, torch.Tensor]:
    """adapter_config.json and adapter_model.bin; returns what each weight is to gain, by the module's name."""
    folder.mkdir(exist_ok=True)
    random = torch.Generator().manual_seed(6)
    halves, gains = {}, {}
    for n in range(LAYERS):
        for leaf, (out, into) in SHAPES.items():
            a, b = torch.randn(RANK, into, generator=random), torch.randn(out, RANK, generator=random) * 0.1
            name = f"layers.{n}.{leaf}"
            halves[f"base_model.model.{prefix}{name}.lora_A.weight"] = a
            halves[f"base_model.model.{prefix}{name}.lora_B.weight"] = b
            gains[name] = (b @ a) * ALPHA / RANK
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
    torch.save(halves, folder / "adapter_model.bin")
    return gains


def clip(folder: Path) -> Path:
    folder.mkdir()
    write_bins(folder, eye(torch.Generator().manual_seed(7), ""), 1)
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
    gains = adapter(folder, "model.")
    own = projector("mlp2x_gelu", torch.Generator().manual_seed(8))
    torch.save({f"base_model.model.{name}": t for name, t in own.items()}, folder / "non_lora_trainables.bin")
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    config = llava_config(rows, 4, mm_vision_tower=str(clip(tmp_path / "clip")))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder, base, gains


def test_merged(lora: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    folder, base, gains = lora
    out = convert(ConvertSettings(source=str(folder), out=tmp_path / "out", base=str(base), check=True))
    before, reader = read_bins(base), Reader()
    after = {weight.name: reader.get(weight) for weight in list_weights(out)}
    for name, gain in gains.items():
        old = before[f"model.{name}.weight"]
        torch.testing.assert_close(after[f"language_model.model.{name}.weight"], old + gain, atol=1e-6, rtol=0)
        assert gain.abs().max() > 0.1  # control
    untouched = "layers.0.self_attn.k_proj.weight"
    assert torch.equal(after[f"language_model.model.{untouched}"], before[f"model.{untouched}"])
    own = projector("mlp2x_gelu", torch.Generator().manual_seed(8))
    assert torch.equal(after["multi_modal_projector.linear_1.weight"], own["model.mm_projector.0.weight"])


def test_kept_is_what_peft_loads(lora: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """The base with OUT/adapter on it computes what the merged model computes; without it, something else."""
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    folder, base, _ = lora
    merged = convert(ConvertSettings(source=str(folder), out=tmp_path / "merged", base=str(base)))
    kept = convert(ConvertSettings(source=str(folder), out=tmp_path / "kept", base=str(base), lora="keep"))
    ids, pixels = torch.tensor([[5, 6, 7, *[440] * 16, 9]]), torch.ones(1, 3, 32, 32)
    with torch.inference_mode():
        one = LlavaForConditionalGeneration.from_pretrained(merged).eval()(ids, pixels).logits
        model: Any = LlavaForConditionalGeneration.from_pretrained(kept).eval()
        bare = model(ids, pixels).logits
        other = PeftModel.from_pretrained(model, kept / "adapter").eval()(input_ids=ids, pixel_values=pixels).logits
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    assert not torch.allclose(one, bare, atol=1e-2)
    # And merged from peft's form, on our layout: the same weights as merging on the way in.
    again = convert(ConvertSettings(source=str(kept / "adapter"), out=tmp_path / "again", base=str(kept)))
    first, second = Reader(), Reader()
    theirs = {weight.name: weight for weight in list_weights(merged)}
    for weight in list_weights(again):
        assert torch.equal(second.get(weight), first.get(theirs[weight.name])), weight.name
    assert json.loads((again / "qilin.json").read_text())["template"] == "v1"


@pytest.mark.parametrize("named", ["model.", ""])
def test_a_bare_projector(tmp_path: Path, named: str) -> None:
    """What stage 1 leaves: mm_projector.bin and config.json, on a plain language model."""
    base = base_language(tmp_path / "vicuna")
    folder = tmp_path / "stage1"
    folder.mkdir()
    own = projector("mlp2x_gelu", torch.Generator().manual_seed(8))
    torch.save({name.replace("model.", named): t for name, t in own.items()}, folder / "mm_projector.bin")
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    config = llava_config(rows, 4, mm_vision_tower=str(clip(tmp_path / "clip")))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="name its language model with --base"):
        convert(ConvertSettings(source=str(folder), out=tmp_path / "out", template="plain"))
    out = convert(
        ConvertSettings(source=str(folder), out=tmp_path / "out", template="plain", base=str(base), check=True)
    )
    assert json.loads((out / "qilin.json").read_text())["template"] == "plain"


def test_what_does_not_go_together(lora: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    folder, base, _ = lora

    def refused(words: str, **options: Any) -> None:
        with pytest.raises(UserError, match=words):
            convert(ConvertSettings(**({"source": str(folder), "out": tmp_path / "out", "base": str(base)} | options)))
        assert not (tmp_path / "out").exists()

    refused("name the model it was trained on with --base", base=None)
    refused("merge it first", base=None, to="llava")
    refused("expected unquantised|adapts|missing|too many", base=str(tmp_path / "clip"))
    other = llava_mini(tmp_path / "other")
    hf = convert(ConvertSettings(source=str(other), out=tmp_path / "hf"))
    refused("--base of a LLaVA folder is a language model", base=str(hf))
    (folder / "non_lora_trainables.bin").rename(folder / "away.bin")
    refused("no non_lora_trainables.bin, where the projector")
    (folder / "away.bin").rename(folder / "non_lora_trainables.bin")
    for changes, reason in (({"use_dora": True}, "use_dora is True"), ({"bias": "all"}, "bias is 'all'")):
        adapter(folder, "model.", **changes)
        refused(reason)
    adapter(folder, "model.layers.7.")
    refused("is that the base it was trained on")
    (folder / "adapter_model.bin").unlink()
    refused("none of adapter_model.safetensors")
