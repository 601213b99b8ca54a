"""Writes model folders in the layout of llava-hf's released checkpoints.

In: a stock Llava and its processor. Out: a folder that transformers 5 and 4 load, and servers built on them.
Transformers 5 omits `vision_model.` from an encoder's tensor names, writes settings under new names and stores image
settings only in the processor's file; vLLM and llama.cpp expect what llava-hf has.
"""

from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from qilin.core.files import read_json, to_json
from qilin.core.provenance import public_name

TRAINED_BESIDE = "non_lora_trainables.safetensors"  # in an adapter folder: the parts trained beside the adapters
# The encoders whose released weights, alone or in a Llava, have the prefix `vision_model.`.
ENCODERS_WITH_PREFIX = (
    "clip_vision_model",
    "siglip_vision_model",
    "siglip2_vision_model",
    "chinese_clip_vision_model",
)


def save_model(folder: str | Path, model: Any, processor: Any) -> None:
    """Write the weights, config, generation config, processor and tokenizer.

    A model that is no Llava has the tensor names of its release, which transformers writes; the encoder of Gemma 3
    needs its prefix as that of a Llava does.
    """
    state = model.state_dict()
    if model.config.vision_config.model_type in ENCODERS_WITH_PREFIX:
        state = {add_vision_prefix(name): tensor for name, tensor in state.items()}
    model.save_pretrained(folder, state_dict=state)
    save_processor(folder, processor)
    add_transformers4_keys(folder)


def add_vision_prefix(name: str) -> str:
    """model.vision_tower.encoder… -> model.vision_tower.vision_model.encoder…, which transformers 5 reads as well."""
    old, new = "model.vision_tower.", "model.vision_tower.vision_model."
    return name if not name.startswith(old) or name.startswith(new) else name.replace(old, new, 1)


def save_processor(folder: str | Path, processor: Any) -> None:
    """Write processor, tokenizer and template, and the settings of images and videos again where transformers 4 reads
    them (tested with 4.57.3)."""
    processor.save_pretrained(folder)
    settings = read_json(Path(folder) / "processor_config.json")
    image_settings = settings["image_processor"]
    if {"shortest_edge", "longest_edge"} <= set(image_settings.get("size") or {}):
        # Qwen-VL's limits in pixels: version 4 reads these names, and ignores the limits in `size`
        limits = image_settings["size"]
        image_settings |= {"min_pixels": limits["shortest_edge"], "max_pixels": limits["longest_edge"]}
    write_json(Path(folder) / "preprocessor_config.json", image_settings)
    if settings.get("video_processor"):
        write_json(Path(folder) / "video_preprocessor_config.json", settings["video_processor"])
    file = Path(folder) / "tokenizer_config.json"
    config = read_json(file)
    # Transformers 4 fails on a list here, and on a class that is new in 5; both versions read the replacements.
    extra = [token for token in config.pop("extra_special_tokens", []) if token not in config.values()]
    config["additional_special_tokens"] = extra
    if named := config.get("model_specific_special_tokens"):  # of Gemma 3 and InternVL, by version 4's name
        config["extra_special_tokens"] = named
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    legacy = getattr(processor.tokenizer, "legacy", None)
    write_json(file, config if legacy is None else config | {"legacy": legacy})


def add_transformers4_keys(folder: str | Path) -> None:
    """Add the config keys that transformers 4 reads (tested with 4.57.3), and servers that are built on it."""
    file = Path(folder) / "config.json"
    model_config = read_json(file)
    for part in (model_config, *(value for value in model_config.values() if isinstance(value, dict))):
        if part.get("_name_or_path"):  # a folder of this machine, or a hub id
            part["_name_or_path"] = public_name(part["_name_or_path"])
    text_config = model_config["text_config"]
    text_config |= rope_keys(text_config.get("rope_parameters") or {})
    for old, new in CONFIG_MAPPING[text_config["model_type"]].attribute_map.items():
        if new in text_config:
            text_config.setdefault(old, text_config[new])
    model_config["torch_dtype"] = text_config["torch_dtype"] = model_config.get("dtype")
    write_json(file, dict(sorted(model_config.items())))


def rope_keys(rope: dict[str, Any]) -> dict[str, Any]:
    """rope_parameters by the names of transformers 4, whose default rope_theta is 10,000.

    A scaling is everything but the base: Qwen-VL's mrope_section too. Gemma 3 has one base for layers that see all
    tokens, and a local one.
    """
    usual, local = rope.get("full_attention", rope), rope.get("sliding_attention")
    scaling = {key: value for key, value in usual.items() if key != "rope_theta"}
    is_scaled = bool(scaling.keys() - {"rope_type"}) or scaling.get("rope_type", "default") != "default"
    return {
        "rope_theta": usual.get("rope_theta", 10000.0),
        **({"rope_local_base_freq": local["rope_theta"]} if local else {}),
        **({"rope_scaling": scaling} if is_scaled else {}),
    }


def write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(to_json(value), encoding="utf-8")
