"""Verification of a conversion for `qilin convert --check`: tensors bit by bit, and logits against a reference.

The reference implements LLaVA's forward pass on the original tensors without any modeling code. In: a function that
returns a tensor by LLaVA's name, LLaVA's config, the encoder's config, ids and pixels. Out: logits in fp32. Follows the
published architectures (CLIP: arXiv 2103.00020; LLaVA 1.5: 2310.03744; Llama 2: 2307.09288; grouped-query attention and
sliding window: Mistral, 2310.06825). Weights are read when needed: one layer is in memory at a time.

Shapes: T tokens, P patches, D width, H heads, E head width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from qilin.convert.llava_format import is_linear, to_llava_name
from qilin.convert.llava_to_hf import LlavaCheckpoint
from qilin.convert.weight_files import TensorReader, list_tensors, same_bits
from qilin.core.errors import RunError
from qilin.model.llava import load_model

# Relative to the largest logit. fp32 rounds at 6e-8, and the two sides add thousands of terms in different orders.
TOLERANCE = 1e-5
KNOWN_ROPE = ("default", "linear", "llama3")
IMAGE_TOKEN_INDEX = -200  # LLaVA's placeholder for an image in the ids (constants.py)

GetTensor = Callable[[str], torch.Tensor]


def compare_weights(folder: Path, checkpoint: LlavaCheckpoint) -> int:
    """Read every tensor back; returns their number. Raises RunError with the first that differs from its source (with
    adapters merged)."""
    reader = TensorReader()
    linear = "model.mm_projector.weight" in checkpoint.weights
    count = 0
    for stored in list_tensors(folder):
        name = to_llava_name(stored.name, linear)
        if name not in checkpoint.weights:
            continue  # the identity after a linear projector
        converted, original = reader.read(stored), checkpoint.read(name).to(stored.dtype)
        if not same_bits(converted[: len(original)] if converted.ndim else converted, original):
            raise RunError(
                f"{stored.file.name}: {stored.name} differs from {checkpoint.weights[name].file}; is the disk faulty?"
            )
        count += 1
    return count


@torch.inference_mode()
def compare_logits(folder: Path, checkpoint: LlavaCheckpoint, llava_config: Mapping[str, Any], stock: Any) -> str:
    """The model in `folder` and the reference on the same ids and pixels, in fp32. Returns the largest difference
    relative to the largest logit as text, or why the reference cannot compare; raises RunError beyond TOLERANCE."""
    if rope_type(llava_config) not in KNOWN_ROPE:
        return f"not compared (the reference does not know rope_scaling {rope_type(llava_config)!r})"
    generator = torch.Generator().manual_seed(0)
    side = stock.vision_config.image_size
    pixels = torch.randn(3, side, side, generator=generator)
    text_ids = torch.randint(3, min(checkpoint.vocab_rows, stock.image_token_index), (24,), generator=generator)
    before, after = text_ids[:4].tolist(), text_ids[4:].tolist()
    expected = reference_logits(
        checkpoint.read, llava_config, stock.vision_config, [*before, IMAGE_TOKEN_INDEX, *after], pixels
    )
    model = load_model(folder, "cpu", "fp32").model  # merges the adapter of a model converted with lora=keep
    ids = torch.tensor([[*before, *[stock.image_token_index] * stock.image_seq_length, *after]])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels[None]).logits[0]
    logits = logits[:, : expected.shape[1]]
    difference = float((logits - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise RunError(
            f"check: logits differ by {difference:.1e} of the largest logit (expected at most {TOLERANCE:.0e}): the "
            "encoder's config (--vision) or the language model's keys in config.json do not belong to these weights"
        )
    return f"differ by at most {difference:.1e}"


def reference_logits(
    get: GetTensor, config: Mapping[str, Any], vision: Any, ids: Sequence[int], pixels: torch.Tensor
) -> torch.Tensor:
    """Logits (T, vocabulary) of one conversation; every IMAGE_TOKEN_INDEX in `ids` is replaced by image features.

    `pixels`: (3, side, side), one image for all placeholders.
    """
    table = get("model.embed_tokens.weight").float()
    image = project(get, config, encode_image(get, config, vision, pixels))  # (P, D)
    embeddings = [image if i == IMAGE_TOKEN_INDEX else table[i][None] for i in ids]
    x = language_model(get, config, torch.cat(embeddings))
    head = table if config.get("tie_word_embeddings") else get("lm_head.weight").float()
    return x @ head.T


def encode_image(get: GetTensor, config: Mapping[str, Any], vision: Any, pixels: torch.Tensor) -> torch.Tensor:
    """CLIP's hidden states after the selected layer, without the class token unless cls_patch: (P, D)."""
    root = "model.vision_tower.vision_tower.vision_model."
    kernel = get(root + "embeddings.patch_embedding.weight").float()  # (D, 3, patch, patch)
    patch = kernel.shape[-1]
    side = pixels.shape[-1] // patch
    # The convolution as a matrix product: an image is rows of patches, each one vector.
    patches = pixels.float().reshape(3, side, patch, side, patch).permute(1, 3, 0, 2, 4).reshape(side * side, -1)
    x = patches @ kernel.reshape(kernel.shape[0], -1).T
    x = torch.cat([get(root + "embeddings.class_embedding").float()[None], x])
    x = x + get(root + "embeddings.position_embedding.weight").float()
    x = layer_norm(get, root + "pre_layrnorm", x, vision.layer_norm_eps)
    layer = config.get("mm_vision_select_layer", -2)
    # Hidden state 0 is the input of the first layer, so -2 of N layers is the output of layer N-1.
    num_layers = vision.num_hidden_layers + 1 + layer if layer < 0 else layer
    for n in range(num_layers):
        prefix = f"{root}encoder.layers.{n}."
        y = layer_norm(get, prefix + "layer_norm1", x, vision.layer_norm_eps)
        heads = vision.num_attention_heads
        q, k, v = (split_heads(linear(get, f"{prefix}self_attn.{part}_proj", y), heads) for part in "qkv")
        x = x + linear(get, prefix + "self_attn.out_proj", attend(q, k, v, None))
        y = linear(get, prefix + "mlp.fc1", layer_norm(get, prefix + "layer_norm2", x, vision.layer_norm_eps))
        y = y * torch.sigmoid(1.702 * y) if vision.hidden_act == "quick_gelu" else F.gelu(y)
        x = x + linear(get, prefix + "mlp.fc2", y)
    return x if config.get("mm_vision_select_feature", "patch") == "cls_patch" else x[1:]


def project(get: GetTensor, config: Mapping[str, Any], x: torch.Tensor) -> torch.Tensor:
    """LLaVA's projector: one linear layer, or two with GELU between."""
    if is_linear(config):
        return linear(get, "model.mm_projector", x)
    return linear(get, "model.mm_projector.2", F.gelu(linear(get, "model.mm_projector.0", x)))


def language_model(get: GetTensor, config: Mapping[str, Any], x: torch.Tensor) -> torch.Tensor:
    """Llama's layers and final norm: (T, D) -> (T, D)."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_width = config.get("head_dim") or x.shape[-1] // heads
    eps = config.get("rms_norm_eps", 1e-6)
    rotary = rotary_factors(len(x), head_width, config)
    mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    window = config.get("sliding_window")
    if window and "Mistral" in (config.get("architectures") or [""])[0]:
        mask &= ~torch.ones_like(mask).tril(-window)
    for n in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{n}."
        y = rms_norm(get, prefix + "input_layernorm", x, eps)
        q = apply_rotary(split_heads(linear(get, prefix + "self_attn.q_proj", y, False), heads), rotary)
        k = apply_rotary(split_heads(linear(get, prefix + "self_attn.k_proj", y, False), kv_heads), rotary)
        v = split_heads(linear(get, prefix + "self_attn.v_proj", y, False), kv_heads)
        k, v = (tensor.repeat_interleave(heads // kv_heads, dim=0) for tensor in (k, v))
        x = x + linear(get, prefix + "self_attn.o_proj", attend(q, k, v, mask), False)
        y = rms_norm(get, prefix + "post_attention_layernorm", x, eps)
        y = F.silu(linear(get, prefix + "mlp.gate_proj", y, False)) * linear(get, prefix + "mlp.up_proj", y, False)
        x = x + linear(get, prefix + "mlp.down_proj", y, False)
    return rms_norm(get, "model.norm", x, eps)


def linear(get: GetTensor, name: str, x: torch.Tensor, bias: bool = True) -> torch.Tensor:
    return F.linear(x, get(name + ".weight").float(), get(name + ".bias").float() if bias else None)


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.reshape(len(x), heads, -1).transpose(0, 1)  # (T, H E) -> (H, T, E)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Plain attention with the heads concatenated: three (H, T, E) -> (T, H E)."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(q.shape[1], -1)


def layer_norm(get: GetTensor, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], get(name + ".weight").float(), get(name + ".bias").float(), eps)


def rms_norm(get: GetTensor, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * get(name + ".weight").float()


def rotary_factors(length: int, head_width: int, config: Mapping[str, Any]) -> torch.Tensor:
    """Rotary position embeddings as unit complex numbers: (T, E / 2)."""
    frequencies = (config.get("rope_theta") or 10000.0) ** (-torch.arange(0, head_width, 2).float() / head_width)
    scaling = config.get("rope_scaling") or {}
    if rope_type(config) == "linear":
        frequencies = frequencies / scaling["factor"]
    elif rope_type(config) == "llama3":
        frequencies = llama3_frequencies(frequencies, scaling)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def rope_type(config: Mapping[str, Any]) -> str:
    """The kind of rope_scaling in LLaVA's config, by its newer or older name."""
    scaling = config.get("rope_scaling") or {}
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def llama3_frequencies(frequencies: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    """Llama 3.1's scaling: long wavelengths are divided by the factor, short ones kept, those between interpolated."""
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # over the original context
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    unscaled = ((turns - low) / (high - low)).clamp(0, 1)
    return unscaled * frequencies + (1 - unscaled) * frequencies / scaling["factor"]


def apply_rotary(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of elements; in Hugging Face's weights a pair is elements i and i + E/2."""
    half = x.shape[-1] // 2
    rotated = torch.complex(x[..., :half], x[..., half:]) * factors
    return torch.cat([rotated.real, rotated.imag], -1)
