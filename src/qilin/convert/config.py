"""The configuration of `qilin convert`; free of torch."""

from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option


@config_class
class ConvertConfig:
    """Convert a checkpoint from LLaVA's layout to Hugging Face's or back; merge LoRA; write llama.cpp's mmproj file."""

    source: str = option(help="folder or hub id: LLaVA layout, LoRA folder, stage-1 mm_projector.bin, or Hugging Face")
    out: Path = option(help="new folder; it appears under this name only when it is complete")
    to: Literal["hf", "llava", "gguf"] = option(
        default="hf",
        help="hf: stock Llava of transformers; llava: LLaVA's own layout; gguf: llama.cpp's mmproj file",
    )
    template: str = option(
        default="v1", help="chat template the model was trained with: v1, plain, llama_2, mistral, chatml"
    )
    system_prompt: str | None = option(default=None, help="system prompt instead of the template's own; '' for none")
    base: str | None = option(default=None, help="base model of a LoRA folder or of an mm_projector.bin")
    vision: str | None = option(
        default=None, help="vision encoder, folder or hub id, if the checkpoint lacks its weights or its config"
    )
    lora: Literal["merge", "keep"] = option(
        default="merge",
        help="merge: add the adapter to the weights; keep: write the base model, and the adapter to OUT/adapter (--to "
        "llava: a LoRA folder)",
    )
    dtype: Literal["keep", "fp32", "fp16", "bf16"] = option(default="keep", help="data type of the written weights")
    shard_gb: float = option(default=5.0, help="maximum size of a weight file, in GB (10^9 bytes)")
    check: bool = option(
        default=False,
        help="compare every tensor with the source, and the logits with a reference implementation of LLaVA "
        "(in fp32: 4 bytes per weight)",
    )
    hub: Literal["huggingface", "modelscope"] = option(default="huggingface", help="the hub that a hub id refers to")

    def __post_init__(self) -> None:
        if self.shard_gb <= 0:
            raise ValueError(f"shard_gb is {self.shard_gb}; expected more than 0")
        if self.to != "hf" and self.base:
            raise ValueError("base requires to=hf")
        if self.to == "gguf" and (self.check or self.lora == "keep"):
            raise ValueError("check and lora=keep have no effect with to=gguf")
        if self.check and self.lora == "keep":
            raise ValueError("check compares complete models, and lora=keep writes two parts; check the merged model")
