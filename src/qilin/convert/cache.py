"""LLaVA checkpoints by name: converted once, into Qilin's cache folder.

In: a folder or hub id from a user. Out: the same name, or for a checkpoint in LLaVA's layout the folder of its
conversion.
"""

import re
from dataclasses import replace
from pathlib import Path

from qilin.convert.config import ConvertConfig
from qilin.convert.llava_format import is_llava
from qilin.convert.output import log
from qilin.convert.run import convert, hash_source
from qilin.core.files import make_cache_dir, read_json
from qilin.model.hub import fetch, fetch_folder


def ensure_hf_layout(name: str, hub: str) -> str:
    """`name` itself, or for a checkpoint in LLaVA's layout its converted folder, converting it if necessary.

    Uses the default template (v1); for another template, or for LoRA, users run `qilin convert` themselves.
    """
    path = fetch(name, hub)
    config_file = Path(path) / "config.json" if Path(path).is_dir() else fetch_config(path)
    if config_file is None or not config_file.is_file() or not is_llava(read_json(config_file)):
        return name
    source = fetch_folder(name, hub)
    config = ConvertConfig(source=source, out=Path())
    short_name = re.sub(r"[^\w.-]+", "--", name.strip("/"))[-80:]
    out = make_cache_dir() / f"{short_name}-{hash_source(Path(source), config)[:12]}"
    if not out.is_dir():
        log(
            f"{name} is in LLaVA's layout: converting it once, with template {config.template}, into {out}\n"
            "(for another template, or for LoRA: qilin convert)"
        )
        convert(replace(config, out=out))
    return str(out)


def fetch_config(name: str) -> Path | None:
    """A hub id's config.json, downloaded alone; None if that fails (loading the model then reports why)."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(name, "config.json"))
    except (OSError, ValueError, HfHubHTTPError):
        return None
