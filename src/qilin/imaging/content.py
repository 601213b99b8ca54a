"""What an image shows at the coarsest level, from simple statistics: nothing, a page, a screen, an everyday photograph.

In: an RGB image. Out: an ImageContent. It serves notices, not decisions: whatever is not certain counts as medical.
Pathology, smears, dermoscopy, endoscopy and fundus photographs are in color, but in few colors: pink to purple, or red
to brown. An everyday photograph has greens and blues, or many colors; half of them are recognized by that. The limits
were chosen on one half of the images of bench/serve/notices.py and measured on the other (bench/results/notices.json).
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from PIL import Image

THUMBNAIL_SIDE = 256  # pixels of the longer side, at which colors are counted
CROP_SIDE = 1024  # pixels of the middle part in which edges are counted at full resolution
CHROMA = 30  # difference of the largest and the smallest channel from which a pixel is in color
BLACK = 20  # largest channel up to which a pixel belongs to no object
# blank
MIN_RANGE = 10.0  # gray levels between the darkest and the brightest half percent
MIN_CORRELATION = 0.25  # of neighboring pixels; in noise there is none
# drawn by a program
FLAT, EDGE = 2, 64  # differences to the neighbors up to which a pixel is flat, and from which it is at an edge
# flat pixels that are not black, with edges among the other pixels: many edges, or hardly anything that is not flat
DRAWN = ((0.45, 0.12), (0.8, 0.015))
MIN_WHITE_SHARE, PAGE_COLOR_SHARE = 0.75, 0.02
# photograph
COOL_HUES = (75.0, 250.0)  # green to blue, in degrees
MIN_COOL_SHARE = 0.08
MANY_COLORS = 420  # cells of a 16 x 16 x 16 grid of colors
COLOR_SHARE = 0.2  # of pixels in color, above which an image is in color: more than a color Doppler has


@dataclass(frozen=True)
class ImageContent:
    """`problem`: blank, document, screenshot, photo, or None. `color_share`: the share of pixels in color, 0 to 1."""

    problem: str | None
    color_share: float

    @property
    def is_color(self) -> bool:
        return self.color_share > COLOR_SHARE


@dataclass(frozen=True)
class ContentStatistics:
    """What is measured of an image; all shares are of all pixels, but `sharp` of the pixels that are not flat."""

    gray_range: float
    correlation: float
    flat: float
    sharp: float
    white: float
    color: float
    cool: float
    colors: int


def image_content(image: Image.Image) -> ImageContent:
    """Judge an image by its statistics."""
    statistics = content_statistics(image)
    return ImageContent(content_problem(statistics), statistics.color)


def content_problem(s: ContentStatistics) -> str | None:
    if s.gray_range < MIN_RANGE or s.correlation < MIN_CORRELATION:
        return "blank"
    if any(s.flat > flat and s.sharp > sharp for flat, sharp in DRAWN):
        return "document" if s.white > MIN_WHITE_SHARE and s.color < PAGE_COLOR_SHARE else "screenshot"
    if s.cool > MIN_COOL_SHARE or s.colors > MANY_COLORS:
        return "photo"
    return None


def content_statistics(image: Image.Image) -> ContentStatistics:
    """The statistics of an RGB image of any size."""
    thumbnail = image.copy()
    thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(thumbnail, dtype=np.int16)  # (H, W, 3)
    largest, smallest = pixels.max(axis=2), pixels.min(axis=2)
    darkest, brightest = np.quantile(pixels.mean(axis=2), (0.005, 0.995))
    in_color = largest - smallest > CHROMA
    hue = np.asarray(thumbnail.convert("HSV"))[..., 0] * (360 / 255)
    cool = in_color & (hue > COOL_HUES[0]) & (hue < COOL_HUES[1])
    cells = pixels >> 4
    counts = np.bincount((cells[..., 0] * 256 + cells[..., 1] * 16 + cells[..., 2]).ravel())
    return ContentStatistics(
        gray_range=float(brightest - darkest),
        **edge_statistics(image),
        color=float(in_color.mean()),
        cool=float(cool.mean()),
        colors=int((counts > 1).sum()),
    )


def edge_statistics(image: Image.Image) -> dict[str, float]:
    """What is measured in the middle of an image at full resolution: correlation, flat, sharp, white."""
    left, top = max(0, (image.width - CROP_SIDE) // 2), max(0, (image.height - CROP_SIDE) // 2)
    box = (left, top, min(image.width, left + CROP_SIDE), min(image.height, top + CROP_SIDE))
    if min(box[2] - left, box[3] - top) < 2:
        return {"correlation": 1.0, "flat": 0.0, "sharp": 0.0, "white": 0.0}
    # channel by channel: numpy's maximum along an axis of three is several times slower
    channels = [np.asarray(channel, dtype=np.int16) for channel in image.crop(box).split()]
    here = [channel[:-1, :-1] for channel in channels]
    steps = [abs(channel[:-1, 1:] - channel[:-1, :-1]) for channel in channels]
    steps += [abs(channel[1:, :-1] - channel[:-1, :-1]) for channel in channels]
    difference = reduce(np.maximum, steps)
    is_flat = difference <= FLAT
    gray = channels[1].astype(np.float32)  # green is most of the brightness
    left_pixels, right_pixels = (half.ravel() - half.mean() for half in (gray[:, :-1], gray[:, 1:]))
    variance = float(left_pixels @ left_pixels) * float(right_pixels @ right_pixels)
    return {
        "correlation": float(left_pixels @ right_pixels) / variance**0.5 if variance > 0 else 1.0,
        "flat": float((is_flat & (reduce(np.maximum, here) >= BLACK)).mean()),
        "sharp": float((difference > EDGE).sum() / max(1, (~is_flat).sum())),
        "white": float((reduce(np.minimum, here) > 235).mean()),
    }
