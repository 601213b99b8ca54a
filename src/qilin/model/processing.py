"""A sample -> ids, mask and pixels, the same for training and for asking.

In: rows of a dataset folder and the model's processor. Out: an Encoded conversation and image tensors, decoded once
and kept in memory up to a limit, since an image is asked about many times.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset
from qilin.dataset.schema import CAPTION_KINDS, Sample, count_images, text_of
from qilin.imaging.decode import to_rgb
from qilin.model.chat_template import Encoded, encode


def with_instruction(sample: Sample, instructions: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """The sample's messages; a caption without a question gets one of `instructions`, the same one every time.

    LLaVA's plain template drops what the user says, so there the instruction changes nothing.
    """
    if not instructions or sample.kind not in CAPTION_KINDS:
        return sample.messages
    first, *rest = sample.messages
    if text_of(first):
        return sample.messages
    text = instructions[int(sample.sample_id.encode().hex(), 16) % len(instructions)]
    return [{"role": "user", "content": [*first["content"], {"type": "text", "text": text}]}, *rest]


def encode_sample(sample: Sample, processor: Any, instructions: Sequence[str] = ()) -> Encoded:
    """A sample -> ids and mask with its images' tokens in place. Raises UserError, naming the sample, where nothing
    is to be learnt or where the text itself holds the image mark."""
    tokenizer = processor.tokenizer
    messages = with_instruction(sample, instructions)
    encoded = encode(messages, tokenizer, processor.chat_template, image_tokens(processor))
    if encoded.images != count_images(messages):
        raise UserError(
            f"sample {sample.sample_id}: {encoded.images} image tokens for {count_images(messages)} images; "
            "does its text hold a literal <image>? remove it"
        )
    if not any(encoded.learn):
        raise UserError(f"sample {sample.sample_id}: nothing to learn: no token of an answer is left in it")
    return encoded


def image_tokens(processor: Any) -> int:
    """How many tokens an image takes, after the processor's own settings."""
    size = processor.image_processor.crop_size
    patches = (size["height"] // processor.patch_size) * (size["width"] // processor.patch_size)
    dropped = processor.vision_feature_select_strategy == "default"
    return patches + processor.num_additional_image_tokens - dropped


class Pixels:
    """The images of datasets as tensors (3, height, width), normalised; the last used are kept, as bytes."""

    def __init__(self, image_processor: Any, limit_bytes: int = 1 << 30) -> None:
        self.image_processor = image_processor
        self.values = values_of(image_processor)
        self.limit_bytes = limit_bytes
        self.kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.bytes = 0

    def get(self, dataset: Dataset, image_id: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """One image. Raises UserError (from imaging) naming the image when its bytes do not decode."""
        if image_id in self.kept:
            self.kept.move_to_end(image_id)
            return self.normalised(self.kept[image_id], dtype)
        pixels = self.cut(to_rgb(dataset.image_bytes(image_id)))
        self.kept[image_id] = pixels
        self.bytes += pixels.nbytes
        while self.bytes > self.limit_bytes and len(self.kept) > 1:
            self.bytes -= self.kept.popitem(last=False)[1].nbytes
        return self.normalised(pixels, dtype)

    def cut(self, image: Any) -> torch.Tensor:
        """A PIL image -> (3, height, width) of bytes: padded, scaled and cropped."""
        found = self.image_processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="np")
        pixels = np.ascontiguousarray(found["pixel_values"][0])
        assert pixels.dtype == np.uint8, f"the image processor scales to {pixels.dtype}, not to bytes"
        return torch.from_numpy(pixels)

    def normalised(self, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(3, height, width) of bytes -> numbers, by looking each value up: exactly what the processor makes of it."""
        channels = zip(self.values.to(dtype), pixels.flatten(1).int(), strict=True)
        return torch.stack([values.index_select(0, places) for values, places in channels]).view(pixels.shape)


def values_of(image_processor: Any) -> torch.Tensor:
    """(3, 256) float32: what the processor makes of each byte in each channel."""
    every = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    as_it_is = {"do_resize": False, "do_center_crop": False, "do_pad": False}
    found = image_processor(images=[every], return_tensors="np", **as_it_is)["pixel_values"][0]
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32)).flatten(1)
