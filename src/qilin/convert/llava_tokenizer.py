"""How a converted model is spoken to: tokenizer, image token, chat template, image settings, and what ends an answer.

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

from qilin.convert.llava_format import family
from qilin.convert.weight_files import Planned, Reader, Weight, largest_kind, write_safetensors
from qilin.core.errors import UserError
from qilin.model.chat_template import IMAGE
from qilin.model.config import ConvertConfig
from qilin.model.saving import keep_old_config, save_processor
from qilin.model.tokenizer import (
    IM_END,
    IM_PATCH,
    IM_START,
    WORDS,
    end_tokens,
    open_tokenizer,
    spoken_template,
    with_image,
)

RECORD = "llava"  # the source's small files, for the way back
SPARE_ROWS = 1024  # tables are padded to multiples of 64 to 512; more spare rows than that mean another tokenizer


@dataclass(frozen=True)
class Speech:
    """A tokenizer with `<image>`, the chat template, and the ids that end an answer."""

    tokenizer: Any
    template: str
    ends: int | list[int]

    @property
    def image_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(IMAGE))


def load_spoken(words: Path, model_config: Mapping[str, Any], config: ConvertConfig, rows: int) -> Speech:
    """The tokenizer in `words`, with the tokens LLaVA adds, for a model of `rows` embeddings."""
    tokenizer = load_tokenizer_files(words, model_config)
    known = len(tokenizer) - (IMAGE in tokenizer.get_vocab())  # one that went out from here still knows <image>
    if known > rows:
        raise UserError(
            f"{words}: its tokenizer has {known:,} tokens and the embeddings {rows:,} rows; they are not of one model"
        )
    # In this order, as LLaVA's loader does (model/builder.py); where the table has rows for them, these are theirs.
    if model_config.get("mm_use_im_patch_token", True):
        tokenizer.add_tokens([IM_PATCH], special_tokens=True)
    if model_config.get("mm_use_im_start_end", False):
        tokenizer.add_tokens([IM_START, IM_END], special_tokens=True)
    if rows > len(tokenizer) + SPARE_ROWS:
        raise UserError(
            f"{words}: its tokenizer has {len(tokenizer):,} tokens and the embeddings {rows:,} rows, more "
            f"than padding explains; is the larger tokenizer of a Chinese model missing?"
        )
    with_image(tokenizer, words)
    template = spoken_template(tokenizer, config.template, config.system)
    return Speech(tokenizer, template, end_tokens(tokenizer, config.template))


def load_tokenizer_files(words: Path, model_config: Mapping[str, Any]) -> Any:
    """The tokenizer of a folder whose config.json transformers cannot read: from a copy without it."""
    present = [name for name in WORDS if (words / name).is_file()]
    if not {"tokenizer.model", "tokenizer.json"} & set(present):
        raise UserError(f"{words}: has no tokenizer (tokenizer.model or tokenizer.json); copy it from the base model")
    with tempfile.TemporaryDirectory() as folder:
        for name in present:
            shutil.copy(words / name, folder)
        kind = {"model_type": family(model_config, words / "config.json")}
        (Path(folder) / "config.json").write_text(json.dumps(kind), encoding="utf-8")
        try:
            return open_tokenizer(folder)
        except (UserError, TypeError, RuntimeError) as error:
            first = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
            raise UserError(f"{words}: its tokenizer does not load ({first}); copy {present} again") from None


def write_speech(
    folder: Path,
    stock: Any,
    speech: Speech,
    colours: Mapping[str, Any],
    pad: bool,
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
    save_processor(folder, processor)
    stock.architectures = ["LlavaForConditionalGeneration"]
    stock.dtype = largest_kind(plan)
    stock.pad_token_id = stock.text_config.pad_token_id = tokenizer.pad_token_id
    stock.text_config.architectures = [
        {"llama": "LlamaForCausalLM"}.get(stock.text_config.model_type, "MistralForCausalLM")
    ]
    stock.save_pretrained(folder)
    keep_old_config(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=speech.ends,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)


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
        write_safetensors(record / "buffers.safetensors", plan)
