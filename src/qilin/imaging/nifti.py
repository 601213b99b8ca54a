"""Reads NIfTI volumes (.nii, .nii.gz) and shows their slices as radiologists do.

In: the bytes of a file. Out: a Volume in RAS orientation, or ImageError. Only the numbers of the header are used: its
free texts (description, intent) may hold names.
"""

import gzip
import io
import logging
import math
import warnings
import zlib
from typing import Any

import numpy as np

from qilin.imaging.errors import ImageError
from qilin.imaging.volume import Volume
from qilin.imaging.windowing import CT

MAX_BYTES = 2 << 30  # of a volume's values, and of what a .nii.gz unpacks to
CT_SAMPLES = 200_000  # voxels by which a CT is recognized
MAGIC = {344: (b"n+1\0", b"ni1\0"), 4: (b"n+2\0", b"ni2\0")}


def is_nifti(data: bytes) -> bool:
    """Whether bytes, gzipped or not, begin with a NIfTI header."""
    head = data[:540]
    if data[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data[:4096], 540)
        except zlib.error:
            return False
    return any(head[offset : offset + 4] in magics for offset, magics in MAGIC.items())


def read_nifti(data: bytes) -> Volume:
    """The first volume of a file: (X, Y, Z) float32, axes toward Right, Anterior, Superior. Raises ImageError."""
    import nibabel

    plain = unzip(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = make_image(plain)
            check_shape(image.shape, image.header.get_data_dtype().itemsize, len(plain))
            while image.ndim > 3:  # time points, directions, echoes: the first
                image = image.slicer[..., 0]
            image = nibabel.as_closest_canonical(image)
            values = np.asanyarray(image.dataobj)
            zooms = [float(abs(zoom)) for zoom in image.header.get_zooms()[:3]]
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("image needs more memory than there is") from None
    except Exception as error:  # nibabel raises some ten types on broken files
        raise ImageError("image is truncated or damaged", f"NIfTI: {type(error).__name__}") from None
    if values.ndim == 2:
        values = values[..., None]
    if values.dtype.names:
        raise ImageError("NIfTI holds colors", "expected one number per voxel")
    if np.iscomplexobj(values):
        values = np.abs(values)
    x, y, z = (zoom if math.isfinite(zoom) and zoom > 0 else 1.0 for zoom in (*zooms, 1.0, 1.0)[:3])
    values = values.astype(np.float32)
    return Volume(values, (x, y, z), CT if looks_like_ct(values) else "")


def looks_like_ct(values: np.ndarray) -> bool:
    """Whether values are Hounsfield units: air (-1000) and soft tissue (around 0) both take at least 5 % of them.

    NIfTI does not say what a volume shows. MR has no negative values; phase images are spread over their whole range.
    """
    sample = values.reshape(-1)[:: max(1, values.size // CT_SAMPLES)]
    air = ((sample > -1100) & (sample < -900)).mean()
    soft_tissue = ((sample > -200) & (sample < 300)).mean()
    return bool(air >= 0.05 and soft_tissue >= 0.05 and sample.min() >= -5000)


def make_image(plain: bytes) -> Any:
    """nibabel's image on the bytes of an uncompressed file; its values are read later."""
    import nibabel

    nibabel.imageglobals.logger.setLevel(logging.CRITICAL + 1)  # it reports each repair of a header on stderr
    reader = nibabel.Nifti2Image if plain[4:8] in MAGIC[4] else nibabel.Nifti1Image
    holders = {name: nibabel.FileHolder(fileobj=io.BytesIO(plain)) for name in ("image", "header")}
    return reader.from_file_map(holders)


def unzip(data: bytes) -> bytes:
    """The bytes of a .nii.gz, bounded. Raises ImageError."""
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        with gzip.open(io.BytesIO(data)) as file:
            plain = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error):
        raise ImageError("image is truncated or damaged", "NIfTI: gzip") from None
    if len(plain) > MAX_BYTES:
        raise ImageError("image has too many pixels", f"unpacks to more than {MAX_BYTES:,} bytes")
    return plain


def check_shape(shape: tuple[int, ...], itemsize: int, file_bytes: int) -> None:
    """Refuse shapes that are no volume, or larger than the limit or the file."""
    if len(shape) < 2 or min(shape) < 1:
        raise ImageError("image is truncated or damaged", f"NIfTI of shape {shape}")
    if math.prod(shape) * itemsize > file_bytes:  # nibabel would make room for the values first
        raise ImageError("image is truncated or damaged", f"NIfTI of shape {shape} in {file_bytes:,} bytes")
    if math.prod(shape[:3]) * max(itemsize, 4) > MAX_BYTES:
        raise ImageError("image has too many pixels", f"{shape}; the limit is {MAX_BYTES:,} bytes of values")
