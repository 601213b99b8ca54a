"""Small gray images for comparison: the content without borders and padding, and the whole image.

In: encoded bytes. Out: a `Thumbnail` array of two views, from which candidates for near-duplicates are found, and
`Frames`, the same views at a moderate resolution, on which a pair is decided.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qilin.imaging.decode import FORMATS, check_size, damage_refused, read_orientation, to_rgb, transpose

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

REDUCED_SIDE = 256  # pixels of the longer side at which content is searched for
THUMBNAIL_SIDE = 32  # pixels; two views are 2 KB
FRAME_SIDE = 128
UNIFORM_LEVELS = 14  # gray levels by which JPEG changes a uniform background
UNIFORM_SHARE = 0.98  # of a border line's pixels
OUTLYING_SHARE = 0.01  # of the content beyond each side of its box: a speck or a letter does not move the box
MIN_CONTENT_SIDE = 8  # pixels of the reduced image
SAME_BOX_SHARE = 0.04  # of the longer side: with less trimmed, the two views are one


def compute_thumbnails(data: bytes) -> NDArray[np.uint8]:
    """(2, THUMBNAIL_SIDE, THUMBNAIL_SIDE): the content's view, and that of the whole image. Raises ImageError."""
    gray = read_reduced(data)
    return np.stack([resize_box(gray, box, THUMBNAIL_SIDE) for box in (content_box(gray), whole_box(gray))])


def compute_frames(data: bytes) -> list[NDArray[np.uint8]]:
    """The same views, each (FRAME_SIDE, FRAME_SIDE); one where nothing was trimmed. Raises ImageError."""
    gray = read_reduced(data)
    content, whole_image = content_box(gray), whole_box(gray)
    trimmed = max(abs(a - b) for a, b in zip(content, whole_image, strict=True))
    boxes = [content] if trimmed < SAME_BOX_SHARE * REDUCED_SIDE else [content, whole_image]
    return [resize_box(gray, box, FRAME_SIDE) for box in boxes]


def read_reduced(data: bytes) -> Image.Image:
    """A gray image with REDUCED_SIDE pixels on the longer side; JPEG is decoded at a fraction of its size."""
    with damage_refused():
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.format == "JPEG" and image.mode in ("L", "RGB"):
            check_size(image.width, image.height, "")
            orientation = read_orientation(image)
            image.draft("L", (2 * REDUCED_SIDE, 2 * REDUCED_SIDE))
            gray = transpose(image, orientation).convert("L")
        else:
            gray = to_rgb(data).convert("L")
        scale = REDUCED_SIDE / max(gray.size)
        size = (max(1, round(gray.width * scale)), max(1, round(gray.height * scale)))
        return gray.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def resize_box(gray: Image.Image, box: Box, side: int) -> NDArray[np.uint8]:
    return np.asarray(gray.resize((side, side), Image.Resampling.BILINEAR, box=box))


def whole_box(gray: Image.Image) -> Box:
    return (0, 0, gray.width, gray.height)


def content_box(gray: Image.Image) -> Box:
    """The box of the content: without uniform lines at the edges, whatever their colors, and without the background."""
    pixels = np.asarray(gray, dtype=np.int16)  # (height, width)
    top, bottom, left, right = peel_borders(pixels)
    part = pixels[top:bottom, left:right]
    background = np.median(np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]]))
    content = np.abs(part - background)
    content[content <= UNIFORM_LEVELS] = 0
    if not content.any():
        return (left, top, right, bottom)
    (y0, y1), (x0, x1) = inner_span(content.sum(axis=1)), inner_span(content.sum(axis=0))
    if min(y1 - y0, x1 - x0) < MIN_CONTENT_SIDE:
        return (left, top, right, bottom)
    return (left + x0, top + y0, left + x1, top + y1)


def inner_span(profile: NDArray[np.int64]) -> tuple[float, float]:
    """Where a profile has OUTLYING_SHARE of its sum on either side."""
    cumulative = np.concatenate([[0.0], np.cumsum(profile)]) / profile.sum()
    start, end = np.interp([OUTLYING_SHARE, 1 - OUTLYING_SHARE], cumulative, np.arange(len(cumulative)))
    return float(start), float(end)


def peel_borders(pixels: NDArray[np.int16]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) without uniform lines at the edges; everything where little else is left."""
    top, bottom, left, right = 0, pixels.shape[0], 0, pixels.shape[1]
    while bottom - top >= MIN_CONTENT_SIDE and right - left >= MIN_CONTENT_SIDE:
        part = pixels[top:bottom, left:right]
        above, below = uniform_lines(part), uniform_lines(part[::-1])
        if above == len(part):
            break
        part = part[above : len(part) - below]
        before, after = uniform_lines(part.T), uniform_lines(part.T[::-1])
        if before == part.shape[1]:
            break
        top, bottom, left, right = top + above, bottom - below, left + before, right - after
        if not above + below + before + after:
            return top, bottom, left, right
    return 0, pixels.shape[0], 0, pixels.shape[1]


def uniform_lines(part: NDArray[np.int16]) -> int:
    """The number of uniform lines at the start of the first axis; they need not have one color."""
    deviation = np.abs(part - np.median(part, axis=1, keepdims=True))
    uniform = (deviation <= UNIFORM_LEVELS).mean(axis=1) >= UNIFORM_SHARE
    return len(uniform) if uniform.all() else int(np.argmin(uniform))
