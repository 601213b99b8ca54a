"""LLaVA's checkpoint layout as data: tensor names and config keys, and their names in stock Llava.

In: names, shapes and LLaVA's config.json. Out: Hugging Face's names and configs, and back. Sources: the LLaVA
repository (model/builder.py, llava_arch.py, multimodal_projector/builder.py, clip_encoder.py) and the config.json of
williamliu/Qilin-Med-VL, liuhaotian/llava-v1.5-13b and microsoft/llava-med-v1.5-mistral-7b.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError

VISION_PREFIX = "model.vision_tower.vision_tower."
PROJECTOR_PREFIX = "model.mm_projector."
# LLaVA's prefix -> the prefix in llava-hf's released checkpoints, which all servers read. The first match applies.
PREFIXES = {
    VISION_PREFIX + "vision_model.": "vision_tower.vision_model.",
    "model.mm_projector.0.": "multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "multi_modal_projector.linear_2.",
    "model.embed_tokens.": "language_model.model.embed_tokens.",
    "model.layers.": "language_model.model.layers.",
    "model.norm.": "language_model.model.norm.",
    "lm_head.": "language_model.lm_head.",
}
LINEAR_PREFIXES = {PROJECTOR_PREFIX: "multi_modal_projector.linear_1."}  # a single layer has no number
# Buffers that old versions of transformers saved; they follow from the config.
BUFFERS = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
# The language models that LLaVA supports, by the architecture in its config.
MODEL_TYPES = {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral"}
TEXT_KEYS = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"),
    *("rms_norm_eps", "hidden_act", "max_position_embeddings", "initializer_range", "rope_theta", "rope_scaling"),
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "head_dim", "sliding_window", "pretraining_tp"),
    *("bos_token_id", "eos_token_id"),
)
# Part of an unexpected tensor's name -> the most likely cause.
LIKELY_CAUSES = {
    "image_newline": "LLaVA-1.6 (NeXT), which splits images into tiles; only the layout of 1.5 is supported",
    "vision_resampler": "a model with a resampler between encoder and projector, which stock Llava does not have",
    "lora_": "adapters; name the folder with adapter_config.json as SRC and its base with --base",
    "model.vision_tower": "a vision encoder that is not a CLIP of transformers",
    "transformer.": "MPT, which LLaVA once offered; only Llama and Mistral are supported",
    "absmax": "weights quantized by bitsandbytes; convert the unquantized weights",
    "qweight": "weights quantized by GPTQ or AWQ; convert the unquantized weights",
    "q_norm": "a language model other than the one in the config",
}


def is_llava(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is in LLaVA's layout: the projector's keys are beside the language model's."""
    return "text_config" not in config and any(key in config for key in ("mm_hidden_size", "mm_vision_tower"))


def is_stock(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of transformers' Llava."""
    return config.get("model_type") == "llava" and "vision_config" in config and "text_config" in config


def to_stock_name(name: str, linear: bool) -> str | None:
    """LLaVA's tensor name -> stock Llava's; None if unknown. `linear`: the projector has a single layer."""
    for old, new in {**(LINEAR_PREFIXES if linear else {}), **PREFIXES}.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return None


def to_llava_name(name: str, linear: bool) -> str | None:
    """Stock Llava's name in a file (llava-hf's, or as transformers 5 writes it) -> LLaVA's; None if unknown."""
    for old, new in {**PREFIXES, **(LINEAR_PREFIXES if linear else {})}.items():
        if linear and "mm_projector." in old and old not in LINEAR_PREFIXES:
            continue
        for prefix in (new, new.replace("vision_model.", "")):
            if name.startswith(prefix):
                return old + name[len(prefix) :]
    return None


def text_model_type(config: Mapping[str, Any], path: Path) -> str:
    """llama or mistral. Raises UserError for LLaVA models on another language model."""
    architecture = (config.get("architectures") or ["nothing"])[0]
    if architecture not in MODEL_TYPES:
        raise UserError(f"{path}: architectures is {architecture}; expected one of {', '.join(MODEL_TYPES)}")
    return MODEL_TYPES[architecture]


def is_linear(config: Mapping[str, Any]) -> bool:
    """Whether the projector is a single linear layer."""
    return bool(config.get("mm_projector_type", "linear") == "linear")


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raise UserError for settings that stock Llava cannot express."""
    projector = config.get("mm_projector_type", "linear")
    if projector not in ("mlp2x_gelu", "linear"):
        raise UserError(
            f"{path}: mm_projector_type is {projector!r}; expected mlp2x_gelu or linear: stock Llava's projector has "
            "exactly two layers (for linear, the second is an identity)"
        )
    ratio = config.get("image_aspect_ratio")
    if ratio not in (None, "pad", "square"):
        raise UserError(f"{path}: image_aspect_ratio is {ratio!r} (tiles); expected pad, square or no value")
    feature = config.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise UserError(f"{path}: mm_vision_select_feature is {feature!r}; expected patch or cls_patch")
    layer = config.get("mm_vision_select_layer", -2)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise UserError(f"{path}: mm_vision_select_layer is {layer!r}; expected an integer such as -2")
    if config.get("quantization_config"):
        raise UserError(f"{path}: has a quantization_config; convert the unquantized weights")


def infer_vision_config(shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, Any]:
    """The config of an OpenAI CLIP encoder from its tensors' shapes (names without `vision_model.`).

    For released checkpoints whose config names the encoder by a path on its author's machine. Everything but the number
    of heads and the activation follows from the shapes; all of OpenAI's CLIPs have a head width of 64 and quick_gelu.
    """
    try:
        width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
        positions = shapes["embeddings.position_embedding.weight"][0]
        intermediate = shapes["encoder.layers.0.mlp.fc1.weight"][0]
        shapes["embeddings.class_embedding"]
    except KeyError as error:
        raise UserError(f"{path}: no {error.args[0]} in its vision encoder, so not a CLIP; see --vision") from None
    side = round((positions - 1) ** 0.5)
    if side * side + 1 != positions or width % 64 or width > 1024:
        raise UserError(
            f"{path}: its vision encoder (width {width}, {positions} positions) is not one of OpenAI's CLIPs; "
            "name a folder or hub id with its config: --vision"
        )
    layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}
    return {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // 64,
        "image_size": side * patch,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 768,
    }


def stock_config(config: Mapping[str, Any], vision: Any, rows: int, path: Path) -> Any:
    """LLaVA's config and the encoder's -> a LlavaConfig for `rows` rows of embeddings; its image token is set later."""
    from transformers import AutoConfig, LlavaConfig

    check_config(config, path)
    text_type = text_model_type(config, path)
    text_values = {key: config[key] for key in TEXT_KEYS if config.get(key) is not None}
    if text_type == "mistral":
        text_values["sliding_window"] = config.get("sliding_window")  # null means none; absent means 4096
    if text_values.get("pretraining_tp", 1) == 1 or text_type == "mistral":
        text_values.pop("pretraining_tp", None)
    with_class_token = config.get("mm_vision_select_feature", "patch") == "cls_patch"
    return LlavaConfig(
        text_config=AutoConfig.for_model(text_type, **text_values, vocab_size=rows),
        vision_config=vision,
        projector_hidden_act="linear" if is_linear(config) else "gelu",
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if with_class_token else "default",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2 + with_class_token,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def llava_config(stock: Any, pad_square: bool, rows: int, vision_encoder: str) -> dict[str, Any]:
    """A LlavaConfig -> LLaVA's config.json, for a model that was never in LLaVA's layout.

    LLaVA's code fetches the encoder by the name `vision_encoder`. Its first versions use those weights whatever the
    checkpoint holds; `unfreeze_mm_vision_tower` makes later versions load the checkpoint's weights over them.
    """
    text = stock.text_config
    architectures = {model_type: name for name, model_type in MODEL_TYPES.items()}
    if text.model_type not in architectures:
        raise UserError(
            f"text_config.model_type is {text.model_type!r}; LLaVA's layout supports {' and '.join(architectures)}"
        )
    if stock.vision_config.model_type != "clip_vision_model":
        raise UserError(
            f"vision_config.model_type is {stock.vision_config.model_type!r}; LLaVA's code reads only CLIP encoders"
        )
    text_dict = text.to_dict()
    values = {key: text_dict[key] for key in TEXT_KEYS if text_dict.get(key) is not None}
    rope = text_dict.get("rope_parameters") or {}
    values["rope_theta"] = rope.get("rope_theta", text_dict.get("rope_theta", 10000.0))
    if rope.get("rope_type", "default") != "default":
        rest = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
        kind = {"type": "linear"} if rope["rope_type"] == "linear" else {"rope_type": rope["rope_type"]}
        values["rope_scaling"] = kind | {"factor": 1.0} | rest
    return {
        **values,
        "architectures": [architectures[text.model_type]],
        "model_type": f"llava_{text.model_type}",
        "vocab_size": rows,
        "pad_token_id": text.pad_token_id,
        "mm_hidden_size": stock.vision_config.hidden_size,
        "mm_projector_type": "linear" if stock.projector_hidden_act == "linear" else "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch" if stock.vision_feature_select_strategy == "default" else "cls_patch",
        "mm_vision_select_layer": stock.vision_feature_layer,
        "mm_vision_tower": vision_encoder,
        "unfreeze_mm_vision_tower": True,
        "image_aspect_ratio": "pad" if pad_square else "square",
        "use_mm_proj": True,
        "use_cache": True,
    }


def explain_names(unexpected_keys: Sequence[str], missing_keys: Sequence[str], path: Path) -> str:
    """The error about tensors that do not match, grouped by layer, with the most likely cause."""
    parts = []
    for problem, names in (("unexpected", unexpected_keys), ("missing", missing_keys)):
        if not names:
            continue
        groups = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
        listed = [f"{group}{f' ({n}x)' if n > 1 else ''}" for group, n in sorted(groups.items())]
        more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
        parts.append(f"{len(names)} tensors {problem}: {', '.join(listed[:8])}{more}")
    causes = [cause for part, cause in LIKELY_CAUSES.items() if any(part in name for name in unexpected_keys)]
    if not causes and missing_keys:
        causes = [explain_missing(missing_keys)]
    return f"{path}: " + "; ".join(parts) + (f". It looks like {'; or '.join(causes)}" if causes else "")


def explain_missing(names: Sequence[str]) -> str:
    """The most likely cause of missing tensors."""
    if all("mm_projector" in name or "multi_modal_projector" in name for name in names):
        return "a language model without LLaVA's projector"
    if any(re.search(r"layers\.\d+\.", name) for name in names):
        return "a download that lacks some of its shards, or a config.json of a deeper model"
    return "a model that its config.json does not describe"
