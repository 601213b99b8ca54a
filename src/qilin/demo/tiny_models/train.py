"""Two small pre-trained parts made from a dataset's own training split, where no hub can be reached.

In: a dataset folder. Out: `parts/vision` (a ViT in CLIP's form) and `parts/language` (a Llama and its tokenizer),
ordinary Hugging Face folders that are from then on loaded exactly as models of a hub are. The language model learns to
say the training texts; the ViT learns from captions, or (label supervision, said so in part.json) from training
answers.
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
from qilin.demo.config import PartsConfig
from qilin.demo.tiny_models.background import Tell, beside
from qilin.demo.tiny_models.language_model import (
    CPU,
    WARMUP,
    Reader,
    learn,
    make_language,
    make_words,
    readings_of,
    write_note,
)
from qilin.demo.tiny_models.text_corpus import TextExample
from qilin.demo.tiny_models.vision_objectives import HEADS, TAUGHT_BY
from qilin.imaging.augment import augment
from qilin.model.processing import PixelCache
from qilin.train.flops import fast_precision
from qilin.train.model_setup import arithmetic
from qilin.train.optimizer import Learning, make_optimizer, rate_share, set_rates
from qilin.train.packed_attention import VISION


def make_parts(data: Path, out: Path, config: PartsConfig, texts: Sequence[TextExample] = ()) -> None:
    """Train both parts on the training split of `data`, the language model on `texts` too; each finished folder is
    left alone on a second run. On more than one core both are trained at once where the vision encoder needs no more
    than the tokenizer; the result is the same."""
    language, vision = (not (out / name / "part.json").is_file() for name in ("language", "vision"))
    at_once = language and vision and config.vision.objectives == ("words",) and (os.cpu_count() or 1) > 1
    precision = fast_precision(CPU)  # for both, and before anything random: it is measured
    with ExitStack() as stack:
        bar = stack.enter_context(ProgressBars())
        if language:
            text_examples = [*readings_of(list(open_dataset(data).samples("train"))), *texts]
            make_words(text_examples, out / "language", config.language)
        if at_once:
            stack.enter_context(beside(make_vision, (data, out, config, precision), told_on(bar, "vision encoder")))
        if language:
            tell = told_on(bar, "language model")
            make_language(text_examples, len(texts), out / "language", config.language, config.seed, precision, tell)
        if vision and not at_once:
            make_vision(data, out, config, precision, told_on(bar, "vision encoder"))


def told_on(bar: ProgressBars, title: str) -> Tell:
    """A line of the bar that says how far a part is."""
    task = bar.add_task(title, total=None, figure="")
    return lambda done, steps, loss: bar.update(task, completed=done, total=steps, figure=f"loss {loss:.3f}")


def make_vision(data: Path, out: Path, config: PartsConfig, precision: str, tell: Tell) -> None:
    """A small CLIP ViT trained on the training images, with the language model, or its tokenizer, as the reader of
    texts."""
    part, seed = config.vision, config.seed
    dataset = open_dataset(data)
    samples = list(dataset.samples("train"))
    torch.manual_seed(seed)
    model_config = CLIPVisionConfig(
        hidden_size=part.width,
        intermediate_size=part.width * 4,
        num_hidden_layers=part.layers,
        num_attention_heads=part.heads,
        image_size=part.image_size,
        patch_size=part.patch_size,
        initializer_range=0.02,
    )
    tower = CLIPVisionModel(model_config)
    start_positions(tower)
    tower.set_attn_implementation(VISION)
    processor = LlavaImageProcessorPil(
        size={"shortest_edge": part.image_size},
        crop_size={"height": part.image_size, "width": part.image_size},
        do_pad=True,
    )
    reader = Reader(out / "language")
    heads: list[Any] = [HEADS[name](samples, reader, part.width) for name in part.objectives]
    images = list(dict.fromkeys(id for head in heads for id in head.images))
    if not images:
        raise UserError(
            f"{dataset.path}: no training image has a text that objectives {' + '.join(part.objectives)!r} can use"
        )
    pixels = PixelCache(processor)
    every = torch.stack([pixels.get(dataset, id) for id in images])
    batches = math.ceil(len(every) / part.batch_size)
    steps = part.num_epochs * batches
    both = nn.ModuleList([tower, *heads])
    learning = [
        Learning(name, p, part.learning_rate, part.weight_decay if p.ndim >= 2 else 0.0)
        for name, p in both.named_parameters()
    ]
    optimizer = make_optimizer(learning, part.optimizer, betas=(0.9, 0.98))
    random = torch.Generator().manual_seed(seed)
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(len(every), generator=random)
        rows = order[step % batches :: batches]
        set_rates(optimizer, rate_share("cosine", step, steps, math.ceil(WARMUP * steps)))
        changed = augment(every[rows], part.augment, random)
        with arithmetic(precision, CPU):
            features = used_features(tower(pixel_values=changed, output_hidden_states=True))
        chosen = [images[row] for row in rows.tolist()]
        loss = torch.stack([head(features.float(), chosen, random) for head in heads]).sum()
        learn(both, optimizer, loss)
        tell(step + 1, steps, loss.item())
    tower.save_pretrained(out / "vision")
    processor.save_pretrained(out / "vision")
    taught = "; ".join(TAUGHT_BY[name] for name in part.objectives)
    write_note(out / "vision", {"trained_on": taught, "settings": to_dict(part)})


@torch.no_grad()
def start_positions(tower: Any) -> None:
    """Let the position embeddings begin as sines and cosines of row and column (as ViTs trained on little data often
    do): without it, where a finding lies was hardly learnt in the minutes that a demo has."""
    get_finding = dict(tower.named_parameters())
    table = next(
        p for name, p in get_finding.items() if name.endswith("position_embedding.weight")
    )  # (1 + side², width)
    side, width = round((len(table) - 1) ** 0.5), table.shape[1]
    waves = torch.exp(-math.log(100.0) * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * waves  # (side, width / 4)
    one = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    grid = torch.cat([one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)], dim=-1)
    table[1:].copy_(grid.reshape(side * side, -1) * 0.5)


def used_features(seen: Any) -> torch.Tensor:
    """The features a Llava will use, (P, patches, width): the layer before the last, without the class token; the
    last layer's are added so that it learns too."""
    return seen.hidden_states[-2][:, 1:] + 0.0 * seen.last_hidden_state.sum()
