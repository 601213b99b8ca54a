"""The model folder that a run leaves: Hugging Face files, qilin.json, and with `lora` an adapter folder.

In: the trained model. Out: files that hold names and hashes, never paths of this machine: the folder is published.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from qilin.core.config import to_dict
from qilin.core.files import read_json, to_json, write_atomic
from qilin.core.provenance import public_name, versions
from qilin.dataset.reader import is_synthetic, open_dataset
from qilin.imaging.windowing import recorded_windowings
from qilin.model.architectures import LLAVA, find_architecture, part_of
from qilin.model.card import describe_bases, describe_data, write_card
from qilin.model.llava import QILIN_JSON, LoadedModel, pick_device
from qilin.model.saving import save_model, save_processor
from qilin.train.config import TEMPLATE_NAMES, TrainConfig
from qilin.train.distributed import autocast_dtype
from qilin.train.metrics import METRICS
from qilin.train.model_setup import base_model, remove_peft_prefix
from qilin.train.packed_attention import use_plain_attention
from qilin.train.run_record import PACKAGES
from qilin.train.start_model import load_start

ADAPTER = "adapter"
HALF = (torch.bfloat16, torch.float16)


def describe_model(
    config: TrainConfig, data: Sequence[tuple[Path, str]], facts: Mapping[str, Any], model_config: Any
) -> dict[str, Any]:
    """The content of qilin.json. `data`: folder and hash of each dataset; its name stands for the folder."""
    return {
        "stage": "+".join(config.trainable) + (" (adapters)" if config.lora else ""),
        "label": config.label,
        "recipe": public_recipe(config, model_config),
        "data": [describe_data(path, hash_, is_synthetic(open_dataset(path))) for path, hash_ in data],
        "parent": None if config.model is None else public_name(config.model),
        "bases": describe_bases([name for name in (config.model, config.vision, config.language) if name]),
        "history": history(config),
        "template": public_template(config, model_config),
        "pad_square": config.pad_square,
        "instructions": list(config.instructions),
        "windowings": training_windowings(config),
        "plan": dict(facts),
        "metrics": METRICS,
        "versions": versions(PACKAGES),
    }


def history(config: TrainConfig) -> list[dict[str, Any]]:
    """The earlier stages of the model that a run started from, each with its data."""
    file = Path(config.model or "") / QILIN_JSON
    parent = read_json(file) if config.model and file.is_file() else {}
    stage = {"stage": parent["stage"], "data": parent["data"]} if "stage" in parent and "data" in parent else None
    return [*(parent.get("history") or []), *([stage] if stage else [])]


def training_windowings(config: TrainConfig) -> list[Any]:
    """How DICOM images became gray levels in the training data, or, where it has none, in that of the parent."""
    settings = [open_dataset(source.path).manifest.get("settings") for source in config.data]
    if windowings := recorded_windowings(settings):
        return windowings
    parent = Path(config.model or "") / QILIN_JSON
    return list(read_json(parent).get("windowings") or ()) if config.model and parent.is_file() else []


def public_recipe(config: TrainConfig, model_config: Any) -> dict[str, Any]:
    """The recipe with the names of folders and files in place of their paths. recipe.yaml keeps the paths."""
    recipe: dict[str, Any] = to_dict(config)
    for key in ("vision", "language", "model", "out"):
        recipe[key] = recipe[key] and public_name(recipe[key])
    recipe["template"] = public_template(config, model_config)
    recipe["data"] = [source | {"path": Path(source["path"]).resolve().name} for source in recipe["data"]]
    return recipe


def public_template(config: TrainConfig, model_config: Any) -> str:
    """The name of the chat template; `own` is that of a released model."""
    if config.template not in TEMPLATE_NAMES:
        return Path(config.template).name
    return config.template if find_architecture(model_config) is LLAVA else "own"


def write_model(run_dir: Path, config: TrainConfig, loaded: LoadedModel, model: Any) -> None:
    """Write the Hugging Face files; adapters are kept in adapter/ and merged into the model."""
    use_plain_attention(base_model(model))
    on_gpu = pick_device(config.device).type != "cpu"  # where it was trained; it may have been assembled on the host
    dtype = (autocast_dtype(config.precision) if on_gpu else None) or torch.float32
    if dtype == torch.float32:
        restore_frozen_weights(model, config)
    if config.lora is not None:
        save_adapter(run_dir / ADAPTER, config, loaded, model)
        model = model.merge_and_unload()
    model = model.to(dtype).eval()
    if find_architecture(model.config) is LLAVA:
        model.config.use_cache = True
    save_model(run_dir, model, loaded.processor)
    sources = [(source.path, open_dataset(source.path).hash) for source in config.data]
    write_card(run_dir, describe_model(config, sources, {}, model.config))


def save_adapter(folder: Path, config: TrainConfig, loaded: LoadedModel, model: Any) -> None:
    """Write adapters that work alone: peft's files, which hold the parts trained beside them too, template and
    processor, and a README that names the base. `qilin convert ADAPTER OUT --base BASE` merges them."""
    model.save_pretrained(str(folder))
    add_trained_modules(folder, config, model)
    base = base_model(model)
    save_processor(folder, loaded.processor)
    base.generation_config.save_pretrained(str(folder))
    template = public_template(config, base.config)
    metadata = {
        "template": template,
        "pad_square": config.pad_square,
        "windowings": training_windowings(config),
    }
    write_atomic(folder / QILIN_JSON, to_json(metadata))
    write_atomic(folder / "README.md", adapter_readme(config, template, type(base).__name__))


def add_trained_modules(folder: Path, config: TrainConfig, model: Any) -> None:
    """Add projector and vision encoder to peft's files as its `modules_to_save`, if they were trained, and the base.

    During training peft does not know of them: wrapped by it, they would be copied.
    """
    names = trained_modules(base_model(model), config)
    config_file, weights_file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    adapter_config = read_json(config_file)
    adapter_config["base_model_name_or_path"] = base_name(config)
    adapter_config["modules_to_save"] = names or None
    adapter_config["target_modules"] = sorted(adapter_config["target_modules"])  # a set: each run would differ
    write_atomic(config_file, to_json(adapter_config))
    trained = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and part_of(remove_peft_prefix(name)) in config.trainable
    }
    save_file(load_file(weights_file) | trained, weights_file, metadata={"format": "pt"})


def trained_modules(model: Any, config: TrainConfig) -> list[str]:
    """The modules that were trained whole, outermost only; peft takes no lists of modules."""
    modules = dict(model.named_modules())
    parts = find_architecture(model.config).parts
    names: list[str] = []
    for name in sorted(name for part in config.trainable for name in parts[part] if name in modules):
        is_list = isinstance(modules[name], torch.nn.ModuleList)
        for inner in [f"{name}.{index}" for index in range(len(modules[name]))] if is_list else [name]:
            if not any(inner.startswith(f"{outer}.") for outer in names):
                names.append(inner)
    return [name.removeprefix("model.") for name in names]


def base_name(config: TrainConfig) -> str:
    """What the adapters belong to: a hub id, or the name of a folder."""
    if config.model is not None:
        return public_name(config.model)
    return f"{public_name(config.vision or '')} with {public_name(config.language or '')}"


def adapter_readme(config: TrainConfig, template: str, class_name: str) -> str:
    """The README of an adapter folder."""
    assert config.lora is not None, "only runs with lora have adapters"
    base, lora = base_name(config), config.lora
    if config.model is not None:
        base_text = f"the model `{base}`"
        load_base = f"base = {class_name}.from_pretrained({base!r})  # or the path of its folder"
        load = f"from transformers import {class_name}\n\n{load_base}"
    else:
        vision, language = public_name(config.vision or ""), public_name(config.language or "")
        base_text = f"a Llava composed of `{vision}` and `{language}`"
        load = (
            "from qilin.model.llava import compose\n\n"
            f"base = compose({vision!r}, {language!r}, template={template!r}, system=None, "
            f"pad_square={config.pad_square}).model"
        )
    kind = "DoRA" if lora.use_dora else "rsLoRA" if lora.use_rslora else "LoRA"
    trained_parts = " and ".join(config.trainable)
    part_names = {"language": "language model", "vision": "vision encoder"}
    adapted = " and ".join(part_names[part] for part in lora.parts)
    return f"""---
library_name: peft
base_model: {base}
---
# {kind} adapters

Trained by Qilin on {base_text}: rank {lora.rank}, alpha {lora.alpha:g}. `adapter_model.safetensors` holds the
adapters of the {adapted} and, as peft's `modules_to_save`, the {trained_parts} trained with them. The folder
has the tokenizer, the image processor and the chat template ({template}) as well.

```python
from peft import PeftModel
{load}
model = PeftModel.from_pretrained(base, "adapter")  # this folder
```

With Qilin: `qilin convert adapter merged --base BASE` writes the complete model.

For research, not for diagnosis.
"""


def restore_frozen_weights(model: Any, config: TrainConfig) -> None:
    """Read frozen weights from their source again: for training they were rounded to 16 bits."""
    rounded = [(n, p) for n, p in model.named_parameters() if not p.requires_grad and p.dtype in HALF]
    if not rounded:
        return
    for _, parameter in rounded:  # free their memory first
        parameter.data = parameter.data.new_empty(0)
    original = dict(load_start(config).model.named_parameters())
    for name, parameter in rounded:
        parameter.data = original[remove_peft_prefix(name).replace(".base_layer", "")].data
