"""Prepares a model for training: precision, gradient checkpointing, quantization of frozen weights, adapters.

In: a Llava whose trainable parts are set, with or without weights. Out: the same model, changed in place (with
adapters: wrapped by peft). Training and estimates both use these functions, so that they cannot differ.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from qilin.core.errors import UserError
from qilin.model.architectures import language_of, part_of
from qilin.train.config import TrainConfig
from qilin.train.distributed import autocast_dtype
from qilin.train.fp8_linear import FrozenFp8Linear, fits_fp8
from qilin.train.skip_unused import language_layers

PEFT_PREFIX = "base_model.model."


def apply_precision(model: Any, config: TrainConfig) -> Any:
    """Cast frozen parameters to the recipe's precision (trainable ones stay fp32) and enable gradient checkpointing."""
    assert config.precision != "auto", "resolved when the device is known"
    dtype = autocast_dtype(config.precision)
    for name, parameter in model.named_parameters() if dtype else ():
        if not parameter.requires_grad:
            original = parameter.data
            parameter.data = original.to(dtype)
            if dtype == torch.float16 and not original.is_meta and not bool(parameter.data.isfinite().all()):
                raise UserError(
                    f"precision is fp16, which ends at 65504, but {name} holds {float(original.abs().max()):g}; "
                    "use precision=fp32, or bf16 on a GPU that computes it"
                )
    assert config.gradient_checkpointing != "auto", "resolved when the plan is known"
    if config.gradient_checkpointing:
        enable_activation_checkpointing(model, config.gradient_checkpointing)
    return model


def enable_activation_checkpointing(model: Any, share: float) -> None:
    """Recompute the activations of this share of the language model's layers, the first ones: the backward pass frees
    those of the last layers first."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:  # the name in older versions of transformers, removed in 6
        model.gradient_checkpointing_enable({"use_reentrant": False})
    # Only the reentrant kind needs embeddings with gradients; with them a frozen encoder has a backward pass, and some
    # encoders' embeddings are tuples.
    model.disable_input_require_grads()
    layers: Any = language_layers(language_of(model))
    for layer in layers[math.ceil(share * len(layers)) :]:
        layer.gradient_checkpointing = False


def quantize_frozen(model: Any, config: TrainConfig, device: torch.device, emulate: bool = False) -> Any:
    """Replace the linear layers of a frozen language model by nf4 or fp8 ones, in place; the head is unchanged.

    `emulate` computes FP8 in ordinary precision, for tests without a GPU.
    """
    if config.frozen_weights == "plain":
        return model
    convert = nf4_converter(config) if config.frozen_weights == "nf4" else fp8_converter(device, emulate)
    language = language_of(model)
    for name, linear in [(n, m) for n, m in language.named_modules() if isinstance(m, torch.nn.Linear)]:
        parent, _, attribute = name.rpartition(".")
        setattr(language.get_submodule(parent), attribute, convert(linear).to(device))
    if config.frozen_weights == "nf4":
        model.is_loaded_in_4bit = True  # peft checks this before the class of a layer
    return model


def nf4_converter(config: TrainConfig) -> Callable[[torch.nn.Linear], torch.nn.Module]:
    """Linear layer -> the same in 4-bit NormalFloat with double quantization (QLoRA, arXiv 2305.14314)."""
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise UserError("frozen_weights is nf4, which needs bitsandbytes: pip install 'qilin-med[small]'") from None

    def convert(linear: torch.nn.Linear) -> torch.nn.Module:
        bias = linear.bias is not None
        dtype = compute_dtype(config)
        new = Linear4bit(linear.in_features, linear.out_features, bias, compute_dtype=dtype, device="meta")
        new.weight = Params4bit(
            linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=new
        )
        new.bias = linear.bias
        return new

    return convert


def fp8_converter(device: torch.device, emulate: bool) -> Callable[[torch.nn.Linear], torch.nn.Module]:
    """Linear layer -> the same with FP8 products, forward and to its input; one whose widths FP8 does not have is
    unchanged."""
    if not emulate and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise UserError(
            "frozen_weights is fp8, which needs a GPU of compute capability 8.9 or more (Ada, Hopper); the device is "
            f"{device}"
        )

    def convert(linear: torch.nn.Linear) -> torch.nn.Module:
        return FrozenFp8Linear(linear.to(device), emulate) if fits_fp8(linear) else linear

    return convert


def add_adapters(model: Any, config: TrainConfig) -> Any:
    """Wrap the model with LoRA (peft) on the language model's linear layers, if the recipe has `lora`; the parts in
    `trainable` stay trainable. Raises UserError if `lora.target_modules` matches no layer."""
    lora = config.lora
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model  # half a second

    if lora.use_dora and config.frozen_weights == "fp8":
        raise UserError("lora.use_dora is true, but frozen_weights is fp8; DoRA needs plain or nf4 weights")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    lora_config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes a float as well
        lora_dropout=lora.dropout,
        target_modules=select_layers(model, lora.target_modules, lora.parts),
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
    )
    adapted = get_peft_model(model, lora_config)
    for name, parameter in adapted.named_parameters():
        if remove_peft_prefix(name) in trainable:
            parameter.requires_grad_(True)
    if compute_dtype(config) != torch.float32 and not lora.dropout:
        skip_adapter_casts(adapted)
    return adapted


def skip_adapter_casts(model: Any) -> None:
    """Give adapters their inputs as they are: peft casts them to fp32 and autocast back, which changes no bit and takes
    a copy of each. Not with dropout, which rounds differently in 16 bits."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def select_layers(model: Any, targets: Sequence[str] | str, parts: Sequence[str] = ("language",)) -> list[str]:
    """The full names of the linear layers of some parts to adapt. A list has names or ends of names (`q_proj`,
    `self_attn.q_proj`), a text is a regular expression for the full name, as in peft; empty or `all-linear`: all."""
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head" and part_of(name) in parts
    ]
    if not targets or targets in ("all-linear", ("all-linear",), ["all-linear"]):
        return linears
    if isinstance(targets, str) and re.fullmatch(r"[\w.]+", targets):
        targets = [targets]
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise UserError(f"lora.target_modules is {targets!r}, no valid regular expression: {error}") from None
        selected, unknown = [name for name in linears if pattern.fullmatch(name)], [targets]
    else:
        ends = {target: [name for name in linears if f".{name}".endswith(f".{target}")] for target in targets}
        selected, unknown = [name for names in ends.values() for name in names], [t for t in ends if not ends[t]]
    if not selected or (unknown and not isinstance(targets, str)):
        known = sorted({name.split(".")[-1] for name in linears})
        names = ["language model" if part == "language" else "vision encoder" for part in parts]
        raise UserError(
            f"lora.target_modules: {', '.join(unknown)} is no linear layer of the {' or '.join(names)}; it has "
            f"{', '.join(known)}"
        )
    return list(dict.fromkeys(selected))


def count_adapters(model: Any) -> tuple[int, int]:
    """(parameters, adapted layers) of the adapters that peft added."""
    matrices = {name: p for name, p in model.named_parameters() if "lora_" in name}
    return sum(p.numel() for p in matrices.values()), sum("lora_A" in name for name in matrices)


def remove_peft_prefix(name: str) -> str:
    """A parameter's name in the model without adapters."""
    return name.removeprefix(PEFT_PREFIX)


def base_model(model: Any) -> Any:
    """The Llava inside a model with adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def autocast_context(precision: str, device: torch.device) -> torch.autocast:
    """Autocast to bf16 or fp16; no change in fp32.

    Without autocast's cache: each weight is used once per forward pass, and the cache would keep a copy of all layers.
    """
    dtype = autocast_dtype(precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False)


def compute_dtype(config: TrainConfig) -> torch.dtype:
    return autocast_dtype(config.precision) or torch.float32
