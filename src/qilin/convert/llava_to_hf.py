"""The way in: everything a LLaVA checkpoint is made of, gathered under LLaVA's names, and the plan of what to write.

In: a LLaVA folder (or LoRA, or a projector, with their base) and its config. Out: a Gathered (weights not read yet)
and the Planned tensors of a stock Llava, each read, grown or merged when its turn to be written comes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qilin.convert.llava_format import (
    BUFFERS,
    EMBEDDING,
    HEAD,
    TOWER,
    explain_names,
    is_llava,
    to_stock,
    vision_config,
)
from qilin.convert.lora import Adapter, read_adapter, read_trained
from qilin.convert.weight_files import Planned, Reader, Weight, list_file, list_weights, read_json
from qilin.core.errors import UserError
from qilin.model.config import ConvertConfig
from qilin.model.hub import fetch_folder, from_pretrained

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Gathered:
    """A LLaVA model's parts: weights by LLaVA's names, adapters on them, buffers left out, where its words are."""

    weights: dict[str, Weight]
    words: Path  # the folder with the tokenizer
    lora: dict[str, Adapter] = field(default_factory=dict)
    dropped: list[Weight] = field(default_factory=list)
    reader: Reader = field(default_factory=Reader)

    @property
    def rows(self) -> int:
        return self.weights["model.embed_tokens.weight"].shape[0]

    def read(self, name: str) -> torch.Tensor:
        """One tensor as LLaVA would have it, adapters merged."""
        tensor = self.reader.get(self.weights[name])
        return self.lora[name].merged(tensor) if name in self.lora else tensor


def gather(
    source: Path, kind: str, model_config: Mapping[str, Any], config: ConvertConfig, say: Callable[[str], None]
) -> Gathered:
    """Collect a checkpoint's parts. `kind` is llava, lora or projector; the latter two stand on --base."""
    found = (
        Gathered({weight.name: weight for weight in list_weights(source)}, source)
        if kind == "llava"
        else gather_on_base(source, kind, config)
    )
    if "model.embed_tokens.weight" not in found.weights:
        raise UserError(explain_names([], ["model.embed_tokens.weight"], found.words))
    for name in [name for name in found.weights if BUFFERS.search(name)]:
        found.dropped.append(found.weights.pop(name))
    if not any(name.startswith(TOWER) for name in found.weights):
        found.weights |= tower_weights(model_config, config, say)
    return found


def gather_on_base(source: Path, kind: str, config: ConvertConfig) -> Gathered:
    """What was trained apart, on the language model that --base names."""
    assert config.base is not None, "asked for by layout()"
    base = Path(fetch_folder(config.base, config.hub))
    model_config = read_json(base / "config.json")
    if "text_config" in model_config and not is_llava(model_config):
        raise UserError(f"{base}: is in Hugging Face's Llava layout; --base of a LLaVA folder is a language model")
    found = Gathered({weight.name: weight for weight in list_weights(base)}, base)
    if kind == "projector":
        found.weights |= {projector_name(w.name): w for w in list_file(source / "mm_projector.bin")}
        return found
    found.weights |= read_trained(source)
    found.lora = read_adapter(source)
    unknown = sorted(set(found.lora) - set(found.weights))
    if unknown:
        raise UserError(
            f"{source}: adapts {len(unknown)} tensors that {config.base} does not have ({unknown[0]}, …); "
            "is that the base it was trained on?"
        )
    for name, adapter in found.lora.items():
        adapter.fits(found.weights[name], source)
    return found


def projector_name(name: str) -> str:
    """The projector's tensors are saved with or without `model.` before them, by different versions of LLaVA."""
    return name if name.startswith(("model.", "lm_head.")) else "model." + name


def tower_weights(
    model_config: Mapping[str, Any], config: ConvertConfig, say: Callable[[str], None]
) -> dict[str, Weight]:
    """The vision encoder from where it is only named."""
    name = config.vision or model_config.get("mm_vision_tower") or ""
    if not Path(name).is_dir() and (not name or name.startswith(("/", ".", "~")) or name.count("/") != 1):
        raise UserError(
            f"the checkpoint holds no vision encoder and names {name or 'none'!r}, which is not here; "
            "name a folder or hub id with --vision (LLaVA-1.5 and Qilin-Med-VL: openai/clip-vit-large-patch14-336)"
        )
    say(f"vision encoder: {name} (not in the checkpoint itself)")
    found = {}
    for weight in list_weights(Path(fetch_folder(name, config.hub))):
        inner = weight.name.removeprefix("vision_model.")
        if inner.startswith(("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")):
            found[f"{TOWER}vision_model.{inner}"] = weight
    if not found:
        raise UserError(f"{name}: holds no CLIP vision encoder (vision_model.…)")
    return {key: weight for key, weight in found.items() if not BUFFERS.search(key)}


def vision_of(
    found: Gathered, model_config: Mapping[str, Any], config: ConvertConfig, say: Callable[[str], None]
) -> tuple[Any, dict[str, Any]]:
    """(the encoder's config, its image settings: mean and deviation of colours), from --vision, the folder or hub id
    that the checkpoint names, or else the shapes of the weights themselves."""
    from transformers import AutoConfig, AutoImageProcessor, CLIPVisionConfig

    inside = all(found.weights[name].file.parent == found.words for name in found.weights if name.startswith(TOWER))
    named = config.vision or model_config.get("mm_vision_tower") or ""
    if config.vision or Path(named).is_dir() or not inside:
        vision = from_pretrained(AutoConfig, named, config.hub)
        vision = getattr(vision, "vision_config", vision)
        if vision.model_type != "clip_vision_model":
            raise UserError(f"{named}: is a {vision.model_type}; LLaVA's layout is read with CLIP encoders only")
        folder = Path(fetch_folder(named, config.hub))
        colours = {}
        if any((folder / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
            own = from_pretrained(AutoImageProcessor, str(folder), config.hub)
            colours = {"image_mean": list(own.image_mean), "image_std": list(own.image_std)}
        return vision, colours
    prefix = TOWER + "vision_model."
    shapes = {
        name.removeprefix(prefix): weight.shape for name, weight in found.weights.items() if name.startswith(TOWER)
    }
    fields = vision_config(shapes, found.words)
    say(
        f"vision encoder: in the checkpoint; settings from its shapes, as OpenAI's CLIP ({fields['num_hidden_layers']} "
        f"layers of {fields['hidden_size']}, {fields['image_size']} pixels in patches of {fields['patch_size']}, "
        f"{fields['num_attention_heads']} heads, quick_gelu); another: --vision"
    )
    return CLIPVisionConfig(**fields), {}


def disk_names(stock: Any) -> dict[str, tuple[int, ...]]:
    """What a stock Llava of this config holds, under llava-hf's names: name -> shape."""
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(stock)
    places = {
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    }
    found = {}
    for name, tensor in model.state_dict().items():
        old = next(prefix for prefix in places if name.startswith(prefix))
        inner = name[len(old) :].removeprefix("vision_model.")
        found[places[old] + inner] = tuple(tensor.shape)
    if stock.tie_word_embeddings:
        found.pop(HEAD, None)
    return found


def plan_weights(
    found: Gathered, stock: Any, model_config: Mapping[str, Any], config: ConvertConfig, tokenizer: Any, source: Path
) -> list[Planned]:
    """Every tensor to be written. Raises UserError for strangers, gaps, wrong shapes and wrong kinds of number."""
    linear = model_config.get("mm_projector_type", "linear") == "linear"
    expected = disk_names(stock)
    if linear:  # stock Llava has two layers: with an identity for the second, and none between, they are one
        for name in ("weight", "bias"):
            expected.pop(f"multi_modal_projector.linear_2.{name}")
    names = {name: to_stock(name, linear) for name in found.weights}
    if stock.tie_word_embeddings:
        names.pop("lm_head.weight", None)
    strange = sorted(name for name, new in names.items() if new is None or new not in expected)
    known = {new: old for old, new in names.items() if new is not None and new in expected}
    missing = sorted(set(expected) - set(known))
    if strange or missing:
        raise UserError(explain_names(strange, missing, source))
    plan = [
        plan_one(found, old, new, expected[new], config, tokenizer, source)
        for old, new in names.items()
        if new is not None
    ]
    if linear:
        first = next(row for row in plan if row.name == "multi_modal_projector.linear_1.weight")
        width, kind = first.shape[0], first.kind
        name = "multi_modal_projector.linear_2."
        plan.append(Planned(name + "weight", (width, width), kind, lambda: torch.eye(width, dtype=kind)))
        plan.append(Planned(name + "bias", (width,), kind, lambda: torch.zeros(width, dtype=kind)))
    return plan


def plan_one(
    found: Gathered,
    old: str,
    new: str,
    shape: tuple[int, ...],
    config: ConvertConfig,
    tokenizer: Any,
    source: Path,
) -> Planned:
    """One tensor: as it is, adapters merged (unless kept apart), rows added for new tokens."""
    weight = found.weights[old]
    if weight.kind not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise UserError(f"{weight.file}: {weight.name} is of {weight.kind}; expected unquantised fp32, fp16 or bf16")
    grows = new in (EMBEDDING, HEAD) and weight.shape[0] < shape[0] and weight.shape[1:] == shape[1:]
    if weight.shape != shape and not grows:
        raise UserError(
            f"{weight.file}: {weight.name} is {list(weight.shape)}; its config.json makes it {list(shape)}"
            + ("; does the tokenizer belong to it?" if new in (EMBEDDING, HEAD) else "; are they of one upload?")
        )
    merge = config.lora == "merge"

    def make() -> torch.Tensor:
        tensor = found.read(old) if merge else found.reader.get(weight)
        return grown(tensor, shape[0], tokenizer.bos_token_id, new == HEAD) if grows else tensor

    kind = DTYPES.get(config.dtype, weight.kind if weight.kind != torch.float64 else torch.float32)
    return Planned(new, shape, kind, make)


def grown(tensor: torch.Tensor, rows: int, like: int | None, head: bool) -> torch.Tensor:
    """Rows for tokens that LLaVA's vocabulary has not.

    `<image>` is never looked up (images take its place), so its embedding is zeros. In the head its row is a copy of
    the beginning-of-sequence token's: equal logits, and of equals the first is taken, so that no answer changes. Zeros
    there would be a logit of 0, which can win.
    """
    more = rows - tensor.shape[0]
    if head and like is not None:
        return torch.cat([tensor, tensor[like].expand(more, -1)])
    return torch.cat([tensor, tensor.new_zeros(more, tensor.shape[1])])
