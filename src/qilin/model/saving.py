"""Writing a model folder in one layout, that of llava-hf's released checkpoints, whoever made the model.

In: a stock Llava and its processor. Out: a folder which transformers 5 and 4 open, and the servers built on them.
Transformers 5 leaves `vision_model.` out of an encoder's names, writes settings under new names and has the image
settings in the processor's file alone; vLLM and llama.cpp's kind look for what llava-hf has.
"""

import json
from pathlib import Path
from typing import Any

from qilin.convert.weight_files import read_json

# The encoders whose released weights, alone or in a Llava, stand under `vision_model.`.
WRAPPED = ("clip_vision_model", "siglip_vision_model", "siglip2_vision_model")


def save_model(folder: str | Path, model: Any, processor: Any) -> None:
    """Write the weights, config, generation config, processor and tokenizer."""
    wrapped = model.config.vision_config.model_type in WRAPPED
    state = {wrap(name) if wrapped else name: tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    save_processor(folder, processor)
    keep_old_config(folder)


def wrap(name: str) -> str:
    """model.vision_tower.encoder… -> model.vision_tower.vision_model.encoder…, which transformers 5 reads as well."""
    tower, inner = "model.vision_tower.", "model.vision_tower.vision_model."
    return name if not name.startswith(tower) or name.startswith(inner) else name.replace(tower, inner, 1)


def save_processor(folder: str | Path, processor: Any) -> None:
    """Processor, tokenizer and template; the image settings once more where transformers 4 looks for them."""
    processor.save_pretrained(folder)
    images = read_json(Path(folder) / "processor_config.json")["image_processor"]
    write_json(Path(folder) / "preprocessor_config.json", images)
    file = Path(folder) / "tokenizer_config.json"
    words = read_json(file)
    # Transformers 4 fails on a list here, and on a class that came with 5; both read what replaces them.
    extra = [token for token in words.pop("extra_special_tokens", []) if token not in words.values()]
    words["additional_special_tokens"] = extra
    if words.get("tokenizer_class") == "TokenizersBackend":
        words["tokenizer_class"] = "PreTrainedTokenizerFast"
    legacy = getattr(processor.tokenizer, "legacy", None)
    write_json(file, words if legacy is None else words | {"legacy": legacy})


def keep_old_config(folder: str | Path) -> None:
    """Add the names that transformers 4 knows (tried with 4.57.3): it would read a missing rope_theta as 10,000 and say
    nothing."""
    file = Path(folder) / "config.json"
    config = read_json(file)
    text = config["text_config"]
    text["rope_theta"] = (text.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    config["torch_dtype"] = text["torch_dtype"] = config.get("dtype")
    write_json(file, dict(sorted(config.items())))


def write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
