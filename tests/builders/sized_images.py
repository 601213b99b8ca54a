"""A dataset whose images have unequal sizes, for models that keep them, and the losses of plain transformers on it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from builders.image_text_models import image_text_model
from builders.packs import CPU, Gradients, gradients_of
from builders.tiny import tiny_samples
from qilin.dataset.schema import Provenance, Sample
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.imaging.decode import to_rgb
from qilin.model.answer_spans import mark_answers
from qilin.model.architectures import set_trainable
from qilin.model.llava import LoadedModel
from qilin.train.config import TrainConfig, read_recipe
from qilin.train.data_loader import PackedDataset
from qilin.train.loop import pack_loss
from qilin.train.pack import Pack
from qilin.train.packed_attention import Shortcuts, use_packed_attention, use_plain_attention
from qilin.train.plan import PackedGroup, make_plan
from qilin.train.stage import open_data
from qilin.train.start_model import load_start

SIZES = ((40, 56), (72, 40), (33, 90))  # height, width


def unequal_images(seed: int = 0) -> list[bytes]:
    """PNGs of noise, each of its own size."""
    images = []
    for index, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng([seed, index]).integers(0, 256, (height, width, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append(buffer.getvalue())
    return images


def unequal_dataset(folder: Path, splits: Sequence[str] = ("train",)) -> Path:
    """Captions, questions, a chat, a text and a sample with two images, about images of unequal sizes."""
    with DatasetWriter(folder, {"importer": "tiny"}) as writer:
        for number, split in enumerate(splits):
            images = unequal_images(number)
            records = [make_image(data, [Provenance("tiny", f"{split}-{i}")]) for i, data in enumerate(images)]
            for record in records:
                writer.add_image(record)
            for sample in tiny_samples(split, [record.image_id for record in records], 2, extras=True):
                assert writer.add_sample(split, sample), sample.sample_id
    return folder


@dataclass(frozen=True)
class Setting:
    """A tiny model of an architecture, its data, and one step of all samples in packs."""

    loaded: LoadedModel
    data: PackedDataset
    packs: list[Pack]
    groups: list[list[PackedGroup]]  # of each pack


def make_setting(folder: Path, name: str, *options: str) -> Setting:
    """Writes the model and the dataset into `folder` where they are missing."""
    model, dataset = folder / name, folder / "data"
    if not model.exists():
        image_text_model(model, name)
    if not dataset.exists():
        unequal_dataset(dataset)
    config = recipe(model, dataset, *options)
    loaded = load_start(config)
    loaded.model.eval()
    set_trainable(loaded.model, ("vision", "projector", "language"))
    data = open_data(config, loaded)
    plan = make_plan(
        data.lengths, [1.0] * len(data.sources), batch_size=1000, num_epochs=1, pack_tokens=config.pack_tokens, seed=0
    )
    groups = plan.packs(0)[0]
    return Setting(loaded, data, [data.make_pack(of_pack, CPU, torch.float32) for of_pack in groups], groups)


def packed(setting: Setting, packs: Sequence[Pack], one_by_one: bool = False) -> tuple[float, Gradients]:
    """The loss of packs and its gradients."""
    model = setting.loaded.model
    use_packed_attention(model, Shortcuts(last_layer=not one_by_one, packing=not one_by_one))
    try:
        return gradients_of(model, [lambda p=p: pack_loss(model, p, p.pixels) for p in packs])  # type: ignore[misc]
    finally:
        use_plain_attention(model)


def recipe(model: Path, dataset: Path, *options: str) -> TrainConfig:
    keys = {option.split("=")[0] for option in options}
    usual = (f"model={model}", f"data={dataset}", "precision=fp32", "device=cpu", "max_length=400", "pack_tokens=500",
             "kinds=[]", "augment=0", "instructions=[]", "kind_weights={}")  # fmt: skip
    return read_recipe("small/instruct", [option for option in usual if option.split("=")[0] not in keys] + [*options])


def plain_loss(setting: Setting, number: int) -> torch.Tensor:
    """(S,) losses of a sample's supervised tokens by plain transformers: ids, pixels and the rest from the model's own
    processor, and which tokens are supervised by their characters."""
    processor, encoder = setting.loaded.processor, setting.data.encoder
    assert encoder is not None
    sample: Sample = setting.data.sample(number)
    images = [to_rgb(setting.data.dataset_of(number).image_bytes(image_id)) for image_id in sample.image_ids]
    marked = mark_answers(processor, encoder.answer_format, sample.messages)
    has_bos = processor.tokenizer.bos_token and marked.text.startswith(processor.tokenizer.bos_token)
    inputs = processor(
        text=[marked.text], images=[images] if images else None, return_tensors="pt", add_special_tokens=not has_bos
    )
    encoded, _ = setting.data.encode(number, sample)
    assert encoded is not None
    assert inputs["input_ids"][0].tolist() == encoded.ids
    learned = [i for i, supervised in enumerate(encoded.loss_mask) if supervised]
    spoken = "".join(marked.text[start:end] for start, end in marked.spans)
    assert processor.tokenizer.decode([encoded.ids[i] for i in learned], skip_special_tokens=False) == spoken
    logits = setting.loaded.model(**inputs, use_cache=False).logits[0]
    chances = F.log_softmax(logits[[i - 1 for i in learned]].float(), dim=-1)
    return -chances[range(len(learned)), [encoded.ids[i] for i in learned]]
