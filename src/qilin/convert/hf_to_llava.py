"""The way out: a stock Llava -> LLaVA's own layout, for code that reads nothing else.

In: a Hugging Face folder, converted here or trained here. Out: safetensors under LLaVA's names and its config.json, or
with `lora: keep` a LLaVA LoRA folder. What came in from LLaVA's layout goes out with the same bits, names, config and
tokenizer files.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from qilin.convert.llava_format import PROJECTOR, TOWER, explain_names, llava_config, to_llava
from qilin.convert.llava_tokenizer import RECORD
from qilin.convert.lora import ADAPTER, TRAINED, Adapter, peft_config, peft_halves, read_adapter, stock_module
from qilin.convert.weight_files import Planned, Reader, Weight, list_file, list_weights, read_json, write_shards
from qilin.core.errors import UserError
from qilin.model.config import ConvertConfig
from qilin.model.hub import from_pretrained
from qilin.model.llava import CARD
from qilin.model.tokenizer import WORDS

LINEAR_2 = "multi_modal_projector.linear_2."
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def convert_out(
    source: Path, folder: Path, config: ConvertConfig, bar: Callable[..., Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Write `source` in LLaVA's layout into `folder`. Returns its config.json."""
    from transformers import AutoConfig

    stock = from_pretrained(AutoConfig, str(source), config.hub)
    card = read_json(source / CARD) if (source / CARD).is_file() else {}
    weights, reader = list_weights(source), Reader()
    linear = stock.projector_hidden_act == "linear"
    if linear:
        weights = without_identity(weights, reader, source)
    elif stock.projector_hidden_act != "gelu":
        raise UserError(f"{source}: projector_hidden_act is {stock.projector_hidden_act!r}; LLaVA has gelu")
    named = llava_names(weights, linear, source)
    model_config, rows = config_out(source, named, stock, config)
    adapters: dict[str, Adapter] = {}
    if config.lora == "keep" or card.get("adapter"):
        adapters = {stock_module(name): adapter for name, adapter in read_adapter(adapter_in(source)).items()}
    if config.lora == "keep":
        learnt = (PROJECTOR, TOWER) if "vision" in (card.get("recipe") or {}).get("learn", ()) else (PROJECTOR,)
        kept = {name: reader.get(weight) for name, weight in named.items() if name.startswith(learnt)}
        write_lora(source, folder, adapters, kept)
        say("LLaVA's loader is to be given the language model that the adapters stand on: --model-base")
    else:
        plan = [plan_out(reader, weight, name, rows, adapters.get(name)) for name, weight in named.items()]
        buffers = source / RECORD / "buffers.safetensors"
        plan += [plan_out(reader, w, w.name, rows, None) for w in (list_file(buffers) if buffers.is_file() else [])]
        with bar(f"{source} → LLaVA's layout", sum(row.bytes for row in plan)) as tell:
            write_shards(folder, plan, int(config.shard_gb * 1e9), tell)
    (folder / "config.json").write_text(json.dumps(model_config, indent=2), encoding="utf-8")
    copy_words(source, folder, say)
    return model_config


def llava_names(weights: list[Weight], linear: bool, source: Path) -> dict[str, Weight]:
    """LLaVA's name -> the tensor. Raises UserError for what LLaVA's layout has no name for."""
    named, strange = {}, []
    for weight in weights:
        name = to_llava(weight.name, linear)
        if name is None:
            strange.append(weight.name)
        else:
            named[name] = weight
    if strange:
        raise UserError(explain_names(sorted(strange), [], source))
    return named


def config_out(
    source: Path, named: Mapping[str, Weight], stock: Any, config: ConvertConfig
) -> tuple[dict[str, Any], int]:
    """(LLaVA's config.json, the rows of its embeddings): those that came in, or else made from ours.

    Ours end with `<image>` where the table had no room for it; LLaVA's own model has no such row.
    """
    record = source / RECORD
    table = named.get(TABLES[0])
    if table is None:
        raise UserError(explain_names([], [TABLES[0]], source))
    if (record / "config.json").is_file():
        before = read_json(record / "rows.json") if (record / "rows.json").is_file() else {"rows": table.shape[0]}
        return read_json(record / "config.json"), int(before["rows"])
    tower = config.vision or stock.vision_config.name_or_path
    if not tower:
        raise UserError("LLaVA's code loads the vision encoder anew; say from where with --vision (mm_vision_tower)")
    rows = table.shape[0] - (stock.image_token_index == table.shape[0] - 1)
    processor = read_json(source / "processor_config.json")
    pad = bool((processor.get("image_processor") or {}).get("do_pad"))
    return llava_config(stock, pad, rows, tower), rows


def without_identity(weights: list[Weight], reader: Reader, source: Path) -> list[Weight]:
    """LLaVA's `linear` has one layer; ours has an identity behind it, which must be one."""
    for weight in weights:
        if weight.name.startswith(LINEAR_2):
            tensor = reader.get(weight)
            nothing = torch.eye(*tensor.shape) if tensor.ndim == 2 else torch.zeros_like(tensor)
            if not torch.equal(tensor, nothing.to(tensor)):
                raise UserError(
                    f"{source}: {weight.name} is no longer an identity; LLaVA's linear projector has one layer"
                )
    return [weight for weight in weights if not weight.name.startswith(LINEAR_2)]


def plan_out(reader: Reader, weight: Weight, name: str, rows: int, adapter: Adapter | None) -> Planned:
    """One tensor under LLaVA's name: the rows its model has, a kept adapter merged."""
    cut = name in TABLES and weight.shape[0] > rows

    def make() -> torch.Tensor:
        tensor = reader.get(weight)
        tensor = tensor if adapter is None else adapter.merged(tensor)
        return tensor[:rows] if cut else tensor

    return Planned(name, (rows, *weight.shape[1:]) if cut else weight.shape, weight.kind, make)


def adapter_in(source: Path) -> Path:
    """Where a model's adapters lie: beside a model trained with `lora`, or converted with `--lora keep`."""
    if not (source / "adapter" / ADAPTER).is_file():
        raise UserError(
            f"{source}: has no adapter/{ADAPTER}, so no LoRA to keep; it lies beside a model that was trained with "
            "lora, or converted with --lora keep"
        )
    return source / "adapter"


def write_lora(
    source: Path, folder: Path, adapters: Mapping[str, Adapter], trained: Mapping[str, torch.Tensor]
) -> None:
    """The three files of a LLaVA LoRA folder beside its config.json, with the names that its training leaves."""
    before = source / RECORD / ADAPTER
    if before.is_file():
        shutil.copy(before, folder)
    else:
        (folder / ADAPTER).write_text(json.dumps(peft_config(adapter_in(source), adapters), indent=2), encoding="utf-8")
    torch.save(peft_halves(adapters), folder / "adapter_model.bin")
    torch.save({f"base_model.model.{name}": tensor for name, tensor in trained.items()}, folder / TRAINED)


def copy_words(source: Path, folder: Path, say: Callable[[str], None]) -> None:
    """The small files that came in, to the byte; or else our tokenizer as it is: `<image>` stays in it, which LLaVA's
    code never looks up, since it cuts the text there."""
    came_in = (source / RECORD / "config.json").is_file()
    place = source / RECORD if came_in else source
    for name in (*WORDS, "generation_config.json", *(["config.json"] if came_in else [])):
        if (place / name).is_file():
            shutil.copy(place / name, folder)
    if not (folder / "tokenizer.model").is_file():
        say("there is no tokenizer.model; LLaVA's loader must be told use_fast=True")
