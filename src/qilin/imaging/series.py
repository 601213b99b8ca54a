"""DICOM files of one series as a stack of slices in the order of their positions.

In: DICOM images. Out: stacks. File names and order say nothing: slices belong together when series, size and
orientation agree, and are sorted along the normal of their plane (PS3.3 C.7.6.2). What has no position is sorted by
InstanceNumber.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qilin.imaging.dicom import DicomImage, as_list, damage_refused, element, functional_group, number
from qilin.imaging.errors import ImageError
from qilin.imaging.windowing import Frame

ORIENTATION_DIGITS = 2  # direction cosines that agree to so many digits are one orientation
PLANE_BY_AXIS = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class SliceStack:
    """The slices of one series. `plane` is axial, coronal, sagittal, or "" where the files do not say.

    `slots` are the slices in order: (number of the file, frame in it); `positions` are theirs in mm, from the feet, the
    back or the left side, or () where a file has none.
    """

    images: tuple[DicomImage, ...]
    plane: str = ""
    slots: tuple[tuple[int, int], ...] = ()
    positions: tuple[float, ...] = ()

    @property
    def modality(self) -> str:
        return self.images[0].modality

    @property
    def count(self) -> int:
        return len(self.slots)

    def frame(self, index: int) -> Frame:
        """One slice, counted from 0. Raises ImageError."""
        if not 0 <= index < self.count:
            raise ImageError("frame does not exist", f"{index + 1} of {self.count}")
        image, frame = self.slots[index]
        return self.images[image].frame(frame)

    def volume_indices(self) -> list[int]:
        """The slices of one volume: of several images at one position (times, echoes, directions) the first."""
        if len(set(self.positions)) < 2:
            return list(range(self.count))
        first: dict[float, int] = {}
        for index, position in enumerate(self.positions):
            first.setdefault(position, index)
        return list(first.values())


def group_series(images: Iterable[DicomImage]) -> list[SliceStack]:
    """Images -> stacks, in the order in which their first image came. A second copy counts once."""
    groups: dict[tuple[Any, ...], dict[tuple[str, int], DicomImage]] = {}
    with damage_refused():
        for order, image in enumerate(images):
            group = groups.setdefault(series_key(image, order), {})
            copy = str(element(image.dataset, "SOPInstanceUID") or order), hash(image.dataset.get("PixelData"))
            group.setdefault(copy, image)  # some exports give all slices one UID: the pixels decide
        return [make_stack(list(group.values())) for group in groups.values()]


def series_key(image: DicomImage, unique: int) -> tuple[Any, ...]:
    """What slices of one stack share; an image without a series is a stack of its own."""
    dataset = image.dataset
    series = str(element(dataset, "SeriesInstanceUID") or f"#{unique}")
    kind = tuple(str(value) for value in as_list(element(dataset, "ImageType"))[2:3])  # LOCALIZER beside AXIAL
    if image.modality in ("CR", "DX", "MG", "XA", "US") or image.count > 1:  # views and clips, not slices
        series += f"#{unique}"
    return series, dataset.Rows, dataset.Columns, kind, orientation(image)


def orientation(image: DicomImage, frame: int = 0) -> tuple[float, ...]:
    """The six direction cosines, rounded; () where the file has none."""
    group = functional_group(image.dataset, frame, "PlaneOrientationSequence") or image.dataset
    values = [number(value, math.nan) for value in as_list(element(group, "ImageOrientationPatient"))]
    if len(values) != 6 or not all(map(math.isfinite, values)):
        return ()
    return tuple(round(value, ORIENTATION_DIGITS) + 0.0 for value in values)


def make_stack(images: Sequence[DicomImage]) -> SliceStack:
    """Slices in the order of their positions, from the feet, the back or the left side."""
    images = sorted(images, key=instance_number)
    slots = [(number, frame) for number, image in enumerate(images) for frame in range(image.count)]
    cosines = orientation(images[0])
    if not cosines or any(orientation(images[number], frame) != cosines for number, frame in slots if frame):
        return SliceStack(tuple(images), "", tuple(slots))
    normal, axis = stack_normal(cosines)
    positions = [position_along(images[number], normal, frame) for number, frame in slots]
    plane = PLANE_BY_AXIS[axis]
    if None in positions:
        return SliceStack(tuple(images), plane, tuple(slots))
    ordered = sorted(zip(positions, slots, strict=True))
    return SliceStack(
        tuple(images), plane, *(tuple(values) for values in zip(*((s, p) for p, s in ordered), strict=True))
    )


def stack_normal(cosines: Sequence[float]) -> tuple[np.ndarray, int]:
    """(unit normal of the slices toward right, front or head; the body's axis nearest to it: x, y or z)."""
    normal = np.cross(cosines[:3], cosines[3:])
    axis = int(np.argmax(np.abs(normal)))
    toward = 1 if axis == 2 else -1  # DICOM's axes point to the left, the back and the head
    return normal * (np.sign(normal[axis]) or 1) * toward, axis


def position_along(image: DicomImage, normal: np.ndarray, frame: int = 0) -> float | None:
    """A slice's position in mm along the normal of its plane; None where the file has none."""
    corner = corner_position(image, frame)
    return None if corner is None else round(float(np.dot(corner, normal)), 3)


def corner_position(image: DicomImage, frame: int = 0) -> np.ndarray | None:
    """Where the center of a slice's first pixel lies, in mm (left, back, head); None where the file does not say."""
    group = functional_group(image.dataset, frame, "PlanePositionSequence") or image.dataset
    values = [number(value, math.nan) for value in as_list(element(group, "ImagePositionPatient"))]
    return np.array(values) if len(values) == 3 and all(map(math.isfinite, values)) else None


def instance_number(image: DicomImage) -> float:
    return number(element(image.dataset, "InstanceNumber"), 0.0)
