"""From a frame's values to the gray levels that a person and a model see.

In: a Frame (physical values of one image) and Windowing (which part of the values becomes black to white). Out: 8-bit
pixels. The windowing that a dataset was made with is stored with it and with every model trained on it, so that
evaluation, chat and the server show the model the same gray levels.

Sources: DICOM PS3.3 C.11.2.1.2 (window functions), C.11.2.1.1 (VOI LUT), C.7.6.3.1.2 (photometric interpretation).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from qilin.core.errors import UserError, suggest

PERCENTILES = (0.5, 99.5)  # of the values outside the padding, where a file has no window
ASPECT_TOLERANCE = 0.01  # pixels that are square within one percent are not resampled
CT = "CT"


@dataclass(frozen=True)
class Window:
    """A window in the units of the values. `function` is LINEAR, LINEAR_EXACT or SIGMOID, as in the standard."""

    center: float
    width: float
    function: str = "LINEAR"


@dataclass(frozen=True)
class LookupTable:
    """A VOI LUT: entry i belongs to the value first + i; `levels` are scaled to 0 to 1."""

    first: float
    levels: np.ndarray


@dataclass(frozen=True)
class Frame:
    """One image. `values` (H, W) are physical (HU for CT), or (H, W, 3) uint8 are colors.

    `padding` (H, W) marks pixels outside the image. `voi` is what the file says about display, if it does. `inverted`
    images have their smallest value white (MONOCHROME1). `spacing` is the distance of rows and of columns in mm.
    `label` names the frame in a volume (轴位 3/8).
    """

    values: np.ndarray
    modality: str = ""
    voi: Window | LookupTable | None = None
    inverted: bool = False
    padding: np.ndarray | None = None
    spacing: tuple[float, float] | None = None
    label: str = ""

    @property
    def is_color(self) -> bool:
        return self.values.ndim == 3


# Chinese name, English name: center and width in HU, the usual settings of a reading room
PRESETS: dict[str, tuple[str, Window]] = {
    "肺窗": ("lung", Window(-600, 1500)),
    "纵隔窗": ("mediastinum", Window(50, 350)),
    "骨窗": ("bone", Window(400, 1800)),
    "脑窗": ("brain", Window(40, 80)),
    "卒中窗": ("stroke", Window(40, 40)),
    "硬膜下窗": ("subdural", Window(75, 215)),
    "颞骨窗": ("temporal-bone", Window(600, 2800)),
    "腹窗": ("abdomen", Window(50, 400)),
    "肝窗": ("liver", Window(60, 160)),
    "软组织窗": ("soft-tissue", Window(40, 400)),
    "脊柱窗": ("spine", Window(50, 250)),
    "血管窗": ("angio", Window(300, 600)),
}
AUTO = "auto"


@dataclass(frozen=True)
class Windowing:
    """How gray values become gray levels: `names` holds one setting, or three that become red, green and blue.

    A setting is `auto` (the file's own window, else percentiles), `percentile` (percentiles in any case), a preset
    (肺窗 or lung), or `CENTER,WIDTH`. Presets and numbers are in HU and apply to CT; other modalities use `auto`.
    """

    names: tuple[str, ...] = (AUTO,)

    def __post_init__(self) -> None:
        if len(self.names) not in (1, 3):
            raise UserError(f"window: {len(self.names)} settings; expected one, or three for red, green and blue")
        for name in self.names:
            parse_window(name)

    def __str__(self) -> str:
        return " ".join(self.names)

    def to_json(self) -> list[str]:
        return list(self.names)


def parse_window(name: str) -> Window | None:
    """A setting as a Window; None for `auto` and `percentile`. Raises UserError."""
    if name in (AUTO, "percentile"):
        return None
    if name in PRESETS:
        return PRESETS[name][1]
    english = {names[0]: names[1] for names in PRESETS.values()}
    if name in english:
        return english[name]
    center, comma, width = name.partition(",")
    try:
        window = Window(float(center), float(width))
        if comma and np.isfinite([window.center, window.width]).all() and window.width >= 1:
            return window
    except ValueError:
        pass
    hint = suggest(name, [AUTO, "percentile", *PRESETS, *english], f"expected auto, {', '.join(PRESETS)} or 40,400")
    raise UserError(f"window is {name!r}; {hint}")


def render(frame: Frame, windowing: Windowing | None = None) -> Image.Image:
    """The frame as an 8-bit image of mode L or RGB, with square pixels."""
    names = (windowing or Windowing()).names
    if frame.is_color:
        image = Image.fromarray(frame.values)
    elif len(names) == 1:
        image = Image.fromarray(gray_levels(frame, names[0]))
    else:
        image = Image.fromarray(np.stack([gray_levels(frame, name) for name in names], axis=-1))
    return with_square_pixels(image, frame.spacing)


def gray_levels(frame: Frame, name: str) -> np.ndarray:
    """(H, W) physical values -> (H, W) uint8 through one setting; padding is black."""
    window = parse_window(name) if frame.modality == CT else None
    if window is None and name != "percentile" and isinstance(frame.voi, LookupTable):
        levels = through_lookup_table(frame.values, frame.voi)
    else:
        file_window = frame.voi if isinstance(frame.voi, Window) and name != "percentile" else None
        levels = through_window(frame.values, window or file_window or percentile_window(frame))
    if frame.inverted:
        levels = 255 - levels
    if frame.padding is not None:
        levels[frame.padding] = 0
    return levels


def through_window(values: np.ndarray, window: Window) -> np.ndarray:
    """Values -> uint8, by the standard's formulas. Not a number becomes black."""
    x = values.astype(np.float32)
    if window.function == "SIGMOID":
        with np.errstate(over="ignore"):
            level = 1 / (1 + np.exp(-4 * (x - window.center) / window.width))
    elif window.function == "LINEAR_EXACT":
        level = (x - window.center) / window.width + 0.5
    else:  # LINEAR: the -0.5 and -1 make a window of width 1 a threshold
        level = (x - (window.center - 0.5)) / max(window.width - 1, 1e-6) + 0.5
    return to_uint8(level)


def to_uint8(level: np.ndarray) -> np.ndarray:
    """0 to 1 -> 0 to 255, clipped and rounded."""
    level = np.nan_to_num(level, nan=0.0, posinf=1.0, neginf=0.0)
    return np.rint(np.clip(level, 0, 1) * 255).astype(np.uint8)


def through_lookup_table(values: np.ndarray, table: LookupTable) -> np.ndarray:
    """Values -> uint8; values outside the table take its first or last level."""
    index = np.clip(np.nan_to_num(values) - table.first, 0, len(table.levels) - 1).astype(np.intp)
    return to_uint8(table.levels[index])


def percentile_window(frame: Frame) -> Window:
    """A window over the middle 99 % of the values outside the padding.

    Percentiles, because one hot pixel or a metal marker would leave the anatomy nearly black; minimum and maximum where
    the percentiles coincide (a small bright object on an empty background).
    """
    values = frame.values if frame.padding is None else frame.values[~frame.padding]
    values = values[np.isfinite(values)]
    if values.size == 0:
        return Window(0, 1)
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    if not (low < high and np.isfinite(high - low)):  # differences of the largest float32 overflow
        low, high = float(values.min()), float(values.max())
    if low == high:  # air outside the body: black, as the background of other slices
        return Window(low + 1, 1, "LINEAR_EXACT")
    return Window((low + high) / 2, max(high - low, 1e-6), "LINEAR_EXACT")


def with_square_pixels(image: Image.Image, spacing: tuple[float, float] | None) -> Image.Image:
    """Enlarge the axis whose pixels are longer, so that a circle is a circle."""
    if spacing is None:
        return image
    ratio = spacing[0] / spacing[1]  # rows are this much farther apart than columns
    if abs(ratio - 1) <= ASPECT_TOLERANCE or not 0.05 < ratio < 20:
        return image
    width, height = image.size
    size = (width, round(height * ratio)) if ratio > 1 else (round(width / ratio), height)
    return image.resize(size, Image.Resampling.BICUBIC)


def windowing_from(value: Any) -> Windowing:
    """The windowing that a manifest or a qilin.json holds; `auto` where it holds none. Raises UserError."""
    if value is None:
        return Windowing()
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise UserError(f"windowing is {value!r}; expected a list of names")
    return Windowing(tuple(value))


def recorded_windowings(settings: Any) -> list[Any]:
    """The distinct windowings, as they are stored, in a manifest's settings and those of what it was made from."""
    windowings: list[Any] = []
    pending = [settings]
    while pending:
        step = pending.pop(0)
        if isinstance(step, list | tuple):
            pending += step
        elif isinstance(step, Mapping):
            if (value := step.get("windowing")) is not None and value not in windowings:
                windowings.append(value)
            pending.append(step.get("made_from"))
    return windowings


def model_windowing(metadata: Mapping[str, Any], names: Sequence[str] = ()) -> tuple[Windowing, str]:
    """(the windowing of the images that a model is shown, what the user must know about it).

    `metadata` is the model's qilin.json, which names the windowings of its training data; `names` is the user's choice.
    Raises UserError.
    """
    trained = [windowing_from(value) for value in metadata.get("windowings") or ()]
    described = "; ".join(str(windowing) for windowing in trained)
    if names:
        chosen = Windowing(tuple(names))
        differs = bool(trained) and chosen not in trained
        return chosen, f"window {chosen}: the model was trained with {described}" if differs else ""
    if len(trained) > 1:
        return Windowing(), f"the model was trained with several windows ({described}); --window chooses one"
    windowing = trained[0] if trained else Windowing()
    return windowing, f"window of CT: {windowing}, as in training" if windowing != Windowing() else ""


def windowing_mismatch(metadata: Mapping[str, Any], settings: Any) -> str:
    """What to say where the images of a dataset were made with another windowing than a model's training images."""
    trained = [windowing_from(value) for value in metadata.get("windowings") or ()]
    windowings = map(windowing_from, recorded_windowings(settings))
    others = [windowing for windowing in windowings if windowing not in trained]
    if not trained or not others:
        return ""
    return (
        f"the dataset's images were made with window {'; '.join(map(str, others))}, and the model was trained with "
        f"{'; '.join(map(str, trained))}: import them with --window {trained[0]}"
    )
