"""`qilin convert`: a checkpoint of LLaVA's layout, or LoRA on one, -> a Hugging Face folder; and the way back.

In: a folder or hub id. Out: a whole new folder that appears under its name only when it is finished. Tensors are
streamed: one is in memory at a time, so a 13B model converts on a small machine at the speed of its disk.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from qilin.convert.gguf import convert_gguf
from qilin.convert.hf_to_llava import convert_out
from qilin.convert.llava_format import is_llava, is_stock, stock_config
from qilin.convert.llava_to_hf import Gathered, gather, plan_weights, vision_of
from qilin.convert.llava_tokenizer import load_spoken, record_source, write_speech
from qilin.convert.lora import ADAPTER, keep_adapter, merge_stock
from qilin.convert.weight_files import list_weights, read_json, write_shards
from qilin.core.config import to_dict
from qilin.core.errors import RunError, UserError
from qilin.core.progress import ProgressBars
from qilin.model.config import ConvertConfig
from qilin.model.hub import fetch, fetch_folder
from qilin.model.llava import CARD


def usable(name: str, hub: str) -> str:
    """The name itself where it is no LLaVA checkpoint, else the folder of its conversion, made if it is not there.

    Converted with the default template (v1). For another, or for LoRA, `qilin convert` makes a folder to name.
    """
    from qilin.convert.run import convert, fingerprint, say

    place = fetch(name, hub)
    file = Path(place) / "config.json" if Path(place).is_dir() else fetched_config(place)
    if file is None or not file.is_file() or not is_llava(read_json(file)):
        return name
    source = fetch_folder(name, hub)
    how = ConvertConfig(source=source, out=Path("unknown"))
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


PROJECTOR = "mm_projector.bin"
notes = Console(stderr=True, highlight=False, soft_wrap=True)


def convert(config: ConvertConfig) -> Path:
    """`qilin convert SRC OUT`. Returns OUT. The same conversion finished before is left alone.

    Raises UserError for what is no such checkpoint or cannot be expressed, RunError where the disk is too small or
    --check finds a difference.
    """
    source = Path(fetch_folder(config.source, config.hub))
    kind = layout(source, config)
    mark = fingerprint(source, config)
    if finished(config.out, mark):
        say(f"{config.out}: already converted from {config.source}")
        return config.out
    with staged(config.out) as folder:
        if config.to == "gguf":
            convert_gguf(source, folder, config, say)
        elif kind == "stock":
            model_config = convert_out(source, folder, config, bar, say)
            if config.check:
                checked_out(source, folder, model_config)
        elif kind == "stock adapter":
            merge_stock(source, folder, config, bar)
        else:
            convert_in(source, kind, folder, config)
        if config.to == "hf":
            add_to_card(folder, config, kind, mark)
        else:
            (folder / CARD).write_text(json.dumps({"converted": {"fingerprint": mark}}), encoding="utf-8")
    say(f"{config.out}: done")
    return config.out


def layout(source: Path, config: ConvertConfig) -> str:
    """What SRC is: llava, projector, lora, stock or stock adapter. Raises UserError where it goes nowhere."""
    config_file = source / "config.json"
    model_config = read_json(config_file) if config_file.is_file() else {}
    if (source / ADAPTER).is_file() and not is_stock(model_config):
        if config.to != "hf":
            raise UserError(f"{source}: is a LoRA folder; merge it first (to hf), then convert the result")
        if config.base is None:
            raise UserError(f"{source}: is a LoRA folder; name the model it was trained on with --base")
        return "lora" if is_llava(model_config) else "stock adapter"
    if is_stock(model_config):
        if config.to == "hf":
            raise UserError(
                f"{source}: is already in Hugging Face's layout (LlavaForConditionalGeneration); "
                "use it as it is, or convert it with --to llava or --to gguf"
            )
        return "stock"
    if config.to != "hf":
        raise UserError(f"{source}: expected a Hugging Face Llava (config.json with text_config and vision_config)")
    if not model_config:
        hint = "; LLaVA's stage 1 writes config.json beside mm_projector.bin" if (source / PROJECTOR).is_file() else ""
        raise UserError(f"{source}: has no config.json, so is no checkpoint{hint}")
    if not is_llava(model_config):
        named = (model_config.get("architectures") or [model_config.get("model_type", "nothing known")])[0]
        raise UserError(f"{config_file}: is of {named}, without LLaVA's settings (mm_hidden_size, mm_vision_tower)")
    if (
        (source / PROJECTOR).is_file()
        and not any(source.glob("*model*.safetensors"))
        and not any(source.glob("pytorch_model*.bin"))
    ):
        if config.base is None:
            raise UserError(f"{source}: holds a projector alone; name its language model with --base")
        return "projector"
    return "llava"


def convert_in(source: Path, kind: str, folder: Path, config: ConvertConfig) -> None:
    """LLaVA's layout -> stock Llava in `folder`."""
    model_config = read_json(source / "config.json")
    found = gather(source, kind, model_config, config, say)
    vision, colours = vision_of(found, model_config, config, say)
    speech = load_spoken(found.words, model_config, config, found.rows)
    stock = stock_config(model_config, vision, max(found.rows, len(speech.tokenizer)), source / "config.json")
    stock.image_token_index = speech.image_id
    plan = plan_weights(found, stock, model_config, config, speech.tokenizer, source)
    room(folder, sum(row.bytes for row in plan))
    with bar(f"{config.source} → {config.out}", sum(row.bytes for row in plan)) as tell:
        write_shards(folder, plan, int(config.shard_gb * 1e9), tell)
    write_speech(folder, stock, speech, colours, model_config.get("image_aspect_ratio") == "pad", plan)
    record_source(source, found.words, folder, found.rows, found.dropped)
    if found.lora and config.lora == "keep":
        keep_adapter(source, folder, found.lora)
    if config.check:
        checked(folder, found, model_config, stock)


def checked(folder: Path, found: Gathered, model_config: Mapping[str, Any], stock: Any) -> None:
    """Compare OUT with its source: every copied tensor bit by bit, the logits with the original arithmetic."""
    from qilin.convert.verify import compare_logits, compare_weights

    compared = compare_weights(folder, found)
    worst = compare_logits(folder, found, model_config, stock)
    say(f"check: {compared} tensors equal bit by bit; logits differ from LLaVA's own arithmetic by {worst:.1e} at most")


def checked_out(source: Path, folder: Path, model_config: Mapping[str, Any]) -> None:
    """Compare what was written for LLaVA, computed as LLaVA computes, with the model it was made of."""
    from transformers import AutoConfig

    from qilin.convert.verify import compare_logits

    found = Gathered({weight.name: weight for weight in list_weights(folder)}, folder)
    worst = compare_logits(source, found, model_config, AutoConfig.from_pretrained(source))
    say(f"check: logits by LLaVA's own arithmetic differ from the model's by {worst:.1e} at most")


def say(words: str) -> None:
    """A line on stderr. Without markup: paths may hold square brackets."""
    notes.print(words, markup=False, emoji=False)


@contextmanager
def bar(title: str, total: int) -> Iterator[Any]:
    """A progress bar in bytes; yields the function that advances it by a number of bytes."""
    with ProgressBars(unit="bytes", console=notes) as bars:
        task = bars.add_task(title, total=total)
        yield lambda done: bars.advance(task, done)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when all went well and is gone when anything did not."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and holds something else; name another OUT, or remove it")
    folder = out.parent / f".{out.name}.{os.getpid()}.partial"
    for left in out.parent.glob(f".{out.name}.*.partial"):
        say(f"{left}: another conversion is at work there, or one was killed and left it; then remove it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def room(folder: Path, needed: int) -> None:
    """Raise RunError before work starts where the disk cannot hold the result."""
    free = shutil.disk_usage(folder).free
    if free < needed * 1.01:
        raise RunError(f"{folder.parent}: the model takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")


def fingerprint(source: Path, config: ConvertConfig) -> str:
    """A hash of what is converted (names, sizes, first megabyte of every file) and how."""
    digest = hashlib.sha256()
    for file in sorted(path for path in source.iterdir() if path.is_file()):
        digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
    how = {key: value for key, value in to_dict(config).items() if key not in ("source", "out", "check", "hub")}
    digest.update(json.dumps(how, sort_keys=True).encode())
    return digest.hexdigest()


def finished(out: Path, mark: str) -> bool:
    """Whether `out` already holds this very conversion."""
    file = out / CARD
    return file.is_file() and (read_json(file).get("converted") or {}).get("fingerprint") == mark


def add_to_card(folder: Path, config: ConvertConfig, kind: str, mark: str) -> None:
    """Write qilin.json, last of all: where the model comes from and how it is to be spoken to."""
    from qilin import __version__

    old = read_json(folder / CARD) if (folder / CARD).is_file() else {}
    old.pop("adapter", None)  # of a base, with whose adapter this model was merged
    processor = read_json(folder / "processor_config.json")
    card = {
        "stage": "converted",
        "template": config.template,
        "pad_square": bool((processor.get("image_processor") or {}).get("do_pad")),
        **old,
        **({"adapter": "adapter"} if (folder / "adapter").is_dir() else {}),
        "converted": {
            "from": config.source,
            "layout": kind,
            "fingerprint": mark,
            "settings": to_dict(config),
            "qilin": __version__,
        },
    }
    (folder / CARD).write_text(json.dumps(card, ensure_ascii=False, indent=2), encoding="utf-8")
