"""Tiny Qwen2.5-VL and Qwen3-VL models in the layout of their releases, for the comparison with other trainers.

Inputs: a folder and a model_type. Output: a model folder with random weights. Its template is ChatML without a system
prompt; GENERATION_TEMPLATE marks the answers, for trainers that read marks.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from qilin.demo.tiny_models.tokenizer import train_tokenizer

END = "<|im_end|>"
MARKED = "marked_template.jinja"  # beside the model, for the trainers that read marks
TOKENS = ("<|endoftext|>", "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PATCH = {"qwen2_5_vl": 14, "qwen3_vl": 16}
# of 576 tokens each: (rows, columns) of tokens, which are squares of two by two patches
GRIDS = ((24, 24), (18, 32), (32, 18))
# as the releases' templates, without a system prompt
TEMPLATE = """{%- macro text(content) -%}
{%- if content is string -%}{{- content -}}{%- else -%}{%- for part in content -%}
{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- else -%}{{- part['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}BEGIN{{- text(message['content']) + '<|im_end|>' -}}END
{%- else -%}{{- text(message['content']) + '<|im_end|>' -}}{%- endif -%}
{{- '\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
GENERATION_TEMPLATE = TEMPLATE.replace("BEGIN", "{%- generation -%}").replace("END", "{%- endgeneration -%}")
PLAIN_TEMPLATE = TEMPLATE.replace("BEGIN", "").replace("END", "")


def make_qwen(folder: Path, model_type: str, language: dict[str, Any], characters: str) -> Path:
    """A complete checkpoint: 576 tokens for an image of one of `image_sizes`."""
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer(characters)
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in names.items()}
    head_width = language["hidden_size"] // language["num_attention_heads"]
    text = {
        **language,
        "num_key_value_heads": language["num_attention_heads"],
        "head_dim": head_width,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),
        "bos_token_id": None,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections(head_width)},
    }
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 128, "num_heads": 2, "patch_size": PATCH[model_type],
        "spatial_merge_size": 2, "out_hidden_size": language["hidden_size"],
    }  # fmt: skip
    if model_type == "qwen2_5_vl":
        vision |= {"window_size": 112, "fullatt_block_indexes": [1]}
    else:
        vision |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": [0]}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    write_processor(folder, model_type, tokenizer)
    return folder


def sections(head_width: int) -> list[int]:
    """Of the frequencies, those of time, rows and columns: about 1 to 1.5 to 1.5, as in the releases."""
    half = head_width // 2
    return [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]


def make_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """A token for each character, and the release's special tokens."""
    trained = train_tokenizer([characters] * 3, 260 + len(set(characters)))
    return PreTrainedTokenizerFast(
        tokenizer_object=trained.backend_tokenizer,
        eos_token=END,
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in TOKENS if token not in (END, "<|endoftext|>")],
    )


def write_processor(folder: Path, model_type: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Tokenizer, template and settings of images, as the releases have them."""
    tokenizer.chat_template = PLAIN_TEMPLATE
    tokenizer.save_pretrained(folder)
    name = "Qwen2_5_VLProcessor" if model_type == "qwen2_5_vl" else "Qwen3VLProcessor"
    mean_std = (
        ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
        if model_type == "qwen2_5_vl"
        else ([0.5] * 3, [0.5] * 3)
    )
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": name,
        "patch_size": PATCH[model_type],
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 3136, "longest_edge": 12845056},
        "image_mean": mean_std[0],
        "image_std": mean_std[1],
    }
    write_json(folder / "preprocessor_config.json", images)
    video = {"video_processor_type": "Qwen2VLVideoProcessor" if model_type == "qwen2_5_vl" else "Qwen3VLVideoProcessor"}
    write_json(folder / "video_preprocessor_config.json", {**images, **video})
    end, pad = tokenizer.convert_tokens_to_ids([END, "<|endoftext|>"])
    write_json(folder / "generation_config.json", {"eos_token_id": [end, pad], "pad_token_id": pad})
    (folder / "chat_template.jinja").write_text(PLAIN_TEMPLATE, encoding="utf-8")
    (folder / MARKED).write_text(GENERATION_TEMPLATE, encoding="utf-8")


def image_sizes(model_type: str) -> list[tuple[int, int]]:
    """(width, height) in pixels of images that are not resized."""
    square = 2 * PATCH[model_type]
    return [(columns * square, rows * square) for rows, columns in GRIDS]


def write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")
