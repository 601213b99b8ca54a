"""Models without weights, from config.json alone, for estimates.

In: the names of two parts, or of a complete model. Out: a model on PyTorch's meta device, which has every shape and
takes no memory. For a hub id only config.json is downloaded (some kilobytes).
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

from qilin.core.errors import UserError
from qilin.model.architectures import find_architecture
from qilin.model.hub import from_pretrained
from qilin.model.llava import count_image_tokens, make_processor
from qilin.model.processor import open_processor
from qilin.model.tokenizer import load_tokenizer


def load_model_config(
    vision: str | None, language: str | None, model: str | None, hub: str, feature_layer: int | None
) -> Any:
    """The configuration of the model that a recipe starts from.

    Does not count the embedding row that `<image>` may add to a composed Llava, which depends on the tokenizer. Raises
    UserError for an architecture that cannot be trained.
    """
    if model is not None:
        model_config = from_pretrained(AutoConfig, model, hub)
        try:
            architecture = find_architecture(model_config, model)
        except UserError as error:
            raise UserError(f"{error}; convert a checkpoint in LLaVA's layout with qilin convert") from None
        if feature_layer is not None and not isinstance(model_config, LlavaConfig):
            raise UserError(f"feature_layer is {feature_layer}, but {architecture.name} has no such setting")
    else:
        vision_config = from_pretrained(AutoConfig, vision or "", hub)
        text_config = from_pretrained(AutoConfig, language or "", hub)
        model_config = LlavaConfig(
            vision_config=getattr(vision_config, "vision_config", vision_config),
            text_config=text_config,
            vision_feature_layer=-2,
            tie_word_embeddings=bool(text_config.tie_word_embeddings),
        )
    if feature_layer is not None:
        model_config.vision_feature_layer = feature_layer
    return model_config


def build_meta_model(model_config: Any) -> Any:
    """A model on the meta device; sets a Llava config's image_seq_length and vision_feature_select_strategy."""
    with torch.device("meta"):
        if not isinstance(model_config, LlavaConfig):
            return AutoModelForImageTextToText.from_config(model_config)
        model: Any = LlavaForConditionalGeneration(model_config)
        image_tokens, extra_tokens = count_image_tokens(model.model.vision_tower)
    model_config.image_seq_length = image_tokens
    model_config.vision_feature_select_strategy = "default" if extra_tokens else "full"
    return model


def typical_image_tokens(model_config: Any, side: int, max_pixels: int | None) -> int:
    """Tokens of a square image of `side` pixels, as the released processor counts them.

    Gemma 3: of any image; InternVL: with its tiles; Qwen-VL: a token for each square of patches, up to `max_pixels`.
    """
    vision = model_config.vision_config
    if isinstance(model_config, LlavaConfig):
        return int(model_config.image_seq_length)
    if hasattr(model_config, "mm_tokens_per_image"):
        return int(model_config.mm_tokens_per_image)
    if hasattr(model_config, "image_seq_length"):
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

        height, width = vision.image_size
        tiles = GotOcr2ImageProcessorPil(size={"height": height, "width": width})
        return int(
            model_config.image_seq_length * tiles.get_number_of_image_patches(side, side, {"crop_to_patches": True})
        )
    square = vision.patch_size * vision.spatial_merge_size
    side = min(side, int((max_pixels or side**2) ** 0.5))
    return max(1, round(side / square)) ** 2


def load_processor(model_config: Any, vision: str | None, language: str | None, model: str | None, hub: str) -> Any:
    """A processor that gives the lengths of a recipe's model, without the model: its chat template and image padding
    are not set. Requires a config that build_meta_model has completed."""
    if model is not None:
        return open_processor(model, hub)
    encoder: Any = model_config.vision_config
    patches = (encoder.image_size // encoder.patch_size) ** 2
    dropped = int(model_config.vision_feature_select_strategy == "default")
    extra_tokens = model_config.image_seq_length + dropped - patches
    tokenizer = load_tokenizer(language or "", hub)
    return make_processor(vision or "", encoder, tokenizer, extra_tokens, True, hub)
