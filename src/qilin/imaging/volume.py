"""Volumes as images: slices of an axial, coronal or sagittal plane, in the orientation of a reading room.

In: values (X, Y, Z) with axes toward Right, Anterior and Superior, and which slices. Out: Frames. Axial and coronal
slices have the patient's right side on the left, sagittal ones the front on the left; the head is up. Slices are
counted from the feet, the back, and the left side, as those of DICOM series are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qilin.core.errors import UserError
from qilin.imaging.windowing import Frame

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: dict[str, tuple[str, int]] = {"axial": ("轴位", 2), "coronal": ("冠状位", 1), "sagittal": ("矢状位", 0)}
MAX_SLICES = 64
SELECTION = re.compile(r"(?:(?P<plane>[^\W\d]+)(?P<sign>[:@]))?(?P<numbers>\d+(?:,\d+)*)")


@dataclass(frozen=True)
class Selection:
    """Slices of one plane: `count` evenly spaced ones, or those at `positions`, counted from 1.

    `plane` is axial, coronal, sagittal, or "" for the plane in which the series was taken.
    """

    plane: str = ""
    count: int = 8
    positions: tuple[int, ...] = ()

    def choose(self, count: int) -> list[int]:
        """Indices from 0 among `count` slices. Raises UserError for a position that does not exist."""
        if outside := [position for position in self.positions if not 1 <= position <= count]:
            raise UserError(f"slice {outside[0]} does not exist; the series has {count} in this plane")
        return [position - 1 for position in self.positions] or choose_slices(count, self.count)


def parse_selection(text: str) -> Selection:
    """8, axial:8, 冠状位:4, or sagittal@120,140: slices by number. Raises UserError."""
    match = SELECTION.fullmatch(text.strip())
    planes = {"": "", **{plane: plane for plane in PLANES}, **{name: plane for plane, (name, _) in PLANES.items()}}
    plane = planes.get(match["plane"] or "") if match else None
    if match is None or plane is None:
        raise UserError(f"slices is {text!r}; expected 8, axial:8, coronal:4 (evenly spaced) or sagittal@120,140")
    numbers = tuple(map(int, match["numbers"].split(",")))
    if match["sign"] == "@":
        if len(numbers) > MAX_SLICES:
            raise UserError(f"slices is {text!r}; expected at most {MAX_SLICES}")
        return Selection(plane, len(numbers), numbers)
    if len(numbers) > 1 or not 1 <= numbers[0] <= MAX_SLICES:
        raise UserError(f"slices is {text!r}; expected 1 to {MAX_SLICES}, or PLANE@NUMBERS")
    return Selection(plane, numbers[0])


@dataclass(frozen=True)
class Volume:
    """`values` (X, Y, Z) in physical units, `spacing` in mm along X, Y and Z."""

    values: np.ndarray
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    modality: str = ""
    padding_value: float | None = None

    def count(self, plane: str) -> int:
        return int(self.values.shape[PLANES[plane][1]])

    def slice(self, plane: str, index: int, label: str = "") -> Frame:
        """One slice, counted from the feet, the back, or the left side."""
        axis = PLANES[plane][1]
        x, y, z = self.spacing
        if axis == 2:
            values, spacing = self.values[::-1, ::-1, index].T, (y, x)
        elif axis == 1:
            values, spacing = self.values[::-1, index, ::-1].T, (z, x)
        else:
            values, spacing = self.values[index, ::-1, ::-1].T, (z, y)
        values = np.ascontiguousarray(values)
        padding = values == self.padding_value if self.padding_value is not None else None
        return Frame(values, self.modality, padding=padding, spacing=spacing, label=label)


def choose_slices(count: int, wanted: int) -> list[int]:
    """`wanted` positions, evenly spaced over `count` slices and away from both ends; all if there are fewer.

    >>> choose_slices(100, 4), choose_slices(3, 8)
    ([12, 37, 62, 87], [0, 1, 2])
    """
    if wanted < 1 or wanted > MAX_SLICES:
        raise UserError(f"slices is {wanted}; expected 1 to {MAX_SLICES}")
    if count <= wanted:
        return list(range(count))
    return [(2 * index + 1) * count // (2 * wanted) for index in range(wanted)]


def slice_label(plane: str, number: int, total: int) -> str:
    """轴位 3/8: what stands before the question for each image. Without a known plane: 图像 3/8; "" for one image."""
    if total == 1:
        return ""
    return f"{PLANES[plane][0] if plane in PLANES else '图像'} {number}/{total}"


def sample_slices(volume: Volume, selections: Sequence[Selection]) -> list[Frame]:
    """The labeled slices of each selection; a volume's own plane is the axial one."""
    frames = []
    for selection in selections:
        plane = selection.plane or "axial"
        indices = selection.choose(volume.count(plane))
        for number, index in enumerate(indices, start=1):
            frames.append(volume.slice(plane, index, slice_label(plane, number, len(indices))))
    return frames
