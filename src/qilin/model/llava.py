"""Vision encoder + projector + language model -> stock LlavaForConditionalGeneration; what learns, by part.

In: two Hugging Face folders (or hub ids), or one model folder of an earlier stage. Out: a model and its processor, made
of nothing but transformers' own classes, so that what is saved loads where Qilin was never heard of.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

# By its own module: from the top, transformers 5.17 gives a stand-in that asks for torchvision even where PIL will do.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from qilin.core.errors import UserError
from qilin.model.chat_template import IMAGE
from qilin.model.hub import from_pretrained
from qilin.model.tokenizer import end_tokens, load_tokenizer, spoken_template

CARD = "qilin.json"
# Where each part of a stock Llava lives, by the prefix of its parameter names.
PARTS = {
    "vision": ("model.vision_tower.",),
    "projector": ("model.multi_modal_projector.",),
    "language": ("model.language_model.", "lm_head."),
}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to use: the model, its processor, and what qilin.json says of it ({} for other people's models)."""

    model: Any
    processor: Any
    card: dict[str, Any] = field(default_factory=dict)
    path: str = ""


def compose(
    vision: str, language: str, *, template: str, system: str | None, pad_square: bool, hub: str = "huggingface"
) -> LoadedModel:
    """A new Llava from a vision encoder and a causal language model, each a folder or a hub id; weights in fp32.

    The projector is fresh (two linear layers with GELU between, LLaVA's mlp2x_gelu). Features come from the layer
    before the last; a class token, where the encoder has one, is dropped.
    """
    tower = load_vision(vision, hub)
    tokenizer = load_tokenizer(language, hub)
    model_of_words = from_pretrained(AutoModelForCausalLM, language, hub, dtype=torch.float32)
    tokens, class_tokens = count_image_tokens(tower)
    grow_embeddings(model_of_words, tokenizer)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=model_of_words.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=tokens,
        vision_feature_select_strategy="default" if class_tokens else "full",
        vision_feature_layer=-2,
        tie_word_embeddings=bool(model_of_words.config.tie_word_embeddings),
    )
    with torch.device("meta"):  # the two large parts are put in whole; only the projector needs making
        model = LlavaForConditionalGeneration(config)
    model.model.multi_modal_projector.to_empty(device="cpu")
    for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        linear.reset_parameters()  # PyTorch's own default, as in LLaVA
    model.model.vision_tower = tower
    model.model.language_model = model_of_words.get_decoder()
    model.lm_head = model_of_words.lm_head
    if config.tie_word_embeddings:
        model.tie_weights()
    # Greedy, as we measure: a chat model's own sampling and penalties would go on silently, and some (Llama 2's
    # temperature without do_sample) cannot even be saved again. set_template puts the end tokens in.
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id)
    processor = make_processor(vision, tower.config, tokenizer, class_tokens, pad_square, hub)
    set_template(model, processor, template, system)
    return LoadedModel(model, processor)


def make_processor(
    vision: str, vision_config: Any, tokenizer: Any, class_tokens: int, pad_square: bool, hub: str
) -> LlavaProcessor:
    """The processor of images and text for an encoder and a tokenizer; its template is set by set_template."""
    return LlavaProcessor(
        image_processor=image_processor_for(vision, vision_config.image_size, pad_square, hub),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy="default" if class_tokens else "full",
        num_additional_image_tokens=class_tokens,
        image_token=IMAGE,
    )


def load_model(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    hub: str = "huggingface",
    *,
    bits: int | None = None,
    spread: bool = False,
) -> LoadedModel:
    """A model folder (or hub id) -> Loaded, in eval mode. dtype: auto (bf16 on an accelerator, else fp32), fp32, bf16.

    A checkpoint in LLaVA's own layout is converted once, into a cache. `bits` (8 or 4) makes the language model's
    weights small, `spread` lays the model over all accelerators. Raises UserError where the folder is not an
    image-text model.
    """
    from qilin.convert.run import usable
    from qilin.model.quantization import loading_options

    where = pick_device(device)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(dtype)
    if kind is None:
        kind = torch.float32 if where.type == "cpu" else torch.bfloat16
    path = usable(str(path), hub)
    card_file = Path(path) / CARD
    try:
        card = json.loads(card_file.read_text(encoding="utf-8")) if card_file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{card_file}: not JSON ({error}); copy the model folder again, whole") from None
    if card.get("adapter") and bits is not None:
        raise UserError(
            f"{path}: its adapter cannot be merged into weights of {bits} bits; convert it with --lora merge"
        )
    options = loading_options(bits, kind, where, spread)
    model = from_pretrained(AutoModelForImageTextToText, path, hub, **options).eval()
    if card.get("adapter"):
        model = with_adapter(model, Path(path) / card["adapter"])
    if "device_map" not in options:
        model = model.to(where)
    processor = from_pretrained(AutoProcessor, path, hub)
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise UserError(f"{path}: has no processor for images and text (processor_config.json); copy it whole")
    return LoadedModel(model, processor, card, path)


def with_adapter(model: Any, folder: Path) -> Any:
    """A model of `qilin convert --lora keep`: its weights are the base's, and it is what both make together."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder)).merge_and_unload().eval()


def pick_device(device: str) -> torch.device:
    """auto -> the accelerator if there is one, else the CPU. Raises UserError for a device that is not there."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device == "auto":
        return accelerator or torch.device("cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UserError(f"device is {device!r}; expected auto, cpu, cuda, …") from None
    if found.type not in ("cpu", accelerator.type if accelerator else "cpu"):
        there = f"{accelerator.type} or cpu" if accelerator else "cpu"
        raise UserError(f"device is {device!r}, which this machine does not have; expected {there}")
    return found


def load_vision(name: str, hub: str) -> Any:
    """The vision encoder of any Hugging Face vision or image-text model (CLIP, SigLIP, …), in fp32."""
    config = from_pretrained(AutoConfig, name, hub)
    config = getattr(config, "vision_config", config)
    tower = from_pretrained(AutoModel, name, hub, config=config, dtype=torch.float32)
    for needed in ("patch_size", "image_size", "hidden_size"):
        if not isinstance(getattr(tower.config, needed, None), int):
            raise UserError(f"{name}: its config has no whole number {needed}; expected a ViT such as CLIP or SigLIP")
    return tower


def grow_embeddings(model: Any, tokenizer: Any) -> None:
    """Make room for `<image>` where the vocabulary has none; rows already there (padding of the table) are used."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


@torch.no_grad()
def count_image_tokens(tower: Any) -> tuple[int, int]:
    """(patch tokens an image, class tokens before them), seen from one forward of an empty image."""
    size, patch = tower.config.image_size, tower.config.patch_size
    was_training = tower.training
    tower.eval()
    found = tower(torch.zeros(1, tower.config.num_channels, size, size)).last_hidden_state.shape[1]
    tower.train(was_training)
    patches = (size // patch) ** 2
    if found - patches not in (0, 1):
        raise UserError(
            f"the vision encoder gives {found} tokens for {patches} patches; expected at most one class token besides"
        )
    return patches, found - patches


def image_processor_for(name: str, size: int, pad_square: bool, hub: str) -> Any:
    """LLaVA's image processor with the encoder's own size and colours: pad to a square (or crop), resize, normalise."""
    own = None
    if any((Path(name) / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")) or (
        not Path(name).is_dir()
    ):
        own = from_pretrained(AutoImageProcessor, name, hub)
    colours = {"image_mean": own.image_mean, "image_std": own.image_std} if own is not None else {}
    return LlavaImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_center_crop=True,
        do_pad=pad_square,
        **colours,
    )


def set_template(model: Any, processor: Any, template: str, system: str | None) -> None:
    """Give model and processor the conversation style of their stage: the template and what ends an answer."""
    tokenizer = processor.tokenizer
    processor.chat_template = tokenizer.chat_template = spoken_template(tokenizer, template, system)
    model.generation_config.eos_token_id = end_tokens(tokenizer, template)
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def part_of(name: str) -> str:
    """Which part a parameter belongs to, by its full name."""
    for part, prefixes in PARTS.items():
        if name.startswith(prefixes):
            return part
    raise AssertionError(f"parameter {name} belongs to no part of a Llava")


def set_trainable(model: Any, learn: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Let exactly the named parts have gradients. Returns part -> (parameters that learn, parameters)."""
    counts = {part: [0, 0] for part in PARTS}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parameter.requires_grad_(part in learn)
        counts[part][0] += parameter.numel() * (part in learn)
        counts[part][1] += parameter.numel()
    return {part: (mine, all_) for part, (mine, all_) in counts.items()}
