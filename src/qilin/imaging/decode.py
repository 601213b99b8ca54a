"""Encoded images in, sound pixels out: PNG, JPEG, TIFF, BMP, WebP and GIF, each decoded whole before it is trusted.

In: the bytes of a file, or its path. Out: an `Encoded` image (bytes fit to be stored, size, perceptual hash, notes on
what was done to it) or `BadImage` with a reason short enough to be counted. `to_rgb` is what a model's inputs use.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qilin.core.errors import UserError

# The biggest radiographs and stitched films have some 50 million pixels; Pillow itself refuses above 178,956,970.
PIXEL_LIMIT = 178_000_000
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")  # JPEG opens MPO too: a second frame, from cameras
KEPT = {"PNG": "png", "JPEG": "jpeg"}  # stored as they came; everything else becomes PNG, without loss
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # greyscale of more than 8 bits
HASHED = 32  # pixels of a side that the perceptual hash looks at
MISSING = "image file is missing"  # the reason, by which such images are found again
TAIL = 0.1  # per cent of the pixels that may be clipped at either end when deep greyscale becomes 8 bits


class BadImage(UserError):
    """A file that is no usable image. `reason` is short and the same for the same fault, so it can be counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class Encoded:
    """An image that was decoded whole: bytes to store, their format, the size as people see it, in pixels."""

    bytes: bytes
    format: str  # png or jpeg
    width: int
    height: int
    phash: str  # 64 bits, 16 hexadecimal digits
    notes: tuple[str, ...] = ()  # what was done to it, in words; empty where it is stored as it came


def read_image(source: Path | str | bytes) -> Encoded:
    """A file or its bytes -> an image fit to be stored.

    8-bit PNG and JPEG keep their bytes (a second JPEG compression would add its own artefacts); other formats, deep
    greyscale and the first frame of several become PNG. Raises BadImage.
    """
    data = source if isinstance(source, bytes) else read_bytes(Path(source))
    image, encoding, notes = decode(data)
    shown = ImageOps.exif_transpose(image)
    if encoding in KEPT and not notes:
        return Encoded(data, KEPT[encoding], shown.width, shown.height, phash(flat(shown)))
    flattened = flat(shown)
    notes = [*notes, f"{encoding} re-encoded as PNG"] if encoding not in KEPT else notes
    # grey stays one channel: a third of the bytes
    stored = flattened.convert("L") if image.mode in ("1", "L", *DEEP_MODES) else flattened
    buffer = io.BytesIO()
    stored.save(buffer, "PNG")
    return Encoded(buffer.getvalue(), "png", stored.width, stored.height, phash(flattened), tuple(notes))


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises BadImage where it is missing, empty or not a file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadImage(MISSING, str(path)) from None
    except OSError as error:
        raise BadImage("image file cannot be read", f"{path}: {error.strerror}") from None
    if not data:
        raise BadImage("image file is empty", str(path))
    return data


def decode(data: bytes) -> tuple[Image.Image, str, list[str]]:
    """Bytes -> (the first frame, decoded whole; Pillow's name of the format; notes). Raises BadImage."""
    if not data:
        raise BadImage("image file is empty")
    refuse_other_worlds(data)
    try:
        with warnings.catch_warnings():  # Pillow warns at half of what it refuses; we refuse by PIXEL_LIMIT below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(image)
        image.load()
    except Image.DecompressionBombError:
        raise BadImage("image has too many pixels", f"the limit is {PIXEL_LIMIT:,}") from None
    except UnidentifiedImageError:
        raise BadImage("not an image", f"expected one of {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # the faults Pillow's decoders raise on broken files
        raise BadImage("image is truncated or damaged", str(error)) from None
    notes = [f"first of {frames(image)} frames"] if frames(image) > 1 and image.format != "MPO" else []
    if image.mode in DEEP_MODES:
        notes.append(f"greyscale of mode {image.mode} scaled to 8 bits by its own range")
    return image, "JPEG" if image.format == "MPO" else str(image.format), notes


def refuse_other_worlds(data: bytes) -> None:
    """DICOM and NIfTI get a word of their own: people will try them, and they are not read yet."""
    if data[128:132] == b"DICM":
        raise BadImage("DICOM is not read yet", "export it as PNG first")
    if data[344:348] in (b"n+1\0", b"ni1\0"):
        raise BadImage("NIfTI is not read yet", "export its slices as PNG first")


def check_size(image: Image.Image) -> None:
    """Refuse before decoding: a few kilobytes can claim gigabytes of pixels."""
    if image.width * image.height > PIXEL_LIMIT:
        raise BadImage(
            "image has too many pixels", f"{image.width} x {image.height}, the limit is {PIXEL_LIMIT:,} pixels"
        )


def frames(image: Image.Image) -> int:
    return int(getattr(image, "n_frames", 1))


def to_rgb(data: bytes) -> Image.Image:
    """Encoded bytes -> an upright 8-bit RGB image, as people see it. Raises BadImage."""
    image, _, _ = decode(data)
    return flat(ImageOps.exif_transpose(image))


def flat(image: Image.Image) -> Image.Image:
    """Any mode -> RGB. Transparent parts become black: the empty ground of radiology is black, and white ground would
    look like dense tissue to whoever reads brightness."""
    if image.mode in DEEP_MODES:
        image = scale_to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(ground, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Deep greyscale -> 8 bits by its own range, from the 0.1th to the 99.9th percentile.

    Percentiles, because one hot pixel or a burnt-in marker would leave the anatomy nearly black by plain minimum and
    maximum; these are the fallback where the percentiles coincide (a small bright thing on an empty ground).
    """
    values = np.asarray(image, dtype=np.float32)
    values = np.where(np.isfinite(values), values, np.float32(0))
    low, high = np.percentile(values, [TAIL, 100 - TAIL])
    if high <= low:
        low, high = values.min(), values.max()
    scaled = (np.clip(values, low, high) - low) * (255.0 / max(float(high - low), 1e-12))
    return Image.fromarray(np.round(scaled).astype(np.uint8))


def phash(image: Image.Image) -> str:
    """The perceptual hash (64 bits of the cosine transform) as 16 hexadecimal digits; near images differ in few.

    The image is first made small by whole steps, then by the fine filter that ImageHash uses throughout: a third of
    its time, and at most 2 bits of difference in 129 real images (bench/results/hashing.json).
    """
    import imagehash

    small = image.resize((HASHED, HASHED), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return str(imagehash.phash(small))
