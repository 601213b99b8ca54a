"""What an image shows at the coarsest level: blank images, pages, screens and photographs, and what is none of them."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from qilin.demo.synthetic.color import draw_sample
from qilin.imaging.content import image_content


def uniform(color: int) -> Image.Image:
    noise = np.random.default_rng(0).normal(color, 1.5, (300, 400, 1))
    return Image.fromarray(np.repeat(noise.clip(0, 255), 3, axis=2).astype(np.uint8))


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))


def window(back: str, fore: str, jpeg: bool = False) -> Image.Image:
    image = Image.new("RGB", (900, 700), back)
    brush = ImageDraw.Draw(image)
    for top in range(20, 680, 34):
        brush.text((20, top), "The quick brown fox jumps over the lazy dog. " * 3, fore, font_size=16)
    if not jpeg:
        return image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return Image.open(buffer).convert("RGB")


def landscape() -> Image.Image:
    """Sky over grass, with the texture of a photograph."""
    rng = np.random.default_rng(0)
    grass = np.array([70, 120, 50]) + rng.normal(0, 25, (200, 400, 3))
    sky = np.array([110, 160, 220]) + rng.normal(0, 4, (200, 400, 3))
    image = Image.fromarray(np.concatenate([sky, grass]).clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(1))


@pytest.mark.parametrize(
    ("draw", "problem"),
    [
        (lambda: uniform(0), "blank"),
        (lambda: uniform(128), "blank"),
        (noise, "blank"),
        (lambda: Image.new("RGB", (1, 1)), "blank"),
        (lambda: window("white", "black"), "document"),
        (lambda: window("white", "black", jpeg=True), "document"),
        (lambda: window("#1e1e2e", "#d0d0d0"), "screenshot"),
        (landscape, "photo"),
    ],
)
def test_images_that_are_not_medical(draw: Callable[[], Image.Image], problem: str) -> None:
    assert image_content(draw()).problem == problem


def test_drawn_medical_images_of_all_kinds_pass() -> None:
    colors = {}
    for index in range(12):  # one cycle of kinds
        scene, image = draw_sample(5, index)
        content = image_content(image.convert("RGB"))
        assert content.problem is None, scene
        colors[scene.kind] = content.is_color
    assert colors == {kind: kind in ("fundus", "smear", "skin") for kind in colors}
