"""The configurations of `qilin chat` and `qilin data review`; free of torch."""

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


@config_class
class ReviewConfig:
    """Show samples of a dataset folder to a person, on a page of this machine, and keep what is decided."""

    source: Path = option(help="a dataset folder")
    original: Path | None = option(
        default=None, help="the dataset folder it was translated from (default: found beside it)"
    )
    decisions: Path | None = option(default=None, help="the file of decisions (default: SOURCE.decisions.jsonl)")
    reviewer: str = option(default="", help="who decides (default: the name of this machine's user)")
    rows: int = option(default=200, help="samples to show, drawn evenly from sources, kinds and failed checks; 0: all")
    splits: tuple[Literal["train", "validation", "test"], ...] = option(default=(), help="of these splits only")
    seed: int = option(default=0, help="decides which samples; the same for all reviewers who are to be compared")
    host: str = option(default="127.0.0.1", help="where to listen; what goes to other machines is not encrypted")
    port: int = option(default=8010, help="0: any that is free")
    report: bool = option(default=False, help="show no page: print what was decided, and how far reviewers agree")
    json: bool = option(default=False, help="with --report: print it as JSON")

    EPILOG = (
        "\n\nthe same command goes on where the last session stopped; on a far machine:\n"
        "  ssh -L 8010:127.0.0.1:8010 HOST, then open the printed address here"
    )

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ValueError(f"rows is {self.rows}; expected 0 or more")
        if self.json and not self.report:
            raise ValueError("--json belongs to --report")
