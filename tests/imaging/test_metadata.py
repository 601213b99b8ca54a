"""Metadata never leave: GPS, names and comments are gone from what is stored, the pixels are the same to the bit."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from qilin.imaging.decode import read_image, to_rgb
from qilin.imaging.errors import ImageError
from qilin.imaging.metadata import png_chunk

SECRET = b"Zhang San"
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))


def encode(file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, file_format, **options)
    return buffer.getvalue()


def exif(orientation: int | None = None) -> Image.Exif:
    exif = Image.Exif()
    exif[0x9C9D] = SECRET.decode().encode("utf-16-le")  # XPAuthor
    exif[0x013B] = SECRET.decode()  # artist
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    if orientation:
        exif[0x0112] = orientation
    return exif


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def text_chunks() -> PngInfo:
    info = PngInfo()
    info.add_text("Author", SECRET.decode())
    info.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    info.add(b"tIME", bytes(7))
    info.add(b"prVt", SECRET)
    return info


JPEG = encode("JPEG")
PNG = encode("PNG")
WITH_METADATA = {
    "jpeg exif": encode("JPEG", exif=exif()),
    "jpeg comment": encode("JPEG", comment=SECRET),
    "jpeg xmp": encode("JPEG", xmp=b"<x>" + SECRET),
    "jpeg iptc": JPEG[:20] + segment(0xED, b"Photoshop 3.0\0" + SECRET) + JPEG[20:],
    "jpeg maker": JPEG[:20] + segment(0xE7, SECRET) + JPEG[20:],
    "jpeg other Adobe": JPEG[:20] + segment(0xEE, SECRET) + JPEG[20:],
    "jpeg after the end": JPEG + SECRET,
    "jpeg progressive": encode("JPEG", progressive=True, comment=SECRET),
    "png text": encode("PNG", pnginfo=text_chunks()),
    "png exif": encode("PNG", exif=exif()),
    "png after the end": PNG + SECRET,
    "webp": encode("WEBP", lossless=True, exif=exif(), xmp=SECRET),
    "tiff": encode("TIFF", tiffinfo={270: SECRET.decode(), 315: SECRET.decode()}),
}


@pytest.mark.parametrize("name", WITH_METADATA)
def test_metadata_are_removed_and_the_pixels_stay(name: str) -> None:
    data = WITH_METADATA[name]
    assert SECRET in data or SECRET.decode().encode("utf-16-le") in data
    stored = read_image(data)
    for text in (SECRET, SECRET.decode().encode("utf-16-le"), b"Exif\0", b"eXIf"):
        assert text not in stored.bytes
    assert np.array_equal(np.asarray(to_rgb(stored.bytes)), np.asarray(to_rgb(data)))
    assert stored.format == ("jpeg" if name.startswith("jpeg") else "png")
    if name.startswith("jpeg") and "progressive" not in name:
        assert stored.bytes == JPEG  # nothing else is lost
    if name.startswith("png"):
        assert stored.bytes == PNG
    assert read_image(stored.bytes).bytes == stored.bytes


@pytest.mark.parametrize("name", WITH_METADATA)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_copies_for_models_reports_and_services_hold_no_metadata(name: str, file_format: str) -> None:
    buffer = io.BytesIO()
    to_rgb(WITH_METADATA[name]).save(buffer, file_format)
    assert SECRET not in buffer.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"icc": True}, {"dpi": (72, 72)}, {"quality": 40}])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_files_without_metadata_keep_their_bytes(file_format: str, options: dict[str, object]) -> None:
    if options.get("icc"):
        options = {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    data = encode(file_format, **options)
    assert read_image(data).bytes == data


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_stays_and_nothing_else(file_format: str, orientation: int) -> None:
    stored = read_image(encode(file_format, exif=exif(orientation)))
    assert SECRET not in stored.bytes
    kept = dict(Image.open(io.BytesIO(stored.bytes)).getexif())
    assert kept == ({0x0112: orientation} if orientation > 1 else {})
    assert (stored.width, stored.height) == ((40, 30) if orientation < 5 else (30, 40))


BROKEN_EXIF = {
    "cut": b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03",
    "no header": b"Exif\0\0\x90I*\0\x08\0\0\0",
    "empty": b"Exif\0\0",
    "a literal": b"b'Exif\\x00\\x00MM",
    "zero rational": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x1a\0\x05\0\0\0\x01\0\0\0\x1a\0\0\0\0" + bytes(8),
    "a loop": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x08\0\0\0\x08",
    "a text as orientation": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",
    "XMP in GBK": b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>\xd5\xc5\xc8\xfd",
}


@pytest.mark.parametrize("name", BROKEN_EXIF)
def test_broken_metadata_cost_nothing_but_themselves(name: str) -> None:
    broken = segment(0xE1, BROKEN_EXIF[name])
    for data in (JPEG[:2] + broken + JPEG[2:], JPEG[:2] + broken + broken + JPEG[2:]):
        assert np.array_equal(np.asarray(to_rgb(data)), np.asarray(to_rgb(JPEG)))
        assert read_image(data).bytes == JPEG
    data = PNG[:33] + png_chunk(b"eXIf", BROKEN_EXIF[name][6:]) + PNG[33:]
    assert read_image(data).bytes == PNG
    assert np.array_equal(np.asarray(to_rgb(data)), np.asarray(to_rgb(PNG)))


def test_a_text_chunk_that_unpacks_to_gigabytes_is_no_danger() -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(50 << 20))
    data = PNG[:33] + png_chunk(b"zTXt", text) + PNG[33:]
    with pytest.raises(ImageError, match="damaged: .*too large"):
        read_image(data)
