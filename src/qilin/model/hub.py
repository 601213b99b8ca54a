"""Resolves a model's name: a folder, a Hugging Face hub id or a ModelScope id -> its files.

In: a folder or id, and the hub. Out: a folder, or the object that transformers loads from it. Raises UserError or
RunError with the reason in one line.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qilin.core.errors import RunError, UserError
from qilin.core.files import read_json

OTHER_FRAMEWORKS = ["*.msgpack", "*.h5", "*.ot", "*.onnx", "*.gguf"]
WEIGHTS = ["*.safetensors", "*.bin", "*.pt", "*.pth", *OTHER_FRAMEWORKS]
OFFLINE_HINT = (
    "without a network, fetch the files on another machine (`hf download OWNER/NAME --local-dir DIR`), "
    "copy DIR to this machine and use DIR as the name; HF_ENDPOINT=https://… sets a mirror"
)


# Parts of an encoder behind the features that a Llava uses; checkpoints of classifiers lack them.
UNUSED_PARTS = ("pooler.", "head.", "layernorm.", "post_layernorm.")


def from_pretrained(cls: Any, name: str, hub: str, **options: Any) -> Any:
    """cls.from_pretrained with one-line errors: no such folder, no network, not a model. Never runs a folder's code."""
    path = fetch(name, hub)
    check_no_adapter(name, Path(path))
    check_no_own_code(name, Path(path))
    try:
        return cls.from_pretrained(path, trust_remote_code=False, **options)
    except UserError:
        raise
    except Exception as error:  # transformers and safetensors raise many types; all mean that it does not load
        raise UserError(explain_load_error(name, path, error)) from error


def load_weights(cls: Any, name: str, hub: str, may_miss: Sequence[str] = (), **options: Any) -> Any:
    """A model with all its weights from its files: what they lack, transformers would fill with random numbers.

    Weights whose name starts with one of `may_miss` may be missing. Raises UserError that names the others.
    """
    path = Path(fetch(name, hub))
    if path.is_dir():
        check_weight_files(path)
    with quiet_loading():
        model, info = from_pretrained(cls, name, hub, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    wrong = sorted(info["mismatched_keys"])
    if wrong:
        key, stored, expected = wrong[0]
        raise UserError(
            f"{name}: {key} is {list(stored)} in the files, but config.json implies {list(expected)}"
            f"{f' (and {len(wrong) - 1} more weights)' if len(wrong) > 1 else ''}; are both from one upload?"
        )
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(tuple(may_miss)))
    if missing:
        raise UserError(
            f"{name}: {len(missing)} of its {len(model.state_dict())} weights are in no file ({format_first(missing)}) "
            "and would be random; copy or download the complete folder (for vision=, name the encoder's own folder)"
        )
    if info.get("error_msgs"):
        raise UserError(f"{name}: its weights do not load ({format_first(list(info['error_msgs']))})")
    return model


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' table of missing weights: what matters of it is an error of one line."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def format_first(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def check_no_adapter(name: str, path: Path) -> None:
    """Raise UserError for a folder that holds only an adapter, as peft, LLaMA-Factory and ms-swift save it."""
    file = path / "adapter_config.json"
    if file.is_file() and not (path / "config.json").is_file():
        values = read_json(file)
        base = (values.get("base_model_name_or_path") if isinstance(values, dict) else None) or "MODEL"
        raise UserError(
            f"{name}: a LoRA adapter (adapter_config.json), no model; merge it into its base first: "
            f"qilin convert {name} OUT --base {base}"
        )


def check_no_own_code(name: str, path: Path) -> None:
    """Raise UserError for a model type that only the folder's own Python code knows: it is not run, and a stock Llava
    could not hold the model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    file = path / "config.json"
    values = read_json(file) if file.is_file() else {}
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a JSON object, found a {type(values).__name__}")
    model_type = values.get("model_type")
    if values.get("auto_map") and model_type not in CONFIG_MAPPING_NAMES:
        raise UserError(
            f"{name}: its config.json has model_type {model_type!r}, which needs the Python code in the folder "
            "(auto_map); Qilin runs no code of a model's folder. Use a model that transformers has a class for"
        )


def check_weight_files(path: Path) -> None:
    """Raise UserError for a git-lfs pointer in place of a weight file, and a safetensors file cut short.

    Only of the files that transformers reads: it takes the first of these kinds that a folder has.
    """
    kinds = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin")
    files = next((matches for pattern in kinds if (matches := sorted(path.glob(pattern)))), [])
    for file in files:
        with file.open("rb") as stream:
            start = stream.read(64)
        if start.startswith(b"version https://git-lfs"):
            raise UserError(f"{file}: a git-lfs pointer, not the file itself; run git lfs pull, or download it again")
        if file.suffix == ".safetensors":
            check_safetensors(file)


def check_safetensors(file: Path) -> None:
    """Raise UserError if a safetensors file is incomplete; only its header is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise UserError(
            f"{file}: not a complete safetensors file ({error}; {file.stat().st_size:,} bytes); download it again"
        ) from error


def check_not_quantized(name: str, config: Any) -> None:
    """Raise UserError for a checkpoint of quantized weights (GPTQ, AWQ, bitsandbytes, FP8, …), which is not trained."""
    for part in (config, getattr(config, "text_config", None)):
        quantization = getattr(part, "quantization_config", None)
        if quantization:
            values = quantization if isinstance(quantization, dict) else quantization.to_dict()
            method = values.get("quant_method", "an unknown method")
            method = getattr(method, "value", method)
            raise UserError(
                f"{name}: its weights are quantized (quantization_config in config.json: {method}), "
                "which training does not support; use the checkpoint in fp16, bf16 or fp32 that it was made from"
            )


def fetch(name: str, hub: str) -> str:
    """A model's folder: itself, or downloaded from ModelScope. A Hugging Face id is returned as it is: transformers
    downloads it."""
    if Path(name).is_dir():
        return name
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{name}: no such folder, and not a hub id of the form owner/name{similar_folder(name)}")
    if similar := similar_folder(name):  # a typing error; the hub would be asked for minutes where there is no network
        raise UserError(f"{name}: no such folder{similar}")
    if hub != "modelscope":
        read_cache_only_without_network()
        return name
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise UserError(f"{name}: hub is modelscope, which needs its package: pip install 'qilin-med[hubs]'") from None
    try:
        return str(snapshot_download(name))
    except Exception as error:  # modelscope raises many types; all mean that the download failed
        raise RunError(f"{name}: the download from ModelScope failed ({error}); {OFFLINE_HINT}") from error


def read_cache_only_without_network() -> None:
    """Where the hub's name does not resolve, let huggingface_hub read only its cache: it would retry for half a minute.

    Behind a proxy, the proxy resolves names, so nothing is known here.
    """
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    url = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or {url.scheme, "all"} & set(getproxies()):
        return
    try:
        socket.getaddrinfo(url.hostname, url.port or url.scheme)
    except OSError:
        constants.HF_HUB_OFFLINE = True


def similar_folder(name: str) -> str:
    """ "; did you mean …" for a path beside which a folder has almost this name; "" where there is none.

    Names whose numbers differ are no typing errors: Qwen/Qwen3-8B is not the local folder Qwen/Qwen3-4B. Where the
    folder holds runs of Qilin, the name is a path in any case.
    """
    path = Path(name).expanduser()
    if not path.parent.is_dir():  # the folder above is misspelled
        parents = list(path.parent.parent.iterdir()) if path.parent.parent.is_dir() else []
        parents = [p for p in parents if (p / path.name).is_dir() and is_misspelling(path.parent.name, p.name)]
        return f"; did you mean {parents[0] / path.name}?" if parents else ""
    folders = [item.name for item in path.parent.iterdir() if item.is_dir()]
    if matches := [folder for folder in folders if is_misspelling(path.name, folder)]:
        return f"; did you mean {path.parent / matches[0]}?"
    if any((path.parent / folder / "qilin.json").is_file() for folder in folders):
        return f"; {path.parent} has {', '.join(sorted(folders)[:8])}"
    return ""


def is_misspelling(name: str, folder: str) -> bool:
    """Whether a name is almost that of a folder, with the same numbers."""
    same_numbers = re.findall(r"\d+", name) == re.findall(r"\d+", folder)
    return same_numbers and bool(difflib.get_close_matches(name, [folder], cutoff=0.75))


def fetch_folder(name: str, hub: str, *, without_weights: bool = False) -> str:
    """Like fetch, but always a local folder: a Hugging Face id is downloaded (HF_ENDPOINT is respected)."""
    path = fetch(name, hub)
    if Path(path).is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(path, ignore_patterns=WEIGHTS if without_weights else OTHER_FRAMEWORKS))
    except (OSError, ValueError) as error:
        raise UserError(explain_load_error(name, path, error)) from error


def explain_load_error(name: str, path: str, error: Exception) -> str:
    """The reason why a model does not load, in one line."""
    first_line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if Path(path).is_dir():
        files = ", ".join(sorted(file.name for file in Path(path).iterdir())[:8]) or "nothing"
        return f"{name}: not a model folder that transformers can load ({first_line}); it holds {files}"
    return f"{name}: no such folder, and the download from the hub failed ({first_line}); {OFFLINE_HINT}"
