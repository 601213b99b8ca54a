"""A model made ready to learn: kinds of numbers, activations kept or computed again, adapters.

In: a Llava whose learning parts are set, with weights or without. Out: the same model, changed in place (with adapters:
wrapped by peft). What trains and what estimates go through here, so that they cannot differ.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from qilin.core.errors import UserError
from qilin.train.config import TrainConfig


def fit_out(model: Any, config: TrainConfig) -> Any:
    """What is frozen takes the precision asked for, what learns keeps fp32."""
    assert config.precision != "auto", "resolved before, when the device is known"
    if config.precision == "bf16":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    assert config.gradient_checkpointing != "auto", "resolved before, when the plan is known"
    if config.gradient_checkpointing:
        compute_again(model, config.gradient_checkpointing)
    return model


def compute_again(model: Any, share: float) -> None:
    """Activations of so many of the language model's layers are not kept; the last layers keep theirs, for these are
    let go first."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:  # its name in older versions of transformers, which goes in 6
        model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = model.model.language_model.layers
    for layer in layers[math.ceil(share * len(layers)) :]:
        layer.gradient_checkpointing = False


def shrink_frozen(model: Any, config: TrainConfig, device: torch.device, emulate: bool = False) -> Any:
    """The frozen language model's matrices in 4 bits, or computed in 8, in place. Its head stays as it is.

    `emulate`: FP8 by ordinary arithmetic, for a test where no GPU is.
    """
    if config.frozen_weights == "plain":
        return model
    make = four_bits(config) if config.frozen_weights == "nf4" else eight_bits(device, emulate)
    language = model.model.language_model
    for name, linear in [(n, m) for n, m in language.named_modules() if isinstance(m, torch.nn.Linear)]:
        parent, _, last = name.rpartition(".")
        setattr(language.get_submodule(parent), last, make(linear).to(device))
    if config.frozen_weights == "nf4":
        model.is_loaded_in_4bit = True  # peft asks this before it looks at a layer's class
    return model


def four_bits(config: TrainConfig) -> Callable[[torch.nn.Linear], torch.nn.Module]:
    """A linear layer -> the same in 4-bit normal floats with their scales compressed too (QLoRA, arXiv 2305.14314)."""
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise UserError("frozen is nf4, which needs bitsandbytes: pip install 'qilin-med[small]'") from None
    kind = torch.bfloat16 if config.precision == "bf16" else torch.float32

    def make(linear: torch.nn.Linear) -> torch.nn.Module:
        new = Linear4bit(
            linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=kind, device="meta"
        )
        new.weight = Params4bit(
            linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=new
        )
        new.bias = linear.bias
        return new

    return make


def eight_bits(device: torch.device, emulate: bool) -> Callable[[torch.nn.Linear], torch.nn.Module]:
    """A linear layer -> the same with FP8 products, forward and back; scales are found anew at each product."""
    try:
        from torchao.float8 import Float8LinearConfig
        from torchao.float8.float8_linear import Float8Linear
    except ImportError:
        raise UserError("frozen is fp8, which needs torchao: pip install 'qilin-med[small]'") from None
    if not emulate and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise UserError(
            f"frozen is fp8, which needs a GPU of compute capability 8.9 or more (Ada, Hopper); the device is {device}"
        )
    model_config = Float8LinearConfig(emulate=emulate)
    return lambda linear: Float8Linear.from_float(linear, model_config)


def add_adapters(model: Any, config: TrainConfig) -> Any:
    """LoRA (peft) on the language model's linear layers, where the recipe asks for it; what `learn` names keeps
    learning beside them."""
    from peft import LoraConfig, get_peft_model

    lora = config.lora
    if lora is None:
        return model
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    language = model.model.language_model
    found = [name for name, m in language.named_modules() if isinstance(m, torch.nn.Linear)]
    wanted = [name for name in found if not lora.targets or name.split(".")[-1] in lora.targets]
    if not wanted:
        raise UserError(f"lora.targets: none of {', '.join(lora.targets)} is a linear layer of the language model")
    model_config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes a float as well
        lora_dropout=lora.dropout,
        target_modules=[f"model.language_model.{name}" for name in wanted],
    )
    adapted = get_peft_model(model, model_config)
    for name, parameter in adapted.named_parameters():
        if name.removeprefix("base_model.model.") in learning:
            parameter.requires_grad_(True)
    return adapted


def base_of(model: Any) -> Any:
    """The Llava inside an adapted model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def arithmetic(precision: str, device: torch.device) -> torch.autocast:
    """bf16 for the products, fp32 for what needs it; nothing changed in fp32.

    Without its cache: a weight is used once a forward, and the cache would keep the copies of all layers at a time.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def image_dtype(config: TrainConfig) -> torch.dtype:
    return torch.bfloat16 if config.precision == "bf16" else torch.float32
