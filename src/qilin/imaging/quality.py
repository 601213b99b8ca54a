"""Finds images that are useless for training: too small, blurred, nearly uniform, or a page of text.

In: encoded bytes. Out: the problem, or None. The limits let medical images pass: every fourth of SLAKE's 546, of 243
radiographs and of 364 blood smears does (tests/pipeline/test_curate.py, where that data is present).
"""

import numpy as np

from qilin.imaging.decode import to_rgb
from qilin.imaging.errors import ImageError

MIN_SIDE = 64  # pixels of the shorter side
THUMBNAIL_SIDE = 512  # pixels of the longer side at which everything else is measured: one limit for all sizes
MIN_SHARPNESS = 4.0  # variance of the Laplacian, in gray levels squared; the lowest of the images above has 6.9
MIN_STD = 4.0  # gray levels
MIN_WHITE_SHARE = 0.75  # of a page's pixels
INK_SHARE = (0.005, 0.25)  # of a page's pixels that are dark
MAX_COLOR_SHARE = 0.02  # of a page's pixels; with more it is an image


def quality_problem(data: bytes) -> str | None:
    """The first problem found; the text is constant per problem, so that it can be counted."""
    try:
        image = to_rgb(data)
    except ImageError as error:
        return error.reason
    if min(image.size) < MIN_SIDE:
        return "image is tiny"
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    pixels = np.asarray(image, dtype=np.float32)  # (height, width, 3)
    gray = pixels.mean(axis=2)
    if gray.std() < MIN_STD:
        return "image is nearly uniform"
    if is_text_page(pixels, gray):
        return "image is text or a line drawing"
    neighbors = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    if (neighbors - 4 * gray[1:-1, 1:-1]).var() < MIN_SHARPNESS:
        return "image is blurred"
    return None


def is_text_page(pixels: np.ndarray, gray: np.ndarray) -> bool:
    """White paper with a little ink, almost nothing between the two, and no color."""
    color_share = ((pixels.max(axis=2) - pixels.min(axis=2)) > 40).mean()
    ink_share = (gray < 96).mean()
    white_share = (gray > 235).mean()
    is_ink = INK_SHARE[0] < ink_share < INK_SHARE[1]
    return bool(white_share > MIN_WHITE_SHARE and is_ink and color_share < MAX_COLOR_SHARE)
