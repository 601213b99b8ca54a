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
    """The slices of one series, in order. `plane` is axial, coronal, sagittal, or "" where the files do not say."""

    images: tuple[DicomImage, ...]
    plane: str = ""

    @property
    def modality(self) -> str:
        return self.images[0].modality

    @property
    def count(self) -> int:
        return sum(image.count for image in self.images)

    def frame(self, index: int) -> Frame:
        """One slice, counted from 0. Raises ImageError."""
        if index < 0:
            raise ImageError("frame does not exist", f"{index + 1} of {self.count}")
        for image in self.images:
            if index < image.count:
                return image.frame(index)
            index -= image.count
        raise ImageError("frame does not exist", f"{index + self.count + 1} of {self.count}")


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


def orientation(image: DicomImage) -> tuple[float, ...]:
    """The six direction cosines, rounded; () where the file has none."""
    group = functional_group(image.dataset, 0, "PlaneOrientationSequence") or image.dataset
    values = [number(value, math.nan) for value in as_list(element(group, "ImageOrientationPatient"))]
    if len(values) != 6 or not all(map(math.isfinite, values)):
        return ()
    return tuple(round(value, ORIENTATION_DIGITS) + 0.0 for value in values)


def make_stack(images: Sequence[DicomImage]) -> SliceStack:
    """Slices in the order of their positions, feet to head, back to front, or right to left."""
    cosines = orientation(images[0])
    if not cosines:
        return SliceStack(tuple(sorted(images, key=instance_number)))
    normal = np.cross(cosines[:3], cosines[3:])
    axis = int(np.argmax(np.abs(normal)))
    normal = normal * np.sign(normal[axis] or 1)
    positions = [position_along(image, normal) for image in images]
    if None in positions:
        ordered = sorted(images, key=instance_number)
    else:
        keyed = sorted(zip(positions, map(instance_number, images), range(len(images)), strict=True))
        ordered = [images[index] for _, _, index in keyed]
    return SliceStack(tuple(ordered), PLANE_BY_AXIS[axis])


def position_along(image: DicomImage, normal: np.ndarray) -> float | None:
    """The slice's position in mm along the normal of its plane; None where the file has none."""
    group = functional_group(image.dataset, 0, "PlanePositionSequence") or image.dataset
    values = [number(value, math.nan) for value in as_list(element(group, "ImagePositionPatient"))]
    if len(values) != 3 or not all(map(math.isfinite, values)):
        return None
    return round(float(np.dot(values, normal)), 3)


def instance_number(image: DicomImage) -> float:
    return number(element(image.dataset, "InstanceNumber"), 0.0)
