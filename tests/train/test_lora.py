"""Adapters: what is trained, what the adapter folder holds, and that it works alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from builders.training import changed_parts, stage_overrides, train_stage, weights
from qilin.core.errors import UserError
from qilin.model.architectures import part_of
from qilin.train.config import read_recipe
from qilin.train.model_setup import select_layers
from qilin.train.start_model import load_start


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_trains_adapters_and_the_named_parts(home: Path, aligned: Path, tmp_path: Path, precision: str) -> None:
    run = train_stage(
        home, tmp_path / "run", f"model={aligned}", "trainable=[projector]", "lora={rank: 4}", f"precision={precision}"
    )
    result = changed_parts(weights(aligned), weights(run))
    assert result["vision"] == {False}
    assert result["projector"] == {True}
    assert result["language"] == {True, False}
    for name, tensor in weights(run).items():  # adapters sit on linear layers: embeddings, norms and head stay
        if part_of(name) == "language" and "_proj" not in name:
            assert torch.equal(tensor, weights(aligned)[name]), name


@pytest.mark.parametrize(
    ("trainable", "lora"),
    [
        ("[projector]", "{rank: 4}"),
        ("[vision, projector]", "{rank: 4, use_rslora: true}"),
        ("[projector]", "{rank: 2, use_dora: true, target_modules: [q_proj, mlp.down_proj]}"),
    ],
)
def test_an_adapter_folder_works_alone(home: Path, aligned: Path, tmp_path: Path, trainable: str, lora: str) -> None:
    """The base with the adapter folder, loaded by peft, is the merged model of the run."""
    run = train_stage(home, tmp_path / "run", f"model={aligned}", f"trainable={trainable}", f"lora={lora}")
    merged: Any = LlavaForConditionalGeneration.from_pretrained(run, dtype=torch.float32)
    base: Any = LlavaForConditionalGeneration.from_pretrained(aligned, dtype=torch.float32)
    ids = torch.tensor([[1, 5, *[merged.config.image_token_id] * 16, 9, 30, 31]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base_logits = base.eval()(input_ids=ids, pixel_values=pixels).logits
        adapted: Any = PeftModel.from_pretrained(base, str(run / "adapter")).eval()
        adapted_logits = adapted(input_ids=ids, pixel_values=pixels).logits
        merged_logits = merged.eval()(input_ids=ids, pixel_values=pixels).logits
    assert torch.allclose(adapted_logits, merged_logits, atol=1e-5)
    assert not torch.allclose(base_logits, merged_logits, atol=1e-3), "control: the adapter does something"
    AutoProcessor.from_pretrained(run / "adapter")
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "aligned"
    options = read_recipe("small/align", ["data=x", "model=x", f"lora={lora}"]).lora
    assert options is not None
    assert (config["use_dora"], config["use_rslora"]) == (options.use_dora, options.use_rslora)
    readme = (run / "adapter" / "README.md").read_text()
    assert "aligned" in readme
    names = {name for name in load_file(run / "adapter" / "adapter_model.safetensors") if "lora_" not in name}
    assert {name.split(".")[3] for name in names} == set(config["modules_to_save"])


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ((), 14),
        ("all-linear", 14),
        (("q_proj", "v_proj"), 4),
        (("self_attn.q_proj",), 2),
        (("layers.1.mlp.up_proj",), 1),
        ("q_proj", 2),
        (r".*layers\.0\..*_proj", 7),
    ],
)
def test_target_modules_are_selected_as_in_peft(home: Path, tmp_path: Path, targets: Any, expected: int) -> None:
    model = load_start(read_recipe("small/align", stage_overrides(home, tmp_path))).model
    selected = select_layers(model, targets)
    assert len(selected) == len(set(selected)) == expected
    assert all(name.startswith("model.language_model.layers.") for name in selected)


@pytest.mark.parametrize("targets", [("q_proj", "qkv"), "qkv", r".*qkv.*", r"(q_proj", ("lm_head",)])
def test_unknown_target_modules_are_named(home: Path, tmp_path: Path, targets: Any) -> None:
    model = load_start(read_recipe("small/align", stage_overrides(home, tmp_path))).model
    with pytest.raises(UserError, match=r"lora\.target_modules"):
        select_layers(model, targets)


def test_adapters_are_counted_at_the_start(
    home: Path, aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_stage(home, tmp_path / "run", f"model={aligned}", "lora={rank: 4}", "max_steps=1")
    stored = load_file(run / "adapter" / "adapter_model.safetensors")
    total = sum(tensor.numel() for name, tensor in stored.items() if "lora_" in name)
    line = next(line for line in capsys.readouterr().err.splitlines() if "adapters" in line)
    assert f"{total:,} parameters, {total:,} trainable, in 14 layers" in line
