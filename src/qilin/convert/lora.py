"""LoRA: adapters read, merged into the weights they belong to as those are streamed, or kept beside.

In: LLaVA's LoRA folders (adapter_config.json, adapter_model, non_lora_trainables.bin) and peft's on a stock Llava.
Out: an Adapter a weight; W + scale * B A, computed in fp32 and rounded once.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qilin.convert.llava_format import is_stock, to_llava
from qilin.convert.llava_tokenizer import RECORD
from qilin.convert.weight_files import (
    Planned,
    Reader,
    Weight,
    list_file,
    list_weights,
    open_weights,
    read_json,
    write_shards,
)
from qilin.core.errors import UserError
from qilin.model.config import ConvertConfig
from qilin.model.hub import fetch_folder

ADAPTER = "adapter_config.json"
TRAINED = "non_lora_trainables.bin"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
NAME = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


@dataclass(frozen=True)
class Adapter:
    """The two thin matrices beside one weight: (rank, in) and (out, rank), and what their product is scaled by."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    transposed: bool = False  # fan_in_fan_out: the weight stands as (in, out)

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        delta = self.scale * (self.up.float() @ self.down.float())
        return (weight.float() + (delta.T if self.transposed else delta)).to(weight.dtype)

    def fits(self, weight: Weight, where: Path) -> None:
        shape = (self.up.shape[0], self.down.shape[1])
        if weight.shape != (shape[::-1] if self.transposed else shape):
            raise UserError(f"{where}: an adapter of {list(shape)} for {weight.name} of {list(weight.shape)}")


def read_adapter(folder: Path) -> dict[str, Adapter]:
    """The adapters of a folder by the full name of the weight each belongs to, under the base's own names."""
    config = read_json(folder / ADAPTER)
    for key, plain in (("use_dora", False), ("bias", "none"), ("modules_to_save", None)):
        if config.get(key, plain) not in (plain, [], None):
            raise UserError(f"{folder / ADAPTER}: {key} is {config[key]!r}, which is not read here; merge it with peft")
    if config.get("peft_type", "LORA") != "LORA":
        raise UserError(f"{folder / ADAPTER}: peft_type is {config['peft_type']!r}; expected LORA")
    file = adapter_file(folder)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    opened = open_weights(file)
    for weight in list_file(file):
        match = NAME.match(weight.name)
        if match is None:
            raise UserError(f"{file}: {weight.name} is no LoRA matrix (base_model.model.….lora_A.weight)")
        tensor = opened[weight.name] if isinstance(opened, dict) else opened.get_tensor(weight.name)
        halves.setdefault(match["module"], {})[match["side"]] = tensor
    lone = [module for module, sides in halves.items() if len(sides) != 2]
    if lone or not halves:
        raise UserError(f"{file}: {len(lone)} modules have one of their two matrices ({lone[:1]}); copy it again")
    return {
        f"{module}.weight": Adapter(
            sides["A"], sides["B"], scale_of(config, module, sides["A"].shape[0]), bool(config.get("fan_in_fan_out"))
        )
        for module, sides in halves.items()
    }


def adapter_file(folder: Path) -> Path:
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder}: has {ADAPTER} but none of {', '.join(FILES)}; copy it again, whole")
    return found


def scale_of(config: dict[str, Any], module: str, rank: int) -> float:
    """peft's scaling: alpha over the rank, or over its root with use_rslora; patterns name exceptions."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.search(rf"(^|\.){pattern}$", module):
            alpha = value
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def read_trained(folder: Path) -> dict[str, Weight]:
    """What LLaVA trained beside the adapters (the projector), under LLaVA's names.

    The prefixes that peft and DeepSpeed leave are taken off as LLaVA's own loader does (model/builder.py).
    """
    file = folder / TRAINED
    if not file.is_file():
        raise UserError(f"{folder}: no {TRAINED}, where the projector trained with the adapters is")
    return {trained_name(weight.name): weight for weight in list_file(file)}


def trained_name(name: str) -> str:
    """base_model.model.model.mm_projector.0.weight -> model.mm_projector.0.weight."""
    name = name.removeprefix("base_model.")
    return name.removeprefix("model.") if name.startswith("model.model.") else name


def keep_adapter(source: Path, folder: Path, adapters: Mapping[str, Adapter]) -> None:
    """Write LLaVA's adapters beside a converted base, in peft's form for stock Llava: OUT/adapter."""
    (folder / "adapter").mkdir()
    shutil.copy(source / ADAPTER, folder / RECORD)
    config = read_json(source / ADAPTER)
    # A pattern of the whole name: the vision encoder has modules called q_proj too.
    config["target_modules"] = rf"model\.language_model\..*\.({'|'.join(leaves(adapters))})"
    config["base_model_name_or_path"] = None
    (folder / "adapter" / ADAPTER).write_text(json.dumps(config, indent=2), encoding="utf-8")
    halves = {
        name.replace("model.layers.", "model.language_model.layers."): tensor
        for name, tensor in peft_halves(adapters).items()
    }
    save_file(halves, folder / "adapter" / FILES[0])


def peft_halves(adapters: Mapping[str, Adapter]) -> dict[str, torch.Tensor]:
    """Adapters -> their matrices by the names that peft saves: base_model.model.….lora_A.weight."""
    found = {}
    for name, adapter in adapters.items():
        module = "base_model.model." + name.removesuffix(".weight")
        found[f"{module}.lora_A.weight"] = adapter.down.contiguous()
        found[f"{module}.lora_B.weight"] = adapter.up.contiguous()
    return found


def peft_config(folder: Path, adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """adapter_config.json for the peft of LLaVA's time, which fails on keys that it does not know."""
    config = read_json(folder / ADAPTER)
    usual = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True}
    keys = ("r", "lora_alpha", "lora_dropout", "fan_in_fan_out")
    rare = ("use_rslora", "alpha_pattern", "rank_pattern")
    said = {key: config[key] for key in (*keys, *(key for key in rare if config.get(key))) if key in config}
    return {**usual, **said, "target_modules": leaves(adapters), "base_model_name_or_path": None}


def leaves(adapters: Mapping[str, Adapter]) -> list[str]:
    """The names of the layers within a block that have adapters: q_proj, …"""
    return sorted({name.removesuffix(".weight").split(".")[-1] for name in adapters})


def merge_stock(source: Path, folder: Path, config: ConvertConfig, bar: Callable[..., Any]) -> None:
    """peft's adapters on a stock Llava (--base) -> that Llava with them merged, all its other files copied."""
    assert config.base is not None, "asked for by layout()"
    base = Path(fetch_folder(config.base, config.hub))
    if not is_stock(read_json(base / "config.json")):
        raise UserError(f"{base}: the adapter is of a Hugging Face Llava, and this is none; convert it first")
    if config.lora == "keep" or config.check:
        raise UserError(f"{source}: is already peft's form; lora: keep and check have nothing to do")
    adapters = {stock_module(name): adapter for name, adapter in read_adapter(source).items()}
    weights = {weight.name: weight for weight in list_weights(base)}
    names = {to_llava(name, False): name for name in weights}
    unknown = sorted(name for name in adapters if name not in names)
    if unknown:
        raise UserError(f"{source}: adapts {len(unknown)} tensors that {base} does not have ({unknown[0]}, …)")
    reader = Reader()
    plan = []
    for llava, name in names.items():
        weight, adapter = weights[name], adapters.get(llava or "")
        if adapter is not None:
            adapter.fits(weight, source)
        plan.append(Planned(name, weight.shape, weight.kind, merging(reader, weight, adapter)))
    with bar(f"{config.base} + {config.source} → {config.out}", sum(row.bytes for row in plan)) as tell:
        write_shards(folder, plan, int(config.shard_gb * 1e9), tell)
    for file in base.iterdir():
        if file.is_file() and not re.search(r"\.(safetensors|bin|pt|index\.json)$", file.name):
            shutil.copy(file, folder / file.name)
    if (base / RECORD).is_dir():
        shutil.copytree(base / RECORD, folder / RECORD)


def merging(reader: Reader, weight: Weight, adapter: Adapter | None) -> Callable[[], torch.Tensor]:
    return lambda: adapter.merged(reader.get(weight)) if adapter is not None else reader.get(weight)


def stock_module(name: str) -> str:
    """A stock Llava's name in memory, which peft saves -> LLaVA's."""
    moved = name.removeprefix("model.") if not name.startswith("lm_head.") else f"language_model.{name}"
    moved = moved.replace("language_model.", "language_model.model.", 1) if name.startswith("model.language") else moved
    return to_llava(moved, False) or name
