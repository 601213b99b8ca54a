"""llama.cpp's mmproj file: vision encoder and projector of a stock Llava as one GGUF file.

In: a stock Llava folder with a CLIP encoder. Out: mmproj-model.gguf. llama.cpp's convert_hf_to_gguf.py writes the
language model from the same folder; its script for the encoder reads only checkpoints of 2023 with the library versions
of 2023. Names and keys: llama.cpp, tools/mtmd/clip-impl.h.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qilin.convert.config import ConvertConfig
from qilin.convert.output import log
from qilin.convert.weight_files import StoredTensor, TensorReader, list_tensors
from qilin.core.errors import UserError
from qilin.core.files import read_json
from qilin.model.hub import from_pretrained

MMPROJ_FILE = "mmproj-model.gguf"
# Stock names -> llama.cpp's; the first match applies. The encoder's last norm is not needed: features come from before.
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


def write_mmproj(source: Path, folder: Path, config: ConvertConfig) -> None:
    """Write `folder`/mmproj-model.gguf. Raises UserError for models that llama.cpp's LLaVA cannot express."""
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise UserError("to is gguf, which needs llama.cpp's package: pip install 'qilin-med[gguf]'") from None
    from transformers import AutoConfig

    stock = from_pretrained(AutoConfig, str(source), config.hub)
    check_supported(stock, source)
    vision = stock.vision_config
    layers = stock.vision_feature_layer
    layers = layers if layers >= 0 else vision.num_hidden_layers + 1 + layers  # hidden state n is the output of layer n
    image_settings = read_json(source / "processor_config.json")["image_processor"]
    writer = GGUFWriter(folder / MMPROJ_FILE, "clip")
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
    writer.add_array("clip.vision.image_mean", list(image_settings["image_mean"]))
    writer.add_array("clip.vision.image_std", list(image_settings["image_std"]))
    if not image_settings.get("do_pad"):
        log("llama.cpp pads every image to a square; this model was trained on center crops")
    reader = TensorReader()
    for stored in list_tensors(source):
        name = gguf_name(stored.name, layers)
        if name is not None:
            writer.add_tensor(name, read_array(reader, stored, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    log(f"write the language model's file with llama.cpp: convert_hf_to_gguf.py {source}")


def check_supported(stock: Any, source: Path) -> None:
    """Raise UserError for architectures that llama.cpp's LLaVA does not support."""
    for value, supported, key in (
        (stock.vision_config.model_type, ("clip_vision_model",), "vision_config.model_type"),
        (stock.vision_feature_select_strategy, ("default",), "vision_feature_select_strategy"),
        (stock.projector_hidden_act, ("gelu",), "projector_hidden_act"),
        (stock.vision_config.hidden_act, ("quick_gelu", "gelu"), "vision_config.hidden_act"),
    ):
        if value not in supported:
            raise UserError(f"{source}: {key} is {value!r}; llama.cpp's LLaVA supports only {' and '.join(supported)}")


def gguf_name(name: str, layers: int) -> str | None:
    """llama.cpp's name of a tensor; None for the language model's and for layers whose output is not used."""
    for pattern, template in NAMES.items():
        match = re.fullmatch(pattern, name)
        if match:
            parts = match.groupdict()
            return template.format(**parts) if int(parts.get("n") or 0) < layers else None
    return None


def read_array(reader: TensorReader, stored: StoredTensor, config: ConvertConfig) -> np.ndarray:
    """fp32 if the tensor is fp32 (or dtype=fp32), else fp16; vectors always in fp32, as in llama.cpp's scripts."""
    fp32 = config.dtype == "fp32" or (config.dtype == "keep" and stored.dtype == torch.float32)
    dtype = torch.float32 if fp32 or len(stored.shape) == 1 else torch.float16
    return reader.read(stored).to(dtype).contiguous().numpy()
