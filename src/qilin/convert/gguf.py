"""llama.cpp's half of a model that only we can write: encoder and projector as one GGUF file, its mmproj.

In: a stock Llava folder with a CLIP encoder. Out: mmproj-model.gguf. The language model's file is made of the same
folder by llama.cpp's own convert_hf_to_gguf.py, which reads our names; its script for the encoder reads only
checkpoints of 2023 with the libraries of 2023. Names and keys: llama.cpp, tools/mtmd/clip-impl.h.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qilin.convert.weight_files import Reader, Weight, list_weights, read_json
from qilin.core.errors import UserError
from qilin.model.config import ConvertConfig
from qilin.model.hub import from_pretrained

FILE = "mmproj-model.gguf"
# Ours -> llama.cpp's, the first that fits. The last norm is not there: features leave the encoder before it.
NAMES = {
    r"vision_tower\.(vision_model\.)?embeddings\.class_embedding": "v.class_embd",
    r"vision_tower\.(vision_model\.)?embeddings\.patch_embedding\.weight": "v.patch_embd.weight",
    r"vision_tower\.(vision_model\.)?embeddings\.position_embedding\.weight": "v.position_embd.weight",
    r"vision_tower\.(vision_model\.)?pre_layrnorm\.(?P<kind>\w+)": "v.pre_ln.{kind}",
    r"vision_tower\.(vision_model\.)?encoder\.layers\.(?P<n>\d+)\.self_attn\.(?P<part>\w+)_proj\.(?P<kind>\w+)": (
        "v.blk.{n}.attn_{part}.{kind}"
    ),
    r"vision_tower\.(vision_model\.)?encoder\.layers\.(?P<n>\d+)\.layer_norm(?P<part>\d)\.(?P<kind>\w+)": (
        "v.blk.{n}.ln{part}.{kind}"
    ),
    r"vision_tower\.(vision_model\.)?encoder\.layers\.(?P<n>\d+)\.mlp\.fc1\.(?P<kind>\w+)": "v.blk.{n}.ffn_up.{kind}",
    r"vision_tower\.(vision_model\.)?encoder\.layers\.(?P<n>\d+)\.mlp\.fc2\.(?P<kind>\w+)": "v.blk.{n}.ffn_down.{kind}",
    r"multi_modal_projector\.linear_1\.(?P<kind>\w+)": "mm.0.{kind}",
    r"multi_modal_projector\.linear_2\.(?P<kind>\w+)": "mm.2.{kind}",
}


def convert_gguf(source: Path, folder: Path, config: ConvertConfig, say: Callable[[str], None]) -> None:
    """Write `folder`/mmproj-model.gguf. Raises UserError for what llama.cpp's LLaVA cannot express."""
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise UserError("to is gguf, which needs llama.cpp's package: pip install 'qilin-med[gguf]'") from None
    from transformers import AutoConfig

    stock = from_pretrained(AutoConfig, str(source), config.hub)
    refuse(stock, source)
    vision = stock.vision_config
    layers = stock.vision_feature_layer
    layers = layers if layers >= 0 else vision.num_hidden_layers + 1 + layers  # hidden state n leaves layer n
    images = read_json(source / "processor_config.json")["image_processor"]
    writer = GGUFWriter(folder / FILE, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", vision.hidden_act == "gelu")  # quick_gelu otherwise
    for key, value in {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embedding_length": vision.hidden_size,
        "feed_forward_length": vision.intermediate_size,
        "projection_dim": stock.text_config.hidden_size,
        "block_count": layers,
        "attention.head_count": vision.num_attention_heads,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision.layer_norm_eps)
    writer.add_array("clip.vision.feature_layer", [layers])
    writer.add_array("clip.vision.image_mean", list(images["image_mean"]))
    writer.add_array("clip.vision.image_std", list(images["image_std"]))
    if not images.get("do_pad"):
        say("llama.cpp pads every image to a square; this model was trained on the middle of each")
    reader = Reader()
    for weight in list_weights(source):
        name = gguf_name(weight.name, layers)
        if name is not None:
            writer.add_tensor(name, numbers(reader, weight, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    say(f"the language model's file is made by llama.cpp: convert_hf_to_gguf.py {source}")


def refuse(stock: Any, source: Path) -> None:
    """Raise UserError for models whose arithmetic llama.cpp's LLaVA has not."""
    for found, expected, what in (
        (stock.vision_config.model_type, "clip_vision_model", "vision_config.model_type"),
        (stock.vision_feature_select_strategy, "default", "vision_feature_select_strategy"),
        (stock.projector_hidden_act, "gelu", "projector_hidden_act"),
    ):
        if found != expected:
            raise UserError(f"{source}: {what} is {found!r}; llama.cpp's LLaVA has {expected!r} only")
    if stock.vision_config.hidden_act not in ("quick_gelu", "gelu"):
        raise UserError(
            f"{source}: the encoder's hidden_act is {stock.vision_config.hidden_act!r}; expected quick_gelu"
        )


def gguf_name(name: str, layers: int) -> str | None:
    """llama.cpp's name of a tensor; None for the language model's and for layers whose output is not used."""
    for pattern, new in NAMES.items():
        match = re.fullmatch(pattern, name)
        if match:
            parts = match.groupdict()
            return new.format(**parts) if int(parts.get("n") or 0) < layers else None
    return None


def numbers(reader: Reader, weight: Weight, config: ConvertConfig) -> np.ndarray:
    """fp32 where it was or was asked for; else half, but vectors in fp32, as llama.cpp's own scripts write them."""
    whole = config.dtype == "fp32" or (config.dtype == "keep" and weight.kind == torch.float32)
    tensor = reader.get(weight).to(torch.float32 if whole or len(weight.shape) == 1 else torch.float16)
    return tensor.contiguous().numpy()
