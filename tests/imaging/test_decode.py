"""Image decoding: unusual modes give the right pixels, broken files an ImageError with a countable reason."""

import io
import os
import struct
import zlib
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from qilin.dataset.schema import Provenance
from qilin.dataset.writer import make_image
from qilin.imaging import decode as decode_module
from qilin.imaging.decode import perceptual_hash, read_image, to_rgb
from qilin.imaging.errors import ImageError

RAMP = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))  # (48, 64), dark left, bright right


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gray() -> Image.Image:
    return Image.fromarray(RAMP)


def color() -> Image.Image:
    return Image.merge("RGB", [gray(), gray().transpose(Image.Transpose.FLIP_LEFT_RIGHT), Image.new("L", (64, 48), 9)])


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_eight_bit_png_and_jpeg_keep_their_bytes(format: str) -> None:
    data = encode(color(), format)
    stored = read_image(data)
    assert stored.bytes == data
    assert (stored.format, stored.width, stored.height, stored.notes) == (format.lower(), 64, 48, ())
    assert len(stored.phash) == 16
    int(stored.phash, 16)


@pytest.mark.parametrize("format", ["TIFF", "BMP", "WEBP", "GIF"])
def test_other_formats_become_png_without_loss(format: str, tmp_path: Path) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    path = tmp_path / "image"
    path.write_bytes(encode(gray(), format, **options))
    stored = read_image(path)
    assert stored.format == "png"
    assert any("re-encoded as PNG" in note for note in stored.notes)
    assert np.array_equal(np.asarray(to_rgb(stored.bytes))[..., 0], RAMP)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_high_bit_grayscale_is_scaled_by_its_own_range(mode: str) -> None:
    high_bit = RAMP.astype(np.uint16) * 16 + 3000  # 12 bits, far from zero
    if mode == "I;16":
        data = encode(Image.fromarray(high_bit))
    else:
        data = encode(Image.fromarray(high_bit.astype(np.int32 if mode == "I" else np.float32)), "TIFF")
    values = np.asarray(to_rgb(data))[..., 0].astype(int)
    assert values.min() == 0
    assert values.max() == 255
    assert np.all(np.diff(values[0]) >= 0)
    stored = read_image(data)
    assert stored.format == "png"
    assert Image.open(io.BytesIO(stored.bytes)).mode == "L"
    assert np.abs(np.asarray(to_rgb(stored.bytes))[..., 0].astype(int) - values).max() == 0


def test_one_hot_pixel_does_not_darken_a_high_bit_image() -> None:
    high_bit = np.tile(RAMP, (10, 10)).astype(np.uint16) * 16
    high_bit[0, 0] = 65535
    assert np.asarray(to_rgb(encode(Image.fromarray(high_bit)))).mean() > 100  # by plain maximum it would be about 7


def test_high_bit_images_of_one_value_or_one_bright_pixel_decode() -> None:
    assert np.asarray(to_rgb(encode(Image.fromarray(np.full((50, 50), 900, np.uint16))))).max() == 0
    tiny = np.zeros((100, 100), np.uint16)
    tiny[5, 5] = 700
    assert np.asarray(to_rgb(encode(Image.fromarray(tiny)))).max() == 255


def test_cmyk_palette_bilevel_and_alpha() -> None:
    red = Image.new("RGB", (64, 48), (250, 10, 10))
    for data in (
        encode(red.convert("CMYK"), "JPEG", quality=95),
        encode(red.convert("CMYK"), "TIFF"),
        encode(red.convert("P")),
    ):
        r, g, b = np.asarray(to_rgb(data)).reshape(-1, 3).mean(0)
        assert r > 200 > 60 > max(g, b)
    assert set(np.unique(np.asarray(to_rgb(encode(gray().convert("1")))))) == {0, 255}
    clear = Image.new("RGBA", (64, 48), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (0, 0, 8, 8))
    for data in (encode(clear), encode(clear.convert("LA")), encode(clear, "WEBP", lossless=True)):
        pixels = np.asarray(to_rgb(data))
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[40, 40].tolist() == [0, 0, 0]  # transparent white becomes black


def test_exif_orientation_is_applied_and_the_bytes_are_unchanged() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    data = encode(color(), "JPEG", exif=exif, quality=95)
    stored = read_image(data)
    assert (stored.width, stored.height) == (48, 64)
    assert stored.bytes == data
    upright = np.asarray(to_rgb(data)).astype(int)
    assert upright.shape == (64, 48, 3)
    expected = np.rot90(np.asarray(color()), -1).astype(int)
    assert np.abs(upright - expected).mean() < 6
    assert (
        np.abs(np.asarray(to_rgb(encode(color(), "JPEG"))).astype(int).shape[0] - 64) > 0
    )  # control: no tag, no rotation


def test_the_first_of_several_frames_is_read_and_noted() -> None:
    frames = [Image.new("L", (20, 20), value) for value in (10, 200)]
    for format in ("GIF", "TIFF", "PNG"):
        stored = read_image(encode(frames[0], format, save_all=True, append_images=frames[1:]))
        assert "first of 2 frames" in stored.notes
        assert stored.format == "png"
        assert np.asarray(to_rgb(stored.bytes)).max() == 10


def bomb() -> bytes:
    """A PNG of a hundred bytes that declares 40,000 x 40,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "image file is empty"),
        (b"this is a letter, not an image" * 20, "not an image"),
        (encode(color(), "JPEG")[:400], "truncated or damaged"),
        (encode(color(), "PNG")[:100], "truncated or damaged"),
        (encode(color(), "JPEG")[:-30], "truncated or damaged"),
        (encode(color(), "TIFF")[:300], "truncated or damaged|not an image"),
        (bomb(), "too many pixels"),
        (b"\0" * 128 + b"DICM" + b"\0" * 50, "DICOM is imported by another command"),
        (b"\0" * 344 + b"n+1\0" + b"\0" * 50, "NIfTI is imported by another command"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%PDF-1.7\n", "not an image"),
    ],
)
def test_invalid_images_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        read_image(data)
    with pytest.raises(ImageError, match=reason):
        to_rgb(data)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="missing"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path)


def test_an_image_record_is_addressed_by_content_and_has_the_strictest_license() -> None:
    provenance = (Provenance("a", "1", license="CC BY 4.0"), Provenance("b", "2", license="CC BY-NC 4.0"))
    record = make_image(encode(gray()), provenance, modality="CT")
    assert record.license_tier == "noncommercial"
    assert record.image_id == make_image(encode(gray()), ()).image_id
    assert record.image_id != make_image(encode(color()), ()).image_id


def test_similar_images_have_similar_hashes() -> None:
    def distance(a: bytes, b: bytes) -> int:
        return (int(read_image(a).phash, 16) ^ int(read_image(b).phash, 16)).bit_count()

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8))
    assert distance(encode(gray()), encode(gray(), "JPEG", quality=60)) <= 6
    assert distance(encode(gray()), encode(noise)) > 12


def test_the_hash_is_close_to_imagehash_and_far_for_other_images() -> None:
    hashes = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        image = small.resize((700, 500 + seed), Image.Resampling.BICUBIC)
        ours, theirs = int(perceptual_hash(image), 16), int(str(imagehash.phash(image)), 16)
        assert (ours ^ theirs).bit_count() <= 2
        hashes.append(ours)
    assert min((a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]) > 8


def webp(kind: bytes, head: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(head)) + head
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@pytest.mark.parametrize(
    "data",
    [
        webp(b"VP8X", b"\x02\0\0\0" + b"\xfe\x3f\0" * 2),
        webp(b"VP8L", b"\x2f" + struct.pack("<I", 16382 | 16382 << 14)),
        webp(b"VP8 ", b"\x30\1\0\x9d\1\x2a" + struct.pack("<HH", 16383, 16383)),
    ],
)
def test_a_webp_is_refused_before_its_canvas_is_reserved(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("opened"))
    with pytest.raises(ImageError, match="too many pixels: 16,383 x 16,383"):
        read_image(data)


@pytest.mark.parametrize("quality", [{"lossless": True}, {"quality": 80}])
def test_the_size_of_a_webp_is_read_rightly(quality: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    for image in (color(), color().convert("RGBA")):
        data = encode(image, "WEBP", **quality)
        monkeypatch.setattr(decode_module, "PIXEL_LIMIT", 64 * 48)
        assert read_image(data).width == 64
        monkeypatch.setattr(decode_module, "PIXEL_LIMIT", 64 * 48 - 1)
        with pytest.raises(ImageError, match="64 x 48"):
            read_image(data)


def test_the_limit_of_pixels_depends_on_the_memory_of_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MEMORY_LIMIT", 64 * 48 * 10)
    assert read_image(encode(color())).width == 64
    for data in (encode(color().convert("RGBA")), encode(Image.fromarray(RAMP.astype(np.float32)), "TIFF")):
        with pytest.raises(ImageError, match="too many pixels: 64 x 48"):
            read_image(data)


@pytest.mark.parametrize("name", ["/dev/zero", "pipe"])
def test_devices_and_pipes_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
    with pytest.raises(ImageError, match="cannot be read.*(device|pipe)"):
        read_image(path)


def test_an_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(encode(color(), "JPEG")[:400])
    with pytest.raises(ImageError, match=r"damaged: .*half\.jpg"):
        read_image(path)


def test_whatever_a_decoder_raises_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(decode_module, "flatten", fail)
    with pytest.raises(ImageError, match="damaged: float division"):
        to_rgb(encode(color()))
    with pytest.raises(ImageError, match="damaged: float division"):
        read_image(encode(color()))
