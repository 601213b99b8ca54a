"""Drawing primitives on a float canvas, and the watermark.

In: a canvas, masks and colors. Out: the canvas changed in place, at the end a Pillow image with the watermark DRAWN.
Coordinates run from -1 to 1 over the image, x to the right, y down; brightness from 0 to 1.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Canvas = NDArray[Any]  # float32: (H, W) for grayscale images, (H, W, 3) for color ones
Color = float | tuple[float, float, float]
WATERMARK = "DRAWN"


@lru_cache(maxsize=4)
def grid(size: int) -> tuple[Canvas, Canvas]:
    """x and y of every pixel center, each (size, size)."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    y, x = np.meshgrid(line, line, indexing="ij")
    return x, y


def jittered_grid(rng: np.random.Generator, size: int, amount: float = 1.0) -> tuple[Canvas, Canvas]:
    """The grid of a body in the image: randomly shifted, scaled and rotated a little."""
    x, y = grid(size)
    dx, dy = rng.uniform(-0.03, 0.03, 2) * amount
    sx, sy = 1 + rng.uniform(-0.03, 0.03, 2) * amount
    turn = rng.uniform(-0.03, 0.03) * amount
    x, y = (x - np.float32(dx)) * np.float32(sx), (y - np.float32(dy)) * np.float32(sy)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return c * x + s * y, c * y - s * x


def soft_mask(distance: Canvas, softness: float) -> Canvas:
    """1 where distance < 0, 0 where > 0, a linear ramp of width `softness` between."""
    return np.clip(0.5 - distance / np.float32(softness), 0, 1)


def ellipse(x: Canvas, y: Canvas, cx: float, cy: float, rx: float, ry: float, softness: float = 0.04) -> Canvas:
    """A soft filled ellipse as a mask, over the given part of the grid."""
    radius = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    return soft_mask((radius - 1) * min(rx, ry), softness)


def blend(canvas: Canvas, mask: Canvas, color: Color | Canvas) -> None:
    """Blend a color into the canvas through the mask, in place."""
    if canvas.ndim == 3:
        mask = mask[..., None]
    canvas += mask * (np.asarray(color, np.float32) - canvas)


def local_window(size: int, cx: float, cy: float, reach: float) -> tuple[slice, slice]:
    """Rows and columns of the square of half-width `reach` around a point: small objects are drawn only there."""
    low_x, high_x, low_y, high_y = ((v + 1) / 2 * size for v in (cx - reach, cx + reach, cy - reach, cy + reach))
    return (
        slice(max(0, int(low_y)), max(0, min(size, int(high_y) + 2))),
        slice(max(0, int(low_x)), max(0, min(size, int(high_x) + 2))),
    )


def blob(
    rng: np.random.Generator,
    canvas: Canvas,
    grids: tuple[Canvas, Canvas],
    center: tuple[float, float],
    radius: float,
    color: Color,
    softness: float = 0.05,
    roughness: float = 0.0,
    strength: float = 1.0,
) -> None:
    """Draw a round or rough-edged spot in place. `center` is in the coordinates of `grids`."""
    x, y = grids
    size = x.shape[0]
    where: tuple[slice, slice] = (slice(0, size), slice(0, size))
    if radius < 0.2:  # draw only near it; a jittered grid is off by less than 0.12
        where = local_window(
            size, center[0], center[1], radius * 1.5 + softness + (0.12 if x is not grid(size)[0] else 0)
        )
    dx, dy = x[where] - center[0], y[where] - center[1]
    distance = np.sqrt(dx * dx + dy * dy) - np.float32(radius)
    if roughness:
        angle = np.arctan2(dy, dx)
        for waves in (2, 3, 5):
            bump = roughness * radius * rng.uniform(0.4, 1) / waves**0.5
            distance += np.float32(bump) * np.cos(waves * angle + np.float32(rng.uniform(0, 6.28)))
    blend(canvas[where], np.float32(strength) * soft_mask(distance, softness), color)


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Canvas:
    """Smooth noise of about unit strength with `cells` bumps across the image, (size, size)."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse, "F").resize((size, size), Image.Resampling.BICUBIC))


def add_noise(rng: np.random.Generator, canvas: Canvas, strength: float) -> None:
    """Add detector noise in place, the same to all channels."""
    noise = rng.standard_normal(canvas.shape[:2], dtype=np.float32) * np.float32(strength)
    canvas += noise[..., None] if canvas.ndim == 3 else noise


def scatter_points(
    rng: np.random.Generator, number: int, low: tuple[float, float], high: tuple[float, float], apart: float
) -> list[tuple[float, float]]:
    """`number` random points in a box, at least `apart` from each other; in a crowded box a little closer."""
    points: list[tuple[float, float]] = []
    while len(points) < number:
        for _ in range(60):
            point = (float(rng.uniform(low[0], high[0])), float(rng.uniform(low[1], high[1])))
            if all(np.hypot(point[0] - p[0], point[1] - p[1]) >= apart for p in points):
                points.append(point)
                break
        else:
            apart *= 0.95
            points = []
    return points


def finish(rng: np.random.Generator, canvas: Canvas) -> Image.Image:
    """A canvas as an image (mode L or RGB) with a random exposure and the watermark."""
    levels = np.linspace(0, 1, 256) ** rng.uniform(0.9, 1.12) * rng.uniform(0.92, 1.04)
    table = (np.clip(levels, 0, 1) * 255 + 0.5).astype(np.uint8).tolist()
    image = Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))
    image = image.point(table * len(image.getbands()))
    add_watermark(image)
    return image


def add_watermark(image: Image.Image) -> None:
    """Write DRAWN into the lower left corner: the same pixels in every image, so that it carries no information."""
    width, height = image.size
    brush = ImageDraw.Draw(image)
    brush.rectangle((0, height - 13, 35, height), fill=20 if image.mode == "L" else (20, 20, 20))
    white = 235 if image.mode == "L" else (235, 235, 235)
    brush.text((3, height - 12), WATERMARK, font=ImageFont.load_default_imagefont(), fill=white)
