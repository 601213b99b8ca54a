"""Brushes on a float canvas, and the one function that draws an image from its truth.

In: a Truth, a random generator, a size in pixels. Out: a Pillow image that bears the mark DRAWN. Coordinates run
from -1 to 1 over the image, x to the right, y down; brightness from 0 to 1. The same truth, generator and size
give the same pixels.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Canvas = NDArray[Any]  # float32: (H, W) for grey images, (H, W, 3) for coloured ones
Colour = float | tuple[float, float, float]
MARK = "DRAWN"


@lru_cache(maxsize=4)
def grid(size: int) -> tuple[Canvas, Canvas]:
    """x and y of every pixel's middle, each (size, size)."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    y, x = np.meshgrid(line, line, indexing="ij")
    return x, y


def moved_grid(rng: np.random.Generator, size: int, amount: float = 1.0) -> tuple[Canvas, Canvas]:
    """The grid as a body lies in it: shifted, scaled and turned a little."""
    x, y = grid(size)
    dx, dy = rng.uniform(-0.03, 0.03, 2) * amount
    sx, sy = 1 + rng.uniform(-0.03, 0.03, 2) * amount
    turn = rng.uniform(-0.03, 0.03) * amount
    x, y = (x - np.float32(dx)) * np.float32(sx), (y - np.float32(dy)) * np.float32(sy)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return c * x + s * y, c * y - s * x


def inside(distance: Canvas, soft: float) -> Canvas:
    """1 where distance < 0, 0 where > 0, a ramp of width `soft` between."""
    return np.clip(0.5 - distance / np.float32(soft), 0, 1)


def ellipse(x: Canvas, y: Canvas, cx: float, cy: float, rx: float, ry: float, soft: float = 0.04) -> Canvas:
    """A soft filled ellipse as a mask, over whatever part of the grid is given."""
    radius = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    return inside((radius - 1) * min(rx, ry), soft)


def mix(canvas: Canvas, mask: Canvas, colour: Colour | Canvas) -> None:
    """Blend a colour into the canvas where the mask is, in place."""
    if canvas.ndim == 3:
        mask = mask[..., None]
    canvas += mask * (np.asarray(colour, np.float32) - canvas)


def window(size: int, cx: float, cy: float, reach: float) -> tuple[slice, slice]:
    """The rows and columns of the square of half-width `reach` about a point: small things are drawn only there."""
    low_x, high_x, low_y, high_y = ((v + 1) / 2 * size for v in (cx - reach, cx + reach, cy - reach, cy + reach))
    return (
        slice(max(0, int(low_y)), max(0, min(size, int(high_y) + 2))),
        slice(max(0, int(low_x)), max(0, min(size, int(high_x) + 2))),
    )


def blob(
    rng: np.random.Generator,
    canvas: Canvas,
    grids: tuple[Canvas, Canvas],
    centre: tuple[float, float],
    radius: float,
    colour: Colour,
    soft: float = 0.05,
    rough: float = 0.0,
    strength: float = 1.0,
) -> None:
    """A round or rough-edged spot. The grids may be a moved body's: then so is the centre."""
    x, y = grids
    size = x.shape[0]
    where: tuple[slice, slice] = (slice(0, size), slice(0, size))
    if radius < 0.2:  # worth looking only near it; a body moves by less than 0.12
        where = window(size, centre[0], centre[1], radius * 1.5 + soft + (0.12 if x is not grid(size)[0] else 0))
    dx, dy = x[where] - centre[0], y[where] - centre[1]
    distance = np.sqrt(dx * dx + dy * dy) - np.float32(radius)
    if rough:
        angle = np.arctan2(dy, dx)
        for waves in (2, 3, 5):
            bump = rough * radius * rng.uniform(0.4, 1) / waves**0.5
            distance += np.float32(bump) * np.cos(waves * angle + np.float32(rng.uniform(0, 6.28)))
    mix(canvas[where], np.float32(strength) * inside(distance, soft), colour)


def clouds(rng: np.random.Generator, size: int, cells: int) -> Canvas:
    """Smooth noise of about unit strength with `cells` bumps across the image, (size, size)."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse, "F").resize((size, size), Image.Resampling.BICUBIC))


def grain(rng: np.random.Generator, canvas: Canvas, strength: float) -> None:
    """Add the noise of a detector, in place; one draw serves all colours."""
    noise = rng.standard_normal(canvas.shape[:2], dtype=np.float32) * np.float32(strength)
    canvas += noise[..., None] if canvas.ndim == 3 else noise


def spread(
    rng: np.random.Generator, number: int, low: tuple[float, float], high: tuple[float, float], apart: float
) -> list[tuple[float, float]]:
    """`number` points in a box, as far apart as asked; where the box is too full they may stand a little closer."""
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


def finished(rng: np.random.Generator, canvas: Canvas) -> Image.Image:
    """Exposure and the mark: a canvas becomes an image (mode L or RGB)."""
    levels = np.linspace(0, 1, 256) ** rng.uniform(0.9, 1.12) * rng.uniform(0.92, 1.04)
    table = (np.clip(levels, 0, 1) * 255 + 0.5).astype(np.uint8).tolist()
    image = Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))
    image = image.point(table * len(image.getbands()))
    stamp(image)
    return image


def stamp(image: Image.Image) -> None:
    """The mark DRAWN in the lower left corner: the same pixels in every image, so it tells nothing of it."""
    width, height = image.size
    brush = ImageDraw.Draw(image)
    brush.rectangle((0, height - 13, 35, height), fill=20 if image.mode == "L" else (20, 20, 20))
    white = 235 if image.mode == "L" else (235, 235, 235)
    brush.text((3, height - 12), MARK, font=ImageFont.load_default_imagefont(), fill=white)
