"""Models without weights, from config.json alone, for estimates.

In: the names of two parts, or of a complete model. Out: a stock Llava on PyTorch's meta device, which has every shape
and takes no memory. For a hub id only config.json is downloaded (some kilobytes).
"""

from typing import Any

import torch
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from qilin.core.errors import UserError
from qilin.model.hub import from_pretrained
from qilin.model.llava import count_image_tokens, make_processor
from qilin.model.processor import open_processor
from qilin.model.tokenizer import load_tokenizer


def load_llava_config(
    vision: str | None, language: str | None, model: str | None, hub: str, feature_layer: int | None
) -> LlavaConfig:
    """The configuration of the Llava that a recipe starts from.

    Does not count the embedding row that `<image>` may add, which depends on the tokenizer. Raises UserError if `model`
    is not a Llava.
    """
    if model is not None:
        model_config = from_pretrained(AutoConfig, model, hub)
        if not isinstance(model_config, LlavaConfig):
            raise UserError(
                f"{model}: model_type in its config.json is {model_config.model_type!r}, expected 'llava'; "
                "convert a checkpoint in LLaVA's layout with qilin convert"
            )
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


def build_meta_model(model_config: LlavaConfig) -> Any:
    """A model on the meta device; sets the config's image_seq_length and vision_feature_select_strategy."""
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(model_config)
        image_tokens, extra_tokens = count_image_tokens(model.model.vision_tower)
    model_config.image_seq_length = image_tokens
    model_config.vision_feature_select_strategy = "default" if extra_tokens else "full"
    return model


def load_processor(
    model_config: LlavaConfig, vision: str | None, language: str | None, model: str | None, hub: str
) -> Any:
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
