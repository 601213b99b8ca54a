"""The model that a stage starts from.

In: a recipe. Out: a LoadedModel in fp32 on the host, with the recipe's chat template; nothing is frozen or cast yet.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlavaConfig

from qilin.convert.cache import ensure_hf_layout
from qilin.core.errors import UserError
from qilin.core.files import read_text
from qilin.model.answer_format import answer_format
from qilin.model.architectures import find_architecture
from qilin.model.hub import check_not_quantized, from_pretrained
from qilin.model.llava import LoadedModel, check_feature_layer, compose, load_model, set_template
from qilin.model.own_template import MAX_BYTES
from qilin.model.processor import stop_token_ids
from qilin.model.sized_images import SampleEncoder
from qilin.train.config import TEMPLATE_NAMES, TrainConfig


def load_start(config: TrainConfig) -> LoadedModel:
    """The model a stage starts from: composed of two parts, or an earlier stage's with this stage's template.

    Deterministic, also in what it initializes (the projector, the embedding row of `<image>`).
    """
    torch.manual_seed(config.seed)
    if config.model is None:
        assert config.vision, "checked by TrainConfig"
        assert config.language, "checked by TrainConfig"
        loaded = compose(
            config.vision,
            config.language,
            template=config.template,
            system=config.system_prompt,
            pad_square=config.pad_square,
            hub=config.hub,
        )
    else:
        folder = ensure_hf_layout(config.model, config.hub)
        model_config = from_pretrained(AutoConfig, folder, config.hub)
        find_architecture(model_config, config.model)
        check_not_quantized(config.model, model_config)
        loaded = load_model(folder, device="cpu", dtype="fp32", hub=config.hub)
        if not isinstance(model_config, LlavaConfig):
            return prepare_released(loaded, config)
        set_template(loaded.model, loaded.processor, config.template, config.system_prompt)
        loaded.processor.image_processor.do_pad = config.pad_square
    if config.feature_layer is not None:
        loaded.model.config.vision_feature_layer = config.feature_layer
    check_feature_layer(loaded.model.config)
    refuse_pixel_limits(config, "a Llava")
    return loaded


def prepare_released(loaded: LoadedModel, config: TrainConfig) -> LoadedModel:
    """A released model that is no Llava, with the recipe's template and limits of images.

    It keeps its own template and image processing. Raises UserError for settings that only a Llava has.
    """
    architecture, processor = find_architecture(loaded.model.config), loaded.processor
    check_embeddings(loaded, config.model or loaded.path)
    if config.feature_layer is not None:
        raise UserError(f"feature_layer is {config.feature_layer}, but {architecture.name} has no such setting")
    if config.template not in TEMPLATE_NAMES:
        text = read_text(Path(config.template), "a chat template", MAX_BYTES).rstrip("\r\n")
        processor.chat_template = processor.tokenizer.chat_template = text
    set_pixel_limits(processor, config, architecture.pixel_limits, architecture.name)
    template = config.template if config.template not in TEMPLATE_NAMES else "its own"
    note = f"{architecture.name}: chat template {template}; images as its processor prepares them"
    return replace(loaded, notes=(*loaded.notes, note))


def check_embeddings(loaded: LoadedModel, name: str) -> None:
    """Raise UserError for a tokenizer with more tokens than the model has embeddings."""
    rows, tokens = loaded.model.get_input_embeddings().num_embeddings, len(loaded.processor.tokenizer)
    if tokens > rows:
        raise UserError(
            f"{name}: the tokenizer has {tokens} tokens and the model {rows} embeddings; use the tokenizer that the "
            "model was trained with, or resize the embeddings (model.resize_token_embeddings) before training"
        )


def set_pixel_limits(processor: Any, config: TrainConfig, has_limits: bool, name: str) -> None:
    """Set the recipe's limits of images. Raises UserError for an architecture without them."""
    if not has_limits:
        refuse_pixel_limits(config, name)
        return
    size = dict(processor.image_processor.size)
    low, high = config.min_pixels or size["shortest_edge"], config.max_pixels or size["longest_edge"]
    if low > high:
        raise UserError(
            f"max_pixels is {high}, but images have at least {low} pixels; set min_pixels to at most {high}"
        )
    processor.image_processor.size = {**size, "shortest_edge": low, "longest_edge": high}


def refuse_pixel_limits(config: TrainConfig, name: str) -> None:
    """Raise UserError if the recipe limits the pixels of images."""
    for key in ("min_pixels", "max_pixels"):
        if getattr(config, key) is not None:
            raise UserError(f"{key} is {getattr(config, key)}, but {name} has no such limit; remove it")


def sample_encoder(config: TrainConfig, loaded: LoadedModel) -> SampleEncoder | None:
    """What encodes the samples of a model with its own template; None for a Llava. Raises UserError for a template
    whose answers cannot be told for certain."""
    if isinstance(loaded.model.config, LlavaConfig):
        return None
    stops = stop_token_ids(loaded.model.generation_config, loaded.processor.tokenizer)
    name = config.model or loaded.path
    answers = answer_format(loaded.processor, name, sorted(stops))
    if answers.end_id not in stops:  # else the trained model would go on behind its answers
        loaded.model.generation_config.eos_token_id = sorted({*stops, answers.end_id})
    return SampleEncoder(loaded.processor, find_architecture(loaded.model.config), answers, config.system_prompt)


def sliding_window(model_config: Any) -> int | None:
    """The sliding window of some layers of a released model; of a Llava, longer samples are refused."""
    if isinstance(model_config, LlavaConfig):
        return None
    window = getattr(model_config.text_config, "sliding_window", None)
    return window if isinstance(window, int) and window > 0 else None
