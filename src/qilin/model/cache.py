"""A model by any name -> something transformers loads: LLaVA's layout is converted once, into a cache.

In: a folder or hub id. Out: the same name, or the folder of its conversion. `qilin chat williamliu/Qilin-Med-VL-Chat
picture.jpg` is this and nothing else. The cache is $QILIN_CACHE, or qilin/ in the user's cache folder.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from qilin.model.hub import fetch, fetch_folder
from qilin.model.llava_layout import is_llava
from qilin.model.settings import ConvertSettings
from qilin.model.shards import read_json


def usable(name: str, hub: str) -> str:
    """The name itself where it is no LLaVA checkpoint, else the folder of its conversion, made if it is not there.

    Converted with the default template (v1). For another, or for LoRA, `qilin convert` makes a folder to name.
    """
    from qilin.model.convert import convert, fingerprint, say

    place = fetch(name, hub)
    file = Path(place) / "config.json" if Path(place).is_dir() else fetched_config(place)
    if file is None or not file.is_file() or not is_llava(read_json(file)):
        return name
    source = fetch_folder(name, hub)
    how = ConvertSettings(source=source, out=Path("unknown"))
    short = re.sub(r"[^\w.-]+", "--", name.strip("/"))[-80:]
    out = home() / f"{short}-{fingerprint(Path(source), how)[:12]}"
    if not out.is_dir():
        say(
            f"{name} is in LLaVA's layout: converting it once, with template {how.template}, into {out}\n"
            "(another template, or LoRA: qilin convert)"
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        convert(replace(how, out=out))
    return str(out)


def fetched_config(name: str) -> Path | None:
    """A hub id's config.json, fetched alone; None where it does not come (the loader says why)."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(name, "config.json"))
    except (OSError, ValueError, HfHubHTTPError):
        return None


def home() -> Path:
    """Where converted models are kept."""
    named = os.environ.get("QILIN_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qilin"
