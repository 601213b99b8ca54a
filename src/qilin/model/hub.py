"""Models by name: a folder, a Hugging Face hub id or a ModelScope id -> where its files are, or a reason in one line.

In: a folder or id, and which hub. Out: the place, or what transformers loads from it; UserError or RunError otherwise.
"""

from pathlib import Path
from typing import Any

from qilin.core.errors import RunError, UserError


def from_pretrained(kind: Any, name: str, hub: str, **options: Any) -> Any:
    """kind.from_pretrained with errors for people: no such folder, no network, not a model."""
    place = fetch(name, hub)
    try:
        return kind.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(why_not_loaded(name, place, error)) from error


def fetch(name: str, hub: str) -> str:
    """The folder of a model: itself, or downloaded from ModelScope; Hugging Face ids pass through to transformers."""
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
    except Exception as error:  # modelscope raises many kinds; all mean that the files did not come
        raise RunError(f"{name}: ModelScope did not deliver it ({error}); {BY_HAND}") from error


NOT_READ = ["*.msgpack", "*.h5", "*.ot", "*.onnx", "*.gguf"]
WEIGHTS = ["*.safetensors", "*.bin", "*.pt", "*.pth", *NOT_READ]


def fetch_folder(name: str, hub: str, *, words_only: bool = False) -> str:
    """Like fetch, but always a folder of this machine: a Hugging Face id is downloaded (HF_ENDPOINT is obeyed).

    `words_only` leaves the weights where they are.
    """
    place = fetch(name, hub)
    if Path(place).is_dir():
        return place
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(place, ignore_patterns=WEIGHTS if words_only else NOT_READ))
    except (OSError, ValueError) as error:
        raise UserError(why_not_loaded(name, place, error)) from error


BY_HAND = (
    "without a network, fetch the files on another machine (`hf download OWNER/NAME --local-dir DIR`), "
    "copy DIR here and name DIR in the recipe; HF_ENDPOINT=https://… names a mirror"
)


def why_not_loaded(name: str, place: str, error: Exception) -> str:
    """The reason a model did not load, in one line."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if Path(place).is_dir():
        has = ", ".join(sorted(path.name for path in Path(place).iterdir())[:8]) or "nothing"
        return f"{name}: not a model folder that transformers can load ({first}); it holds {has}"
    return f"{name}: not found here and not fetched from the hub ({first}); {BY_HAND}"
