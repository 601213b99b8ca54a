"""Text in pixels: what counts as text, where its boxes lie, what masks cover; and the real detector on drawn text."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from qilin.imaging import burned_in_text
from qilin.imaging.burned_in_text import TextBox, find_text, mask_text, tile_starts, views, without_text
from qilin.imaging.errors import ImageError
from qilin.imaging.windowing import Frame, Window, render


def stub(box: tuple[int, int, int, int], score: float, text: str, confidence: float) -> Any:
    """A detector that finds one box, and a reader that reads one text."""
    left, top, right, bottom = box
    corners = np.array([[[left, top], [right, top], [right, bottom], [left, bottom]]], float)

    def run(image: np.ndarray, use_det: bool, use_cls: bool, use_rec: bool) -> Any:
        if use_det:
            return SimpleNamespace(boxes=corners, scores=[score])
        return SimpleNamespace(txts=(text,), scores=(confidence,))

    return lambda: run


WIDE, SQUARE, TALL, HUGE = (100, 100, 200, 130), (100, 100, 130, 130), (100, 100, 120, 200), (0, 0, 700, 700)
GRADIENT = np.tile(np.linspace(0, 255, 736).astype(np.uint8)[:, None, None], (1, 736, 3))


@pytest.mark.parametrize(
    ("box", "score", "text", "confidence", "is_text"),
    [
        (WIDE, 0.4, "欧阳锦绣", 0.9, True),
        (WIDE, 0.4, "Wang", 0.7, True),
        (WIDE, 0.9, "", 0.0, True),  # unread, but the detector is sure
        (WIDE, 0.9, "口口", 0.1, True),
        (WIDE, 0.5, "口口", 0.3, False),  # a contour
        (SQUARE, 0.9, "L", 0.9, False),
        (SQUARE, 0.9, "王", 0.9, False),  # a single character names nobody
        (WIDE, 0.9, "AP", 1.0, False),
        (WIDE, 0.9, "立位", 1.0, False),
        (WIDE, 0.9, " L ", 1.0, False),
        (WIDE, 0.9, "L.A", 1.0, False),
        (WIDE, 0.9, "L Li", 1.0, True),
        (SQUARE, 0.5, "李明", 0.9, True),
        (TALL, 0.5, "UL", 0.9, False),  # ribs, turned
        (TALL, 0.5, "Wang", 0.9, True),
        (HUGE, 0.9, "Wang", 0.9, False),  # the whole anatomy
    ],
)
def test_what_counts_as_text(
    monkeypatch: pytest.MonkeyPatch, box: Any, score: float, text: str, confidence: float, is_text: bool
) -> None:
    monkeypatch.setattr(burned_in_text, "detector", stub(box, score, text, confidence))
    assert find_text([GRADIENT]) == ([TextBox(*box)] if is_text else [])


def test_boxes_of_scaled_and_tiled_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images are enlarged, large ones reduced and cut into tiles; boxes are in pixels of the image."""
    monkeypatch.setattr(burned_in_text, "detector", stub((80, 80, 200, 120), 0.9, "Wang", 0.9))
    small = GRADIENT[::4, ::4]
    (box,) = find_text([small])
    assert (box.left, box.right) == (26, 67)  # enlarged three times
    monkeypatch.setattr(burned_in_text, "MAX_PIXELS", 1 << 19)
    monkeypatch.setattr(burned_in_text, "TILE", 544)
    boxes = find_text([np.tile(GRADIENT[:512, :512], (2, 4, 1))])  # 1024 x 2048, reduced to a half
    assert min(box.left for box in boxes) == 160
    assert all(0 <= box.left < box.right <= 2048 and 0 <= box.top < box.bottom <= 1024 for box in boxes)
    assert len(boxes) == len(tile_starts(1024)) == 2
    assert find_text([np.full((900, 900, 3), 7, np.uint8)]) == []  # nothing to see
    assert tile_starts(500) == [0]
    starts = tile_starts(2896)
    assert starts[-1] + burned_in_text.TILE == 2896
    assert max(np.diff(starts)) <= burned_in_text.TILE - burned_in_text.OVERLAP


def test_masks_and_what_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("L", (200, 100), 90)
    pixels = np.asarray(mask_text(image, [TextBox(50, 40, 90, 56)]))
    assert pixels[36:60, 46:94].max() == 0
    assert (pixels == 90).mean() > 0.9
    assert np.asarray(image).min() == 90
    monkeypatch.setattr(burned_in_text, "find_text", lambda images, stop_at_first=False: [TextBox(0, 0, 9, 9)])
    with pytest.raises(ImageError, match="does not cover"):
        without_text(image, "mask")


def drawn(text: str, size: int, position: tuple[int, int], level: int = 230, side: int = 256) -> Image.Image:
    rows, columns = np.mgrid[:side, :side]
    image = Image.fromarray((60 + 50 * np.sin(rows / 40) * np.cos(columns / 50)).astype(np.uint8)).convert("RGB")
    ImageDraw.Draw(image).text(position, text, font=ImageFont.load_default(size), fill=(level,) * 3)
    return image


@pytest.mark.story
def test_the_detector() -> None:
    pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")
    masked, count = without_text(drawn("Wang Xiaoming 061Y", 13, (8, 8)), "mask")
    assert count
    assert np.asarray(masked).max() < 120  # nothing of the text is left
    for image in (drawn("ID 7739201", 20, (60, 200), 130), drawn("13912345678", 16, (40, 90)).rotate(90)):
        with pytest.raises(ImageError, match="text in the image"):
            without_text(image, "refuse")
    for mark in ("L", ""):
        assert find_text(views(drawn(mark, 30, (200, 20)), None)) == [], mark
    # beside the window: white on what the window makes white
    values = np.asarray(drawn("", 9, (0, 0)).convert("L")).astype(np.float32)
    text = np.asarray(drawn("Li Xiuying 63", 18, (30, 100), 255).convert("L")) > 200
    values[text] = 4000
    frame = Frame(values, "DX", Window(5, 9))
    assert np.asarray(render(frame)).min() == 255
    assert find_text(views(render(frame), frame))
