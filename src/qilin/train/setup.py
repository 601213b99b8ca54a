"""A model made ready to learn: kinds of numbers, activations kept or computed again, adapters.

In: a Llava whose learning parts are set, with weights or without. Out: the same model, changed in place (with adapters:
wrapped by peft). What trains and what estimates go through here, so that they cannot differ.
"""

from typing import Any

import torch

from qilin.errors import UserError
from qilin.train.settings import TrainSettings


def fit_out(model: Any, settings: TrainSettings, on_card: bool) -> Any:
    """What is frozen takes bf16 on an accelerator, what learns keeps fp32."""
    if settings.precision == "bf16" and on_card:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    if settings.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def add_adapters(model: Any, settings: TrainSettings) -> Any:
    """LoRA (peft) on the language model's linear layers, where the recipe asks for it; what `learn` names keeps
    learning beside them."""
    from peft import LoraConfig, get_peft_model

    lora = settings.lora
    if lora is None:
        return model
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    language = model.model.language_model
    found = [name for name, m in language.named_modules() if isinstance(m, torch.nn.Linear)]
    wanted = [name for name in found if not lora.targets or name.split(".")[-1] in lora.targets]
    if not wanted:
        raise UserError(f"lora.targets: none of {', '.join(lora.targets)} is a linear layer of the language model")
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes a float as well
        lora_dropout=lora.dropout,
        target_modules=[f"model.language_model.{name}" for name in wanted],
    )
    adapted = get_peft_model(model, config)
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


def picture_dtype(settings: TrainSettings, device: torch.device) -> torch.dtype:
    return torch.bfloat16 if settings.precision == "bf16" and device.type != "cpu" else torch.float32
