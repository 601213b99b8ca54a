"""Everything of a converted model except its weights: tokenizer, chat template, processor, configs, end tokens.

In: the tokenizer files of a LLaVA checkpoint (a slow tokenizer.model alone is enough) and its config. Out: the files of
a Hugging Face folder beside the weights. A conversation has the same token ids as in LLaVA.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qilin.convert.config import ConvertConfig
from qilin.convert.llava_format import text_model_type
from qilin.convert.weight_files import StoredTensor, TensorReader, TensorToWrite, main_dtype, write_safetensors
from qilin.core.errors import UserError
from qilin.model.chat_template import IMAGE
from qilin.model.saving import add_transformers4_keys, save_processor
from qilin.model.tokenizer import (
    IM_END,
    IM_PATCH,
    IM_START,
    TOKENIZER_FILES,
    add_image_token,
    chat_template_for,
    end_token_ids,
    open_tokenizer,
)

SOURCE_FILES_FOLDER = "llava"  # the source's small files, for converting back
# Embedding tables are padded to multiples of 64 to 512; more padding rows than this indicate a wrong tokenizer.
MAX_PADDING_ROWS = 1024


def load_chat_tokenizer(
    folder: Path, llava_config: Mapping[str, Any], config: ConvertConfig, rows: int
) -> tuple[Any, int | list[int]]:
    """(the tokenizer in `folder` with the tokens that LLaVA adds and its chat template, the ids that end an answer).

    `rows` is the number of rows of the model's embeddings.
    """
    tokenizer = load_tokenizer_files(folder, llava_config)
    size = len(tokenizer) - (IMAGE in tokenizer.get_vocab())  # a tokenizer that Qilin exported still has <image>
    if size > rows:
        raise UserError(
            f"{folder}: its tokenizer has {size:,} tokens and the embeddings {rows:,} rows; they are not of one model"
        )
    # In the order of LLaVA's loader (model/builder.py), which assigns the ids of existing rows.
    if llava_config.get("mm_use_im_patch_token", True):
        tokenizer.add_tokens([IM_PATCH], special_tokens=True)
    if llava_config.get("mm_use_im_start_end", False):
        tokenizer.add_tokens([IM_START, IM_END], special_tokens=True)
    if rows > len(tokenizer) + MAX_PADDING_ROWS:
        raise UserError(
            f"{folder}: its tokenizer has {len(tokenizer):,} tokens and the embeddings {rows:,} rows, more "
            f"than padding explains; is the larger tokenizer of a Chinese model missing?"
        )
    add_image_token(tokenizer, folder)
    tokenizer.chat_template = chat_template_for(tokenizer, config.template, config.system_prompt)
    return tokenizer, end_token_ids(tokenizer, config.template)


def load_tokenizer_files(folder: Path, llava_config: Mapping[str, Any]) -> Any:
    """The tokenizer of a folder whose config.json transformers cannot read: loaded from a copy with another one."""
    files = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not {"tokenizer.model", "tokenizer.json"} & set(files):
        raise UserError(f"{folder}: has no tokenizer (tokenizer.model or tokenizer.json); copy it from the base model")
    with tempfile.TemporaryDirectory() as copy:
        for name in files:
            shutil.copy(folder / name, copy)
        model_config = {"model_type": text_model_type(llava_config, folder / "config.json")}
        (Path(copy) / "config.json").write_text(json.dumps(model_config), encoding="utf-8")
        try:
            return open_tokenizer(copy)
        except (UserError, TypeError, RuntimeError) as error:
            first_line = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
            raise UserError(f"{folder}: its tokenizer does not load ({first_line}); copy {files} again") from None


def write_configs(
    folder: Path,
    stock: Any,
    tokenizer: Any,
    end_ids: int | list[int],
    normalization: Mapping[str, Any],
    pad_square: bool,
    tensors: Sequence[TensorToWrite],
) -> None:
    """Write config, generation config, processor, tokenizer and template of a converted model."""
    from transformers import GenerationConfig, LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    side = stock.vision_config.image_size
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            do_pad=pad_square,
            **normalization,
        ),
        tokenizer=tokenizer,
        patch_size=stock.vision_config.patch_size,
        vision_feature_select_strategy=stock.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=tokenizer.chat_template,
    )
    save_processor(folder, processor)
    stock.architectures = ["LlavaForConditionalGeneration"]
    stock.dtype = main_dtype(tensors)
    stock.pad_token_id = stock.text_config.pad_token_id = tokenizer.pad_token_id
    text_architecture = "LlamaForCausalLM" if stock.text_config.model_type == "llama" else "MistralForCausalLM"
    stock.text_config.architectures = [text_architecture]
    stock.save_pretrained(folder)
    add_transformers4_keys(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_ids,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)


def save_source_files(
    source: Path, tokenizer_folder: Path, folder: Path, rows: int, buffers: Sequence[StoredTensor]
) -> None:
    """Save what converting back needs and the Hugging Face layout lacks: LLaVA's config.json and tokenizer files, and
    buffers of old versions. Also copies tokenizer.model to the folder itself, for llama.cpp."""
    target = folder / SOURCE_FILES_FOLDER
    target.mkdir()
    shutil.copy(source / "config.json", target)
    (target / "rows.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (tokenizer_folder / name).is_file():
            shutil.copy(tokenizer_folder / name, target)
    if (tokenizer_folder / "tokenizer.model").is_file():
        shutil.copy(tokenizer_folder / "tokenizer.model", folder)
    if buffers:
        reader = TensorReader()
        tensors = [TensorToWrite(b.name, b.shape, b.dtype, partial(reader.read, b)) for b in buffers]
        write_safetensors(target / "buffers.safetensors", tensors)
