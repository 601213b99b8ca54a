"""Series of DICOM files as volumes: the same slices as those of the same volume in NIfTI, whatever the acquisition."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.dicom import dicom, item, make_dataset
from qilin.core.errors import UserError
from qilin.imaging.dicom import DicomImage, read_dicom
from qilin.imaging.errors import ImageError
from qilin.imaging.medical import MedicalImage, open_series, sample_frames
from qilin.imaging.reformat import reformat
from qilin.imaging.series import SliceStack, make_stack
from qilin.imaging.volume import PLANES, Selection, Volume, parse_selection

SPACING = (0.5, 0.75, 2.0)  # mm along x, y and z
VALUES = np.random.default_rng(0).integers(0, 4000, (10, 12, 9)).astype(np.int16)
VOLUME = Volume(VALUES.astype(np.float32), SPACING)
AXES = np.eye(3)
LEFT, BACK, HEAD = AXES
# (direction of columns, direction of rows) of an upright slice
UPRIGHT = {"axial": (LEFT, BACK), "coronal": (LEFT, -HEAD), "sagittal": (BACK, -HEAD)}


def corner(plane: str, index: int) -> np.ndarray:
    """Where the first pixel of an upright slice lies, in mm: left, back, head."""
    x, y, z = VALUES.shape
    position = {"axial": (0, 0, index), "coronal": (0, y - 1 - index, z - 1), "sagittal": (x - 1 - index, 0, z - 1)}
    return np.array(position[plane]) * SPACING


def files(plane: str, flip_rows: bool = False, flip_columns: bool = False, swap: bool = False) -> list[DicomImage]:
    """The volume as DICOM files of one acquisition, the pixels stored in any of eight orientations."""
    images = []
    for index in range(VOLUME.count(plane)):
        frame = VOLUME.slice(plane, index)
        pixels, (columns, rows), start = frame.values.astype(np.int16), UPRIGHT[plane], corner(plane, index)
        spacing = np.array(frame.spacing)
        if flip_rows:
            start, rows, pixels = start + rows * spacing[0] * (len(pixels) - 1), -rows, pixels[::-1]
        if flip_columns:
            start, columns, pixels = start + columns * spacing[1] * (pixels.shape[1] - 1), -columns, pixels[:, ::-1]
        if swap:
            columns, rows, pixels, spacing = rows, columns, pixels.T, spacing[::-1]
        images.append(slice_file(np.ascontiguousarray(pixels), start, [*columns, *rows], spacing, index))
    return images[::-1]


def slice_file(pixels: np.ndarray, start: Any, cosines: Any, spacing: Any, index: int, **elements: Any) -> DicomImage:
    elements |= {"ImagePositionPatient": list(map(float, start)), "ImageOrientationPatient": list(map(float, cosines))}
    elements |= {"PixelSpacing": list(map(float, spacing)), "SeriesInstanceUID": "1.2", "InstanceNumber": index}
    return read_dicom(dicom(pixels, SOPInstanceUID=f"1.2.{index}", **elements))


@pytest.mark.parametrize("orientation", list(itertools.product((False, True), repeat=3)))
@pytest.mark.parametrize("plane", PLANES)
def test_planes_of_any_acquisition(plane: str, orientation: tuple[bool, bool, bool]) -> None:
    stack = make_stack(files(plane, *orientation))
    assert stack.plane == plane
    others = [other for other in PLANES if other != plane]
    selections = [Selection(other, 3, (2, 3, 9)) for other in others]
    for other, frames in zip(others, reformat(stack, selections), strict=True):
        for number, frame in zip((2, 3, 9), frames, strict=True):
            expected = VOLUME.slice(other, number - 1)
            assert np.array_equal(frame.values, expected.values)
            assert frame.spacing == pytest.approx(expected.spacing)
        assert frames[1].label == f"{PLANES[other][0]} 2/3"
    assert not np.array_equal(frames[0].values, frames[1].values)  # the comparison can fail
    if not any(orientation):  # slices of its own plane stay as they are stored
        own = sample_frames(MedicalImage("dicom", "CT", stack), [Selection("", 2)])
        assert np.array_equal(own[1].values, VOLUME.slice(plane, VOLUME.count(plane) * 3 // 4).values)


def test_tilted_gantry() -> None:
    """Each slice of a tilted scan is moved against the one before; the reformat puts it back."""
    images = []
    for index in range(9):
        pixels = np.zeros((40, 30), np.int16)
        pixels[20 - 2 * index, 5] = 1000  # a vertical wire
        images.append(slice_file(pixels, (0, 2.0 * index, 2.0 * index), (1, 0, 0, 0, 1, 0), (1, 1), index))
    ((frame,),) = reformat(make_stack(images), [Selection("sagittal", 1, (30 - 5,))])
    assert (np.argmax(frame.values, axis=1) == 20).all()
    assert frame.padding is not None
    assert frame.padding.any()


def test_refused_reformats() -> None:
    def refusal(images: list[DicomImage]) -> str:
        with pytest.raises(ImageError, match="cannot be reformatted") as error:
            reformat(make_stack(images), [Selection("coronal", 2)])
        return str(error.value)

    axial = files("axial")
    assert "slices are missing at 1" in refusal(axial[:4] + axial[5:])
    assert "5 slices" in refusal(axial[:5])
    for image in axial:
        del image.dataset.ImagePositionPatient
    assert "do not say" in refusal(axial)
    oblique = [
        slice_file(np.zeros((4, 4), np.int16), (0, n, 0), (0.71, 0, 0.7, 0.71, 0, -0.7), (1, 1), n) for n in range(9)
    ]
    assert "between those of the body" in refusal(oblique)
    assert "own plane" in refusal(files("coronal"))
    with pytest.raises(UserError, match="slice 99 does not exist; the series has 12"):
        reformat(make_stack(files("axial")), [Selection("coronal", 1, (99,))])


def test_several_images_at_one_position() -> None:
    """Times, echoes, directions: the first of each position is the volume."""
    images = files("axial") + files("axial")
    for number, image in enumerate(images):
        image.dataset.InstanceNumber = number
    stack = make_stack(images)
    assert stack.count == 18
    frames = sample_frames(MedicalImage("dicom", "CT", stack), [Selection("", 9)])
    assert [np.array_equal(frame.values, VOLUME.slice("axial", n).values) for n, frame in enumerate(frames)] == [
        True
    ] * 9


def test_frames_of_one_file_are_sorted_by_position() -> None:
    order = [3, 0, 8, 1, 2, 4, 7, 5, 6]
    pixels = np.stack([VOLUME.slice("axial", index).values for index in order]).astype(np.int16)
    groups = [item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 2.0 * index])]) for index in order]
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.75, 0.5])],
    )
    data = make_dataset(
        pixels, {"PerFrameFunctionalGroupsSequence": groups, "SharedFunctionalGroupsSequence": [shared]}
    )
    stack = make_stack([read_dicom(dicom(pixels, **{element.keyword: element.value for element in data}))])
    assert np.array_equal(stack.frame(0).values, VOLUME.slice("axial", 0).values)
    ((frame,),) = reformat(stack, [Selection("coronal", 1, (4,))])
    assert np.array_equal(frame.values, VOLUME.slice("coronal", 3).values)


def test_folder_of_files(tmp_path: Path) -> None:
    from builders.dicom import to_bytes

    for number, image in enumerate(files("axial")):
        (tmp_path / str(number)).write_bytes(to_bytes(image.dataset))
    (tmp_path / "other").write_bytes(dicom(np.zeros((4, 4), np.int16), SeriesInstanceUID="1.9"))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").write_bytes(b"")
    series = open_series(sorted(tmp_path.iterdir()))
    assert [image.count for image in series] == [9, 1]
    assert isinstance(series[0].source, SliceStack)
    with pytest.raises(ImageError):
        open_series([tmp_path / "notes.txt", tmp_path / "empty"])


@pytest.mark.parametrize(
    ("text", "selection"),
    [
        ("8", Selection("", 8)),
        ("axial:8", Selection("axial", 8)),
        ("冠状位:4", Selection("coronal", 4)),
        ("sagittal@120,140", Selection("sagittal", 2, (120, 140))),
    ],
)
def test_selections(text: str, selection: Selection) -> None:
    assert parse_selection(text) == selection


@pytest.mark.parametrize(
    "text", ["", "0", "65", "axial", "axial:", "axial:0", "oblique:8", "axial:1,2", "8,9", "x@1", "-3"]
)
def test_refused_selections(text: str) -> None:
    with pytest.raises(UserError, match="slices is"):
        parse_selection(text)


def test_positions_that_do_not_exist() -> None:
    for positions in ((0,), (10,)):
        with pytest.raises(UserError, match="does not exist"):
            Selection("axial", 1, positions).choose(9)
