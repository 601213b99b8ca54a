"""What is wrong with an image to learn from, seen in its pixels: too small, blurred, nearly one colour, text alone.

In: an image. Out: a fault in words, or None. Limits are set so that images of medicine pass: every fourth of SLAKE's
546, of 243 radiographs and of 364 of blood does (tests/test_curate.py, where they are at hand).
"""

import numpy as np

from qilin.dataset.schema import ImageRecord
from qilin.imaging.decode import BadImage, to_rgb

SMALLEST = 64  # pixels of the shorter side
SIDE = 512  # pixels of the longer side at which the rest is judged: one limit for all sizes
BLURRED = 4.0  # variance of the Laplacian, in grey levels squared; the least of the images below has 6.9
EVEN = 4.0  # spread of grey levels
PAPER = 0.75  # share of white pixels of a page
INK = (0.005, 0.25)  # share of dark ones
COLOURED = 0.02  # share of coloured pixels beyond which a page is an image


def fault_of(image: ImageRecord) -> str | None:
    """The first fault found, the same words for the same fault."""
    if min(image.width, image.height) < SMALLEST:
        return "image is tiny"
    try:
        thumbnail = to_rgb(image.bytes)
    except BadImage as error:
        return error.reason
    thumbnail.thumbnail((SIDE, SIDE))
    pixels = np.asarray(thumbnail, dtype=np.float32)  # (height, width, 3)
    grey = pixels.mean(axis=2)
    if grey.std() < EVEN:
        return "image is nearly one colour"
    if is_text(pixels, grey):
        return "image is text or a line drawing"
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    if (around - 4 * grey[1:-1, 1:-1]).var() < BLURRED:
        return "image is blurred"
    return None


def is_text(pixels: np.ndarray, grey: np.ndarray) -> bool:
    """White paper with a little ink and next to nothing between, and no colour."""
    coloured = ((pixels.max(axis=2) - pixels.min(axis=2)) > 40).mean()
    ink = (grey < 96).mean()
    return bool((grey > 235).mean() > PAPER and INK[0] < ink < INK[1] and coloured < COLOURED)
