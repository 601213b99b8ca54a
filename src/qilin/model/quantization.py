"""Loading a model in 8 or 4 bits, or spread over devices, so that it fits.

In: what load_model was asked for. Out: the options for transformers' from_pretrained. Only the language model's linear
layers are made small: they are nearly all of it, and the encoder, the projector and the head stay exact.
"""

from typing import Any

import torch

from qilin.core.errors import UserError

EXACT = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


def loading_options(bits: int | None, kind: torch.dtype, where: torch.device, spread: bool) -> dict[str, Any]:
    """Options of from_pretrained. Raises UserError where a package or a device is missing, naming what to do."""
    options: dict[str, Any] = {"dtype": kind}
    if spread:
        if where.type == "cpu":
            raise UserError("spread asks for several accelerators; this machine has none")
        options["device_map"] = "auto"
    if bits is None:
        return options
    if where.type == "cpu" and bits == 8:
        return options | {"quantization_config": int8_on_cpu()}
    return options | {
        "quantization_config": by_bitsandbytes(bits, kind, where),
        "device_map": options.get("device_map", {"": where}),
    }


def int8_on_cpu() -> Any:
    """torchao, weights only: int8 with a scale a row, rounded from fp32 or bf16 as they are loaded."""
    from transformers import TorchAoConfig

    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError:
        raise UserError("bits is 8 on a CPU, which needs torchao: pip install 'qilin-med[small]'") from None
    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=EXACT)


def by_bitsandbytes(bits: int, kind: torch.dtype, where: torch.device) -> Any:
    """bitsandbytes: LLM.int8(), or 4-bit normal floats with their scales compressed too (QLoRA, arXiv 2305.14314)."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(
            f"bits is {bits} on {where.type}, which needs bitsandbytes: pip install 'qilin-med[small]'"
        ) from None
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=EXACT)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=kind,
        llm_int8_skip_modules=EXACT,
    )
