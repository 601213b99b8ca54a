"""Decodes PNG, JPEG, TIFF, BMP, WebP and GIF to upright 8-bit pixels; each file is decoded completely before use.

In: the bytes of a file, or its path. Out: an `EncodedImage` (bytes to store, size, perceptual hash, notes on what was
changed) or `ImageError` with a reason short enough to be counted. Models read their pixels with `to_rgb`.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qilin.core.errors import UserError

# The largest radiographs and stitched films have some 50 million pixels; Pillow itself refuses above 178,956,970.
PIXEL_LIMIT = 178_000_000
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")  # JPEG also opens MPO: a second frame, from cameras
STORED_FORMATS = {"PNG": "png", "JPEG": "jpeg"}  # stored unchanged; every other format becomes PNG, losslessly
HIGH_BIT_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # grayscale of more than 8 bits
PHASH_SIDE = 32  # pixels; ImageHash computes its transform at this size
MISSING_FILE = "image file is missing"  # the reason under which such images are retried
CLIP_PERCENT = 0.1  # of the pixels may be clipped at each end when high-bit grayscale becomes 8 bits


class ImageError(UserError):
    """A file that is not a usable image. `reason` is short and constant per fault, so that it can be counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


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
    """Read a file, or its bytes, as an image to store. Raises ImageError.

    8-bit PNG and JPEG keep their bytes (a second JPEG compression would add artifacts of its own); other formats,
    high-bit grayscale and the first frame of several become PNG.
    """
    data = source if isinstance(source, bytes) else read_bytes(Path(source))
    image, file_format, notes = decode(data)
    upright = ImageOps.exif_transpose(image)
    if file_format in STORED_FORMATS and not notes:
        phash = perceptual_hash(flatten(upright))
        return EncodedImage(data, STORED_FORMATS[file_format], upright.width, upright.height, phash)
    rgb = flatten(upright)
    notes = [*notes, f"{file_format} re-encoded as PNG"] if file_format not in STORED_FORMATS else notes
    # grayscale stays one channel: a third of the bytes
    stored = rgb.convert("L") if image.mode in ("1", "L", *HIGH_BIT_MODES) else rgb
    buffer = io.BytesIO()
    stored.save(buffer, "PNG")
    return EncodedImage(buffer.getvalue(), "png", stored.width, stored.height, perceptual_hash(rgb), tuple(notes))


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises ImageError where it is missing, empty or not a file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(MISSING_FILE, str(path)) from None
    except OSError as error:
        raise ImageError("image file cannot be read", f"{path}: {error.strerror}") from None
    if not data:
        raise ImageError("image file is empty", str(path))
    return data


def decode(data: bytes) -> tuple[Image.Image, str, list[str]]:
    """Bytes -> (the first frame, decoded completely; Pillow's name of the format; notes). Raises ImageError."""
    if not data:
        raise ImageError("image file is empty")
    refuse_unsupported(data)
    try:
        with warnings.catch_warnings():  # Pillow warns at half of its own limit; PIXEL_LIMIT is checked below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(image)
        image.load()
    except Image.DecompressionBombError:
        raise ImageError("image has too many pixels", f"the limit is {PIXEL_LIMIT:,}") from None
    except UnidentifiedImageError:
        raise ImageError("not an image", f"expected one of {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on broken files
        raise ImageError("image is truncated or damaged", str(error)) from None
    frame_count = int(getattr(image, "n_frames", 1))
    notes = [f"first of {frame_count} frames"] if frame_count > 1 and image.format != "MPO" else []
    if image.mode in HIGH_BIT_MODES:
        notes.append(f"grayscale of mode {image.mode} scaled to 8 bits by its own range")
    return image, "JPEG" if image.format == "MPO" else str(image.format), notes


def refuse_unsupported(data: bytes) -> None:
    """Raise an ImageError of its own for DICOM and NIfTI, which this reader does not decode yet."""
    if data[128:132] == b"DICM":
        raise ImageError("DICOM is not supported yet", "export it as PNG first")
    if data[344:348] in (b"n+1\0", b"ni1\0"):
        raise ImageError("NIfTI is not supported yet", "export its slices as PNG first")


def check_size(image: Image.Image) -> None:
    """Refuse before decoding: a file of a few kilobytes can declare gigabytes of pixels."""
    if image.width * image.height > PIXEL_LIMIT:
        raise ImageError(
            "image has too many pixels", f"{image.width} x {image.height}, the limit is {PIXEL_LIMIT:,} pixels"
        )


def to_rgb(data: bytes) -> Image.Image:
    """Encoded bytes -> an upright 8-bit RGB image. Raises ImageError."""
    image, _, _ = decode(data)
    return flatten(ImageOps.exif_transpose(image))


def flatten(image: Image.Image) -> Image.Image:
    """Any mode -> RGB on black. Black is the empty background of radiology; a white one would look like dense tissue
    to whatever reads brightness."""
    if image.mode in HIGH_BIT_MODES:
        image = scale_to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(background, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """High-bit grayscale -> 8 bits by its own range, from the 0.1th to the 99.9th percentile.

    Percentiles, because one hot pixel or a burned-in marker would leave the anatomy nearly black with plain minimum and
    maximum; those are used where the percentiles coincide (a small bright object on an empty background).
    """
    values = np.asarray(image, dtype=np.float32)
    values = np.where(np.isfinite(values), values, np.float32(0))
    low, high = np.percentile(values, [CLIP_PERCENT, 100 - CLIP_PERCENT])
    if high <= low:
        low, high = values.min(), values.max()
    scaled = (np.clip(values, low, high) - low) * (255.0 / max(float(high - low), 1e-12))
    return Image.fromarray(np.round(scaled).astype(np.uint8))


def perceptual_hash(image: Image.Image) -> str:
    """64 bits of the cosine transform as 16 hexadecimal digits; similar images differ in few bits.

    The image is reduced in integer steps first, then with the filter that ImageHash uses throughout: a third of the
    time, and at most 2 bits of difference in 129 real images (bench/results/hashing.json).
    """
    import imagehash

    small = image.resize((PHASH_SIDE, PHASH_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return str(imagehash.phash(small))
