"""The configurations of `qilin chat` and `qilin serve`; free of torch."""

from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option

WINDOW_HELP = (
    "window of CT images: auto, a preset (肺窗, lung, …), CENTER,WIDTH, or three of them; default: as in training"
)


@config_class
class ChatConfig:
    """Ask a model about images in the terminal."""

    model: str = option(help="model folder (or hub id)")
    images: tuple[Path, ...] = option(
        default=(), help="images of the first question: PNG, JPEG, DICOM, NIfTI, a folder with a series, …"
    )
    slices: tuple[str, ...] = option(
        default=("8",), help="of a series or volume: 8, axial:8, coronal:4 (evenly spaced) or sagittal@120,140"
    )
    window: tuple[str, ...] = option(default=(), help=WINDOW_HELP)
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
class ServeConfig:
    """Serve a model, or another server's model, through OpenAI's chat API and as a page."""

    model: str | None = option(default=None, help="model folder (or hub id)")
    name: str | None = option(default=None, help="the model's name in the API; default: the folder's name")
    window: tuple[str, ...] = option(default=(), help=WINDOW_HELP)
    engine: Literal["qilin", "vllm"] = option(default="qilin", help="vllm: start vLLM on the model's folder")
    upstream: str | None = option(
        default=None, help="address of an OpenAI-compatible server that answers; its key in QILIN_UPSTREAM_KEY"
    )
    upstream_timeout: float = option(default=300.0, help="seconds without a byte after which an upstream is given up")
    upstream_image_side: int = option(default=2048, help="largest side of the images that an upstream gets, in pixels")
    vllm: str = option(default="vllm", help="vLLM's executable, in an environment of its own")
    vllm_arguments: str = option(default="", help="further arguments of `vllm serve`, in one string")
    vllm_start_seconds: float = option(default=900.0, help="how long vLLM may take to start")
    compare: tuple[str, ...] = option(
        default=(),
        help="further models for comparison on the page: folders, or addresses as in --upstream; NAME=FOLDER",
    )
    host: str = option(default="127.0.0.1", help="address to listen on; any but this machine's needs --keys")
    port: int = option(default=8000, help="port to listen on; 0 for any free one")
    keys: Path | None = option(default=None, help="file of API keys' hashes; requests then need a key")
    new_key: str | None = option(default=None, help="make a key for this NAME, add its hash to --keys, print it, exit")
    allow_host: tuple[str, ...] = option(default=(), help="further names of this server that requests may use")
    allow_image_host: tuple[str, ...] = option(
        default=(), help="hosts from which images are fetched by https address; none by default"
    )
    tls_certificate: Path | None = option(default=None, help="certificate (PEM) for https")
    tls_key: Path | None = option(default=None, help="private key (PEM) for https")
    policy: str | None = option(default=None, help="the site's own rules: a file *.yaml, or module:function")
    calibration: Path | None = option(
        default=None, help="calibration.json of an evaluation; default: the one in the model's folder"
    )
    audit_log: Path | None = option(default=None, help="file for one line per request: who, when, hashes, counts")
    max_new_tokens: int = option(default=512, help="maximum length of an answer if the request does not say")
    max_rows: int = option(default=32, help="answers generated at a time")
    max_waiting: int = option(default=64, help="requests in the queue; more are refused with 429")
    max_body_mib: float = option(default=64.0, help="largest request, in MiB")
    image_cache_gib: float | None = option(default=None, help="image features; default: 5 % of the free memory")
    prefix_cache_gib: float | None = option(default=None, help="prompt prefixes; default: 20 % of the free memory")
    shutdown_seconds: float = option(default=30.0, help="how long running answers may take after a stop")
    device: str = option(default="auto", help="auto, cpu, cuda, …")
    dtype: Literal["auto", "fp32", "bf16"] = option(default="auto", help="auto: bf16 on an accelerator, else fp32")
    bits: Literal[8, 4] | None = option(default=None, help="quantize the language model's weights to 8 or 4 bits")
    device_map_auto: bool = option(default=False, help="distribute the model over all accelerators of the machine")
    hub: Literal["huggingface", "modelscope"] = option(default="huggingface", help="the hub that a hub id refers to")

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_rows", "max_waiting", "upstream_image_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("max_body_mib", "shutdown_seconds", "upstream_timeout", "vllm_start_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("image_cache_gib", "prefix_cache_gib"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise ValueError(f"{name} is {value}; expected at least 0")
