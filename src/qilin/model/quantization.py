"""Loading options: 8- or 4-bit weights, and distribution over several accelerators.

In: what load_model receives. Out: options for transformers' from_pretrained. Only the language model's linear layers
are quantized: they hold nearly all weights; encoder, projector and output head keep their precision.
"""

from typing import Any

import torch

from qilin.core.errors import UserError

NOT_QUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


def loading_options(
    bits: int | None, dtype: torch.dtype, device: torch.device, device_map_auto: bool
) -> dict[str, Any]:
    """Options of from_pretrained. Raises UserError if a package or a device is missing, with the remedy."""
    options: dict[str, Any] = {"dtype": dtype}
    if device_map_auto:
        if device.type == "cpu":
            raise UserError("device_map_auto needs accelerators; this machine has none")
        options["device_map"] = "auto"
    if bits is None:
        return options
    if device.type == "cpu" and bits == 8:
        return options | {"quantization_config": torchao_config()}
    return options | {
        "quantization_config": bitsandbytes_config(bits, dtype, device),
        "device_map": options.get("device_map", {"": device}),
    }


def torchao_config() -> Any:
    """torchao, weights only: int8 with one scale per row, rounded from fp32 or bf16 while loading."""
    from transformers import TorchAoConfig

    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError:
        raise UserError("bits is 8 on a CPU, which needs torchao: pip install 'qilin-med[small]'") from None
    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=NOT_QUANTIZED)


def bitsandbytes_config(bits: int, dtype: torch.dtype, device: torch.device) -> Any:
    """bitsandbytes: LLM.int8(), or NF4 with double quantization (QLoRA, arXiv 2305.14314)."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(
            f"bits is {bits} on {device.type}, which needs bitsandbytes: pip install 'qilin-med[small]'"
        ) from None
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NOT_QUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=NOT_QUANTIZED,
    )
