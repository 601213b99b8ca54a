"""LoRA adapters: read, merged into their weights while those are streamed, or written beside the base model.

In: LLaVA's LoRA folders (adapter_config.json, adapter_model, non_lora_trainables.bin), and peft's on a stock Llava or a
released model (Qwen-VL, InternVL, Gemma 3).
Out: one Adapter per weight; W + scale * B A, computed in fp32 and rounded once.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qilin.convert.config import ConvertConfig
from qilin.convert.llava_format import is_llava, to_llava_name
from qilin.convert.llava_tokenizer import SOURCE_FILES_FOLDER
from qilin.convert.output import write_tensors
from qilin.convert.weight_files import (
    StoredTensor,
    TensorReader,
    TensorToWrite,
    get_tensor,
    list_file,
    list_tensors,
    open_weights,
)
from qilin.core.errors import UserError
from qilin.core.files import read_json, to_json
from qilin.model.architectures import ARCHITECTURES
from qilin.model.hub import fetch_folder
from qilin.model.llava import QILIN_JSON
from qilin.model.saving import TRAINED_BESIDE

ADAPTER_CONFIG = "adapter_config.json"
NON_LORA = "non_lora_trainables.bin"
OWN_FILES = (ADAPTER_CONFIG, QILIN_JSON)  # of an adapter folder, not of its processor
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
MATRIX_NAME = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


@dataclass(frozen=True)
class Adapter:
    """The low-rank matrices of one weight: lora_a (rank, in), lora_b (out, rank), and the scale of their product."""

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scale: float
    transposed: bool = False  # fan_in_fan_out: the weight is (in, out)

    def merge_into(self, weight: torch.Tensor) -> torch.Tensor:
        delta = self.scale * (self.lora_b.float() @ self.lora_a.float())
        return (weight.float() + (delta.T if self.transposed else delta)).to(weight.dtype)

    def check_shape(self, weight: StoredTensor, source: Path) -> None:
        """Raise UserError if the adapter does not fit the weight."""
        shape = (self.lora_b.shape[0], self.lora_a.shape[1])
        if weight.shape != (shape[::-1] if self.transposed else shape):
            raise UserError(f"{source}: an adapter of shape {list(shape)} for {weight.name} of {list(weight.shape)}")


def read_adapters(folder: Path) -> dict[str, Adapter]:
    """A folder's adapters by the full name of their weight, as the base model names it. Raises UserError for options of
    peft that merging does not support."""
    config = read_json(folder / ADAPTER_CONFIG)
    for key, supported in (("use_dora", False), ("bias", "none")):
        if config.get(key, supported) not in (supported, None):
            raise UserError(f"{folder / ADAPTER_CONFIG}: {key} is {config[key]!r}, not supported; merge it with peft")
    if config.get("peft_type", "LORA") != "LORA":
        raise UserError(f"{folder / ADAPTER_CONFIG}: peft_type is {config['peft_type']!r}; expected LORA")
    file = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(
            f"{folder}: has {ADAPTER_CONFIG} but none of {', '.join(ADAPTER_FILES)}; copy the complete folder"
        )
    contents = open_weights(file)
    whole_modules = tuple(config.get("modules_to_save") or ())
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    for stored in list_file(file):
        match = MATRIX_NAME.match(stored.name)
        if match is None and is_inside(stored.name, whole_modules):
            continue  # read by read_trained_beside
        if match is None:
            raise UserError(f"{file}: {stored.name} is not a LoRA matrix (base_model.model.….lora_A.weight)")
        matrices.setdefault(match["module"], {})[match["side"]] = get_tensor(contents, stored.name)
    incomplete = [module for module, pair in matrices.items() if len(pair) != 2]
    if incomplete or not matrices:
        raise UserError(
            f"{file}: {len(incomplete)} modules have one of their two matrices ({incomplete[:1]}); copy it again"
        )
    transposed = bool(config.get("fan_in_fan_out"))
    return {
        f"{module}.weight": Adapter(pair["A"], pair["B"], adapter_scale(config, module, pair["A"].shape[0]), transposed)
        for module, pair in matrices.items()
    }


def is_inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a weight belongs to one of peft's `modules_to_save`."""
    return any(f".{module}." in f".{name}" for module in modules)


def adapter_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """peft's scaling: alpha / rank, or alpha / sqrt(rank) with use_rslora; alpha_pattern has exceptions by module."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.search(rf"(^|\.){pattern}$", module):
            alpha = value
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def read_non_lora(folder: Path) -> dict[str, StoredTensor]:
    """The weights that LLaVA trained in full with the adapters (the projector), under LLaVA's names.

    Removes the prefixes of peft and DeepSpeed like LLaVA's own loader (model/builder.py):
    base_model.model.model.mm_projector.0.weight -> model.mm_projector.0.weight.
    """
    file = folder / NON_LORA
    if not file.is_file():
        raise UserError(f"{folder}: no {NON_LORA}, which holds the projector that was trained with the adapters")
    weights = {}
    for stored in list_file(file):
        name = stored.name.removeprefix("base_model.")
        weights[name.removeprefix("model.") if name.startswith("model.model.") else name] = stored
    return weights


def write_peft_adapter(source: Path, folder: Path, adapters: Mapping[str, Adapter]) -> None:
    """Write LLaVA's adapters beside a converted base, in peft's format for stock Llava: OUT/adapter."""
    (folder / "adapter").mkdir()
    shutil.copy(source / ADAPTER_CONFIG, folder / SOURCE_FILES_FOLDER)
    config = read_json(source / ADAPTER_CONFIG)
    # A pattern over the full name, because the vision encoder has modules named q_proj too.
    config["target_modules"] = rf"model\.language_model\..*\.({'|'.join(target_modules(adapters))})"
    config["base_model_name_or_path"] = None
    (folder / "adapter" / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    matrices = {
        name.replace("model.layers.", "model.language_model.layers."): tensor
        for name, tensor in peft_state_dict(adapters).items()
    }
    save_file(matrices, folder / "adapter" / ADAPTER_FILES[0])


def write_llava_lora(
    source: Path, folder: Path, adapters: Mapping[str, Adapter], non_lora: Mapping[str, torch.Tensor]
) -> None:
    """Write the three files of a LLaVA LoRA folder other than config.json, under the names that LLaVA's training
    uses."""
    original = source / SOURCE_FILES_FOLDER / ADAPTER_CONFIG
    if original.is_file():
        shutil.copy(original, folder)
    else:
        config = llava_adapter_config(read_json(adapter_folder(source) / ADAPTER_CONFIG), adapters)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    torch.save(peft_state_dict(adapters), folder / ADAPTER_FILES[1])
    torch.save({f"base_model.model.{name}": tensor for name, tensor in non_lora.items()}, folder / NON_LORA)


def adapter_folder(source: Path) -> Path:
    """The adapter folder of a model that was trained with `lora` or converted with `--lora keep`."""
    if not (source / "adapter" / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{source}: no adapter/{ADAPTER_CONFIG}, so no LoRA to keep; a model has one after training with lora or "
            "converting with --lora keep"
        )
    return source / "adapter"


def peft_state_dict(adapters: Mapping[str, Adapter]) -> dict[str, torch.Tensor]:
    """Adapters -> their matrices under the names that peft saves: base_model.model.….lora_A.weight."""
    matrices = {}
    for name, adapter in adapters.items():
        module = "base_model.model." + name.removesuffix(".weight")
        matrices[f"{module}.lora_A.weight"] = adapter.lora_a.contiguous()
        matrices[f"{module}.lora_B.weight"] = adapter.lora_b.contiguous()
    return matrices


def llava_adapter_config(config: Mapping[str, Any], adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """adapter_config.json for the peft versions that LLaVA used, which fail on unknown keys."""
    defaults = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "inference_mode": True}
    keys = ("r", "lora_alpha", "lora_dropout", "fan_in_fan_out")
    newer_keys = ("use_rslora", "alpha_pattern", "rank_pattern")  # only if set
    values = {key: config[key] for key in (*keys, *(key for key in newer_keys if config.get(key))) if key in config}
    return {**defaults, **values, "target_modules": target_modules(adapters), "base_model_name_or_path": None}


def target_modules(adapters: Mapping[str, Adapter]) -> list[str]:
    """The last part of the adapted modules' names: q_proj, …"""
    return sorted({name.removesuffix(".weight").split(".")[-1] for name in adapters})


def stock_to_llava_name(name: str) -> str:
    """The name of a stock Llava's weight in memory, which peft saves -> LLaVA's name."""
    on_disk = f"language_model.{name}" if name.startswith("lm_head.") else name.removeprefix("model.")
    if name.startswith("model.language"):
        on_disk = on_disk.replace("language_model.", "language_model.model.", 1)
    return to_llava_name(on_disk, False) or name


def merge_peft_adapter(source: Path, folder: Path, config: ConvertConfig) -> None:
    """Merge peft's adapters into the model of --base, a stock Llava or a released model; copies all its other files."""
    assert config.base is not None, "checked by detect_layout()"
    base = Path(fetch_folder(config.base, config.hub))
    check_base(base)
    if config.lora == "keep" or config.check:
        raise UserError(f"{source}: is already in peft's format, so lora=keep and check have no effect")
    adapters = {weight_name(name): adapter for name, adapter in read_adapters(source).items()}
    trained = read_trained_beside(source)
    tensors = [(weight_name(tensor.name), tensor) for tensor in list_tensors(base)]
    unknown = sorted({*adapters, *trained} - {name for name, _ in tensors})
    if unknown:
        raise UserError(f"{source}: adapts {len(unknown)} tensors that {base} does not have ({unknown[0]}, …)")
    reader = TensorReader()
    plan = []
    for name, stored in tensors:
        adapter, replacement = adapters.get(name), trained.get(name)
        if adapter is not None:
            adapter.check_shape(stored, source)
        if replacement is not None and replacement.shape != stored.shape:
            raise UserError(
                f"{replacement.file}: {replacement.name} is {list(replacement.shape)}, in {base} {list(stored.shape)}"
            )
        load = partial(read_merged, reader, stored, adapter, replacement)
        plan.append(TensorToWrite(stored.name, stored.shape, stored.dtype, load))
    write_tensors(folder, plan, config)
    for file in base.iterdir():
        if file.is_file() and not re.search(r"\.(safetensors|bin|pt|index\.json)$", file.name):
            shutil.copy(file, folder / file.name)
    if (base / SOURCE_FILES_FOLDER).is_dir():
        shutil.copytree(base / SOURCE_FILES_FOLDER, folder / SOURCE_FILES_FOLDER)
    copy_processor(source, folder)


def copy_processor(source: Path, folder: Path) -> None:
    """Replace the base's template, tokenizer and image settings by those of a run that wrote them with its adapter."""
    if not (source / QILIN_JSON).is_file():
        return
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".model") and file.name not in OWN_FILES:
            shutil.copy(file, folder / file.name)
    base_file = folder / QILIN_JSON
    metadata = read_json(base_file) if base_file.is_file() else {}
    base_file.write_text(to_json(metadata | read_json(source / QILIN_JSON)), encoding="utf-8")


def check_base(base: Path) -> None:
    """Raise UserError for a model of an architecture that adapters are not merged into."""
    file = base / "config.json"
    values: dict[str, Any] = read_json(file) if file.is_file() else {}
    if values.get("model_type") not in ARCHITECTURES or is_llava(values):
        raise UserError(
            f"{base}: the adapter's base is of model_type {values.get('model_type')!r}; adapters are merged into "
            f"{', '.join(ARCHITECTURES)} in Hugging Face's layout: convert a checkpoint in LLaVA's layout first, or "
            "merge with peft (merge_and_unload)"
        )


def weight_name(name: str) -> str:
    """One name for a weight as it is named in memory, in files, and by transformers before 4.52:
    model.layers.0… and language_model.model.layers.0… are model.language_model.layers.0…"""
    name = name.removeprefix("model.").replace("language_model.model.", "language_model.", 1)
    name = name.replace("vision_tower.vision_model.", "vision_tower.", 1).replace("language_model.lm_head", "lm_head")
    return f"language_model.{name}" if name.startswith(("layers.", "embed_tokens.", "norm.")) else name


def read_trained_beside(folder: Path) -> dict[str, StoredTensor]:
    """The weights that a run trained in full beside its adapters, by `weight_name`.

    Raises UserError for a run of an earlier version, which did not write them.
    """
    file, run_file = folder / TRAINED_BESIDE, folder.parent / QILIN_JSON
    if file.is_file():
        return {weight_name(stored.name): stored for stored in list_file(file)}
    config_file, weights = folder / ADAPTER_CONFIG, folder / ADAPTER_FILES[0]
    modules = (read_json(config_file).get("modules_to_save") or []) if config_file.is_file() else []
    if modules and weights.is_file():
        prefix = "base_model.model."
        inside = [stored for stored in list_file(weights) if is_inside(stored.name, modules)]
        return {weight_name(stored.name.removeprefix(prefix)): stored for stored in inside}
    recipe = (read_json(run_file).get("recipe") or {}) if run_file.is_file() else {}
    if recipe.get("trainable") and recipe.get("lora") is not None:
        raise UserError(
            f"{folder}: no {TRAINED_BESIDE}, but the run also trained {', '.join(recipe['trainable'])}; "
            f"{folder.parent} is the complete model"
        )
    return {}


def read_merged(
    reader: TensorReader, stored: StoredTensor, adapter: Adapter | None, replacement: StoredTensor | None = None
) -> torch.Tensor:
    if replacement is not None:
        return get_tensor(open_weights(replacement.file), replacement.name).to(stored.dtype)
    tensor = reader.read(stored)
    return tensor if adapter is None else adapter.merge_into(tensor)
