"""`qilin convert`: LLaVA's layout, or LoRA on it, -> a Hugging Face folder; and back, or to llama.cpp's mmproj.

In: a folder or hub id. Out: a complete new folder. Tensors are streamed, one in memory at a time, so a 13B model
converts on a small machine at the speed of its disk.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qilin import __version__
from qilin.convert.config import ConvertConfig
from qilin.convert.gguf import write_mmproj
from qilin.convert.hf_to_llava import convert_to_llava
from qilin.convert.llava_format import is_llava, is_stock, stock_config
from qilin.convert.llava_to_hf import LlavaCheckpoint, collect_checkpoint, load_vision_config, plan_tensors
from qilin.convert.llava_tokenizer import load_chat_tokenizer, save_source_files, write_configs
from qilin.convert.lora import ADAPTER_CONFIG, merge_peft_adapter, write_peft_adapter
from qilin.convert.output import log, new_folder, write_tensors
from qilin.convert.verify import compare_logits, compare_weights
from qilin.convert.weight_files import list_tensors
from qilin.core.config import to_dict
from qilin.core.errors import UserError
from qilin.core.files import read_json, to_json
from qilin.model.card import describe_bases, read_head, write_card
from qilin.model.chat_template import IMAGE
from qilin.model.hub import fetch_folder
from qilin.model.llava import QILIN_JSON

PROJECTOR_FILE = "mm_projector.bin"


def convert(config: ConvertConfig) -> Path:
    """`qilin convert SRC OUT`. Returns OUT; does nothing if OUT already holds this conversion.

    Raises UserError if SRC is not a supported checkpoint, RunError if the disk is too small or --check finds a
    difference.
    """
    source = Path(fetch_folder(config.source, config.hub))
    layout = detect_layout(source, config)
    source_hash = hash_source(source, config)
    if is_converted(config.out, source_hash):
        log(f"{config.out}: already converted from {config.source}")
        return config.out
    with new_folder(config.out) as folder:
        if config.to == "gguf":
            write_mmproj(source, folder, config)
        elif layout == "stock":
            llava_config = convert_to_llava(source, folder, config)
            if config.check:
                check_llava_logits(source, folder, llava_config)
        elif layout == "stock adapter":
            merge_peft_adapter(source, folder, config)
        else:
            convert_to_hf(source, layout, folder, config)
        write_metadata(folder, config, layout, source_hash, source)
    log(f"{config.out}: done")
    return config.out


def detect_layout(source: Path, config: ConvertConfig) -> str:
    """The layout of SRC: llava, projector, lora, stock or stock adapter. Raises UserError if `to` does not apply."""
    config_file = source / "config.json"
    model_config = read_json(config_file) if config_file.is_file() else {}
    if not isinstance(model_config, dict):
        raise UserError(f"{config_file}: expected a JSON object, found a {type(model_config).__name__}")
    if (source / ADAPTER_CONFIG).is_file() and not is_stock(model_config):
        if config.to != "hf":
            raise UserError(f"{source}: is a LoRA folder; merge it first (--to hf), then convert the result")
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
    has_projector_file = (source / PROJECTOR_FILE).is_file()
    if not model_config:
        hint = f"; LLaVA's stage 1 writes config.json beside {PROJECTOR_FILE}" if has_projector_file else ""
        raise UserError(f"{source}: has no config.json, so it is not a checkpoint{hint}")
    if not is_llava(model_config):
        architecture = (model_config.get("architectures") or [model_config.get("model_type", "an unknown model")])[0]
        raise UserError(f"{config_file}: is of {architecture}, without LLaVA's keys (mm_hidden_size, mm_vision_tower)")
    has_weights = any(source.glob("*model*.safetensors")) or any(source.glob("pytorch_model*.bin"))
    if has_projector_file and not has_weights:
        if config.base is None:
            raise UserError(f"{source}: holds only a projector; name its language model with --base")
        return "projector"
    return "llava"


def convert_to_hf(source: Path, layout: str, folder: Path, config: ConvertConfig) -> None:
    """LLaVA's layout -> stock Llava in `folder`."""
    llava_config = read_json(source / "config.json")
    checkpoint = collect_checkpoint(source, layout, llava_config, config)
    rows = checkpoint.vocab_rows
    vision, normalization = load_vision_config(checkpoint, llava_config, config)
    tokenizer, end_ids = load_chat_tokenizer(checkpoint.tokenizer_folder, llava_config, config, rows)
    stock = stock_config(llava_config, vision, max(rows, len(tokenizer)), source / "config.json")
    stock.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE)
    tensors = plan_tensors(checkpoint, stock, llava_config, config, tokenizer, source)
    write_tensors(folder, tensors, config)
    pad_square = llava_config.get("image_aspect_ratio") == "pad"
    write_configs(folder, stock, tokenizer, end_ids, normalization, pad_square, tensors)
    save_source_files(source, checkpoint.tokenizer_folder, folder, rows, checkpoint.buffers)
    if checkpoint.adapters and config.lora == "keep":
        write_peft_adapter(source, folder, checkpoint.adapters)
    if config.check:
        count = compare_weights(folder, checkpoint)
        difference = compare_logits(folder, checkpoint, llava_config, stock)
        log(f"check: {count} tensors equal bit by bit; logits against LLaVA's: {difference}")


def check_llava_logits(source: Path, folder: Path, llava_config: Mapping[str, Any]) -> None:
    """Compare a folder written for LLaVA, computed as LLaVA does, with the model it was converted from."""
    from transformers import AutoConfig

    checkpoint = LlavaCheckpoint({tensor.name: tensor for tensor in list_tensors(folder)}, folder)
    difference = compare_logits(source, checkpoint, llava_config, AutoConfig.from_pretrained(source))
    log(f"check: logits, computed as in LLaVA, against the model's: {difference}")


def hash_source(source: Path, config: ConvertConfig) -> str:
    """A hash of the source (name, size, first megabyte of every file) and the config."""
    digest = hashlib.sha256()
    for file in sorted(path for path in source.iterdir() if path.is_file()):
        digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
    options = {key: value for key, value in to_dict(config).items() if key not in ("source", "out", "check", "hub")}
    digest.update(json.dumps(options, sort_keys=True).encode())
    return digest.hexdigest()


def is_converted(out: Path, source_hash: str) -> bool:
    """Whether `out` already holds this conversion."""
    file = out / QILIN_JSON
    return file.is_file() and (read_json(file).get("converted") or {}).get("fingerprint") == source_hash


def write_metadata(folder: Path, config: ConvertConfig, layout: str, source_hash: str, source: Path) -> None:
    """Write qilin.json, the model's origin, and for a Hugging Face folder its template and the model card."""
    file = folder / QILIN_JSON
    if config.to != "hf":
        file.write_text(json.dumps({"converted": {"fingerprint": source_hash}}), encoding="utf-8")
        return
    metadata = read_json(file) if file.is_file() else {}
    metadata.pop("adapter", None)  # copied from a base model whose adapter is merged now
    sources = [name for name in (config.base, config.source) if name]
    metadata = {
        "stage": "converted",
        "bases": describe_bases(sources),
        **({} if layout == "stock adapter" else llava_settings(folder, config)),
        **metadata,
        **({"adapter": "adapter"} if (folder / "adapter").is_dir() else {}),
        "converted": {
            "from": config.source,
            "layout": layout,
            "fingerprint": source_hash,
            "settings": to_dict(config),
            "qilin": __version__,
        },
    }
    file.write_text(to_json(metadata), encoding="utf-8")
    write_card(folder, {**metadata, "language": read_head(source).get("language")})  # Chinese if it states none


def llava_settings(folder: Path, config: ConvertConfig) -> dict[str, Any]:
    """The template and image padding of a converted LLaVA; the base of an adapter states its own."""
    processor = read_json(folder / "processor_config.json")
    do_pad = (processor.get("image_processor") or {}).get("do_pad")
    return {"template": config.template, "pad_square": bool(do_pad)}
