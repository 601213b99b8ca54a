"""Decodes PNG, JPEG, TIFF, BMP, WebP and GIF to upright 8-bit pixels; each file is decoded completely before use.

In: the bytes of a file, or its path. Out: an `EncodedImage` (bytes to store, size, perceptual hash, notes on what was
changed) or `ImageError` with a reason short enough to be counted. Models read their pixels with `to_rgb`. Sizes are
checked before decoding. Metadata never leave: docs/security.md lists what is removed.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from qilin.core.errors import UserError
from qilin.core.files import check_regular_file
from qilin.imaging import tiff
from qilin.imaging.errors import ImageError
from qilin.imaging.frames import count_frames
from qilin.imaging.metadata import strip_metadata

# The largest radiographs and stitched films have some 50 million pixels; Pillow itself refuses above 178,956,970.
PIXEL_LIMIT = 178_000_000
MEMORY_LIMIT = 1 << 30  # bytes that decoding one image may take at its peak, by its declared size
# bytes per pixel at that peak, the decoded pixels and our copies together, measured (bench/results/image_memory.json)
PEAK_BYTES = {
    **dict.fromkeys(("1", "L", "P"), 6),
    **dict.fromkeys(("RGB", "YCbCr"), 9),
    "CMYK": 13,
    **dict.fromkeys(("I;16", "I;16B"), 16),
    **dict.fromkeys(("I", "F"), 22),
}
PEAK_BYTES_OTHER = 20  # with transparency
FILE_LIMIT = 512 << 20  # bytes of one image file
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")  # JPEG also opens MPO: a second frame, from cameras
STORED_FORMATS = {"PNG": "png", "JPEG": "jpeg"}  # stored unchanged; every other format becomes PNG, losslessly
HIGH_BIT_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # grayscale of more than 8 bits
PHASH_SIDE = 32  # pixels; ImageHash computes its transform at this size
MISSING_FILE = "image file is missing"  # the reason under which such images are retried
METADATA_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "comment", "photoshop", "Raw profile type exif")
ORIENTATION = 0x0112  # EXIF tag
TRANSPOSE = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CLIP_PERCENT = 0.1  # of the pixels may be clipped at each end when high-bit grayscale becomes 8 bits


@dataclass(frozen=True)
class EncodedImage:
    """An image that decodes completely: the bytes to store, their format, and the size after rotation, in pixels."""

    bytes: bytes
    format: str  # png or jpeg
    width: int
    height: int
    phash: str  # 64 bits as 16 hexadecimal digits
    notes: tuple[str, ...] = ()  # what was changed; empty where the bytes are stored as they came


def read_image(source: Path | str | bytes) -> EncodedImage:
    """Read a file, or its bytes, as an image to store. Raises ImageError, which names the file.

    8-bit PNG and JPEG keep their coded pixels (a second JPEG compression would add artifacts of its own) and lose their
    metadata; other formats, high-bit grayscale and the first frame of several become PNG.
    """
    if isinstance(source, bytes):
        return encode_for_storage(source)
    try:
        return encode_for_storage(read_bytes(Path(source)))
    except ImageError as error:
        detail = str(error).removeprefix(error.reason).removeprefix(": ")
        if str(source) in detail:
            raise
        raise ImageError(error.reason, f"{source}: {detail}" if detail else str(source)) from None


def encode_for_storage(data: bytes) -> EncodedImage:
    """The image to store for the bytes of a file."""
    image, file_format, notes = decode(data)
    with damage_refused():
        orientation = read_orientation(image)
        upright = transpose(image, orientation)
        rgb = flatten(upright)
        if file_format in STORED_FORMATS and not notes:
            if stripped := without_metadata(data, file_format, orientation, image):
                phash = perceptual_hash(rgb)
                return EncodedImage(stripped, STORED_FORMATS[file_format], upright.width, upright.height, phash)
            notes = [f"{file_format} of an unusual structure re-encoded as PNG"]
        if file_format not in STORED_FORMATS:
            notes = [*notes, f"{file_format} re-encoded as PNG"]
        # grayscale stays one channel: a third of the bytes
        stored = rgb.convert("L") if image.mode in ("1", "L", *HIGH_BIT_MODES) else rgb
        for key in METADATA_KEYS:
            stored.info.pop(key, None)
        buffer = io.BytesIO()
        stored.save(buffer, "PNG")
        return EncodedImage(buffer.getvalue(), "png", stored.width, stored.height, perceptual_hash(rgb), tuple(notes))


def upright_file(data: bytes, file_format: str) -> tuple[bytes, str]:
    """(bytes, "png" or "jpeg") of a stored image for readers that know no orientation; no metadata are left.

    A rotated image becomes PNG, with the pixels that `to_rgb` gives; the others keep their coded pixels.
    """
    with damage_refused():
        lazy = Image.open(io.BytesIO(data), formats=FORMATS)
        orientation = read_orientation(lazy)
        if orientation == 1:
            name = {stored: pillow for pillow, stored in STORED_FORMATS.items()}.get(file_format, "")
            if stripped := without_metadata(data, name, 1, lazy):
                return stripped, file_format
        upright = to_rgb(data)
        upright.info.clear()
        buffer = io.BytesIO()
        upright.save(buffer, "PNG")
        return buffer.getvalue(), "png"


def restored_without_metadata(data: bytes, file_format: str) -> EncodedImage | None:
    """A stored image ("png" or "jpeg") whose file holds metadata, without them; None for one that holds none.

    Datasets that this version imported hold none, so hardly any image is decoded. Raises ImageError.
    """
    name = {stored: pillow for pillow, stored in STORED_FORMATS.items()}.get(file_format, "")
    with damage_refused():
        orientation = read_orientation(Image.open(io.BytesIO(data), formats=FORMATS))
        with suppress(struct.error, ValueError, IndexError):  # of an unusual structure
            if strip_metadata(data, name, orientation) == data:
                return None
    encoded = read_image(data)
    return encoded if encoded.bytes != data else None


def without_metadata(data: bytes, file_format: str, orientation: int, image: Image.Image) -> bytes | None:
    """The file without metadata, or None where its structure is so unusual that the pixels would change."""
    try:
        stripped = strip_metadata(data, file_format, orientation)
    except (struct.error, ValueError, IndexError):
        return None
    if stripped == data:
        return data
    try:
        again, _, _ = decode(stripped)
    except ImageError:
        return None
    is_equal = read_orientation(again) == orientation and same_pixels(image, again)
    return stripped if is_equal else None


def same_pixels(a: Image.Image, b: Image.Image) -> bool:
    """Compared in bands, so that no copy of a large image is made."""
    if (a.size, a.mode) != (b.size, b.mode):
        return False
    bands = [(0, top, a.width, min(top + 256, a.height)) for top in range(0, a.height, 256)]
    return all(a.crop(band).tobytes() == b.crop(band).tobytes() for band in bands)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises ImageError where it is missing, empty, too large or not a regular file."""
    try:
        check_regular_file(path, "an image file", FILE_LIMIT)
        data = path.read_bytes()
    except UserError as error:
        if not path.exists():
            raise ImageError(MISSING_FILE, str(path)) from None
        raise ImageError("image file cannot be read", str(error)) from None
    except OSError as error:
        raise ImageError("image file cannot be read", f"{path}: {error.strerror}") from None
    if not data:
        raise ImageError("image file is empty", str(path))
    return data


@contextmanager
def damage_refused() -> Iterator[None]:
    """The one boundary of all image code: whatever Pillow or numpy raise on a broken file becomes an ImageError."""
    try:
        with warnings.catch_warnings():  # of half of Pillow's own limit (ours are checked) and of broken EXIF
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("image has too many pixels", f"the limit is {PIXEL_LIMIT:,}") from None
    except UnidentifiedImageError:
        raise ImageError("not an image", f"expected one of {', '.join(FORMATS)}") from None
    except MemoryError:
        raise ImageError("image needs more memory than there is") from None
    except Exception as error:  # Pillow's decoders raise some ten types on broken files
        raise ImageError("image is truncated or damaged", str(error) or type(error).__name__) from None


def decode(data: bytes) -> tuple[Image.Image, str, list[str]]:
    """Bytes -> (the first frame, decoded completely; Pillow's name of the format; notes). Raises ImageError."""
    if not data:
        raise ImageError("image file is empty")
    refuse_unsupported(data)
    with damage_refused():
        image, file_format = decode_tiff(data) or decode_other(data)
        num_frames, notes = count_frames(data, image), []
        if num_frames > 1 and image.format != "MPO":
            notes.append(f"first of {num_frames} frames")
        if image.mode in HIGH_BIT_MODES:
            notes.append(f"grayscale of mode {image.mode} scaled to 8 bits by its own range")
        return image, file_format, notes


def decode_other(data: bytes) -> tuple[Image.Image, str]:
    """Decode what Pillow reads rightly."""
    check_canvas(data)
    image: ImageFile.ImageFile = Image.open(io.BytesIO(data), formats=FORMATS)
    check_size(image.width, image.height, image.mode if "transparency" not in image.info else "")
    image.load()
    return image, "JPEG" if image.format == "MPO" else str(image.format)


def decode_tiff(data: bytes) -> tuple[Image.Image, str] | None:
    """Decode a TIFF that Pillow refuses or reads wrongly; None for other files."""
    if data[:4] not in tiff.SIGNATURES:
        return None
    layout = tiff.read_layout(data)
    if tiff.is_read_by_pillow(layout):
        return None
    if problem := tiff.layout_problem(layout):
        raise ImageError("TIFF layout is not supported", f"{problem}; save it as PNG or as TIFF of 8 or 16 bits")
    check_size(layout.width, layout.height, "F")
    num_bytes = tiff.decoded_bytes(layout)
    if 4 * num_bytes > MEMORY_LIMIT:  # copies per plane and per step
        raise ImageError("image has too many pixels", f"{num_bytes:,} bytes, the limit is {MEMORY_LIMIT // 4:,} bytes")
    image = tiff.read_pixels(data, layout, scale_values)
    return transpose(image, layout.orientation), "TIFF"


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where EXIF is missing or broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = image.getexif().get(ORIENTATION)
    except Exception:  # broken EXIF says nothing about the pixels
        return 1
    return orientation if orientation in TRANSPOSE else 1


def transpose(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else image


def refuse_unsupported(data: bytes) -> None:
    """Raise an ImageError of its own for DICOM and NIfTI, which `qilin.imaging.medical` reads."""
    if data[128:132] == b"DICM":
        raise ImageError("DICOM is imported by another command", "qilin data import dicom FOLDER OUT")
    if data[344:348] in (b"n+1\0", b"ni1\0"):
        raise ImageError("NIfTI is imported by another command", "qilin data import nifti FOLDER OUT")


def check_size(width: int, height: int, mode: str) -> None:
    """Refuse before decoding: a file of a few kilobytes can declare gigabytes of pixels."""
    limit = min(PIXEL_LIMIT, MEMORY_LIMIT // PEAK_BYTES.get(mode, PEAK_BYTES_OTHER))
    if width * height > limit:
        of_mode = f" of mode {mode}" if mode else " with transparency"
        raise ImageError("image has too many pixels", f"{width:,} x {height:,}, the limit is {limit:,} pixels{of_mode}")


def check_canvas(data: bytes) -> None:
    """Check the size of a WebP before Pillow opens it: its decoder reserves the whole canvas at once."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return
    kind, head = data[12:16], data[20:30]
    if kind == b"VP8X" and len(head) == 10:
        width, height = 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    elif kind == b"VP8L" and len(head) >= 5:
        packed = int.from_bytes(head[1:5], "little")
        width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    elif kind == b"VP8 " and len(head) == 10:
        width, height = (int.from_bytes(head[n : n + 2], "little") & 0x3FFF for n in (6, 8))
    else:
        raise ImageError("image is truncated or damaged", "WebP without a size")
    check_size(width, height, "")


def to_rgb(data: bytes) -> Image.Image:
    """Encoded bytes -> an upright 8-bit RGB image, without metadata: Pillow writes a JPEG's comment into copies of it.

    Raises ImageError.
    """
    image, _, _ = decode(data)
    with damage_refused():
        rgb = flatten(transpose(image, read_orientation(image)))
        rgb.info.clear()
        return rgb


def flatten(image: Image.Image) -> Image.Image:
    """Any mode -> RGB on black. Black is the empty background of radiology; a white one would look like dense tissue
    to whatever reads brightness."""
    if image.mode in HIGH_BIT_MODES:
        image = scale_to_8_bits(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(background, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """High-bit grayscale -> 8 bits by its own range."""
    return Image.fromarray(scale_values(np.array(image, dtype=np.float32)))


def scale_values(values: np.ndarray) -> np.ndarray:
    """Float32 numbers, which are overwritten -> uint8 by their own range, from the 0.1th to the 99.9th percentile.

    Percentiles, because one hot pixel or a burned-in marker would leave the anatomy nearly black with plain minimum and
    maximum; those are used where the percentiles coincide (a small bright object on an empty background).
    """
    values[~np.isfinite(values)] = 0
    low, high = np.percentile(values, [CLIP_PERCENT, 100 - CLIP_PERCENT])
    if high <= low:
        low, high = values.min(), values.max()
    np.clip(values, low, high, out=values)
    scaled = (values - low) * (255.0 / max(float(high - low), 1e-12))
    return np.round(scaled, out=scaled).astype(np.uint8)


def perceptual_hash(image: Image.Image) -> str:
    """64 bits of the cosine transform as 16 hexadecimal digits; similar images differ in few bits.

    The image is reduced in integer steps first, then with the filter that ImageHash uses throughout: a third of the
    time, and at most 2 bits of difference in 129 real images (bench/results/hashing.json).
    """
    import imagehash

    small = image.resize((PHASH_SIDE, PHASH_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return str(imagehash.phash(small))
