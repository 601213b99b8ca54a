"""One way from any medical image file to frames.

In: the bytes of a PNG, JPEG, TIFF, WebP, BMP, GIF, JPEG 2000, DICOM or NIfTI file. Out: its frames as Frame, or as
8-bit images through a windowing. Training, evaluation, chat and the server use the same functions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from qilin.imaging.coded_size import JPEG_2000_SIZE, coded_size
from qilin.imaging.decode import check_size, decode, flatten, read_bytes, read_orientation, transpose
from qilin.imaging.decode import damage_refused as raster_damage_refused
from qilin.imaging.dicom import DicomImage, is_dicom, read_dicom
from qilin.imaging.errors import ImageError
from qilin.imaging.nifti import is_nifti, read_nifti
from qilin.imaging.reformat import reformat
from qilin.imaging.series import SliceStack, group_series, make_stack
from qilin.imaging.volume import Selection, Volume, sample_slices, slice_label
from qilin.imaging.windowing import Frame, Windowing, render

JPEG_2000 = (b"\0\0\0\x0cjP  ", JPEG_2000_SIZE)


@dataclass(frozen=True)
class MedicalImage:
    """Frames of a file, or of a series. `kind` is raster, dicom or nifti; `modality` is DICOM's code, "" if unknown."""

    kind: str
    modality: str
    source: Frame | DicomImage | SliceStack | Volume

    @property
    def count(self) -> int:
        """The frames of a DICOM file or series, the axial slices of a volume; 1 for other images."""
        if isinstance(self.source, Volume):
            return self.source.count("axial")
        return 1 if isinstance(self.source, Frame) else self.source.count

    def frame(self, index: int) -> Frame:
        """One frame, counted from 0. Raises ImageError."""
        if not 0 <= index < self.count:
            raise ImageError("frame does not exist", f"{index + 1} of {self.count}")
        if isinstance(self.source, Volume):
            return self.source.slice("axial", index)
        return self.source if isinstance(self.source, Frame) else self.source.frame(index)


def open_medical(data: bytes) -> MedicalImage:
    """Read the head of a file; frames are decoded one at a time. Raises ImageError."""
    if is_dicom(data):
        dicom = read_dicom(data)
        return MedicalImage("dicom", dicom.modality, dicom)
    if is_nifti(data):
        volume = read_nifti(data)
        return MedicalImage("nifti", volume.modality, volume)
    return MedicalImage("raster", "", raster_frame(data))


def raster_frame(data: bytes) -> Frame:
    """The upright first frame of an ordinary image file. High-bit grayscale keeps its values. Raises ImageError."""
    if data.startswith(JPEG_2000):
        return jpeg_2000_frame(data)
    image, _, _ = decode(data)
    with raster_damage_refused():
        upright = transpose(image, read_orientation(image))
        if upright.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
            return Frame(np.array(upright, dtype=np.float32))
        return Frame(np.array(flatten(upright)))


def jpeg_2000_frame(data: bytes) -> Frame:
    """A bare JPEG 2000 file, which Pillow reads to 8 bits only. Raises ImageError."""
    import imagecodecs

    size = coded_size(data[max(data.find(JPEG_2000_SIZE), 0) :])  # a JP2 file has boxes of any length before it
    if size is None:
        raise ImageError("image is truncated or damaged", "JPEG 2000 without a size")
    check_size(*size, "")
    try:
        pixels = np.asarray(imagecodecs.jpeg2k_decode(data))
    except Exception as error:  # the codec's own errors
        raise ImageError("image is truncated or damaged", f"JPEG 2000: {type(error).__name__}") from None
    if pixels.ndim == 2:
        return Frame(pixels.astype(np.float32)) if pixels.dtype != np.uint8 else Frame(np.stack([pixels] * 3, -1))
    if pixels.dtype != np.uint8:
        pixels = (pixels.astype(np.float32) / max(int(pixels.max()), 1) * 255).round().astype(np.uint8)
    return Frame(np.ascontiguousarray(pixels[..., :3]))


@dataclass(frozen=True)
class ShownImage:
    """An 8-bit RGB image for a model, its label (轴位 3/8, "" for a single image), and the modality of its file."""

    image: Image.Image
    label: str = ""
    modality: str = ""


def to_images(
    source: bytes | MedicalImage, windowing: Windowing | None = None, selections: Sequence[Selection] = (Selection(),)
) -> list[ShownImage]:
    """A file or series as images for a model: one, or the selected frames of several. Raises ImageError, UserError."""
    medical = open_medical(source) if isinstance(source, bytes) else source
    return [
        ShownImage(render(frame, windowing).convert("RGB"), frame.label, medical.modality)
        for frame in sample_frames(medical, selections)
    ]


def sample_frames(medical: MedicalImage, selections: Sequence[Selection] = (Selection(),)) -> list[Frame]:
    """The selected frames, labeled where they are several; a single image has no slices to select.

    Raises ImageError, UserError.
    """
    source = medical.source
    if isinstance(source, Volume) and medical.count > 1:
        return sample_slices(source, selections)
    stack = make_stack([source]) if isinstance(source, DicomImage) else source
    if not isinstance(stack, SliceStack) or stack.count == 1:
        return [medical.frame(0)]
    others = [selection for selection in selections if selection.plane not in ("", stack.plane)]
    sections = iter(reformat(stack, others) if others else ())
    return [
        frame
        for selection in selections
        for frame in (next(sections) if selection in others else stack_frames(stack, selection))
    ]


def stack_frames(stack: SliceStack, selection: Selection) -> list[Frame]:
    """The selected slices of a stack in its own plane."""
    indices = stack.volume_indices()
    chosen = selection.choose(len(indices))
    return [
        replace(stack.frame(indices[index]), label=slice_label(stack.plane, number, len(chosen)))
        for number, index in enumerate(chosen, start=1)
    ]


def open_series(paths: Iterable[Path]) -> list[MedicalImage]:
    """DICOM files as series, each sorted; the largest first. Raises ImageError where none is an image."""
    images: list[DicomImage] = []
    problem = ImageError("DICOM without an image", "no file")
    for path in paths:
        try:
            images.append(read_dicom(read_bytes(path)))
        except ImageError as error:
            problem = error
    if not images:
        raise problem
    stacks = sorted(group_series(images), key=lambda stack: -stack.count)
    return [MedicalImage("dicom", stack.modality, stack) for stack in stacks]
