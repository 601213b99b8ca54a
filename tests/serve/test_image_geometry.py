"""Series as volumes, the patient's sides, and what millimeters mean."""

from typing import Any

import numpy as np
import pytest

from builders.dicom import ct_pixels, dicom, item
from qilin.imaging.dicom import DicomImage, read_dicom
from qilin.imaging.errors import ImageError
from qilin.imaging.series import SliceStack, group_series
from qilin.serve.api.image_geometry import can_reformat, edge_letters, spacing_kind, stack_volume
from qilin.serve.api.image_store import view_pixels

VALUES = np.random.default_rng(0).integers(0, 2000, size=(9, 10, 12)).astype(np.int16)  # (slices, rows, columns)
MEASURES = [item(PixelMeasuresSequence=[item(PixelSpacing=[1, 1])])]
AXIAL, CORONAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1)


def series(values: np.ndarray, cosines: tuple[float, ...], step: tuple[float, ...], **elements: Any) -> SliceStack:
    """One file per slice, the first slice at the origin."""
    images = []
    for index, pixels in enumerate(values):
        position = [index * distance for distance in step]
        data = dicom(
            pixels, SeriesInstanceUID="1.2", SOPInstanceUID=f"1.{index}", PixelSpacing=[0.5, 0.75],
            ImagePositionPatient=position, ImageOrientationPatient=list(cosines), **elements,
        )  # fmt: skip
        images.append(read_dicom(data))
    (stack,) = group_series(images[::-1])
    return stack


def test_an_axial_series_in_all_planes() -> None:
    """Feet to head in the files; every plane is that of a reading room, voxel for voxel."""
    volume = stack_volume(series(VALUES, AXIAL, (0, 0, 4)))
    assert volume.spacing == (0.75, 0.5, 4)
    assert all(np.array_equal(volume.slice("axial", k).values, VALUES[k]) for k in range(9))
    assert np.array_equal(volume.slice("coronal", 2).values, VALUES[::-1, 10 - 1 - 2])
    assert np.array_equal(volume.slice("sagittal", 3).values, VALUES[::-1, :, 12 - 1 - 3])


def test_a_coronal_series_in_all_planes() -> None:
    """The first file is the front one: slices are counted from the back."""
    volume = stack_volume(series(VALUES, CORONAL, (0, 4, 0)))
    assert volume.spacing == (0.75, 4, 0.5)
    assert all(np.array_equal(volume.slice("coronal", k).values, VALUES[8 - k]) for k in range(9))
    assert np.array_equal(volume.slice("axial", 0).values, VALUES[:, -1])


def test_padding_stays_outside_every_window() -> None:
    values = VALUES.copy()
    values[:, :2] = -2000
    volume = stack_volume(series(values, AXIAL, (0, 0, 4), PixelPaddingValue=-2000))
    frame = volume.slice("axial", 4)
    assert frame.padding is not None
    assert frame.padding[:2].all()
    assert not frame.padding[2:].any()
    body, headers = view_pixels(frame, 4096)
    stored = np.frombuffer(body, "<i2").reshape(int(headers["X-Height"]), int(headers["X-Width"]))
    outside = stored == int(headers["X-Padding"])
    assert outside[0].all()
    assert not outside[-1].any()


@pytest.mark.parametrize(
    "stack",
    [
        series(VALUES[:3], AXIAL, (0, 0, 4)),
        series(VALUES, AXIAL, (0, 0, 0)),
        group_series([read_dicom(dicom(ct_pixels()))])[0],
    ],
    ids=["few slices", "one position", "no position"],
)
def test_no_volume(stack: SliceStack) -> None:
    assert not can_reformat(stack)
    with pytest.raises(ImageError):
        stack_volume(stack)


def test_missing_slices_are_refused() -> None:
    stack = series(np.concatenate([VALUES, VALUES]), AXIAL, (0, 0, 4))
    gap = group_series([image for index, image in enumerate(stack.images) if index not in (3, 4)])[0]
    with pytest.raises(ImageError, match="missing"):
        stack_volume(gap)


@pytest.mark.parametrize(
    ("elements", "letters"),
    [
        ({"ImageOrientationPatient": list(AXIAL)}, ["R", "A", "L"]),
        ({"ImageOrientationPatient": list(CORONAL)}, ["R", "H", "L"]),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, ["A", "H", "P"]),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}, ["L", "P", "R"]),  # prone
        ({"ImageOrientationPatient": [0.7, 0.7, 0, 0, 0, -1]}, ["", "H", ""]),  # oblique: no letter misleads
        ({"PatientOrientation": ["L", "F"]}, ["R", "H", "L"]),
        ({"PatientOrientation": ["LA", "F"]}, ["R", "H", "L"]),
        ({"PatientOrientation": ["X", "F"]}, None),
        ({}, None),
    ],
)
def test_letters_at_the_edges(elements: dict[str, Any], letters: list[str] | None) -> None:
    assert edge_letters(image_of(**elements)) == letters


def image_of(**elements: Any) -> DicomImage:
    return read_dicom(dicom(ct_pixels(), **elements))


@pytest.mark.parametrize(
    ("elements", "kind"),
    [
        ({"Modality": "CT", "PixelSpacing": [1, 1]}, "mm"),
        ({"Modality": "DX", "PixelSpacing": [1, 1]}, "detector"),
        ({"Modality": "DX", "PixelSpacing": [1, 1], "PixelSpacingCalibrationType": "FIDUCIAL"}, "mm"),
        ({"Modality": "CR", "ImagerPixelSpacing": [1, 1]}, "detector"),
        ({"Modality": "US", "PixelAspectRatio": [1, 1]}, ""),
        ({"Modality": "MR"}, ""),
        ({"Modality": "MR", "SharedFunctionalGroupsSequence": MEASURES}, "mm"),
    ],
)  # fmt: skip
def test_what_millimeters_mean(elements: dict[str, Any], kind: str) -> None:
    assert spacing_kind(image_of(**elements)) == kind
