"""Stock Llava -> LLaVA's layout, for code that reads nothing else.

In: a Hugging Face folder, converted or trained by Qilin. Out: safetensors under LLaVA's names and its config.json, or
with lora=keep a LLaVA LoRA folder. A model that came from LLaVA's layout gets back the same bits, names, config and
tokenizer files.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qilin.convert.config import ConvertConfig
from qilin.convert.llava_format import (
    PROJECTOR_PREFIX,
    VISION_PREFIX,
    explain_names,
    llava_config,
    to_llava_name,
)
from qilin.convert.llava_tokenizer import SOURCE_FILES_FOLDER
from qilin.convert.lora import (
    Adapter,
    adapter_folder,
    read_adapters,
    read_merged,
    stock_to_llava_name,
    write_llava_lora,
)
from qilin.convert.output import log, write_tensors
from qilin.convert.weight_files import StoredTensor, TensorReader, TensorToWrite, list_file, list_tensors
from qilin.core.errors import UserError
from qilin.core.files import read_json
from qilin.model.hub import from_pretrained
from qilin.model.llava import QILIN_JSON
from qilin.model.tokenizer import TOKENIZER_FILES

LINEAR_2 = "multi_modal_projector.linear_2."
EMBEDDING = "model.embed_tokens.weight"
VOCAB_TENSORS = (EMBEDDING, "lm_head.weight")


def convert_to_llava(source: Path, folder: Path, config: ConvertConfig) -> dict[str, Any]:
    """Write `source` in LLaVA's layout to `folder`. Returns its config.json."""
    from transformers import AutoConfig

    stock = from_pretrained(AutoConfig, str(source), config.hub)
    metadata = read_json(source / QILIN_JSON) if (source / QILIN_JSON).is_file() else {}
    tensors, reader = list_tensors(source), TensorReader()
    linear = stock.projector_hidden_act == "linear"
    if linear:
        tensors = remove_identity(tensors, reader, source)
    elif stock.projector_hidden_act != "gelu":
        raise UserError(f"{source}: projector_hidden_act is {stock.projector_hidden_act!r}; LLaVA has gelu")
    weights = rename_tensors(tensors, linear, source)
    model_config, rows = make_config(source, weights, stock, config)
    adapters: dict[str, Adapter] = {}
    if config.lora == "keep" or metadata.get("adapter"):
        adapters = {
            stock_to_llava_name(name): adapter for name, adapter in read_adapters(adapter_folder(source)).items()
        }
    if config.lora == "keep":
        prefixes = tuple(non_lora_prefixes(metadata))
        non_lora = {name: reader.read(tensor) for name, tensor in weights.items() if name.startswith(prefixes)}
        write_llava_lora(source, folder, adapters, non_lora)
        log("LLaVA's loader needs the language model of these adapters: --model-base")
    else:
        buffers = source / SOURCE_FILES_FOLDER / "buffers.safetensors"
        weights |= {tensor.name: tensor for tensor in (list_file(buffers) if buffers.is_file() else [])}
        plan = [plan_tensor(reader, name, tensor, rows, adapters.get(name)) for name, tensor in weights.items()]
        write_tensors(folder, plan, config)
    (folder / "config.json").write_text(json.dumps(model_config, indent=2), encoding="utf-8")
    copy_small_files(source, folder)
    return model_config


def non_lora_prefixes(metadata: Mapping[str, Any]) -> list[str]:
    """The parts that were trained in full with the adapters: the projector, and the encoder if the recipe says so."""
    trainable = (metadata.get("recipe") or {}).get("trainable", ())
    return [PROJECTOR_PREFIX, *([VISION_PREFIX] if "vision" in trainable else [])]


def rename_tensors(tensors: list[StoredTensor], linear: bool, source: Path) -> dict[str, StoredTensor]:
    """LLaVA's name -> the tensor. Raises UserError for tensors that LLaVA's layout has no name for."""
    names = {tensor.name: to_llava_name(tensor.name, linear) for tensor in tensors}
    unexpected_keys = sorted(name for name, llava_name in names.items() if llava_name is None)
    if unexpected_keys:
        raise UserError(explain_names(unexpected_keys, [], source))
    return {names[tensor.name] or "": tensor for tensor in tensors}


def make_config(
    source: Path, weights: Mapping[str, StoredTensor], stock: Any, config: ConvertConfig
) -> tuple[dict[str, Any], int]:
    """(LLaVA's config.json, the rows of its embeddings): those of the original checkpoint, or derived from `stock`.

    Qilin's table ends with a row for `<image>` if the original had no free row; LLaVA's own model has no such row.
    """
    original = source / SOURCE_FILES_FOLDER
    table = weights.get(EMBEDDING)
    if table is None:
        raise UserError(explain_names([], [EMBEDDING], source))
    if (original / "config.json").is_file():
        rows_file = original / "rows.json"
        rows = read_json(rows_file)["rows"] if rows_file.is_file() else table.shape[0]
        return read_json(original / "config.json"), int(rows)
    vision_encoder = config.vision or stock.vision_config.name_or_path
    if not vision_encoder:
        raise UserError("LLaVA's code loads the vision encoder by its name; give it with --vision (mm_vision_tower)")
    rows = table.shape[0] - (stock.image_token_index == table.shape[0] - 1)
    processor = read_json(source / "processor_config.json")
    pad_square = bool((processor.get("image_processor") or {}).get("do_pad"))
    return llava_config(stock, pad_square, rows, vision_encoder), rows


def remove_identity(tensors: list[StoredTensor], reader: TensorReader, source: Path) -> list[StoredTensor]:
    """LLaVA's `linear` projector has one layer; stock Llava's second layer must be an identity and is left out."""
    for stored in tensors:
        if stored.name.startswith(LINEAR_2):
            tensor = reader.read(stored)
            identity = torch.eye(*tensor.shape) if tensor.ndim == 2 else torch.zeros_like(tensor)
            if not torch.equal(tensor, identity.to(tensor)):
                raise UserError(f"{source}: {stored.name} is not an identity; LLaVA's linear projector has one layer")
    return [stored for stored in tensors if not stored.name.startswith(LINEAR_2)]


def plan_tensor(
    reader: TensorReader, name: str, stored: StoredTensor, rows: int, adapter: Adapter | None
) -> TensorToWrite:
    """One tensor under LLaVA's name, without the rows that LLaVA's model lacks, its adapter merged."""
    truncated = name in VOCAB_TENSORS and stored.shape[0] > rows

    def load() -> torch.Tensor:
        tensor = read_merged(reader, stored, adapter)
        return tensor[:rows] if truncated else tensor

    return TensorToWrite(name, (rows, *stored.shape[1:]) if truncated else stored.shape, stored.dtype, load)


def copy_small_files(source: Path, folder: Path) -> None:
    """Copy the original checkpoint's small files unchanged; or else Qilin's tokenizer. That still has `<image>`, which
    LLaVA's code never looks up, since it splits the text there."""
    original = source / SOURCE_FILES_FOLDER
    from_llava = (original / "config.json").is_file()
    for name in (*TOKENIZER_FILES, "generation_config.json", *(["config.json"] if from_llava else [])):
        file = (original if from_llava else source) / name
        if file.is_file():
            shutil.copy(file, folder)
    if not (folder / "tokenizer.model").is_file():
        log("there is no tokenizer.model; call LLaVA's loader with use_fast=True")
