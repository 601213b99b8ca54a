"""The configuration of `qilin chat`; free of torch."""

from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option


@config_class
class ChatConfig:
    """Ask a model about images in the terminal."""

    model: str = option(help="model folder (or hub id)")
    images: tuple[Path, ...] = option(default=(), help="images of the first question: PNG, JPEG, TIFF, …")
    max_new_tokens: int = option(default=512, help="maximum length of an answer, in tokens")
    device: str = option(default="auto", help="auto, cpu, cuda, …")
    dtype: Literal["auto", "fp32", "bf16"] = option(default="auto", help="auto: bf16 on an accelerator, else fp32")
    bits: Literal[8, 4] | None = option(default=None, help="quantize the language model's weights to 8 or 4 bits")
    device_map_auto: bool = option(default=False, help="distribute the model over all accelerators of the machine")
    hub: Literal["huggingface", "modelscope"] = option(default="huggingface", help="the hub that a hub id refers to")

    EPILOG = (
        "\n\nin a conversation:\n  /image PATH …  adds images to the next question; /reset, /help, /quit\n"
        "  Ctrl-C stops the answer, Ctrl-D exits\n"
        "in a script, one question per line; answers go to stdout, everything else to stderr:\n"
        "  echo 图中有异常吗？ | qilin chat runs/instruct image.png"
    )

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
