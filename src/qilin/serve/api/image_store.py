"""Images that the page uploaded, in memory: decoded on the server, drawn in the browser, shown to the model.

In: the bytes of a file and its owner. Out: an id, the values of one frame for the viewer, and the 8-bit image that the
model gets for the same frame, window and crop. Nothing touches the disk; the least recently used images are dropped.
"""

import contextlib
import hashlib
import secrets
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

from qilin.imaging.dicom import DicomImage
from qilin.imaging.medical import MedicalImage, open_medical
from qilin.imaging.series import SliceStack, group_series
from qilin.imaging.volume import PLANES, Volume
from qilin.imaging.windowing import (
    CT,
    PRESETS,
    Frame,
    LookupTable,
    Window,
    Windowing,
    parse_window,
    percentile_window,
    render,
    with_square_pixels,
)
from qilin.serve.api.errors import ApiError
from qilin.serve.api.image_geometry import can_reformat, edge_letters, spacing_kind, stack_volume
from qilin.serve.api.remote_images import split_url

SCHEME = "qilin-image"
PROCESS_KEY = secrets.token_bytes(32)
STORE_BYTES = 2 << 30
INT16_MIN, INT16_MAX = -32768, 32767
MAX_VIEW_SIDE = 4096  # pixels of the longer side that the viewer gets at full size


@dataclass(frozen=True)
class StoredImage:
    """An uploaded file. `size` is what it is counted with."""

    image: MedicalImage
    owner: str
    size: int


class ImageStore:
    """Images by id; an id is a secret of its own, and only its owner may use it.

    `windowing` is that of the model: images are first shown, and given to the model, as those it was trained on.
    """

    def __init__(self, max_bytes: int = STORE_BYTES, windowing: Windowing | None = None) -> None:
        self.max_bytes, self.used = max_bytes, 0
        self.windowing = windowing or Windowing()
        self.images: OrderedDict[str, StoredImage] = OrderedDict()
        self.lock = threading.Lock()

    def add(self, data: bytes, owner: str) -> str:
        """Read a file's head and keep it. Raises ImageError."""
        return self.keep(open_medical(data), len(data), owner)

    def keep(self, image: MedicalImage, data_bytes: int, owner: str) -> str:
        """Keep an image of so many bytes; returns its id."""
        size = data_bytes + (image.source.values.nbytes if isinstance(image.source, Frame | Volume) else 0)
        name = secrets.token_urlsafe(16)
        with self.lock:
            self.images[name] = StoredImage(image, owner, size)
            self.used += size
            while self.used > self.max_bytes and len(self.images) > 1:
                self.used -= self.images.pop(self.next_to_drop(name)).size
        return name

    def next_to_drop(self, newest: str) -> str:
        """The least recently used image of the owner whose images take the most: uploads with one key cannot push out
        the images of all others. The lock is held."""
        used: Counter[str] = Counter()
        for stored in self.images.values():
            used[stored.owner] += stored.size
        oldest: dict[str, str] = {}
        for name, stored in self.images.items():
            if name != newest:
                oldest.setdefault(stored.owner, name)
        return oldest[max(oldest, key=lambda owner: used[owner])]

    def get(self, name: str, owner: str) -> MedicalImage:
        """An owner's image. Raises ApiError 404."""
        with self.lock:
            stored = self.images.get(name)
            if stored is None or stored.owner != owner:
                raise ApiError(404, "there is no such image; it was dropped or never uploaded: load it again", "image")
            self.images.move_to_end(name)
            return stored.image

    def stack(self, names: Sequence[str], owner: str) -> list[str]:
        """Replace images of DICOM files by stacks of their series; returns the stacks' ids. Raises ApiError."""
        images = [self.get(name, owner).source for name in names]
        if not all(isinstance(image, DicomImage) for image in images):
            raise ApiError(400, "images: a series consists of DICOM files", "images")
        stacks = group_series(image for image in images if isinstance(image, DicomImage))
        with self.lock:
            sizes = {id(stored.image.source): stored.size for stored in self.images.values()}
        result = []
        for stack in stacks:
            size = sum(sizes.get(id(image), 0) for image in stack.images)
            result.append(self.keep(MedicalImage("dicom", stack.modality, stack), size, owner))
        for name in names:
            with contextlib.suppress(ApiError):  # dropped meanwhile
                self.remove(name, owner)
        return result

    def volume(self, name: str, owner: str) -> str:
        """The slices of a series as a volume, which is kept as a further image; its id. Raises ApiError, ImageError."""
        image = self.get(name, owner)
        if not isinstance(image.source, DicomImage | SliceStack):
            raise ApiError(400, "image: expected the slices of a DICOM series", "image")
        return self.keep(MedicalImage("dicom", image.modality, stack_volume(image.source)), 0, owner)

    def remove(self, name: str, owner: str) -> None:
        self.get(name, owner)
        with self.lock:
            if stored := self.images.pop(name, None):  # another request may have been first
                self.used -= stored.size

    def render_url(self, url: str, owner: str) -> Image.Image:
        """qilin-image:ID?plane=axial&index=3&window=40,400&crop=x,y,w,h -> the RGB image for the model.

        Raises ApiError, ImageError.
        """
        parts = split_url(url, "image")
        options = dict(parse_qsl(parts.query))
        frame = select_frame(self.get(parts.path, owner), options)
        windowing = self.windowing
        if "window" in options:
            center, width = numbers(options, "window", 2)
            window = Window(center, max(width, 1e-6), "LINEAR_EXACT")
            first = model_window(frame, windowing)
            if first is None or (first.center, first.width) != (center, width):  # the user has changed it
                frame, windowing = replace(frame, voi=window), Windowing()
        if options.get("invert") == "1":
            frame = replace(frame, inverted=not frame.inverted)
        image = render(frame, windowing).convert("RGB")
        if "crop" not in options:
            return image
        left, top, width, height = numbers(options, "crop", 4)
        edges = np.clip((left, top, left + width, top + height), -1, 1e6)  # sums of large numbers are infinite
        box = (round(edges[0]), round(edges[1]), round(edges[2]), round(edges[3]))
        if not (0 <= box[0] < box[2] <= image.width and 0 <= box[1] < box[3] <= image.height):
            raise ApiError(
                400, f"crop is {options['crop']}; the image has {image.width} x {image.height} pixels", "crop"
            )
        return image.crop(box)


def numbers(options: Mapping[str, str], name: str, count: int) -> list[float]:
    """Comma-separated numbers. Raises ApiError 400."""
    try:
        values = [float(text) for text in options[name].split(",")]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise ApiError(400, f"{name} is {options[name]!r}; expected {count} numbers", name)
    return values


def select_frame(image: MedicalImage, options: Mapping[str, str]) -> Frame:
    """The frame that a plane and an index name; the middle one by default. Raises ApiError, ImageError."""
    plane = options.get("plane", "axial")
    if plane not in PLANES:
        raise ApiError(400, f"plane is {plane!r}; expected {', '.join(PLANES)}", "plane")
    count = image.source.count(plane) if isinstance(image.source, Volume) else image.count
    try:
        index = int(options.get("index", count // 2))
    except ValueError:
        index = -1
    if not 0 <= index < count:
        raise ApiError(400, f"index is {options['index']!r}; expected 0 to {count - 1}", "index")
    return image.source.slice(plane, index) if isinstance(image.source, Volume) else image.frame(index)


def describe(image: MedicalImage, windowing: Windowing | None = None) -> dict[str, Any]:
    """What the page needs to show an image; it begins with the model's window. Raises ImageError."""
    frame = select_frame(image, {})
    window = model_window(frame, windowing or Windowing()) or display_window(frame)
    volume = image.source if isinstance(image.source, Volume) and image.count > 1 else None
    planes = {plane: volume.count(plane) for plane in PLANES} if volume else {"axial": image.count}
    series = image.source.dataset.get("SeriesInstanceUID") if isinstance(image.source, DicomImage) else None
    return {
        "series": series_token(str(series)) if series else None,
        "plane": image.source.plane if isinstance(image.source, SliceStack) else "",
        "kind": image.kind,
        "modality": image.modality,
        "planes": planes,
        "color": frame.is_color,
        "window": [window.center, window.width],
        "presets": {name: [preset.center, preset.width] for name, (_, preset) in PRESETS.items()}
        if frame.modality == "CT"
        else {},
        "spacing": spacing_kind(image.source) if frame.spacing else "",
        "edges": edge_letters(image.source),
        "stack": can_reformat(image.source),
    }


def series_token(uid: str) -> str:
    """Which files belong together, without the identifier itself, which would lead to the patient."""
    return hashlib.blake2b(uid.encode(), key=PROCESS_KEY, digest_size=8).hexdigest()


def model_window(frame: Frame, windowing: Windowing) -> Window | None:
    """The window of a CT that the model was trained with; the first where red, green and blue have one each."""
    return parse_window(windowing.names[0]) if frame.modality == CT and not frame.is_color else None


def display_window(frame: Frame) -> Window:
    """The window of a file: its own, else percentiles."""
    if frame.is_color:
        return Window(127.5, 255)
    if isinstance(frame.voi, LookupTable):
        last = frame.voi.first + len(frame.voi.levels) - 1
        return Window((frame.voi.first + last) / 2, max(last - frame.voi.first, 1))
    return frame.voi or percentile_window(frame)


def view_pixels(frame: Frame, max_side: int) -> tuple[bytes, dict[str, str]]:
    """A frame for the canvas: int16 values or RGB bytes, row by row, with square pixels, and headers that explain them.

    `max_side` reduces large images before they are sent. value = stored * slope + intercept. Not-a-number is sent as
    the smallest value. Padding is the stored value that X-Padding names: black, whatever the window and inverted or
    not, as in the image that the model is shown. X-Spacing is that of the whole image's square pixels.
    """
    headers = {"X-Spacing": repr(min(frame.spacing)) if frame.spacing else "", "X-Inverted": str(int(frame.inverted))}
    if frame.is_color:
        full_image = with_square_pixels(Image.fromarray(frame.values), frame.spacing)
        image = fit(full_image, max_side)
        return image.tobytes(), headers | size_headers(image, full_image, "rgb")
    values = frame.values.astype(np.float32, copy=True)
    low = float(np.nanmin(values)) if np.isfinite(values).any() else 0.0
    values = np.nan_to_num(values, nan=low, posinf=low, neginf=low)
    full_image = with_square_pixels(Image.fromarray(values, "F"), frame.spacing)
    image = fit(full_image, max_side)
    array = np.asarray(image)
    slope, intercept = int16_scale(array)
    stored = np.rint((array - intercept) / slope).clip(INT16_MIN, INT16_MAX).astype("<i2")
    headers |= {"X-Slope": repr(slope), "X-Intercept": repr(intercept)}
    if frame.padding is not None:
        padding = Image.fromarray(frame.padding.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
        stored = np.where(np.asarray(padding) > 0, INT16_MIN, np.maximum(stored, INT16_MIN + 1)).astype("<i2")
        headers["X-Padding"] = str(INT16_MIN)
    return stored.tobytes(), headers | size_headers(image, full_image, "int16")


def int16_scale(values: np.ndarray) -> tuple[float, float]:
    """(slope, intercept) that bring the values into int16: 1 and 0 where they are whole numbers that fit."""
    low, high = float(values.min()), float(values.max())
    if low >= INT16_MIN and high <= INT16_MAX and np.array_equal(values, np.rint(values)):
        return 1.0, 0.0
    return max((high - low) / 65535, 1e-12), (low + high) / 2


def fit(image: Image.Image, max_side: int) -> Image.Image:
    """Reduce an image to at most `max_side` pixels a side."""
    scale = min(max_side, MAX_VIEW_SIDE) / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX if image.mode == "F" else Image.Resampling.LANCZOS)


def size_headers(image: Image.Image, full_image: Image.Image, kind: str) -> dict[str, str]:
    sizes = {
        "X-Width": image.width,
        "X-Height": image.height,
        "X-Full-Width": full_image.width,
        "X-Full-Height": full_image.height,
    }
    return {"X-Kind": kind} | {name: str(value) for name, value in sizes.items()}
