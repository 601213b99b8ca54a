"""Miniature checkpoints in LLaVA's own layout, made here: same keys, shards, config fields as the released ones.

In: a folder. Out: what williamliu/Qilin-Med-VL holds (3 .bin shards with an index, LLaVA's config.json with an encoder
path that points nowhere, a tokenizer.model and no tokenizer.json), 5120 wide made 64. Options make the other kinds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from builders.tiny import TEXTS

WIDTH, LAYERS, HEADS, INNER = 64, 2, 4, 96
EYE, EYE_LAYERS, SIDE, PATCH = 64, 3, 32, 8
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def words(folder: Path, legacy: bool | None = True) -> int:
    """A Llama tokenizer as Meta's: tokenizer.model and its settings. Returns its size."""
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
    own: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "model_max_length": 2048}
    own |= {} if legacy is None else {"legacy": legacy}
    (folder / "tokenizer_config.json").write_text(json.dumps(own), encoding="utf-8")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    return sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).vocab_size()


def language(rows: int, groups: int, random: torch.Generator) -> dict[str, torch.Tensor]:
    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * 0.2

    shared = WIDTH // HEADS * groups
    found = {"model.embed_tokens.weight": make(rows, WIDTH)}
    for n in range(LAYERS):
        at = f"model.layers.{n}."
        found |= {
            f"{at}self_attn.q_proj.weight": make(WIDTH, WIDTH),
            f"{at}self_attn.k_proj.weight": make(shared, WIDTH),
            f"{at}self_attn.v_proj.weight": make(shared, WIDTH),
            f"{at}self_attn.o_proj.weight": make(WIDTH, WIDTH),
            f"{at}self_attn.rotary_emb.inv_freq": 10000.0 ** (-torch.arange(0, 16, 2) / 16),
            f"{at}mlp.gate_proj.weight": make(INNER, WIDTH),
            f"{at}mlp.up_proj.weight": make(INNER, WIDTH),
            f"{at}mlp.down_proj.weight": make(WIDTH, INNER),
            f"{at}input_layernorm.weight": 1 + make(WIDTH),
            f"{at}post_attention_layernorm.weight": 1 + make(WIDTH),
        }
    return found | {"model.norm.weight": 1 + make(WIDTH), "lm_head.weight": make(rows, WIDTH)}


def eye(random: torch.Generator, prefix: str = "model.vision_tower.vision_tower.") -> dict[str, torch.Tensor]:
    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * 0.2

    places = (SIDE // PATCH) ** 2 + 1
    at = prefix + "vision_model."
    found = {
        f"{at}embeddings.class_embedding": make(EYE),
        f"{at}embeddings.position_ids": torch.arange(places)[None],
        f"{at}embeddings.patch_embedding.weight": make(EYE, 3, PATCH, PATCH),
        f"{at}embeddings.position_embedding.weight": make(places, EYE),
    }
    norms = ["pre_layrnorm", "post_layernorm"]
    for n in range(EYE_LAYERS):
        layer = f"encoder.layers.{n}."
        norms += [f"{layer}layer_norm1", f"{layer}layer_norm2"]
        shapes = {f"self_attn.{part}_proj": (EYE, EYE) for part in ("q", "k", "v", "out")}
        for name, (out, into) in (shapes | {"mlp.fc1": (2 * EYE, EYE), "mlp.fc2": (EYE, 2 * EYE)}).items():
            found |= {f"{at}{layer}{name}.weight": make(out, into), f"{at}{layer}{name}.bias": make(out)}
    for name in norms:
        found |= {f"{at}{name}.weight": 1 + make(EYE), f"{at}{name}.bias": make(EYE)}
    return found


def projector(kind: str, random: torch.Generator) -> dict[str, torch.Tensor]:
    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random) * 0.2

    if kind == "linear":
        return {"model.mm_projector.weight": make(WIDTH, EYE), "model.mm_projector.bias": make(WIDTH)}
    layers = {0: EYE, 2: WIDTH}
    found = {f"model.mm_projector.{n}.weight": make(WIDTH, into) for n, into in layers.items()}
    return found | {f"model.mm_projector.{n}.bias": make(WIDTH) for n in layers}


def llava_config(rows: int, groups: int, **changes: Any) -> dict[str, Any]:
    """config.json of williamliu/Qilin-Med-VL, field by field, its sizes made small."""
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
        "intermediate_size": INNER,
        "max_position_embeddings": 4096,
        "mm_hidden_size": EYE,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "/mnt/nobody/models/clip_vit_large",
        "model_type": "llava",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": groups,
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
    names = list(tensors)
    files: dict[str, str] = {}
    for n in range(shards):
        part = names[n * len(names) // shards : (n + 1) * len(names) // shards]
        file = f"pytorch_model-{n + 1:05}-of-{shards:05}.bin" if shards > 1 else "pytorch_model.bin"
        torch.save({name: tensors[name].clone() for name in part}, folder / file)
        files |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": files}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def llava_mini(
    folder: Path,
    *,
    groups: int = HEADS,
    tower: bool = True,
    kind: torch.dtype = torch.bfloat16,
    legacy: bool | None = True,
    spare: int = 0,
    shards: int = 3,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """A whole checkpoint. `spare` rows follow the vocabulary; `changes` go into config.json."""
    folder.mkdir(parents=True)
    rows = words(folder, legacy) + spare
    random = torch.Generator().manual_seed(seed)
    tensors = language(rows, groups, random) | projector(changes.get("mm_projector_type", "mlp2x_gelu"), random)
    if tower:
        tensors |= eye(random)
    tensors = {n: t.to(kind) if t.is_floating_point() and "inv_freq" not in n else t for n, t in tensors.items()}
    write_bins(folder, tensors, shards)
    config = llava_config(rows, groups, **changes)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "transformers_version": "4.31.0"}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def read_bins(folder: Path) -> dict[str, torch.Tensor]:
    """Everything the .bin files hold, in memory: independent of the code under test."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("pytorch_model*.bin")):
        found |= torch.load(file, weights_only=True)
    return found


def llava_ids(folder: Path, prompt: str, image: Mapping[str, int], legacy: bool) -> list[int]:
    """LLaVA's tokenization in our words: cut at the image, each piece tokenized alone by SentencePiece, special
    tokens taken out first; what follows one gets a space before it only in `legacy` (transformers 4.31, slow)."""
    model = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    ids = [model.bos_id()]
    special = {"</s>": model.eos_id(), "<s>": model.bos_id()} | {k: v for k, v in image.items() if k != "<image>"}
    for number, piece in enumerate(prompt.split("<image>")):
        ids += [image["<image>"]] if number else []
        first = True
        while piece:
            at, mark = min(((piece.find(m), m) for m in special if m in piece), default=(len(piece), ""))
            text, piece = piece[:at], piece[at + len(mark) :]
            if text:
                ids += (
                    model.encode(text) if legacy or first else model.encode("</s>" + text)[len(model.encode("</s>")) :]
                )
            ids += [special[mark]] if mark else []
            first = False
    return ids
