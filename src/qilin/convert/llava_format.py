"""LLaVA's own checkpoint layout, as data: its names of tensors and settings, and what they are called in stock Llava.

In: names, shapes and LLaVA's config.json. Out: Hugging Face's names and configs, and the way back. Sources: the LLaVA
repository (model/builder.py, llava_arch.py, multimodal_projector/builder.py, clip_encoder.py) and the config.json of
williamliu/Qilin-Med-VL, liuhaotian/llava-v1.5-13b and microsoft/llava-med-v1.5-mistral-7b.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError

TOWER = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."
# LLaVA's prefix -> the prefix that llava-hf's released checkpoints have, which every server reads. The first that fits.
PREFIXES = {
    TOWER + "vision_model.": "vision_tower.vision_model.",
    "model.mm_projector.0.": "multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "multi_modal_projector.linear_2.",
    "model.embed_tokens.": "language_model.model.embed_tokens.",
    "model.layers.": "language_model.model.layers.",
    "model.norm.": "language_model.model.norm.",
    "lm_head.": "language_model.lm_head.",
}
LINEAR = {PROJECTOR: "multi_modal_projector.linear_1."}  # a single layer has no number
# Buffers that old versions of transformers saved; they follow from the config and hold nothing learnt.
BUFFERS = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")
EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
# Which language model LLaVA built on, by the class its config names.
FAMILIES = {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral"}
FAMILY_FIELDS = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"),
    *("rms_norm_eps", "hidden_act", "max_position_embeddings", "initializer_range", "rope_theta", "rope_scaling"),
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "head_dim", "sliding_window", "pretraining_tp"),
    *("bos_token_id", "eos_token_id"),
)
# What a stranger in the weights most likely means.
GUESSES = {
    "image_newline": "LLaVA-1.6 (NeXT), which cuts images into tiles; only 1.5's layout is read here",
    "vision_resampler": "a model with a resampler between encoder and projector, which stock Llava has not",
    "lora_": "adapters; name the folder with adapter_config.json as SRC and its base with --base",
    "model.vision_tower": "a vision encoder that is not a CLIP of transformers",
    "transformer.": "MPT, which LLaVA once offered; only Llama and Mistral are read here",
    "absmax": "weights quantised by bitsandbytes; convert the unquantised ones",
    "qweight": "weights quantised by GPTQ or AWQ; convert the unquantised ones",
    "q_norm": "another language model than the config names",
}


def is_llava(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of LLaVA's own layout: its projector's settings stand beside the language model's."""
    return "text_config" not in config and any(key in config for key in ("mm_hidden_size", "mm_vision_tower"))


def is_stock(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of transformers' Llava."""
    return config.get("model_type") == "llava" and "vision_config" in config and "text_config" in config


def to_stock(name: str, linear: bool) -> str | None:
    """LLaVA's name of a tensor -> stock Llava's; None for a stranger."""
    for old, new in {**(LINEAR if linear else {}), **PREFIXES}.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return None


def to_llava(name: str, linear: bool) -> str | None:
    """Stock Llava's name on disk (llava-hf's, or what transformers 5 writes) -> LLaVA's; None for a stranger."""
    for old, new in {**PREFIXES, **(LINEAR if linear else {})}.items():
        if linear and "mm_projector." in old and old not in LINEAR:
            continue
        for prefix in (new, new.replace("vision_model.", "")):
            if name.startswith(prefix):
                return old + name[len(prefix) :]
    return None


def family(config: Mapping[str, Any], where: Path) -> str:
    """llama or mistral. Raises UserError for what LLaVA built on other language models."""
    named = (config.get("architectures") or ["nothing"])[0]
    if named not in FAMILIES:
        raise UserError(f"{where}: architectures names {named}; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[named]


def check_config(config: Mapping[str, Any], where: Path) -> None:
    """Raise UserError, in plain words, for settings that stock Llava cannot express."""
    kind = config.get("mm_projector_type", "linear")
    if kind not in ("mlp2x_gelu", "linear"):
        raise UserError(
            f"{where}: mm_projector_type is {kind!r}; stock Llava has exactly two layers, so that only mlp2x_gelu, "
            "and linear with an identity as its second layer, can be written as one"
        )
    ratio = config.get("image_aspect_ratio")
    if ratio not in (None, "pad", "square"):
        raise UserError(f"{where}: image_aspect_ratio is {ratio!r} (tiles); expected pad, square or nothing")
    feature = config.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise UserError(f"{where}: mm_vision_select_feature is {feature!r}; expected patch or cls_patch")
    layer = config.get("mm_vision_select_layer", -2)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise UserError(f"{where}: mm_vision_select_layer is {layer!r}; expected a whole number such as -2")
    if config.get("quantization_config"):
        raise UserError(f"{where}: has a quantization_config; convert the unquantised weights")


def vision_config(shapes: Mapping[str, tuple[int, ...]], where: Path) -> dict[str, Any]:
    """The settings of an OpenAI CLIP encoder from the shapes of its tensors (names without `vision_model.`).

    A released checkpoint may name its encoder by a path of its maker's machine. Everything but the heads and the
    activation follows from the shapes; for those holds what all of OpenAI's CLIPs have: heads of 64, quick_gelu.
    """
    try:
        width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
        places = shapes["embeddings.position_embedding.weight"][0]
        inner = shapes["encoder.layers.0.mlp.fc1.weight"][0]
        shapes["embeddings.class_embedding"]
    except KeyError as error:
        raise UserError(f"{where}: no {error.args[0]} in its vision encoder, so no CLIP; see --vision") from None
    side = round((places - 1) ** 0.5)
    if side * side + 1 != places or width % 64 or width > 1024:
        raise UserError(
            f"{where}: its vision encoder ({width} wide, {places} positions) is none of OpenAI's CLIPs; "
            "name a folder or hub id with its settings: --vision"
        )
    layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // 64,
        "image_size": side * patch,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 768,
    }


def stock_config(config: Mapping[str, Any], vision: Any, rows: int, where: Path) -> Any:
    """LLaVA's config and the encoder's -> a LlavaConfig for `rows` rows of embeddings; the image token is set later."""
    from transformers import AutoConfig, LlavaConfig

    check_config(config, where)
    kind = family(config, where)
    fields = {key: config[key] for key in FAMILY_FIELDS if config.get(key) is not None}
    if kind == "mistral":
        fields["sliding_window"] = config.get("sliding_window")  # null means none, absent 4096: not the same
    if fields.get("pretraining_tp", 1) == 1 or kind == "mistral":
        fields.pop("pretraining_tp", None)
    whole = config.get("mm_vision_select_feature", "patch") == "cls_patch"
    return LlavaConfig(
        text_config=AutoConfig.for_model(kind, **fields, vocab_size=rows),
        vision_config=vision,
        projector_hidden_act="linear" if config.get("mm_projector_type", "linear") == "linear" else "gelu",
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if whole else "default",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2 + whole,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def llava_config(config: Any, pad: bool, rows: int, tower: str) -> dict[str, Any]:
    """A LlavaConfig -> LLaVA's config.json, for a model that never had one.

    `tower` is where LLaVA's code fetches the encoder from. Its first versions use those weights whatever the
    checkpoint holds; `unfreeze_mm_vision_tower` makes later ones put the checkpoint's own over them.
    """
    text = config.text_config
    named = {family: name for name, family in FAMILIES.items()}
    if text.model_type not in named:
        raise UserError(f"text_config.model_type is {text.model_type!r}; LLaVA's layout has {' and '.join(named)} only")
    if config.vision_config.model_type != "clip_vision_model":
        raise UserError(
            f"vision_config.model_type is {config.vision_config.model_type!r}; LLaVA's code reads only CLIP encoders"
        )
    plain = text.to_dict()
    fields = {key: plain[key] for key in FAMILY_FIELDS if plain.get(key) is not None}
    rope = plain.get("rope_parameters") or {}
    fields["rope_theta"] = rope.get("rope_theta", plain.get("rope_theta", 10000.0))
    if rope.get("rope_type", "default") != "default":
        fields["rope_scaling"] = {"type": rope["rope_type"], "factor": rope.get("factor", 1.0)}
    return {
        **fields,
        "architectures": [named[text.model_type]],
        "model_type": f"llava_{text.model_type}",
        "vocab_size": rows,
        "pad_token_id": text.pad_token_id,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": "linear" if config.projector_hidden_act == "linear" else "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch" if config.vision_feature_select_strategy == "default" else "cls_patch",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": tower,
        "unfreeze_mm_vision_tower": True,
        "image_aspect_ratio": "pad" if pad else "square",
        "use_mm_proj": True,
        "use_cache": True,
    }


def explain_names(strange: Sequence[str], missing: Sequence[str], where: Path) -> str:
    """What does not fit, grouped by kind, with the likeliest reason of each."""
    parts = []
    for words, names in (("too many", strange), ("missing", missing)):
        if not names:
            continue
        groups: dict[str, int] = {}
        for name in names:
            group = re.sub(r"\.\d+\.", ".*.", name)
            groups[group] = groups.get(group, 0) + 1
        shown = [f"{group}{f' ({n}x)' if n > 1 else ''}" for group, n in sorted(groups.items())]
        rest = f" and {len(shown) - 8} more" if len(shown) > 8 else ""
        parts.append(f"{len(names)} tensors {words}: {', '.join(shown[:8])}{rest}")
    reasons = [text for mark, text in GUESSES.items() if any(mark in name for name in strange)]
    if not reasons and missing:
        reasons = [guess_missing(missing)]
    return f"{where}: " + "; ".join(parts) + (f". It looks like {'; or '.join(reasons)}" if reasons else "")


def guess_missing(missing: Sequence[str]) -> str:
    if all("mm_projector" in name or "multi_modal_projector" in name for name in missing):
        return "a language model without LLaVA's projector"
    if any(re.search(r"layers\.\d+\.", name) for name in missing):
        return "a download that lacks part of its shards, or a config.json of a deeper model"
    return "another model than its config.json describes"
