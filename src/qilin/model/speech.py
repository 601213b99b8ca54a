"""How a converted model is spoken to: tokenizer, image token, chat template, picture settings, and what ends an answer.

In: the tokenizer files of a LLaVA checkpoint (a slow tokenizer.model alone will do) and its config. Out: the files of
a Hugging Face folder beside the weights. The ids of a conversation are LLaVA's own, token by token.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qilin.errors import UserError
from qilin.model.compose import end_tokens
from qilin.model.llava_layout import IM_END, IM_PATCH, IM_START, family
from qilin.model.settings import ConvertSettings
from qilin.model.shards import Planned, Reader, Weight, largest_kind, read_json, write_shards
from qilin.model.template import IMAGE, chat_template

WORDS = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
RECORD = "llava"  # the source's small files, for the way back
SPARE_ROWS = 1024  # tables are padded to multiples of 64 to 512; more spare rows than that mean another tokenizer


@dataclass(frozen=True)
class Speech:
    """A tokenizer with `<image>`, its id, and the chat template."""

    tokenizer: Any
    image_id: int
    template: str


def load_spoken(words: Path, config: Mapping[str, Any], settings: ConvertSettings, rows: int) -> Speech:
    """The tokenizer in `words`, with the tokens LLaVA adds, for a model of `rows` embeddings."""
    tokenizer = load_tokenizer_files(words, config)
    known = len(tokenizer) - (IMAGE in tokenizer.get_vocab())  # one that went out from here still knows <image>
    if known > rows:
        raise UserError(
            f"{words}: its tokenizer has {known:,} tokens and the embeddings {rows:,} rows; they are not of one model"
        )
    # In this order, as LLaVA's loader does (model/builder.py); where the table has rows for them, these are theirs.
    if config.get("mm_use_im_patch_token", True):
        tokenizer.add_tokens([IM_PATCH], special_tokens=True)
    if config.get("mm_use_im_start_end", False):
        tokenizer.add_tokens([IM_START, IM_END], special_tokens=True)
    if rows > len(tokenizer) + SPARE_ROWS:
        raise UserError(
            f"{words}: its tokenizer has {len(tokenizer):,} tokens and the embeddings {rows:,} rows, more "
            f"than padding explains; is the larger tokenizer of a Chinese model missing?"
        )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # LLaVA pads with unk
    mark = IM_START + IMAGE + IM_END if config.get("mm_use_im_start_end", False) else IMAGE
    template = chat_template(settings.template, settings.system, mark, lead(tokenizer))
    return Speech(tokenizer, int(tokenizer.convert_tokens_to_ids(IMAGE)), template)


def load_tokenizer_files(words: Path, config: Mapping[str, Any]) -> Any:
    """The tokenizer of a folder whose config.json transformers cannot read: from a copy without it."""
    from transformers import AutoTokenizer

    present = [name for name in WORDS if (words / name).is_file()]
    if not {"tokenizer.model", "tokenizer.json"} & set(present):
        raise UserError(f"{words}: has no tokenizer (tokenizer.model or tokenizer.json); copy it from the base model")
    with tempfile.TemporaryDirectory() as folder:
        for name in present:
            shutil.copy(words / name, folder)
        kind = {"model_type": family(config, words / "config.json")}
        (Path(folder) / "config.json").write_text(json.dumps(kind), encoding="utf-8")
        own = read_json(words / "tokenizer_config.json") if "tokenizer_config.json" in present else {}
        # Transformers 4.31, which LLaVA pins, takes `legacy` for true where nothing is said; 5 takes it for false.
        options = {} if "legacy" in own else {"legacy": True}
        if "tokenizer_class" not in own and "tokenizer.json" not in present:
            options["tokenizer_type"] = "llama"  # type: ignore[assignment]
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{words}: its tokenizer does not load ({first}); copy {present} again") from None
    if not tokenizer.is_fast:
        raise UserError(f"{words}: its tokenizer has no fast form, which the answer masks need (character offsets)")
    return tokenizer


def lead(tokenizer: Any) -> str:
    """What the template writes after a special token so that the text there is read as LLaVA read it.

    LLaVA cuts the prompt at `<image>` and tokenizes each piece alone, so each begins as a text does: SentencePiece
    tokenizers put a space before it. A tokenizer that does so after special tokens too (`legacy`) needs nothing; one
    that does so only at the very beginning needs the space written.
    """
    start = tokenizer.bos_token or tokenizer.eos_token

    def pieces(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    if start is None or pieces(start + "A")[1:] == pieces("A"):
        return ""
    return " " if pieces(start + " A")[1:] == pieces("A") else ""


def write_speech(
    folder: Path,
    stock: Any,
    speech: Speech,
    colours: Mapping[str, Any],
    pad: bool,
    settings: ConvertSettings,
    plan: Sequence[Planned],
) -> None:
    """config, generation config, processor, tokenizer and template of a converted model."""
    from transformers import GenerationConfig, LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    tokenizer = speech.tokenizer
    side = stock.vision_config.image_size
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_pad=pad, **colours
        ),
        tokenizer=tokenizer,
        patch_size=stock.vision_config.patch_size,
        vision_feature_select_strategy=stock.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=speech.template,
    )
    tokenizer.chat_template = speech.template
    processor.save_pretrained(folder)
    # Transformers 4, which servers still build on, looks for the picture settings in a file of their own.
    pictures = read_json(folder / "processor_config.json")["image_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures, indent=2), encoding="utf-8")
    stock.architectures = ["LlavaForConditionalGeneration"]
    stock.dtype = largest_kind(plan)
    stock.pad_token_id = stock.text_config.pad_token_id = tokenizer.pad_token_id
    stock.text_config.architectures = [
        {"llama": "LlamaForCausalLM"}.get(stock.text_config.model_type, "MistralForCausalLM")
    ]
    stock.save_pretrained(folder)
    keep_old_names(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_tokens(tokenizer, settings.template),
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)


def keep_old_names(folder: Path) -> None:
    """Add the names that transformers 4 knows, on which servers still build (tried with 4.57.3): it would read a
    missing rope_theta as 10,000 and say nothing, and fail on a list of extra_special_tokens."""
    file = folder / "config.json"
    config = read_json(file)
    text = config["text_config"]
    text["rope_theta"] = (text.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    config["torch_dtype"] = text["torch_dtype"] = config.get("dtype")
    file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    file = folder / "tokenizer_config.json"
    words = read_json(file)
    extra = [token for token in words.pop("extra_special_tokens", []) if token not in words.values()]
    file.write_text(
        json.dumps(words | {"additional_special_tokens": extra}, indent=2, ensure_ascii=False), encoding="utf-8"
    )


def record_source(source: Path, words: Path, folder: Path, rows: int, dropped: Sequence[Weight]) -> None:
    """Keep what the way back needs and the Hugging Face folder has no place for: LLaVA's config.json and tokenizer
    files, and buffers of old versions. A tokenizer.model also stands where llama.cpp looks for it."""
    record = folder / RECORD
    record.mkdir()
    shutil.copy(source / "config.json", record)
    (record / "rows.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    for name in (*WORDS, "generation_config.json"):
        if (words / name).is_file():
            shutil.copy(words / name, record)
    if (words / "tokenizer.model").is_file():
        shutil.copy(words / "tokenizer.model", folder)
    if dropped:
        reader = Reader()
        plan = [Planned(w.name, w.shape, w.kind, lambda w=w: reader.get(w)) for w in dropped]  # type: ignore[misc]
        write_shards(record, plan, 1 << 62, lambda _: None)
        (record / "model.safetensors").rename(record / "buffers.safetensors")
