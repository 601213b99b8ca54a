"""LLaVA's layout -> stock Llava: collects a checkpoint's parts and lists the tensors to write.

In: a LLaVA folder (or LoRA or projector with its base) and its config. Out: a LlavaCheckpoint (weights not read
yet) and the TensorToWrite list of a stock Llava; each tensor is read, extended or merged at the moment of writing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qilin.convert.config import ConvertConfig
from qilin.convert.llava_format import (
    BUFFERS,
    EMBEDDING,
    HEAD,
    VISION_PREFIX,
    explain_names,
    infer_vision_config,
    is_linear,
    is_llava,
    to_stock_name,
)
from qilin.convert.lora import Adapter, read_adapters, read_non_lora
from qilin.convert.output import log
from qilin.convert.weight_files import StoredTensor, TensorReader, TensorToWrite, list_file, list_tensors
from qilin.core.errors import UserError
from qilin.core.files import read_json
from qilin.model.hub import fetch_folder, from_pretrained

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class LlavaCheckpoint:
    """A LLaVA model's parts: weights by LLaVA's names, their adapters, unused buffers, and the tokenizer's folder."""

    weights: dict[str, StoredTensor]
    tokenizer_folder: Path
    adapters: dict[str, Adapter] = field(default_factory=dict)
    buffers: list[StoredTensor] = field(default_factory=list)
    reader: TensorReader = field(default_factory=TensorReader)

    @property
    def vocab_rows(self) -> int:
        return self.weights["model.embed_tokens.weight"].shape[0]

    def read(self, name: str, merge: bool = True) -> torch.Tensor:
        """One tensor, with its adapter merged unless `merge` is false."""
        tensor = self.reader.read(self.weights[name])
        return self.adapters[name].merge_into(tensor) if merge and name in self.adapters else tensor


def collect_checkpoint(
    source: Path, layout: str, llava_config: Mapping[str, Any], config: ConvertConfig
) -> LlavaCheckpoint:
    """Collect a checkpoint's parts. `layout` is llava, lora or projector; the last two need --base."""
    if layout == "llava":
        checkpoint = LlavaCheckpoint({tensor.name: tensor for tensor in list_tensors(source)}, source)
    else:
        checkpoint = collect_on_base(source, layout, config)
    if "model.embed_tokens.weight" not in checkpoint.weights:
        raise UserError(explain_names([], ["model.embed_tokens.weight"], checkpoint.tokenizer_folder))
    for name in [name for name in checkpoint.weights if BUFFERS.search(name)]:
        checkpoint.buffers.append(checkpoint.weights.pop(name))
    if not any(name.startswith(VISION_PREFIX) for name in checkpoint.weights):
        checkpoint.weights |= list_vision_weights(llava_config, config)
    return checkpoint


def collect_on_base(source: Path, layout: str, config: ConvertConfig) -> LlavaCheckpoint:
    """A LoRA or a projector together with the language model of --base."""
    assert config.base is not None, "checked by detect_layout()"
    base = Path(fetch_folder(config.base, config.hub))
    base_config = read_json(base / "config.json")
    if "text_config" in base_config and not is_llava(base_config):
        raise UserError(f"{base}: is in Hugging Face's Llava layout; --base of a LLaVA folder is a language model")
    checkpoint = LlavaCheckpoint({tensor.name: tensor for tensor in list_tensors(base)}, base)
    if layout == "projector":
        for tensor in list_file(source / "mm_projector.bin"):
            # Some versions of LLaVA save the projector without the prefix `model.`.
            name = tensor.name if tensor.name.startswith(("model.", "lm_head.")) else "model." + tensor.name
            checkpoint.weights[name] = tensor
        return checkpoint
    checkpoint.weights |= read_non_lora(source)
    checkpoint.adapters = read_adapters(source)
    unknown = sorted(set(checkpoint.adapters) - set(checkpoint.weights))
    if unknown:
        raise UserError(
            f"{source}: adapts {len(unknown)} tensors that {config.base} does not have ({unknown[0]}, …); "
            "is that the base it was trained on?"
        )
    for name, adapter in checkpoint.adapters.items():
        adapter.check_shape(checkpoint.weights[name], source)
    return checkpoint


def list_vision_weights(llava_config: Mapping[str, Any], config: ConvertConfig) -> dict[str, StoredTensor]:
    """The vision encoder's weights from the folder or hub id that --vision or the config names."""
    name = config.vision or llava_config.get("mm_vision_tower") or ""
    if not Path(name).is_dir() and (not name or name.startswith(("/", ".", "~")) or name.count("/") != 1):
        raise UserError(
            f"the checkpoint holds no vision encoder and names {name or 'none'!r}, which is not on this machine; "
            "name a folder or hub id with --vision (LLaVA-1.5 and Qilin-Med-VL: openai/clip-vit-large-patch14-336)"
        )
    log(f"vision encoder: {name} (not part of the checkpoint)")
    weights = {}
    for tensor in list_tensors(Path(fetch_folder(name, config.hub))):
        inner = tensor.name.removeprefix("vision_model.")
        if inner.startswith(("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")):
            weights[f"{VISION_PREFIX}vision_model.{inner}"] = tensor
    if not weights:
        raise UserError(f"{name}: holds no CLIP vision encoder (vision_model.…)")
    return {name: tensor for name, tensor in weights.items() if not BUFFERS.search(name)}


def load_vision_config(
    checkpoint: LlavaCheckpoint, llava_config: Mapping[str, Any], config: ConvertConfig
) -> tuple[Any, dict[str, Any]]:
    """(the encoder's config, its image mean and standard deviation), from --vision, the folder or hub id in the
    checkpoint's config, or else from the weights' shapes."""
    from transformers import AutoConfig, AutoImageProcessor, CLIPVisionConfig

    tensors = {name: tensor for name, tensor in checkpoint.weights.items() if name.startswith(VISION_PREFIX)}
    in_checkpoint = all(tensor.file.parent == checkpoint.tokenizer_folder for tensor in tensors.values())
    name = config.vision or llava_config.get("mm_vision_tower") or ""
    if config.vision or Path(name).is_dir() or not in_checkpoint:
        vision = from_pretrained(AutoConfig, name, config.hub)
        vision = getattr(vision, "vision_config", vision)
        if vision.model_type != "clip_vision_model":
            raise UserError(f"{name}: is a {vision.model_type}; LLaVA's layout supports only CLIP encoders")
        folder = Path(fetch_folder(name, config.hub))
        normalization = {}
        if any((folder / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
            processor = from_pretrained(AutoImageProcessor, str(folder), config.hub)
            normalization = {"image_mean": list(processor.image_mean), "image_std": list(processor.image_std)}
        return vision, normalization
    shapes = {name.removeprefix(VISION_PREFIX + "vision_model."): tensor.shape for name, tensor in tensors.items()}
    values = infer_vision_config(shapes, checkpoint.tokenizer_folder)
    log(
        f"vision encoder: in the checkpoint; its config follows from the shapes, as an OpenAI CLIP "
        f"({values['num_hidden_layers']} layers of width {values['hidden_size']}, {values['image_size']} pixels in "
        f"patches of {values['patch_size']}, {values['num_attention_heads']} heads, quick_gelu); override: --vision"
    )
    return CLIPVisionConfig(**values), {}


def expected_tensors(stock: Any) -> dict[str, tuple[int, ...]]:
    """The tensors of a stock Llava with this config, under llava-hf's names: name -> shape."""
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(stock)
    prefixes = {
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    }
    shapes = {}
    for name, tensor in model.state_dict().items():
        old, new = next(pair for pair in prefixes.items() if name.startswith(pair[0]))
        shapes[new + name[len(old) :].removeprefix("vision_model.")] = tuple(tensor.shape)
    if stock.tie_word_embeddings:
        shapes.pop(HEAD, None)
    return shapes


def plan_tensors(
    checkpoint: LlavaCheckpoint,
    stock: Any,
    llava_config: Mapping[str, Any],
    config: ConvertConfig,
    tokenizer: Any,
    source: Path,
) -> list[TensorToWrite]:
    """Every tensor to write. Raises UserError for unexpected or missing tensors, wrong shapes and dtypes."""
    linear = is_linear(llava_config)
    shapes = expected_tensors(stock)
    if linear:  # stock Llava has two layers; with an identity as the second, and no activation, they equal one
        for name in ("weight", "bias"):
            shapes.pop(f"multi_modal_projector.linear_2.{name}")
    stock_names = {name: to_stock_name(name, linear) for name in checkpoint.weights}
    if stock.tie_word_embeddings:
        stock_names.pop("lm_head.weight", None)
    renamed = {name: new for name, new in stock_names.items() if new is not None and new in shapes}
    unexpected_keys = sorted(set(stock_names) - set(renamed))
    missing_keys = sorted(set(shapes) - set(renamed.values()))
    if unexpected_keys or missing_keys:
        raise UserError(explain_names(unexpected_keys, missing_keys, source))
    plan = [
        plan_tensor(checkpoint, name, new, shapes[new], config, tokenizer.bos_token_id) for name, new in renamed.items()
    ]
    if linear:
        first = next(tensor for tensor in plan if tensor.name == "multi_modal_projector.linear_1.weight")
        width, dtype = first.shape[0], first.dtype
        prefix = "multi_modal_projector.linear_2."
        plan.append(TensorToWrite(prefix + "weight", (width, width), dtype, partial(torch.eye, width, dtype=dtype)))
        plan.append(TensorToWrite(prefix + "bias", (width,), dtype, partial(torch.zeros, width, dtype=dtype)))
    return plan


def plan_tensor(
    checkpoint: LlavaCheckpoint,
    name: str,
    stock_name: str,
    shape: tuple[int, ...],
    config: ConvertConfig,
    bos_id: int | None,
) -> TensorToWrite:
    """One tensor: adapters merged (unless lora=keep), rows added for new tokens."""
    stored = checkpoint.weights[name]
    if stored.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise UserError(f"{stored.file}: {stored.name} is of {stored.dtype}; expected unquantized fp32, fp16 or bf16")
    vocab_sized = stock_name in (EMBEDDING, HEAD)
    grows = vocab_sized and stored.shape[0] < shape[0] and stored.shape[1:] == shape[1:]
    if stored.shape != shape and not grows:
        raise UserError(
            f"{stored.file}: {stored.name} is {list(stored.shape)}; its config.json implies {list(shape)}; "
            + ("does the tokenizer belong to it?" if vocab_sized else "are they from one upload?")
        )

    def load() -> torch.Tensor:
        tensor = checkpoint.read(name, merge=config.lora == "merge")
        return add_rows(tensor, shape[0], bos_id if stock_name == HEAD else None) if grows else tensor

    dtype = DTYPES.get(config.dtype, torch.float32 if stored.dtype == torch.float64 else stored.dtype)
    return TensorToWrite(stock_name, shape, dtype, load)


def add_rows(tensor: torch.Tensor, rows: int, copied_row: int | None) -> torch.Tensor:
    """Add rows for tokens that LLaVA's vocabulary lacks: copies of one row, or zeros.

    The embedding of `<image>` is never used (image features replace it), so it is zeros. The output head gets copies of
    the beginning-of-sequence token's row: equal logits, and argmax takes the first of equals, so no greedy answer
    changes. Zeros would give a logit of 0, which can win.
    """
    count = rows - tensor.shape[0]
    if copied_row is not None:
        return torch.cat([tensor, tensor[copied_row].expand(count, -1)])
    return torch.cat([tensor, tensor.new_zeros(count, tensor.shape[1])])
