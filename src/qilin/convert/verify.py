"""What LLaVA computes, written out from its tensors with no modelling code of anyone: for `qilin convert --check`.

In: a function that gives a tensor by LLaVA's name, LLaVA's config, the encoder's settings, ids and pixels. Out: logits
in fp32. Follows the published architectures (CLIP: arXiv 2103.00020; LLaVA 1.5: 2310.03744; Llama 2: 2307.09288;
grouped heads and sliding window: Mistral, 2310.06825). Weights are read when needed: one layer at a time is in memory.

Letters: T tokens, P patches, D width, H heads, E width of a head.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from qilin.convert.llava_format import to_llava
from qilin.convert.llava_to_hf import Gathered
from qilin.convert.weight_files import Reader, list_weights, same_bits
from qilin.core.errors import RunError

TOLERANCE = 1e-5  # of the largest logit; fp32 rounds at 6e-8, and sums of thousands of terms are taken in two orders


def compare_weights(folder: Path, found: Gathered) -> int:
    """Read every tensor back. Raises RunError naming the first that is not its source's (adapters merged)."""
    reader = Reader()
    linear = "model.mm_projector.weight" in found.weights
    compared = 0
    for weight in list_weights(folder):
        name = to_llava(weight.name, linear)
        if name not in found.weights:
            continue  # the identity behind a linear projector
        ours, theirs = reader.get(weight), found.read(name).to(weight.kind)
        if not same_bits(ours[: len(theirs)] if ours.ndim else ours, theirs):
            raise RunError(
                f"{weight.file.name}: {weight.name} is not what {found.weights[name].file} holds; disk fault?"
            )
        compared += 1
    return compared


@torch.inference_mode()
def compare_logits(folder: Path, found: Gathered, config: Mapping[str, Any], stock: Any) -> float:
    """Both sides on the same ids and pixels, fp32. Returns the largest difference relative to the largest logit.

    Raises RunError beyond TOLERANCE.
    """
    from qilin.model.llava import load_model

    random = torch.Generator().manual_seed(0)
    side = stock.vision_config.image_size
    pixels = torch.randn(3, side, side, generator=random)
    words = torch.randint(3, min(found.rows, stock.image_token_index), (24,), generator=random).tolist()
    theirs = reference_logits(found.read, config, stock.vision_config, [*words[:4], IMAGE_INDEX, *words[4:]], pixels)
    model = load_model(folder, "cpu", "fp32").model
    marks = [stock.image_token_index] * stock.image_seq_length
    ids = torch.tensor([[*words[:4], *marks, *words[4:]]])
    ours = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels[None]).logits[0]
    ours = ours[:, : theirs.shape[1]]
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    if not worst <= TOLERANCE:
        raise RunError(
            f"check: logits differ by {worst:.1e} of the largest (at most {TOLERANCE:.0e} expected): the encoder's "
            "settings (--vision) or config.json are not those of these weights"
        )
    return worst


Get = Callable[[str], torch.Tensor]
IMAGE_INDEX = -200  # LLaVA's stand-in for an image among the ids (constants.py)


def reference_logits(get: Get, config: Mapping[str, Any], vision: Any, ids: Sequence[int], pixels: torch.Tensor) -> Any:
    """Logits (T, vocabulary) of one conversation; every IMAGE_INDEX in `ids` is replaced by the image's features.

    `pixels`: (3, side, side), one image for all marks.
    """
    table = get("model.embed_tokens.weight").float()
    image = project(get, config, encode_image(get, config, vision, pixels))  # (P, D)
    parts = [image if i == IMAGE_INDEX else table[i][None] for i in ids]
    x = language(get, config, torch.cat(parts))
    head = table if config.get("tie_word_embeddings") else get("lm_head.weight").float()
    return x @ head.T


def linear(get: Get, name: str, x: torch.Tensor, bias: bool = True) -> torch.Tensor:
    return F.linear(x, get(name + ".weight").float(), get(name + ".bias").float() if bias else None)


def encode_image(get: Get, config: Mapping[str, Any], vision: Any, pixels: torch.Tensor) -> torch.Tensor:
    """CLIP's hidden states after the chosen layer, the class token dropped unless cls_patch: (P, D)."""
    root = "model.vision_tower.vision_tower.vision_model."
    kernel = get(root + "embeddings.patch_embedding.weight").float()  # (D, 3, patch, patch)
    patch = kernel.shape[-1]
    side = pixels.shape[-1] // patch
    # Cut into patches by hand: an image is rows of patches, each a long vector.
    cut = pixels.float().reshape(3, side, patch, side, patch).permute(1, 3, 0, 2, 4).reshape(side * side, -1)
    x = cut @ kernel.reshape(kernel.shape[0], -1).T
    x = torch.cat([get(root + "embeddings.class_embedding").float()[None], x])
    x = x + get(root + "embeddings.position_embedding.weight").float()
    x = norm(get, root + "pre_layrnorm", x, vision.layer_norm_eps)
    layer = config.get("mm_vision_select_layer", -2)
    # Hidden state 0 is what enters the first layer, so -2 of N layers is what leaves layer N-1.
    count = vision.num_hidden_layers + 1 + layer if layer < 0 else layer
    for n in range(count):
        at = f"{root}encoder.layers.{n}."
        y = norm(get, at + "layer_norm1", x, vision.layer_norm_eps)
        heads = vision.num_attention_heads
        q, k, v = (split(linear(get, f"{at}self_attn.{part}_proj", y), heads) for part in "qkv")
        x = x + linear(get, at + "self_attn.out_proj", attend(q, k, v, None))
        y = linear(get, at + "mlp.fc1", norm(get, at + "layer_norm2", x, vision.layer_norm_eps))
        y = y * torch.sigmoid(1.702 * y) if vision.hidden_act == "quick_gelu" else F.gelu(y)
        x = x + linear(get, at + "mlp.fc2", y)
    return x if config.get("mm_vision_select_feature", "patch") == "cls_patch" else x[1:]


def project(get: Get, config: Mapping[str, Any], x: torch.Tensor) -> torch.Tensor:
    """LLaVA's projector: one linear layer, or two with GELU between."""
    if config.get("mm_projector_type", "linear") == "linear":
        return linear(get, "model.mm_projector", x)
    return linear(get, "model.mm_projector.2", F.gelu(linear(get, "model.mm_projector.0", x)))


def language(get: Get, config: Mapping[str, Any], x: torch.Tensor) -> torch.Tensor:
    """Llama's layers and last norm: (T, D) -> (T, D)."""
    heads = config["num_attention_heads"]
    shared = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or x.shape[-1] // heads
    eps = config.get("rms_norm_eps", 1e-6)
    turn = rotation(len(x), size, config)
    seen = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    window = config.get("sliding_window")
    if window and "Mistral" in (config.get("architectures") or [""])[0]:
        seen &= ~torch.ones_like(seen).tril(-window)
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}."
        y = root_norm(get, at + "input_layernorm", x, eps)
        q = rotate(split(linear(get, at + "self_attn.q_proj", y, False), heads), turn)
        k = rotate(split(linear(get, at + "self_attn.k_proj", y, False), shared), turn)
        v = split(linear(get, at + "self_attn.v_proj", y, False), shared)
        k, v = (part.repeat_interleave(heads // shared, dim=0) for part in (k, v))
        x = x + linear(get, at + "self_attn.o_proj", attend(q, k, v, seen), False)
        y = root_norm(get, at + "post_attention_layernorm", x, eps)
        y = F.silu(linear(get, at + "mlp.gate_proj", y, False)) * linear(get, at + "mlp.up_proj", y, False)
        x = x + linear(get, at + "mlp.down_proj", y, False)
    return root_norm(get, "model.norm", x, eps)


def split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.reshape(len(x), heads, -1).transpose(0, 1)  # (T, H E) -> (H, T, E)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    """Plain attention, heads laid side by side again: three (H, T, E) -> (T, H E)."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(q.shape[1], -1)


def norm(get: Get, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], get(name + ".weight").float(), get(name + ".bias").float(), eps)


def root_norm(get: Get, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * get(name + ".weight").float()


def rotation(length: int, size: int, config: Mapping[str, Any]) -> torch.Tensor:
    """The angles of rotary positions as unit complex numbers: (T, E / 2)."""
    rates = (config.get("rope_theta") or 10000.0) ** (-torch.arange(0, size, 2).float() / size)
    scaling = config.get("rope_scaling") or {}
    places = torch.arange(length).float() / (scaling.get("factor", 1.0) if scaling.get("type") == "linear" else 1.0)
    angles = torch.outer(places, rates)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn each pair of numbers; in Hugging Face's weights a pair is number i and number i + E/2."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], -1)
