"""What `qilin convert` and `qilin template` can be told; free of torch."""

from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option


@config_class
class ConvertConfig:
    """Bring a checkpoint from LLaVA's layout to Hugging Face's or back; merge LoRA; write llama.cpp's mmproj."""

    source: str = option(help="folder or hub id: LLaVA layout, a LoRA folder, a stage-1 mm_projector.bin, or ours")
    out: Path = option(help="folder to make; it appears under this name only when it is whole")
    to: Literal["hf", "llava", "gguf"] = option(
        default="hf",
        help="hf: stock Llava of transformers; llava: LLaVA's own layout; gguf: llama.cpp's mmproj file",
    )
    template: str = option(
        default="v1", help="conversation style the model was trained with: v1, plain, llama_2, mistral, chatml"
    )
    system: str | None = option(default=None, help="system prompt instead of the template's own; '' for none")
    base: str | None = option(default=None, help="base model of a LoRA folder or of a bare mm_projector.bin")
    vision: str | None = option(
        default=None, help="vision encoder, folder or hub id, where the checkpoint does not hold it or its settings"
    )
    lora: Literal["merge", "keep"] = option(
        default="merge", help="keep: in OUT the base, in OUT/adapter the adapter; on the way out a LoRA folder"
    )
    dtype: Literal["keep", "fp32", "fp16", "bf16"] = option(default="keep", help="kind of number to write")
    shard_gb: float = option(default=5.0, help="largest weight file, in GB (10^9 bytes)")
    check: bool = option(
        default=False, help="compare every tensor, and the logits with LLaVA's own arithmetic (fp32: 4 bytes a weight)"
    )
    hub: Literal["huggingface", "modelscope"] = option(default="huggingface", help="where a hub id is fetched from")

    def __post_init__(self) -> None:
        if self.shard_gb <= 0:
            raise ValueError(f"shard_gb is {self.shard_gb}; expected more than 0")
        if self.to != "hf" and self.base:
            raise ValueError("base belongs to the way in (to: hf)")
        if self.to == "gguf" and (self.check or self.lora == "keep"):
            raise ValueError("check and lora have nothing to do where to is gguf")
        if self.check and self.lora == "keep":
            raise ValueError("check compares whole models, and lora: keep leaves two parts; check the merged one")


@config_class
class TemplateConfig:
    """Print a conversation as a model sees it, what it learns to say in colour."""

    model: str = option(help="model folder (or hub id); a folder with a tokenizer alone will do with --template")
    template: str | None = option(default=None, help="another style: v1, plain, llama_2, mistral, chatml")
    system: str | None = option(default=None, help="system prompt instead of the template's own; with --template")
    question: str = option(default="图中有异常吗？", help="what the user asks")
    answer: str = option(default="右下肺见片状影。", help="what the assistant says")
    turns: int = option(default=2, help="how often question and answer are repeated")
    tokens: bool = option(default=False, help="one token a line: place, id, text, learnt or not")
    json: bool = option(default=False, help="ids and mask as JSON on stdout")
    hub: Literal["huggingface", "modelscope"] = option(default="huggingface", help="where a hub id is fetched from")

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise ValueError(f"turns is {self.turns}; expected at least 1")
        if self.system is not None and self.template is None:
            raise ValueError("system needs a template to stand in")
