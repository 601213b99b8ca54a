"""A model's shape without its weights: what config.json alone tells.

In: the names of two parts, or of a whole model. Out: a stock Llava on PyTorch's meta device: every size is there and no
memory is taken. Of a hub id only config.json is fetched, some kilobytes.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from qilin.core.errors import UserError
from qilin.model.llava import count_image_tokens, from_pretrained, load_tokenizer, make_processor


def shape_of(
    vision: str | None, language: str | None, model: str | None, hub: str, feature_layer: int | None
) -> LlavaConfig:
    """The configuration of the Llava that a recipe begins with.

    The row that `<image>` may add to the vocabulary is left out: only the tokenizer knows of it.
    """
    if model is not None:
        config = from_pretrained(AutoConfig, model, hub)
        if not isinstance(config, LlavaConfig):
            raise UserError(
                f"{model}: its config.json says {config.model_type!r}, expected 'llava'; "
                "bring a checkpoint in LLaVA's layout over with qilin convert"
            )
    else:
        eyes, words = from_pretrained(AutoConfig, vision or "", hub), from_pretrained(AutoConfig, language or "", hub)
        config = LlavaConfig(
            vision_config=getattr(eyes, "vision_config", eyes),
            text_config=words,
            vision_feature_layer=-2,
            tie_word_embeddings=bool(words.tie_word_embeddings),
        )
    if feature_layer is not None:
        config.vision_feature_layer = feature_layer
    return config


def skeleton(config: LlavaConfig) -> Any:
    """A model of this shape on the meta device; config.image_seq_length is set from its encoder."""
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration(config)
        tokens, class_tokens = count_image_tokens(model.model.vision_tower)
    config.image_seq_length = tokens
    config.vision_feature_select_strategy = "default" if class_tokens else "full"
    return model


def processor_of(config: LlavaConfig, vision: str | None, language: str | None, model: str | None, hub: str) -> Any:
    """The processor that a recipe's model would have, without the model, as far as lengths go: neither its template nor
    how it pads images is set. `config` has been through `skeleton`."""
    if model is not None:
        return from_pretrained(AutoProcessor, model, hub)
    class_tokens = int(config.vision_feature_select_strategy == "default")
    return make_processor(
        vision or "", config.vision_config, load_tokenizer(language or "", hub), class_tokens, True, hub
    )
