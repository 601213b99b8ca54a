"""Near-duplicate images: edited copies are candidates and similar; images of other seeds are neither."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from qilin.imaging.candidates import candidate_pairs, candidate_pairs_among
from qilin.imaging.registration import SAME_IMAGE, SAME_SCAN, similarity
from qilin.imaging.thumbnails import THUMBNAIL_SIDE, compute_frames, compute_thumbnails

CASES = Path(__file__).parents[3] / "shared" / "cases" / "data" / "leaks"
NUM_SCANS = 12


def scan(seed: int) -> Image.Image:
    """A gray body on black with structures of its own."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (240, 200))
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 20, 210, 180), fill=(90, 90, 90))
    for _ in range(25):
        x, y, width, height = rng.uniform(50, 170), rng.uniform(45, 140), rng.uniform(5, 28), rng.uniform(5, 28)
        draw.ellipse((x, y, x + width, y + height), fill=(int(rng.integers(20, 250)),) * 3)
    return image.filter(ImageFilter.GaussianBlur(1))


def encode(image: Image.Image, file_format: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def padded(image: Image.Image) -> Image.Image:
    page = Image.new("RGB", (300, 300), (128, 128, 128))
    page.paste(image, (30, 50))
    return page


EDITS: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG": lambda image: encode(image, "JPEG", quality=40),
    "thumbnail": lambda image: encode(image.resize((96, 80))),
    "padded": lambda image: encode(padded(image)),
    "border": lambda image: encode(ImageOps.expand(image, 6, "white")),
    "cropped": lambda image: encode(image.crop((12, 10, 228, 190))),
    "mirrored": lambda image: encode(ImageOps.mirror(image)),
    "inverted": lambda image: encode(ImageOps.invert(image)),
    "turned": lambda image: encode(image.transpose(Image.Transpose.ROTATE_90)),
    "rotated": lambda image: encode(image.rotate(3, Image.Resampling.BICUBIC)),
    "brighter": lambda image: encode(image.point(lambda level: min(255, round(1.3 * level + 10)))),
}


@pytest.fixture(scope="module")
def originals() -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """(thumbnails, frames) of NUM_SCANS images."""
    files = [encode(scan(seed)) for seed in range(NUM_SCANS)]
    return np.stack([compute_thumbnails(data) for data in files]), [compute_frames(data) for data in files]


@pytest.mark.parametrize("edit", EDITS)
def test_edited_copies_are_recognized(edit: str, originals: tuple[np.ndarray, list[list[np.ndarray]]]) -> None:
    thumbnails, frames = originals
    copy = EDITS[edit](scan(3))
    assert (0, 3) in map(tuple, candidate_pairs(compute_thumbnails(copy)[None], thumbnails).tolist())
    assert similarity(compute_frames(copy), frames[3]) >= SAME_IMAGE
    assert similarity(compute_frames(copy), frames[4]) < SAME_SCAN


def test_images_of_one_kind_are_not_the_same(originals: tuple[np.ndarray, list[list[np.ndarray]]]) -> None:
    _, frames = originals
    assert max(similarity(a, b) for a, b in itertools.combinations(frames[:4], 2)) < SAME_SCAN


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not on this machine")
def test_a_neck_is_not_a_head() -> None:
    names = ("head", "copy_pad", "copy_crop5", "head_crop", "neck")
    frames = {name: compute_frames((CASES / f"{name}.png").read_bytes()) for name in names}
    scores = {name: similarity(frames[name], frames["head"]) for name in names}
    assert scores.pop("neck") < SAME_SCAN
    assert min(scores.values()) >= SAME_IMAGE


def test_uniform_images_have_no_similarity() -> None:
    black = compute_frames(encode(Image.new("RGB", (80, 80))))
    assert similarity(black, black) == -1
    assert similarity(black, compute_frames(encode(scan(1)))) == -1
    assert compute_thumbnails(encode(Image.new("RGB", (1, 1)))).shape == (2, THUMBNAIL_SIDE, THUMBNAIL_SIDE)


def test_candidates_among_many_equal_those_of_all_comparisons() -> None:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (300, 8, 8), dtype=np.uint8)
    images = [Image.fromarray(p).resize((THUMBNAIL_SIDE,) * 2, Image.Resampling.BICUBIC) for p in patterns]
    thumbnails = np.stack([np.stack([np.asarray(image)] * 2) for image in images])
    noise = rng.integers(0, 6, thumbnails[:40].shape, dtype=np.uint8)
    noisy = thumbnails[:40] // 2 + noise
    pairs = set(map(tuple, candidate_pairs_among(np.concatenate([thumbnails, noisy, thumbnails[:5]])).tolist()))
    assert {(n, 300 + n) for n in range(40)} <= pairs  # the noisy copies
    assert {(n, 340 + n) for n in range(5)} <= pairs  # identical ones
    assert len(pairs) < 345 * 9
    assert not len(candidate_pairs_among(thumbnails[:1]))
