"""The pixel cache returns exactly the image processor's values, and stores uint8."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.imaging.decode import to_rgb
from qilin.model.processing import PixelCache


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    random = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "data", {"importer": "test"}) as writer:
        for n, shape in enumerate([(90, 120, 3), (120, 64), (50, 50, 3)]):  # wide, tall and gray, square
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(file, "PNG")
            image = make_image(file.getvalue(), [Provenance("test", str(n))])
            writer.add_image(image)
            writer.add_sample(
                "train", Sample(f"s{n}", "caption", (image.image_id,), (user("说。", 1), assistant("好")))
            )
    return open_dataset(tmp_path / "data")


@pytest.mark.parametrize("pad", [True, False], ids=["padded to a square", "cropped"])
@pytest.mark.parametrize("mean", [(0.48, 0.46, 0.41), (0.5, 0.5, 0.5)])
def test_values_equal_the_image_processors(data: Dataset, pad: bool, mean: tuple[float, ...]) -> None:
    processor = LlavaImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_pad=pad, image_mean=mean
    )
    pixels = PixelCache(processor)
    for sample in data.samples("train"):
        (image_id,) = sample.image_ids
        image = to_rgb(data.image(image_id).bytes)
        expected = processor(images=[image], return_tensors="np")["pixel_values"][0].astype(np.float32)
        for _ in range(2):  # computed, then cached
            values = pixels.get(data, image_id)
            assert values.dtype == torch.float32
            assert np.array_equal(values.numpy(), expected)
    assert pixels.bytes == 3 * 3 * 56 * 56  # one byte per value


def test_the_least_recently_used_are_dropped(data: Dataset) -> None:
    processor = LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_pad=True)
    pixels = PixelCache(processor, limit_bytes=2 * 3 * 56 * 56)
    first, second, third = (sample.image_ids[0] for sample in data.samples("train"))
    for image_id in (first, second, first, third):
        pixels.get(data, image_id)
    assert list(pixels.entries) == [first, third]
