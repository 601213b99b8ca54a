"""Samples and images of models whose images have a number of tokens that depends on their size.

In: samples, image sizes and a model's own processor. Out: ids and loss mask with the tokens of each image, positions,
and what the forward needs of each image. The counts follow from the sizes, so no image is decoded to measure a dataset;
an image that turns out to have other tokens is refused.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image

from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset
from qilin.dataset.schema import Sample
from qilin.imaging.augment import augment
from qilin.imaging.decode import to_rgb
from qilin.model.answer_spans import AnswerFormat, encode_answers
from qilin.model.architectures import Architecture
from qilin.model.chat_template import Encoded
from qilin.model.processing import with_instruction
from qilin.model.processor import placeholder_id


class RefusedImage(UserError):
    """The image processor does not take an image of this size."""


@dataclass(frozen=True)
class ImageTokens:
    """What an image becomes in the text: `text` with one token in place of each run of image tokens.

    `runs` are the lengths of these runs; `grid` (rows, columns) arranges the tokens of a model with grid positions.
    """

    text: str
    runs: tuple[int, ...]
    grid: tuple[int, int] | None


@lru_cache(maxsize=100_000)
def image_tokens_of(processor: Any, architecture: Architecture, height: int, width: int) -> ImageTokens:
    """The tokens of an image of this size, by the processor's own rule. Raises RefusedImage for a size it refuses."""
    assert architecture.describe_image is not None, "a Llava's images all have the same tokens"
    try:
        described = architecture.describe_image(processor, height, width)
    except ValueError as error:
        raise RefusedImage(f"the image processor refuses an image of {width} x {height} pixels: {error}") from None
    text = str(processor.replace_image_token(described, 0))
    token = processor.tokenizer.convert_ids_to_tokens(placeholder_id(processor))
    runs = re.compile(f"(?:{re.escape(token)})+")
    grid = None
    if architecture.grid_positions:
        merge = processor.image_processor.merge_size
        _, rows, columns = described["image_grid_thw"][0]
        grid = (rows // merge, columns // merge)
    lengths = tuple(len(run) // len(token) for run in runs.findall(text))
    return ImageTokens(runs.sub(token, text), lengths, grid)


@dataclass(frozen=True)
class SampleEncoder:
    """Encodes samples by the processor and the chat template of a model."""

    processor: Any
    architecture: Architecture
    answer_format: AnswerFormat
    system_prompt: str | None = None  # for conversations without one

    def encode(
        self, sample: Sample, sizes: Sequence[tuple[int, int]], instructions: Sequence[str] = (), seed: int = 0
    ) -> Encoded:
        """A sample and the (height, width) of its images -> ids and loss mask, image tokens included.

        Raises UserError with the sample's id for one that the template changes or that has nothing to learn, and
        RefusedImage.
        """
        messages = [dict(message) for message in with_instruction(sample, instructions, seed)]
        if self.system_prompt and messages[0]["role"] != "system":
            content = [{"type": "text", "text": self.system_prompt}]
            messages.insert(0, {"role": "system", "content": content})
        try:
            images = [image_tokens_of(self.processor, self.architecture, *size) for size in sizes]
            texts = [image.text for image in images]
            encoded = encode_answers(self.processor, self.answer_format, messages, texts)
        except RefusedImage:
            raise
        except UserError as error:
            raise UserError(f"sample {sample.sample_id}: {error}") from None
        grids = tuple(image.grid for image in images if image.grid is not None)
        runs = [length for image in images for length in image.runs]
        return replace(repeat_images(encoded, runs, int(placeholder_id(self.processor) or 0)), grids=grids)


def repeat_images(encoded: Encoded, runs: Sequence[int], image_id: int) -> Encoded:
    """Repeat each image token as often as its run is long."""
    ids: list[int] = []
    mask: list[bool] = []
    remaining = iter(runs)
    for token, supervised in zip(encoded.ids, encoded.loss_mask, strict=True):
        count = next(remaining) if token == image_id else 1
        ids += [token] * count
        mask += [supervised] * count
    return Encoded(ids, mask, encoded.num_images)


def grid_positions(ids: Sequence[int], image_id: int, grids: Sequence[tuple[int, int]]) -> np.ndarray:
    """(3, T) positions in time, row and column: those of text are equal; an image has one time, and the text after it
    continues behind its longer side (transformers' get_rope_index)."""
    parts, position, remaining = [], 0, iter(grids)
    for is_image, run in groupby(ids, lambda token: token == image_id):
        length = sum(1 for _ in run)
        if is_image:
            rows, columns = next(remaining)
            assert rows * columns == length, f"{length} image tokens for a grid of {rows} x {columns}"
            index = np.arange(length)
            parts.append(position + np.stack([np.zeros_like(index), index // columns, index % columns]))
            position += max(rows, columns)
        else:
            parts.append(np.tile(np.arange(position, position + length), (3, 1)))
            position += length
    return np.concatenate(parts, axis=1)


class ImageInputs:
    """What the forward needs of images, by name; the most recently used stay in memory, their pixels as uint8. Several
    threads may decode at once."""

    def __init__(self, processor: Any, architecture: Architecture, limit_bytes: int = 1 << 30) -> None:
        self.processor, self.architecture = processor, architecture
        self.limit_bytes = limit_bytes
        self.entries: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()
        self.bytes = 0
        self.lock = Lock()  # of entries, and of the dataset's files, whose reader is not for several threads

    def get(
        self,
        dataset: Dataset,
        image_id: str,
        size: tuple[int, int],
        amount: float = 0.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> dict[str, torch.Tensor]:
        """One image, augmented by `amount` with `seed`. Raises UserError as `decode` does."""
        if not amount:
            return self.normalize(self.decode(dataset, image_id, size), dtype)
        with self.lock:
            data = dataset.image_bytes(image_id)
        image = augment_image(self.open(data, size), amount, seed, self.processor.image_processor)
        return self.normalize(self.preprocess(image), dtype)

    def decode(self, dataset: Dataset, image_id: str, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        """One image before normalization, from memory if it is there.

        Raises UserError if it does not decode, or if its (height, width) is not `size`, by which its tokens were
        counted.
        """
        with self.lock:
            if image_id in self.entries:
                self.entries.move_to_end(image_id)
                return self.entries[image_id]
            data = dataset.image_bytes(image_id)
        inputs = self.preprocess(self.open(data, size))
        with self.lock:
            if image_id not in self.entries:
                self.entries[image_id] = inputs
                self.bytes += sum(tensor.nbytes for tensor in inputs.values())
            while self.bytes > self.limit_bytes and len(self.entries) > 1:
                self.bytes -= sum(tensor.nbytes for tensor in self.entries.popitem(last=False)[1].values())
        return inputs

    def open(self, data: bytes, size: tuple[int, int]) -> Image.Image:
        image = to_rgb(data)
        if (image.height, image.width) != size:
            raise UserError(f"has {image.width} x {image.height} pixels, but the dataset states {size[1]} x {size[0]}")
        return image

    def blank(self, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], int]:
        """A small black image, and the number of its tokens."""
        image = Image.new("RGB", (64, 64))
        tokens = image_tokens_of(self.processor, self.architecture, image.height, image.width)
        return self.normalize(self.preprocess(image), dtype), sum(tokens.runs)

    def preprocess(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """An image -> the forward's inputs; pixel_values are uint8, not normalized yet."""
        try:
            outputs = self.processor.image_processor(
                images=[image],
                do_rescale=False,
                do_normalize=False,
                return_tensors="np",
                **self.architecture.image_options,
            )
        except ValueError as error:
            raise UserError(f"the image processor refuses it: {error}") from None
        pixels = np.asarray(outputs["pixel_values"])
        assert pixels.min() >= 0, "pixels are those of 8 bits"
        assert pixels.max() <= 255, "pixels are those of 8 bits"
        inputs = {"pixel_values": torch.from_numpy(np.ascontiguousarray(pixels.astype(np.uint8)))}
        for name in self.architecture.image_inputs:
            inputs[name] = torch.from_numpy(np.asarray(outputs[name]))
        return inputs

    def normalize(self, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The inputs with pixels as the image processor normalizes them, to the last bit, by table lookup."""
        table = normalization_table(self.processor.image_processor).to(dtype)  # (3, 256)
        pixels = inputs["pixel_values"]
        flat = pixels.ndim == 2  # patches, (n, 3 * pixels of a channel); else (n, 3, height, width)
        channels = (pixels.unflatten(1, (3, -1)) if flat else pixels).unbind(1)
        values = [row.take(channel.long()) for row, channel in zip(table, channels, strict=True)]
        return inputs | {"pixel_values": torch.stack(values, dim=1).view(pixels.shape)}


@lru_cache(maxsize=8)
def normalization_table(image_processor: Any) -> torch.Tensor:
    """(3, 256) float32: the image processor's output for each value of a byte in each channel."""
    ramp = np.tile(np.arange(256, dtype=np.uint8), (3, 1, 1))  # (3, 1, 256)
    scaled = image_processor.rescale(ramp, image_processor.rescale_factor) if image_processor.do_rescale else ramp
    if image_processor.do_normalize:
        scaled = image_processor.normalize(scaled, image_processor.image_mean, image_processor.image_std)
    return torch.from_numpy(np.ascontiguousarray(scaled, dtype=np.float32))[:, 0]


def augment_image(image: Image.Image, amount: float, seed: int, image_processor: Any) -> Image.Image:
    """An image augmented as a Llava's pixels are: in the scale of normalized values, here before it is resized."""
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) * 255
        for values in (image_processor.image_mean, image_processor.image_std)
    )
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    augmented = augment((pixels - mean) / std, amount, torch.Generator().manual_seed(seed % 2**63)) * std + mean
    return Image.fromarray(augmented[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
