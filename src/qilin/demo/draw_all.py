"""One function from a truth to its picture, over all kinds.

In: a Truth, a random generator, a size. Out: a Pillow image with the mark DRAWN.
"""

import numpy as np
from PIL import Image

from qilin.demo.draw import finished
from qilin.demo.draw_colour import draw_fundus, draw_skin, draw_smear
from qilin.demo.draw_grey import draw_abdomen, draw_chest, draw_head
from qilin.demo.truth import TURNS, Truth, sample_truth

PAINTERS = {
    "chest": draw_chest,
    "head": draw_head,
    "abdomen": draw_abdomen,
    "fundus": draw_fundus,
    "smear": draw_smear,
    "skin": draw_skin,
}


def draw_picture(rng: np.random.Generator, truth: Truth, size: int = 224) -> Image.Image:
    """The picture of a truth, size x size pixels, mode L or RGB. `size` is at least 96: the mark needs room."""
    assert size >= 96, f"size is {size}; at least 96 is needed"
    return finished(rng, PAINTERS[truth.kind](rng, truth, size))


def draw_one(seed: int, index: int, size: int = 224) -> tuple[Truth, Image.Image]:
    """Picture number `index` of a seed, with its truth; kinds take turns."""
    rng = np.random.default_rng([seed, index])
    truth = sample_truth(rng, TURNS[index % len(TURNS)])
    return truth, draw_picture(rng, truth, size)
