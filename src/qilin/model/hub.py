"""Resolves a model's name: a folder, a Hugging Face hub id or a ModelScope id -> its files.

In: a folder or id, and the hub. Out: a folder, or the object that transformers loads from it. Raises UserError or
RunError with the reason in one line.
"""

from pathlib import Path
from typing import Any

from qilin.core.errors import RunError, UserError

OTHER_FRAMEWORKS = ["*.msgpack", "*.h5", "*.ot", "*.onnx", "*.gguf"]
WEIGHTS = ["*.safetensors", "*.bin", "*.pt", "*.pth", *OTHER_FRAMEWORKS]
OFFLINE_HINT = (
    "without a network, fetch the files on another machine (`hf download OWNER/NAME --local-dir DIR`), "
    "copy DIR to this machine and use DIR as the name; HF_ENDPOINT=https://… sets a mirror"
)


def from_pretrained(cls: Any, name: str, hub: str, **options: Any) -> Any:
    """cls.from_pretrained with one-line errors: no such folder, no network, not a model."""
    path = fetch(name, hub)
    try:
        return cls.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(explain_load_error(name, path, error)) from error


def fetch(name: str, hub: str) -> str:
    """A model's folder: itself, or downloaded from ModelScope. A Hugging Face id is returned as it is: transformers
    downloads it."""
    if Path(name).is_dir():
        return name
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{name}: no such folder, and not a hub id of the form owner/name")
    if hub != "modelscope":
        return name
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise UserError(f"{name}: hub is modelscope, which needs its package: pip install 'qilin-med[hubs]'") from None
    try:
        return str(snapshot_download(name))
    except Exception as error:  # modelscope raises many types; all mean that the download failed
        raise RunError(f"{name}: the download from ModelScope failed ({error}); {OFFLINE_HINT}") from error


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
