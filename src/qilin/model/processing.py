"""A sample -> ids, loss mask and pixels, identical in training and inference.

In: rows of a dataset folder and the model's processor. Out: an Encoded conversation and image tensors, each image
decoded once and cached in memory up to a limit, since several questions share an image.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image

from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset
from qilin.dataset.schema import CAPTION_KINDS, Sample, count_images, text_of
from qilin.imaging.decode import to_rgb
from qilin.model.chat_template import Encoded, encode


def with_instruction(sample: Sample, instructions: Sequence[str], seed: int = 0) -> Sequence[Mapping[str, Any]]:
    """The sample's messages; a caption without a question gets one of `instructions`, by a seeded hash of its id.

    LLaVA's plain template drops user text, so there the instruction has no effect.
    """
    if not instructions or sample.kind not in CAPTION_KINDS:
        return sample.messages
    first, *rest = sample.messages
    if text_of(first):
        return sample.messages
    digest = hashlib.sha256(f"{seed} {sample.sample_id}".encode()).digest()
    text = instructions[int.from_bytes(digest[:8], "big") % len(instructions)]
    return [{"role": "user", "content": [*first["content"], {"type": "text", "text": text}]}, *rest]


def encode_sample(sample: Sample, processor: Any, instructions: Sequence[str] = (), seed: int = 0) -> Encoded:
    """A sample -> ids and loss mask, image tokens included. Raises UserError with the sample's id if no token is
    supervised or the text contains the image token."""
    messages = with_instruction(sample, instructions, seed)
    encoded = encode(messages, processor.tokenizer, processor.chat_template, image_tokens(processor))
    if encoded.num_images != count_images(messages):
        raise UserError(
            f"sample {sample.sample_id}: {encoded.num_images} image tokens for {count_images(messages)} images; "
            "does its text contain a literal <image>? remove it"
        )
    if not any(encoded.loss_mask):
        raise UserError(f"sample {sample.sample_id}: no token of an answer, so nothing to train on")
    return encoded


def has_fixed_image_size(processor: Any) -> bool:
    """Whether all images have the same number of tokens by their crop size and patches, as in a Llava."""
    from transformers import LlavaProcessor

    return isinstance(processor, LlavaProcessor)


def image_tokens(processor: Any) -> int:
    """Tokens per image, by the processor's settings."""
    size = processor.image_processor.crop_size
    patches = (size["height"] // processor.patch_size) * (size["width"] // processor.patch_size)
    dropped = processor.vision_feature_select_strategy == "default"
    return patches + processor.num_additional_image_tokens - dropped


class PixelCache:
    """Images of datasets as normalized tensors (3, H, W); the most recently used stay in memory as uint8. Several
    threads may decode at once."""

    def __init__(self, image_processor: Any, limit_bytes: int = 1 << 30) -> None:
        self.image_processor = image_processor
        self.table = normalization_table(image_processor)
        self.limit_bytes = limit_bytes
        self.entries: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.bytes = 0
        self.lock = Lock()  # of entries, and of the dataset's files, whose reader is not for several threads

    def get(self, dataset: Dataset, image_id: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """One image, (3, H, W). Raises UserError (from imaging) with the image's id if its bytes do not decode."""
        return self.normalize(self.decode(dataset, image_id), dtype)

    def decode(self, dataset: Dataset, image_id: str) -> torch.Tensor:
        """One image as uint8 (3, H, W), from memory if it is there; raises as `get`."""
        with self.lock:
            if image_id in self.entries:
                self.entries.move_to_end(image_id)
                return self.entries[image_id]
            data = dataset.image_bytes(image_id)
        pixels = self.preprocess(to_rgb(data))
        with self.lock:
            if image_id not in self.entries:
                self.entries[image_id] = pixels
                self.bytes += pixels.nbytes
            while self.bytes > self.limit_bytes and len(self.entries) > 1:
                self.bytes -= self.entries.popitem(last=False)[1].nbytes
        return pixels

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """A PIL image, padded, resized and cropped -> uint8 (3, H, W)."""
        batch = self.image_processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="np")
        pixels = np.ascontiguousarray(batch["pixel_values"][0])
        assert pixels.dtype == np.uint8, f"the image processor returns {pixels.dtype}, not uint8"
        return torch.from_numpy(pixels)

    def normalize(self, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """uint8 (3, H, W) -> normalized values by table lookup, so equal to the image processor's to the last bit."""
        channels = zip(self.table.to(dtype), pixels.flatten(1).int(), strict=True)
        return torch.stack([values.index_select(0, indices) for values, indices in channels]).view(pixels.shape)


def normalization_table(image_processor: Any) -> torch.Tensor:
    """(3, 256) float32: the image processor's output for each byte value in each channel."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    no_resize = {"do_resize": False, "do_center_crop": False, "do_pad": False}
    values = image_processor(images=[ramp], return_tensors="np", **no_resize)["pixel_values"][0]
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).flatten(1)
