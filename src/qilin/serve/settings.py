"""What `qilin chat` can be told; free of torch."""

from pathlib import Path
from typing import Literal

from qilin.settings import setting, settings


@settings
class ChatSettings:
    """Talk with a model about pictures, in the terminal."""

    model: str = setting(help="model folder (or hub id)")
    images: tuple[Path, ...] = setting(default=(), help="pictures of the first question: PNG, JPEG, TIFF, …")
    max_new_tokens: int = setting(default=512, help="longest answer, in tokens")
    device: str = setting(default="auto", help="auto, cpu, cuda, …")
    dtype: Literal["auto", "fp32", "bf16"] = setting(default="auto", help="auto: bf16 on an accelerator, else fp32")
    bits: Literal[8, 4] | None = setting(default=None, help="load the language model's weights in 8 or 4 bits")
    spread: bool = setting(default=False, help="lay the model over all accelerators of the machine")
    hub: Literal["huggingface", "modelscope"] = setting(default="huggingface", help="where a hub id is fetched from")

    EPILOG = (
        "\n\nin the talk:\n  /image PATH …  adds pictures to the next question; /reset, /help, /quit\n"
        "  Ctrl-C stops the answer, Ctrl-D leaves\n"
        "in a script, a question a line; answers go to stdout, everything else to stderr:\n"
        "  echo 图中有异常吗？ | qilin chat runs/instruct picture.png"
    )

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
