"""Small DICOM and NIfTI files, made by the tests."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

JPEG_XL, JPEG_XL_LOSSY, HTJ2K = (f"1.2.840.10008.1.2.4.{number}" for number in (110, 112, 203))
CT_CLASS, SC_CLASS = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"


def ct_pixels(seed: int = 0, height: int = 32, width: int = 48) -> np.ndarray:
    """(H, W) int16 stored values of a smooth picture with noise, 0 to 4095."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    smooth = 2000 + 1500 * np.sin(rows / 7) * np.cos(columns / 9)
    return np.clip(smooth + random.normal(0, 20, (height, width)), 0, 4095).astype(np.int16)


def make_dataset(pixels: np.ndarray, elements: Mapping[str, Any] | None = None, bits: int | None = None) -> Dataset:
    """A dataset whose image module fits (H, W), (N, H, W) or (H, W, 3) pixels; `elements` are added or replaced."""
    color = pixels.ndim == 3 and pixels.shape[2] == 3
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = (SC_CLASS if color else CT_CLASS), "1.2.3.4"
    dataset.Modality = "OT" if color else "CT"
    dataset.SamplesPerPixel = 3 if color else 1
    dataset.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if color else pixels.shape[-2:]
    if color:
        dataset.PlanarConfiguration = 0
    if pixels.ndim == 3 and not color:
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for keyword, value in (elements or {}).items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    return dataset


def to_bytes(dataset: Dataset, syntax: str = ExplicitVRLittleEndian, frames: Sequence[bytes] | None = None) -> bytes:
    """A file; `frames` are the coded frames of a compressed transfer syntax."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(
        HTJ2K if syntax in (JPEG_XL, JPEG_XL_LOSSY) else syntax
    )  # pydicom 3.0 does not write JPEG XL
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.update(dataset)
    if frames is not None:
        file.PixelData = encapsulate(list(frames))
        file["PixelData"].VR = "OB"
    implicit = syntax == ImplicitVRLittleEndian
    pydicom.dcmwrite(buffer, file, implicit_vr=implicit, little_endian=syntax != ExplicitVRBigEndian)
    return (
        buffer.getvalue().replace(HTJ2K.encode(), syntax.encode())
        if syntax in (JPEG_XL, JPEG_XL_LOSSY)
        else buffer.getvalue()
    )


def dicom(pixels: np.ndarray, bits: int | None = None, **elements: Any) -> bytes:
    """An uncompressed file."""
    return to_bytes(make_dataset(pixels, elements, bits))


def item(**elements: Any) -> Dataset:
    """A sequence item."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def nifti(values: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    import nibabel

    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    return bytes(image.to_bytes())
