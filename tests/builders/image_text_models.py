"""Tiny image-text models of today's architectures with random weights, in the layout of released checkpoints.

In: a folder and the name of an architecture. Out: a Hugging Face folder with config, weights, tokenizer, chat template,
image processor and the video processor's settings, which Qilin must not need.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText

from builders.tiny import TEXTS

WIDTH = 32
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "vision_use_head": False,
    "initializer_range": 0.2,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_heads": 4,
    "patch_size": 8,
    "out_hidden_size": WIDTH,
    "initializer_range": 0.2,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 8,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": 32 * 32,
    "max_pixels": 64 * 64,
}


def chatml(image: str, system: str = "", start: str = "<|im_start|>") -> str:
    """A ChatML template without `{% generation %}`, as released checkpoints have it."""
    head = f"<|im_start|>system\\n{system}<|im_end|>\\n" if system else ""
    return (
        f"{{{{- '{head}' -}}}}"
        "{%- for message in messages -%}"
        f"{{{{- '{start}' + message['role'] + '\\n' -}}}}"
        "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
        "{%- for part in message['content'] -%}"
        f"{{%- if part['type'] == 'image' -%}}{{{{- '{image}' -}}}}"
        "{%- else -%}{{- part['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
        "{{- '<|im_end|>\\n' -}}{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- '{start}assistant\\n' -}}}}{{%- endif -%}}"
    )


QWEN_TEMPLATE = chatml("<|vision_start|><|image_pad|><|vision_end|>", "You are a helpful assistant.")
GEMMA_TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}"
    "{{- '<start_of_turn>' + message['role'].replace('assistant', 'model') + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<start_of_image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<end_of_turn>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)
QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
SMOL_TOKENS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"] + [
    f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)
]
# name -> model type, config, ids of tokens in the config, tokens, named tokens, processor, images, template
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2.5-vl": {
        "config": {
            "model_type": "qwen2_5_vl",
            "text_config": {**TEXT, "rope_parameters": MROPE},
            "vision_config": {**QWEN_VISION, "window_size": 32, "fullatt_block_indexes": [1]},
        },
        "ids": QWEN_IDS,
        "tokens": QWEN_TOKENS,
        "processor": {"processor_class": "Qwen2_5_VLProcessor"},
        "images": QWEN_IMAGES,
        "video": "Qwen2VLVideoProcessor",
        "template": QWEN_TEMPLATE,
    },
    "qwen3-vl": {
        "config": {
            "model_type": "qwen3_vl",
            "text_config": {**TEXT, "rope_parameters": MROPE},
            "vision_config": {**QWEN_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        },
        "ids": QWEN_IDS,
        "tokens": QWEN_TOKENS,
        "processor": {"processor_class": "Qwen3VLProcessor"},
        "images": QWEN_IMAGES,
        "video": "Qwen3VLVideoProcessor",
        "template": QWEN_TEMPLATE,
    },
    "internvl": {
        "config": {
            "model_type": "internvl",
            "text_config": {"model_type": "qwen2", **TEXT},
            "vision_config": {
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": [32, 32],
                "patch_size": [8, 8],
                "initializer_range": 0.2,
            },
            "image_seq_length": 4,
            "tie_word_embeddings": False,
        },
        "ids": {"image_token_id": "<IMG_CONTEXT>"},
        "tokens": ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
        "named": {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        "processor": {"processor_class": "InternVLProcessor", "image_seq_length": 4},
        "images": {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 32, "width": 32},
            "max_patches": 4,
        },
        "video": "InternVLVideoProcessor",
        "template": chatml("<IMG_CONTEXT>\\n"),
    },
    "gemma3": {
        "config": {
            "model_type": "gemma3",
            "text_config": {**TEXT, "query_pre_attn_scalar": 8, "sliding_window": 24, "num_hidden_layers": 3,
                            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
            "vision_config": SIGLIP,
            "mm_tokens_per_image": 4,
        },
        "ids": {
            "image_token_index": "<image_soft_token>",
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        "tokens": ["<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
                   "<image_soft_token>"],
        "named": {
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        "bos": "<bos>",
        "end": "<end_of_turn>",
        "processor": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
        "images": {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 32, "width": 32}},
        "template": GEMMA_TEMPLATE,
    },
    "llava-onevision": {
        "config": {
            "model_type": "llava_onevision",
            "text_config": {"model_type": "qwen2", **TEXT},
            "vision_config": SIGLIP,
            "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32], [64, 64]],
        },
        "ids": {"image_token_index": "<image>", "video_token_index": "<video>"},
        "tokens": ["<image>", "<video>"],
        "processor": {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 16,
            "vision_feature_select_strategy": "full",
        },
        "images": {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": 32, "width": 32},
            "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32], [64, 64]],
        },
        "video": "LlavaOnevisionVideoProcessor",
        "template": chatml("<image>\\n"),
    },
    "smolvlm": {
        "config": {
            "model_type": "smolvlm",
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {
                "hidden_size": WIDTH,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
                "initializer_range": 0.2,
            },
            "scale_factor": 2,
        },
        "ids": {"image_token_id": "<image>"},
        "tokens": SMOL_TOKENS,
        "processor": {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
        "images": {
            "image_processor_type": "SmolVLMImageProcessor",
            "size": {"longest_edge": 64},
            "max_image_size": {"longest_edge": 32},
        },
        "video": "SmolVLMVideoProcessor",
        "template": chatml("<image>"),
    },
}  # fmt: skip
# of the same parts as another one; only training is tried with it
MIXTURE = ARCHITECTURES["qwen3-vl"] | {
    "config": {
        "model_type": "qwen3_vl_moe",
        "text_config": {**TEXT, "rope_parameters": MROPE, "num_experts": 4, "num_experts_per_tok": 2,
                        "moe_intermediate_size": 32},
        "vision_config": ARCHITECTURES["qwen3-vl"]["config"]["vision_config"],
    },
}  # fmt: skip
ARCHITECTURES["idefics3"] = ARCHITECTURES["smolvlm"] | {
    "config": ARCHITECTURES["smolvlm"]["config"] | {"model_type": "idefics3"},
    "processor": {"processor_class": "Idefics3Processor", "image_seq_len": 4},
    "images": ARCHITECTURES["smolvlm"]["images"] | {"image_processor_type": "Idefics3ImageProcessor"},
    "video": None,
}


def parts_of(name: str) -> dict[str, Any]:
    return MIXTURE if name == "qwen3-vl-moe" else ARCHITECTURES[name]


def image_text_model(folder: Path, name: str, **generation: Any) -> Path:
    """A complete checkpoint. `generation` goes into its generation_config.json."""
    parts = parts_of(name)
    end = parts.get("end", "<|im_end|>")
    tokenizer = write_processor(folder, name)
    ids = {key: tokenizer.token_to_id(token) for key, token in parts["ids"].items()}
    end_ids = [tokenizer.token_to_id(end), tokenizer.token_to_id("<|endoftext|>")]
    values = {**parts["config"], **ids}
    values["text_config"] = {**values["text_config"], "vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 0}
    values["text_config"] |= {"eos_token_id": end_ids[0], "bos_token_id": tokenizer.token_to_id(parts.get("bos", ""))}
    config = AutoConfig.for_model(**values)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif not parameter.any():  # Gemma 3's projection
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    write_json(folder / "generation_config.json", {"eos_token_id": end_ids, "pad_token_id": 0, **generation})
    return folder


def write_processor(folder: Path, name: str) -> Any:
    """Tokenizer, chat template, image and video processor of an architecture; returns the tokenizer.

    Skips the test where this version of transformers has the image processor for torchvision only: 5.17 does for
    SmolVLM and Idefics3.
    """
    parts = parts_of(name)
    image_processor = parts["images"]["image_processor_type"]
    if hasattr(getattr(transformers, image_processor), "_backends"):
        pytest.skip(f"{image_processor} needs torchvision in transformers {transformers.__version__}")
    folder.mkdir(parents=True)
    tokenizer = write_tokenizer(folder, parts, parts.get("end", "<|im_end|>"))
    write_json(folder / "preprocessor_config.json", parts["images"])
    write_json(folder / "processor_config.json", parts["processor"])
    if parts.get("video"):
        write_json(folder / "video_preprocessor_config.json", {"video_processor_type": parts["video"]})
    (folder / "chat_template.jinja").write_text(parts["template"], encoding="utf-8")
    return tokenizer


def write_tokenizer(folder: Path, parts: dict[str, Any], end: str) -> Any:
    """A byte-level tokenizer with the architecture's special tokens; returns it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *parts["tokens"]]))
    trainer = trainers.BpeTrainer(
        vocab_size=340 + len(special),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": parts.get("bos"),
        "eos_token": end,
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": parts.get("named", {}),
        "model_max_length": 1024,
    }
    write_json(folder / "tokenizer_config.json", settings)
    return tokenizer


def write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
