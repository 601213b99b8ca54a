"""Trains two tiny models on a dataset's own training split, for machines that cannot reach a model hub.

In: a dataset folder. Out: `parts/vision` (a ViT with CLIP's architecture) and `parts/language` (a Llama with its
tokenizer), ordinary Hugging Face folders that are loaded exactly like hub models. The language model learns the
training texts; the ViT learns from captions, or from training answers (label supervision, recorded in part.json).
"""

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from qilin.core.config import to_dict
from qilin.core.errors import UserError
from qilin.core.progress import ProgressBars
from qilin.dataset.reader import open_dataset
from qilin.demo.config import TinyModelsConfig
from qilin.demo.tiny_models.background import OnStep, run_in_background
from qilin.demo.tiny_models.language_model import (
    CPU,
    WARMUP_RATIO,
    TextEncoder,
    optimizer_step,
    train_language_model,
    write_part_file,
    write_tokenizer,
)
from qilin.demo.tiny_models.text_corpus import TextExample, training_texts
from qilin.demo.tiny_models.vision_objectives import HEADS, SUPERVISION
from qilin.imaging.augment import augment
from qilin.model.processing import PixelCache
from qilin.train.flops import fast_precision
from qilin.train.model_setup import autocast_context
from qilin.train.optimizer import TrainableParam, lr_factor, make_optimizer, set_learning_rates
from qilin.train.packed_attention import VISION


def train_tiny_models(
    data: Path, out: Path, config: TinyModelsConfig, extra_examples: Sequence[TextExample] = ()
) -> None:
    """Train both models on the training split of `data`, the language model on `extra_examples` too.

    A finished model is reused. With several cores both are trained at once, where the vision encoder needs no more than
    the tokenizer; the weights are the same either way.
    """
    language, vision = (not (out / name / "part.json").is_file() for name in ("language", "vision"))
    at_once = language and vision and config.vision.objectives == ("words",) and (os.cpu_count() or 1) > 1
    precision = fast_precision(CPU)  # measured once, for both, before any random number is drawn
    with ExitStack() as stack:
        bars = stack.enter_context(ProgressBars())
        if language:
            examples = [*training_texts(open_dataset(data).stream("train")), *extra_examples]
            write_tokenizer(examples, out / "language", config.language)
        if at_once:
            arguments = (data, out, config, precision)
            on_step = progress_callback(bars, "vision encoder")
            stack.enter_context(run_in_background(train_vision_encoder, arguments, on_step))
        if language:
            on_step = progress_callback(bars, "language model")
            folder, num_extra = out / "language", len(extra_examples)
            train_language_model(examples, num_extra, folder, config.language, config.seed, precision, on_step)
        if vision and not at_once:
            train_vision_encoder(data, out, config, precision, progress_callback(bars, "vision encoder"))


def progress_callback(bars: ProgressBars, title: str) -> OnStep:
    """A callback that shows a model's progress on a bar of its own."""
    task = bars.add_task(title)
    return lambda done, steps, loss: bars.update(task, completed=done, total=steps, figure=f"loss {loss:.3f}")


def train_vision_encoder(data: Path, out: Path, config: TinyModelsConfig, precision: str, on_step: OnStep) -> None:
    """Train a small CLIP ViT on the training images; the language model, or its tokenizer, encodes the texts."""
    vision, seed = config.vision, config.seed
    dataset = open_dataset(data)
    samples = [sample for sample in dataset.stream("train") if sample.image_ids]
    torch.manual_seed(seed)
    encoder = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.hidden_size * 4,
            num_hidden_layers=vision.num_layers,
            num_attention_heads=vision.num_heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            initializer_range=0.02,
        )
    )
    init_position_embeddings(encoder)
    encoder.set_attn_implementation(VISION)
    processor = LlavaImageProcessorPil(
        size={"shortest_edge": vision.image_size},
        crop_size={"height": vision.image_size, "width": vision.image_size},
        do_pad=True,
    )
    text_encoder = TextEncoder(out / "language")
    heads: list[Any] = [HEADS[name](samples, text_encoder, vision.hidden_size) for name in vision.objectives]
    image_ids = list(dict.fromkeys(image_id for head in heads for image_id in head.image_ids))
    if not image_ids:
        raise UserError(
            f"{dataset.path}: no training image has a text for the objectives {' + '.join(vision.objectives)}"
        )
    cache = PixelCache(processor)
    pixels = torch.stack([cache.get(dataset, image_id) for image_id in image_ids])
    batches = math.ceil(len(pixels) / vision.batch_size)
    steps = vision.num_epochs * batches
    model = nn.ModuleList([encoder, *heads])
    optimizer = make_optimizer(
        [
            TrainableParam(name, p, vision.learning_rate, vision.weight_decay if p.ndim >= 2 else 0.0)
            for name, p in model.named_parameters()
        ],
        vision.optimizer,
        betas=(0.9, 0.98),
    )
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(len(pixels), generator=generator)
        rows = order[step % batches :: batches]
        set_learning_rates(optimizer, lr_factor("cosine", step, steps, math.ceil(WARMUP_RATIO * steps)))
        augmented = augment(pixels[rows], vision.augment, generator)
        with autocast_context(precision, CPU):
            features = llava_features(encoder(pixel_values=augmented, output_hidden_states=True))
        batch_ids = [image_ids[row] for row in rows.tolist()]
        loss = torch.stack([head(features.float(), batch_ids, generator) for head in heads]).sum()
        optimizer_step(model, optimizer, loss)
        on_step(step + 1, steps, loss.item())
    encoder.save_pretrained(out / "vision")
    processor.save_pretrained(out / "vision")
    trained_on = "; ".join(SUPERVISION[name] for name in vision.objectives)
    write_part_file(out / "vision", {"trained_on": trained_on, "settings": to_dict(vision)})


@torch.no_grad()
def init_position_embeddings(encoder: Any) -> None:
    """Initialize the position embeddings as sines and cosines of row and column, as is common for ViTs trained on
    little data: without it, locations were hardly learned in the minutes that a demo takes."""
    parameters = dict(encoder.named_parameters())
    table = next(
        p for name, p in parameters.items() if name.endswith("position_embedding.weight")
    )  # (1 + side², width)
    side, width = round((len(table) - 1) ** 0.5), table.shape[1]
    frequencies = torch.exp(-math.log(100.0) * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies  # (side, width / 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    grid = torch.cat([axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)], dim=-1)
    table[1:].copy_(grid.reshape(side * side, -1) * 0.5)


def llava_features(output: Any) -> torch.Tensor:
    """The features that Llava uses, (images, patches, width): the penultimate layer without the class token. The last
    layer is added with weight zero, so that its parameters receive (zero) gradients."""
    return output.hidden_states[-2][:, 1:] + 0.0 * output.last_hidden_state.sum()
