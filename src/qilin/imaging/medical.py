"""One way from any medical image file to frames.

In: the bytes of a PNG, JPEG, TIFF, WebP, BMP, GIF, JPEG 2000, DICOM or NIfTI file. Out: its frames as Frame, or as
8-bit images through a windowing. Training, evaluation, chat and the server use the same functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from qilin.imaging.coded_size import JPEG_2000_SIZE, coded_size
from qilin.imaging.decode import check_size, decode, flatten, read_orientation, transpose
from qilin.imaging.decode import damage_refused as raster_damage_refused
from qilin.imaging.dicom import DicomImage, is_dicom, read_dicom
from qilin.imaging.errors import ImageError
from qilin.imaging.nifti import is_nifti, read_nifti
from qilin.imaging.series import SliceStack
from qilin.imaging.volume import Volume, choose_slices, sample_slices
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


def to_images(data: bytes, windowing: Windowing | None = None, limit: int = 8) -> list[tuple[Image.Image, str]]:
    """A file as (8-bit RGB images, their labels): one image, or at most `limit` evenly spaced frames of several.

    Raises ImageError.
    """
    medical = open_medical(data)
    return [(render(frame, windowing).convert("RGB"), frame.label) for frame in sample_frames(medical, limit)]


def sample_frames(medical: MedicalImage, limit: int, planes: Sequence[str] = ("axial",)) -> list[Frame]:
    """At most `limit` frames, evenly spaced; a volume's slices for each plane, labeled."""
    if isinstance(medical.source, Volume) and medical.count > 1:
        return sample_slices(medical.source, limit, planes)
    positions = choose_slices(medical.count, limit)
    total = len(positions)
    frames = [medical.frame(index) for index in positions]
    if total == 1:
        return frames
    return [replace(frame, label=f"第 {number}/{total} 帧") for number, frame in enumerate(frames, start=1)]
