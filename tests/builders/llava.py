"""Tiny checkpoints in LLaVA's layout, with the keys, shards and config fields of released ones.

In: a folder. Out: the files of williamliu/Qilin-Med-VL (3 .bin shards with an index, LLaVA's config.json with a
nonexistent encoder path, a tokenizer.model and no tokenizer.json) at width 64 instead of 5120. Options give variants.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from builders.tiny import TEXTS

WIDTH, LAYERS, HEADS, INTERMEDIATE = 64, 2, 4, 96
VISION_WIDTH, VISION_LAYERS, SIDE, PATCH = 64, 3, 32, 8
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def write_llama_tokenizer(folder: Path, legacy: bool | None = True) -> int:
    """A Llama tokenizer in Meta's form: tokenizer.model and its settings. Returns its size."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join((*TEXTS, SYSTEM) * 10), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=440,
        hard_vocab_limit=False,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    corpus.unlink()
    config: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "model_max_length": 2048}
    config |= {} if legacy is None else {"legacy": legacy}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).vocab_size()


def random_tensor(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * 0.2


def language_tensors(rows: int, kv_heads: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    make = partial(random_tensor, generator)
    kv_width = WIDTH // HEADS * kv_heads
    tensors = {"model.embed_tokens.weight": make(rows, WIDTH)}
    for n in range(LAYERS):
        prefix = f"model.layers.{n}."
        tensors |= {
            f"{prefix}self_attn.q_proj.weight": make(WIDTH, WIDTH),
            f"{prefix}self_attn.k_proj.weight": make(kv_width, WIDTH),
            f"{prefix}self_attn.v_proj.weight": make(kv_width, WIDTH),
            f"{prefix}self_attn.o_proj.weight": make(WIDTH, WIDTH),
            f"{prefix}self_attn.rotary_emb.inv_freq": 10000.0 ** (-torch.arange(0, 16, 2) / 16),
            f"{prefix}mlp.gate_proj.weight": make(INTERMEDIATE, WIDTH),
            f"{prefix}mlp.up_proj.weight": make(INTERMEDIATE, WIDTH),
            f"{prefix}mlp.down_proj.weight": make(WIDTH, INTERMEDIATE),
            f"{prefix}input_layernorm.weight": 1 + make(WIDTH),
            f"{prefix}post_attention_layernorm.weight": 1 + make(WIDTH),
        }
    return tensors | {"model.norm.weight": 1 + make(WIDTH), "lm_head.weight": make(rows, WIDTH)}


def vision_tensors(
    generator: torch.Generator, prefix: str = "model.vision_tower.vision_tower."
) -> dict[str, torch.Tensor]:
    make = partial(random_tensor, generator)
    positions = (SIDE // PATCH) ** 2 + 1
    root = prefix + "vision_model."
    tensors = {
        f"{root}embeddings.class_embedding": make(VISION_WIDTH),
        f"{root}embeddings.position_ids": torch.arange(positions)[None],
        f"{root}embeddings.patch_embedding.weight": make(VISION_WIDTH, 3, PATCH, PATCH),
        f"{root}embeddings.position_embedding.weight": make(positions, VISION_WIDTH),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    for n in range(VISION_LAYERS):
        layer = f"encoder.layers.{n}."
        norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
        shapes = {f"self_attn.{part}_proj": (VISION_WIDTH, VISION_WIDTH) for part in ("q", "k", "v", "out")}
        shapes |= {"mlp.fc1": (2 * VISION_WIDTH, VISION_WIDTH), "mlp.fc2": (VISION_WIDTH, 2 * VISION_WIDTH)}
        for name, (rows, columns) in shapes.items():
            tensors |= {f"{root}{layer}{name}.weight": make(rows, columns), f"{root}{layer}{name}.bias": make(rows)}
    for name in norms:
        tensors |= {f"{root}{name}.weight": 1 + make(VISION_WIDTH), f"{root}{name}.bias": make(VISION_WIDTH)}
    return tensors


def projector_tensors(projector_type: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    make = partial(random_tensor, generator)
    if projector_type == "linear":
        return {"model.mm_projector.weight": make(WIDTH, VISION_WIDTH), "model.mm_projector.bias": make(WIDTH)}
    input_widths = {0: VISION_WIDTH, 2: WIDTH}
    weights = {f"model.mm_projector.{n}.weight": make(WIDTH, width) for n, width in input_widths.items()}
    return weights | {f"model.mm_projector.{n}.bias": make(WIDTH) for n in input_widths}


def llava_config(rows: int, kv_heads: int, **changes: Any) -> dict[str, Any]:
    """config.json of williamliu/Qilin-Med-VL with every field, at small sizes."""
    return {
        "_name_or_path": "models/qilin",
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 4096,
        "mm_hidden_size": VISION_WIDTH,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "/mnt/nobody/models/clip_vit_large",
        "model_type": "llava",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": kv_heads,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.31.0",
        "tune_mm_mlp_adapter": False,
        "use_cache": False,
        "use_mm_proj": True,
        "vocab_size": rows,
    } | changes


def write_bins(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int) -> None:
    """Write .bin files with equal numbers of tensors, and their index if there are several."""
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for n in range(shards):
        shard = names[n * len(names) // shards : (n + 1) * len(names) // shards]
        file = f"pytorch_model-{n + 1:05}-of-{shards:05}.bin" if shards > 1 else "pytorch_model.bin"
        torch.save({name: tensors[name].clone() for name in shard}, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def tiny_llava_checkpoint(
    folder: Path,
    *,
    kv_heads: int = HEADS,
    with_encoder: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    legacy: bool | None = True,
    padding_rows: int = 0,
    shards: int = 3,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """A complete checkpoint. `padding_rows` follow the vocabulary's rows; `changes` apply to config.json."""
    folder.mkdir(parents=True)
    rows = write_llama_tokenizer(folder, legacy) + padding_rows
    generator = torch.Generator().manual_seed(seed)
    tensors = language_tensors(rows, kv_heads, generator)
    tensors |= projector_tensors(changes.get("mm_projector_type", "mlp2x_gelu"), generator)
    if with_encoder:
        tensors |= vision_tensors(generator)
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() and "inv_freq" not in name else tensor
        for name, tensor in tensors.items()
    }
    write_bins(folder, tensors, shards)
    config = llava_config(rows, kv_heads, **changes)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "transformers_version": "4.31.0"}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def read_bins(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the .bin files, in memory: independent of the code under test."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("pytorch_model*.bin")):
        tensors |= torch.load(file, weights_only=True)
    return tensors


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes), encoding="utf-8")


def llava_ids(folder: Path, prompt: str, special_ids: Mapping[str, int], legacy: bool) -> list[int]:
    """LLaVA's tokenization, reimplemented: split at the image, tokenize each piece separately with SentencePiece,
    special tokens first. Text after a special token gets a space only if `legacy` (as in transformers 4.31)."""
    model = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    ids = [model.bos_id()]
    special = {"</s>": model.eos_id(), "<s>": model.bos_id()} | {k: v for k, v in special_ids.items() if k != "<image>"}
    for number, piece in enumerate(prompt.split("<image>")):
        ids += [special_ids["<image>"]] if number else []
        first = True
        while piece:
            position, token = min(((piece.find(m), m) for m in special if m in piece), default=(len(piece), ""))
            text, piece = piece[:position], piece[position + len(token) :]
            if text and (legacy or first):
                ids += model.encode(text)
            elif text:
                ids += model.encode("</s>" + text)[len(model.encode("</s>")) :]
            ids += [special[token]] if token else []
            first = False
    return ids
