"""Volumes as images: slices of an axial, coronal or sagittal plane, in the orientation of a reading room.

In: values (X, Y, Z) with axes toward Right, Anterior and Superior. Out: Frames. Axial and coronal slices have the
patient's right side on the left, sagittal ones the front on the left; the head is up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qilin.core.errors import UserError
from qilin.imaging.windowing import Frame

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: dict[str, tuple[str, int]] = {"axial": ("轴位", 2), "coronal": ("冠状位", 1), "sagittal": ("矢状位", 0)}
MAX_SLICES = 64


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
        """One slice, counted from the left side, the back or the feet."""
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
    """轴位 3/8: what stands before the question for each image."""
    return f"{PLANES[plane][0]} {number}/{total}"


def sample_slices(volume: Volume, wanted: int, planes: Sequence[str] = ("axial",)) -> list[Frame]:
    """`wanted` labeled slices of each plane."""
    frames = []
    for plane in planes:
        if plane not in PLANES:
            raise UserError(f"plane is {plane!r}; expected {', '.join(PLANES)}")
        positions = choose_slices(volume.count(plane), wanted)
        for number, index in enumerate(positions, start=1):
            frames.append(volume.slice(plane, index, slice_label(plane, number, len(positions))))
    return frames
