"""Finds text that is drawn into the pixels of an image, and masks it: names, numbers, dates of screens and films.

In: an image as it would be stored, and the frame that it was rendered from. Out: the boxes of text in at least two
views of it (its own gray levels, and the whole range brightened, where text beside the window shows), or an ImageError
that refuses it. Side marks and positions (L, R, 左, 立位) stay.

The detector of rapidocr decides what is text. Its reader only takes back boxes: those of a side mark, those of a single
character, and weak ones in which it reads nothing, which are ribs and contours. So a name that it reads wrongly still
counts. Both models are in the package's wheel; nothing is downloaded. bench/imaging/burned_in_text.py measures recall,
false alarms and cost.
"""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from qilin.core.errors import UserError
from qilin.imaging.errors import ImageError
from qilin.imaging.windowing import Frame, Window, render

TEXT_REASON = "text in the image"
# what stands on films and says nothing about whose they are
MARKS = frozenset((
    "L", "R", "A", "P", "S", "I", "H", "F", "LA", "RA", "LP", "RP", "AL", "AR", "PL", "PR", "AP", "PA", "AS", "AI",
    "PS", "PI", "RL", "LR", "HF", "LAT", "RAO", "LAO", "LPO", "RPO", "CC", "MLO", "ML", "LM", "RCC", "LCC", "RMLO",
    "LMLO", "LL", "LT", "RT", "LEFT", "RIGHT", "UP", "DOWN", "ERECT", "UPRIGHT", "SUPINE", "PRONE", "SITTING",
    "SEMIERECT", "PORTABLE",
    "左", "右", "前", "后", "上", "下", "左侧", "右侧", "正位", "侧位", "斜位", "立位", "卧位", "仰卧", "仰卧位",
    "俯卧", "俯卧位", "坐位", "床旁", "床边", "头", "足",
))  # fmt: skip
SHORT_SIDE, MAX_ENLARGEMENT = 736, 3  # of small images: text of 10 pixels becomes large enough for the detector
MAX_PIXELS = 4_194_304  # larger images are reduced to it
TILE, OVERLAP = 1088, 64  # pixels; bounds the detector's memory
FLAT = 12  # gray levels: a tile that differs less holds no legible text
GAMMA = 0.45  # of the brightened view
BOX_SCORE = 0.3  # of the detector, for a candidate
SURE_BOX_SCORE = 0.8  # of the detector, for text that the reader does not have to confirm
READ_SCORE = 0.6  # of the reader
MAX_HEIGHT = 0.15  # of the short side, but at least MIN_MAX_HEIGHT pixels: larger boxes hold anatomy
MIN_MAX_HEIGHT = 64
ELONGATED = 1.5  # a box of two characters
TURNED = 2.5  # a taller box is read turned; a less tall one holds a contour or a single character


@dataclass(frozen=True)
class TextBox:
    """A rectangle in pixels, upright: left and top inside, right and bottom outside."""

    left: int
    top: int
    right: int
    bottom: int


def reader_version() -> str | None:
    """The installed reader of text, such as "rapidocr 3.10.0"; None without one."""
    if importlib.util.find_spec("rapidocr") is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    return f"rapidocr {metadata.version('rapidocr')}"


def require_reader(setting: str) -> None:
    """Raise UserError where a setting needs the reader and it is not installed."""
    if reader_version() is None:
        raise UserError(f"{setting} searches images for text and needs rapidocr: pip install 'qilin-med[ocr]'")


def without_text(image: Image.Image, mode: str, frame: Frame | None = None) -> tuple[Image.Image, int]:
    """(the image to store, the number of masked boxes). `mode`: refuse or mask. Raises ImageError."""
    boxes = find_text(views(image, frame), stop_at_first=mode == "refuse")
    if not boxes:
        return image, 0
    if mode == "refuse":
        raise ImageError(TEXT_REASON)
    masked = mask_text(image, boxes)
    if find_text(views(masked, None), stop_at_first=True):
        raise ImageError("text in the image that a mask does not cover")
    return masked, len(boxes)


def views(image: Image.Image, frame: Frame | None) -> list[np.ndarray]:
    """(H, W, 3) uint8: the image, and the whole range of the frame's values, brightened."""
    plain = np.asarray(image.convert("RGB"))
    full_range = plain
    if frame is not None and not frame.is_color:
        finite = frame.values[np.isfinite(frame.values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        window = Window(low / 2 + high / 2, max(high / 2 - low / 2, 1e-6) * 2, "LINEAR_EXACT")
        full_range = np.asarray(render(replace(frame, voi=window, modality="")).convert("RGB"))
    return [plain, (255 * (full_range / np.float32(255)) ** GAMMA).astype(np.uint8)]


def find_text(images: Sequence[np.ndarray], stop_at_first: bool = False) -> list[TextBox]:
    """The boxes of text in any of several views of one image. Raises ImageError where the search fails."""
    boxes: list[TextBox] = []
    for image in images:
        scale = search_scale(*image.shape[:2])
        if scale != 1:
            size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        for top in tile_starts(image.shape[0]):
            for left in tile_starts(image.shape[1]):
                tile = np.ascontiguousarray(image[top : top + TILE, left : left + TILE])
                if int(tile.max()) - int(tile.min()) < FLAT:
                    continue
                boxes += [in_image(box, left, top, scale) for box in find_in_tile(tile, min(image.shape[:2]), scale)]
                if boxes and stop_at_first:
                    return boxes
    return boxes


def search_scale(height: int, width: int) -> float:
    """How much an image is enlarged or reduced for the detector."""
    enlarged = min(max(SHORT_SIDE / min(height, width), 1), MAX_ENLARGEMENT)
    return min(enlarged, (MAX_PIXELS / (height * width)) ** 0.5)


def tile_starts(length: int) -> list[int]:
    """Where tiles begin along a side; the last one ends with the image."""
    if length <= TILE:
        return [0]
    count = -(-(length - OVERLAP) // (TILE - OVERLAP))
    return [round(index * (length - TILE) / (count - 1)) for index in range(count)]


def in_image(box: TextBox, left: int, top: int, scale: float) -> TextBox:
    """A box of a tile in pixels of the image, which was scaled before the tile was cut from it."""
    start_x, start_y, end_x, end_y = box.left + left, box.top + top, box.right + left, box.bottom + top
    return TextBox(int(start_x / scale), int(start_y / scale), math.ceil(end_x / scale), math.ceil(end_y / scale))


def find_in_tile(tile: np.ndarray, short_side: int, scale: float) -> list[TextBox]:
    """The boxes of text in one tile, side marks left out. Raises ImageError."""
    try:
        result = detector()(tile, use_det=True, use_cls=False, use_rec=False)
        corners = [] if result.boxes is None else result.boxes
        candidates = [
            (enclosing_box(points, tile), score) for points, score in zip(corners, result.scores or (), strict=True)
        ]
        limit = max(MAX_HEIGHT * short_side, MIN_MAX_HEIGHT * scale)
        return [box for box, score in candidates if thickness(box) <= limit and is_text(tile, box, float(score))]
    except ImageError:
        raise
    except Exception as error:  # of onnxruntime, OpenCV and rapidocr: an image that was not searched is refused
        raise ImageError("search for text failed", type(error).__name__) from None


def enclosing_box(points: np.ndarray, tile: np.ndarray) -> TextBox:
    """The upright rectangle around four corners, within the tile."""
    height, width = tile.shape[:2]
    left, top = np.floor(points.min(axis=0)).astype(int)
    right, bottom = np.ceil(points.max(axis=0)).astype(int)
    return TextBox(max(int(left), 0), max(int(top), 0), min(int(right), width), min(int(bottom), height))


def thickness(box: TextBox) -> int:
    return min(box.right - box.left, box.bottom - box.top)


def is_text(tile: np.ndarray, box: TextBox, score: float) -> bool:
    """Whether a box may name somebody: it is no mark, no single character, and no contour that looks like text."""
    width, height = box.right - box.left, box.bottom - box.top
    if min(width, height) < 3:
        return False
    text, confidence = read_text(tile[box.top : box.bottom, box.left : box.right])
    if text.upper() in MARKS:
        return False
    if len(text) >= (3 if height >= TURNED * width else 2) and confidence >= READ_SCORE:
        return True
    return score >= SURE_BOX_SCORE and (width >= ELONGATED * height or height >= TURNED * width)


def read_text(crop: np.ndarray) -> tuple[str, float]:
    """(what a box says, letters and digits only; the reader's confidence). Long boxes are read in both directions."""
    height, width = crop.shape[:2]
    turns = (1, 3) if height >= TURNED * width else (0, 2) if width >= ELONGATED * height else (0,)
    best = ("", 0.0)
    for turn in turns:
        result = detector()(np.ascontiguousarray(np.rot90(crop, turn)), use_det=False, use_cls=False, use_rec=True)
        text = "".join(character for character in (result.txts or ("",))[0] if character.isalnum())
        best = max(best, (text, float((result.scores or (0.0,))[0])), key=lambda pair: pair[1])
        if best[1] >= READ_SCORE:
            break
    return best


def mask_text(image: Image.Image, boxes: Sequence[TextBox]) -> Image.Image:
    """The image with black rectangles over boxes, a quarter of their height larger on each side."""
    masked = image.copy()
    draw = ImageDraw.Draw(masked)
    for box in boxes:
        margin = 2 + thickness(box) // 4
        corners = [(box.left - margin, box.top - margin), (box.right + margin, box.bottom + margin)]
        draw.rectangle(corners, fill=0)
    return masked


@cache
def detector() -> Any:
    """rapidocr with the models of its own wheel, on one thread: imports run one process per core."""
    import rapidocr

    models = Path(rapidocr.__file__).parent / "models"
    paths = {name: next(iter(sorted(models.glob(f"*_{name}_*.onnx"))), None) for name in ("det", "rec")}
    if None in paths.values():  # rapidocr would download them
        raise UserError(f"rapidocr {metadata.version('rapidocr')} brings no models: pip install 'qilin-med[ocr]'")
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.text_score": 0.0,
            "Global.max_side_len": 2 * TILE,
            "Det.model_path": str(paths["det"]),
            "Det.limit_side_len": 2 * TILE,  # images are scaled here
            "Det.limit_type": "max",
            "Det.box_thresh": BOX_SCORE,
            "Rec.model_path": str(paths["rec"]),
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
