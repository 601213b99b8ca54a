"""Adapters that peft saved for released models: merged as peft merges them, under names of today and of before."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from builders.image_text_models import image_text_model, write_json
from qilin.convert.config import ConvertConfig
from qilin.convert.run import convert
from qilin.core.errors import UserError
from qilin.dataset.schema import user
from qilin.model.card import check_card, read_head
from qilin.model.generate import Request, prepare_inputs
from qilin.model.llava import load_model

# names in memory -> as transformers before 4.52 had them
OLD_NAMES = {
    "qwen3-vl": {".model.language_model.": ".model.", ".model.visual.": ".visual."},
    "gemma3": {".model.language_model.": ".language_model.model.", ".model.vision_tower.": ".vision_tower."},
    "internvl": {".model.language_model.": ".language_model.model.", ".model.vision_tower.": ".vision_tower."},
    "qwen2.5-vl": {".model.language_model.": ".model.", ".model.visual.": ".visual."},
}
ROWS = [pytest.param(name, marks=() if name == "qwen3-vl" else pytest.mark.long) for name in OLD_NAMES]


@pytest.mark.parametrize("name", ROWS)
def test_adapters_of_released_models(name: str, tmp_path: Path) -> None:
    base = image_text_model(tmp_path / "base", name)
    config = LoraConfig(r=2, lora_alpha=16, target_modules=r".*(q_proj|gate_proj|qkv|attn\.proj)$")
    adapted = get_peft_model(AutoModelForImageTextToText.from_pretrained(base), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").write_text("---\nlicense: mit\nlanguage: [zh, en]\n---\n", encoding="utf-8")
    out = convert(ConvertConfig(source=str(tmp_path / "adapter"), out=tmp_path / "out", base=str(base)))
    merged = load_model(out, "cpu", "fp32")
    inputs = prepare_inputs(merged, [Request([user("？", 1)], [Image.new("RGB", (40, 30), (9, 200, 160))])])
    with torch.no_grad():
        logits = merged.model(**inputs).logits
        torch.testing.assert_close(logits, adapted(**inputs).logits, rtol=1e-4, atol=1e-4)
        plain = AutoModelForImageTextToText.from_pretrained(base).eval()(**inputs).logits
    assert float((logits - plain).abs().max()) > 0.1  # control
    assert check_card(out)["language"] == ["zh", "en"]
    assert read_head(out)["license"] == "other"  # that of the base is unknown

    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    for new, old in OLD_NAMES[name].items():
        tensors = {key.replace(new, old): tensor for key, tensor in tensors.items()}
    assert set(tensors) != set(load_file(file))
    save_file(tensors, file)
    again = convert(ConvertConfig(source=str(tmp_path / "adapter"), out=tmp_path / "again", base=str(base)))
    before, after = (load_file(folder / "model.safetensors") for folder in (out, again))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_fits_no_released_model_is_refused(tmp_path: Path) -> None:
    base = image_text_model(tmp_path / "base", "qwen3-vl")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_json(adapter / "adapter_config.json", {"peft_type": "LORA", "lora_alpha": 2, "base_model_name_or_path": "Q"})
    prefix = "base_model.model.model.language_model.layers.7.self_attn.q_proj.lora_"
    save_file({f"{prefix}A.weight": torch.ones(2, 32), f"{prefix}B.weight": torch.ones(32, 2)},
              adapter / "adapter_model.safetensors")  # fmt: skip
    config = ConvertConfig(source=str(adapter), out=tmp_path / "out", base=str(base))
    with pytest.raises(UserError, match=r"adapts 1 tensors that .*base does not have \(language_model.layers.7"):
        convert(config)
    values = json.loads((base / "config.json").read_text(encoding="utf-8"))
    write_json(base / "config.json", {**values, "model_type": "qwen2_vl"})
    with pytest.raises(UserError, match="model_type 'qwen2_vl'; adapters are merged into llava, qwen2_5_vl"):
        convert(config)
    with pytest.raises(UserError, match="adapter: a LoRA adapter .*qilin convert .*adapter OUT --base Q"):
        load_model(adapter)
