"""The way out: a stock Llava -> LLaVA's own layout, for code that reads nothing else.

In: a Hugging Face folder, converted here or trained here. Out: safetensors under LLaVA's names and its config.json. A
model that came in from LLaVA's layout goes out with the same bits, names, config and tokenizer files.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from qilin.errors import UserError
from qilin.model.hub import from_pretrained
from qilin.model.llava_layout import explain_names, llava_config, to_llava
from qilin.model.settings import ConvertSettings
from qilin.model.shards import Planned, Reader, Weight, list_file, list_weights, read_json, write_shards
from qilin.model.speech import RECORD, WORDS

LINEAR_2 = "multi_modal_projector.linear_2."


def convert_out(
    source: Path, folder: Path, settings: ConvertSettings, bar: Callable[..., Any], say: Callable[[str], None]
) -> None:
    """Write `source` in LLaVA's layout into `folder`."""
    from transformers import AutoConfig

    stock = from_pretrained(AutoConfig, str(source), settings.hub)
    weights = list_weights(source)
    reader = Reader()
    linear = stock.projector_hidden_act == "linear"
    if linear:
        weights = without_identity(weights, reader, source)
    elif stock.projector_hidden_act != "gelu":
        raise UserError(f"{source}: projector_hidden_act is {stock.projector_hidden_act!r}; LLaVA has gelu")
    record = source / RECORD
    config = read_json(record / "config.json") if (record / "config.json").is_file() else None
    rows = rows_out(weights, stock, config, source)
    if config is None:
        tower = settings.vision or stock.vision_config.name_or_path
        if not tower:
            raise UserError(
                "LLaVA's code loads the vision encoder anew; say from where with --vision (mm_vision_tower)"
            )
        processor = read_json(source / "processor_config.json")
        pad = bool((processor.get("image_processor") or {}).get("do_pad"))
        config = llava_config(stock, pad, rows, linear, tower)
        copy_words(source, folder, say)
    else:
        for name in (*WORDS, "generation_config.json"):
            if (record / name).is_file():
                shutil.copy(record / name, folder)
    names = {weight.name: to_llava(weight.name, linear) for weight in weights}
    strange = sorted(name for name, new in names.items() if new is None)
    if strange:
        raise UserError(explain_names(strange, [], source))
    plan = [plan_out(reader, weight, str(names[weight.name]), rows) for weight in weights]
    if (record / "buffers.safetensors").is_file():
        plan += [
            Planned(w.name, w.shape, w.kind, taking(reader, w, None)) for w in list_file(record / "buffers.safetensors")
        ]
    with bar(f"{source} → LLaVA's layout", sum(row.bytes for row in plan)) as tell:
        write_shards(folder, plan, int(settings.shard_gb * 1e9), tell)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def without_identity(weights: list[Weight], reader: Reader, source: Path) -> list[Weight]:
    """LLaVA's `linear` has one layer; ours has an identity behind it, which must be one."""
    for weight in weights:
        if weight.name.startswith(LINEAR_2):
            tensor = reader.get(weight)
            if not torch.equal(
                tensor, torch.eye(*tensor.shape).to(tensor) if tensor.ndim == 2 else torch.zeros_like(tensor)
            ):
                raise UserError(
                    f"{source}: {weight.name} is no longer an identity; LLaVA's linear projector has one layer"
                )
    return [weight for weight in weights if not weight.name.startswith(LINEAR_2)]


def rows_out(weights: list[Weight], stock: Any, config: Mapping[str, Any] | None, source: Path) -> int:
    """How many rows of the embeddings LLaVA's own model has: `<image>` has none there, where it stands last."""
    table = next((w for w in weights if w.name.endswith("embed_tokens.weight")), None)
    if table is None:
        raise UserError(explain_names([], ["embed_tokens.weight"], source))
    if config is not None:
        before = read_json(source / RECORD / "rows.json")["rows"] if (source / RECORD / "rows.json").is_file() else None
        return int(before or table.shape[0])
    return table.shape[0] - (stock.image_token_index == table.shape[0] - 1)


def plan_out(reader: Reader, weight: Weight, name: str, rows: int) -> Planned:
    cut = name in ("model.embed_tokens.weight", "lm_head.weight") and weight.shape[0] > rows
    shape = (rows, *weight.shape[1:]) if cut else weight.shape
    return Planned(name, shape, weight.kind, taking(reader, weight, rows if cut else None))


def taking(reader: Reader, weight: Weight, rows: int | None) -> Callable[[], torch.Tensor]:
    return lambda: reader.get(weight)[:rows]


def copy_words(source: Path, folder: Path, say: Callable[[str], None]) -> None:
    """The tokenizer as it is. `<image>` stays in it, which LLaVA's code never looks up: it cuts the text there."""
    present = [
        path for path in source.iterdir() if path.name in WORDS or re.fullmatch(r"generation_config\.json", path.name)
    ]
    for path in present:
        shutil.copy(path, folder)
    if not (source / "tokenizer.model").is_file():
        say("there is no tokenizer.model; LLaVA's loader must be told use_fast=True")
