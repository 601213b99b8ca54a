"""What the viewer must know about an image in space: sides of the patient, what its millimeters are, other planes.

In: an image of the store. Out: letters for its edges, how its pixel spacing may be read, and the volume of a series.
"""

from typing import Any

import numpy as np

from qilin.imaging.dicom import DicomImage, functional_group
from qilin.imaging.errors import ImageError
from qilin.imaging.reformat import MIN_SLICES, reformat, stack_geometry
from qilin.imaging.series import SliceStack, make_stack, orientation
from qilin.imaging.volume import PLANES, Selection, Volume

MAX_VOLUME_BYTES = 1 << 30
PROJECTIONS = ("CR", "DX", "RG", "MG", "XA", "RF", "PX", "IO")  # the body lies between the source and the detector
OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}
AXIS_LETTERS = ("RL", "AP", "FH")  # against and along DICOM's axes
OBLIQUE = 0.8  # share of a direction along its nearest axis below which a letter would mislead


def spacing_kind(source: Any) -> str:
    """ "mm", "detector" (mm on the detector: the body is magnified), or "" where the file gives a ratio or nothing."""
    if isinstance(source, Volume):
        return "mm"
    image = first_image(source)
    if image is None:
        return ""
    group = functional_group(image.dataset, 0, "PixelMeasuresSequence") or image.dataset
    is_calibrated = bool(image.dataset.get("PixelSpacingCalibrationType"))
    if group.get("PixelSpacing") or image.dataset.get("PixelSpacing"):
        return "detector" if image.modality in PROJECTIONS and not is_calibrated else "mm"
    scanned = image.dataset.get("ImagerPixelSpacing") or image.dataset.get("NominalScannedPixelSpacing")
    return "detector" if scanned else ""


def edge_letters(source: Any) -> list[str] | None:
    """[left, top, right]: which side of the patient each edge shows, "" where it is oblique; None if unknown."""
    image = first_image(source)
    if image is None:
        return None
    if cosines := orientation(image):
        right, bottom = direction_letter(np.array(cosines[:3])), direction_letter(np.array(cosines[3:]))
    else:
        letters = [str(value).strip().upper()[:1] for value in image.dataset.get("PatientOrientation") or ()]
        if len(letters) != 2 or not all(letter in OPPOSITE for letter in letters):
            return None
        right, bottom = letters
    return [OPPOSITE.get(right, ""), OPPOSITE.get(bottom, ""), right]


def direction_letter(direction: np.ndarray) -> str:
    axis = int(np.argmax(np.abs(direction)))
    return AXIS_LETTERS[axis][int(direction[axis] > 0)] if abs(direction[axis]) >= OBLIQUE else ""


def first_image(source: Any) -> DicomImage | None:
    if isinstance(source, SliceStack):
        return source.images[0]
    return source if isinstance(source, DicomImage) else None


def can_reformat(source: Any) -> bool:
    """Whether a series has enough positions; `stack_volume` says whether they make a volume."""
    if not isinstance(source, SliceStack | DicomImage) or source.count < MIN_SLICES:
        return False
    stack = make_stack([source]) if isinstance(source, DicomImage) else source
    return len(set(stack.positions)) >= MIN_SLICES


def stack_volume(source: SliceStack | DicomImage) -> Volume:
    """The slices of a series as a volume that can be cut along any plane. Raises ImageError."""
    stack = make_stack([source]) if isinstance(source, DicomImage) else source
    if not can_reformat(stack):
        count = len(set(stack.positions))
        raise ImageError("series makes no volume", f"slices at {count} positions; expected at least {MIN_SLICES}")
    geometry = stack_geometry(stack)
    middle = stack.frame(geometry.slices[len(geometry.slices) // 2])
    rows, columns = middle.values.shape[:2]
    if len(geometry.slices) * rows * columns * 4 > MAX_VOLUME_BYTES:
        raise ImageError("image has too many pixels", f"the volume would need more than {MAX_VOLUME_BYTES:,} bytes")
    plane = next(name for name, (_, axis) in PLANES.items() if axis == geometry.row_axis[0])
    frames = reformat(stack, [Selection(plane, rows, tuple(range(1, rows + 1)))])[0]
    low = min(float(frame.values.min()) for frame in frames) - 1
    values = np.stack(
        [frame.values if frame.padding is None else np.where(frame.padding, low, frame.values) for frame in frames]
    )
    # a frame is a slice of the volume, turned: undo what Volume.slice does
    values = np.moveaxis(values.transpose(0, 2, 1)[:, ::-1, ::-1], 0, PLANES[plane][1])
    by_axis = dict(
        zip((geometry.slice_axis[0], geometry.row_axis[0], geometry.column_axis[0]), geometry.spacing, strict=True)
    )
    spacing = (by_axis[0], by_axis[1], by_axis[2])
    padded = any(frame.padding is not None for frame in frames)
    return Volume(np.ascontiguousarray(values), spacing, stack.modality, low if padded else None)
