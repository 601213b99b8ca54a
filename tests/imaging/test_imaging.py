"""Images as hospitals and the internet hand them over: odd modes come out right, broken files get a word."""

import io
import struct
import zlib
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from qilin.dataset.schema import Provenance
from qilin.dataset.writer import make_image
from qilin.imaging.decode import BadImage, phash, read_image, to_rgb

RAMP = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))  # (48, 64), dark left, bright right


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def grey() -> Image.Image:
    return Image.fromarray(RAMP)


def colour() -> Image.Image:
    return Image.merge("RGB", [grey(), grey().transpose(Image.Transpose.FLIP_LEFT_RIGHT), Image.new("L", (64, 48), 9)])


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_eight_bit_png_and_jpeg_keep_their_bytes(format: str) -> None:
    data = encoded(colour(), format)
    found = read_image(data)
    assert found.bytes == data
    assert (found.format, found.width, found.height, found.notes) == (format.lower(), 64, 48, ())
    assert len(found.phash) == 16
    int(found.phash, 16)


@pytest.mark.parametrize("format", ["TIFF", "BMP", "WEBP", "GIF"])
def test_other_formats_become_png_without_loss(format: str, tmp_path: Path) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    path = tmp_path / "picture"
    path.write_bytes(encoded(grey(), format, **options))
    found = read_image(path)
    assert found.format == "png"
    assert any("re-encoded as PNG" in note for note in found.notes)
    assert np.array_equal(np.asarray(to_rgb(found.bytes))[..., 0], RAMP)


@pytest.mark.parametrize("kind", ["I;16", "I", "F"])
def test_deep_greyscale_is_scaled_by_its_own_range(kind: str) -> None:
    deep = RAMP.astype(np.uint16) * 16 + 3000  # 12 bits' worth, far from zero
    if kind == "I;16":
        data = encoded(Image.fromarray(deep))
    else:
        data = encoded(Image.fromarray(deep.astype(np.int32 if kind == "I" else np.float32)), "TIFF")
    values = np.asarray(to_rgb(data))[..., 0].astype(int)
    assert values.min() == 0
    assert values.max() == 255
    assert np.all(np.diff(values[0]) >= 0)
    found = read_image(data)
    assert found.format == "png"
    assert Image.open(io.BytesIO(found.bytes)).mode == "L"
    assert np.abs(np.asarray(to_rgb(found.bytes))[..., 0].astype(int) - values).max() == 0


def test_one_hot_pixel_does_not_darken_a_deep_image() -> None:
    deep = np.tile(RAMP, (10, 10)).astype(np.uint16) * 16
    deep[0, 0] = 65535
    assert np.asarray(to_rgb(encoded(Image.fromarray(deep)))).mean() > 100  # by plain maximum it would be about 7


def test_a_deep_image_of_one_value_or_a_tiny_thing_is_no_fault() -> None:
    assert np.asarray(to_rgb(encoded(Image.fromarray(np.full((50, 50), 900, np.uint16))))).max() == 0
    tiny = np.zeros((100, 100), np.uint16)
    tiny[5, 5] = 700
    assert np.asarray(to_rgb(encoded(Image.fromarray(tiny)))).max() == 255


def test_cmyk_palette_bilevel_and_alpha() -> None:
    red = Image.new("RGB", (64, 48), (250, 10, 10))
    for data in (
        encoded(red.convert("CMYK"), "JPEG", quality=95),
        encoded(red.convert("CMYK"), "TIFF"),
        encoded(red.convert("P")),
    ):
        r, g, b = np.asarray(to_rgb(data)).reshape(-1, 3).mean(0)
        assert r > 200 > 60 > max(g, b)
    assert set(np.unique(np.asarray(to_rgb(encoded(grey().convert("1")))))) == {0, 255}
    clear = Image.new("RGBA", (64, 48), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (0, 0, 8, 8))
    for data in (encoded(clear), encoded(clear.convert("LA")), encoded(clear, "WEBP", lossless=True)):
        pixels = np.asarray(to_rgb(data))
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[40, 40].tolist() == [0, 0, 0]  # transparent white is shown on black


def test_orientation_is_honoured_and_the_bytes_are_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    data = encoded(colour(), "JPEG", exif=exif, quality=95)
    found = read_image(data)
    assert (found.width, found.height) == (48, 64)
    assert found.bytes == data
    upright = np.asarray(to_rgb(data)).astype(int)
    assert upright.shape == (64, 48, 3)
    expected = np.rot90(np.asarray(colour()), -1).astype(int)
    assert np.abs(upright - expected).mean() < 6
    assert (
        np.abs(np.asarray(to_rgb(encoded(colour(), "JPEG"))).astype(int).shape[0] - 64) > 0
    )  # control: no tag, no turn


def test_the_first_frame_of_several_is_taken_and_said() -> None:
    frames = [Image.new("L", (20, 20), value) for value in (10, 200)]
    for format in ("GIF", "TIFF", "PNG"):
        found = read_image(encoded(frames[0], format, save_all=True, append_images=frames[1:]))
        assert "first of 2 frames" in found.notes
        assert found.format == "png"
        assert np.asarray(to_rgb(found.bytes)).max() == 10


def bomb() -> bytes:
    """A PNG of some hundred bytes that claims 40,000 x 40,000 pixels."""

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
        (encoded(colour(), "JPEG")[:400], "truncated or damaged"),
        (encoded(colour(), "PNG")[:100], "truncated or damaged"),
        (encoded(colour(), "JPEG")[:-30], "truncated or damaged"),
        (encoded(colour(), "TIFF")[:300], "truncated or damaged|not an image"),
        (bomb(), "too many pixels"),
        (b"\0" * 128 + b"DICM" + b"\0" * 50, "DICOM is not read yet"),
        (b"\0" * 344 + b"n+1\0" + b"\0" * 50, "NIfTI is not read yet"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%PDF-1.7\n", "not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        read_image(data)
    with pytest.raises(BadImage, match=reason):
        to_rgb(data)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="missing"):
        read_image(tmp_path / "none.png")
    with pytest.raises(BadImage, match="cannot be read"):
        read_image(tmp_path)


def test_an_image_row_knows_its_content_and_its_strictest_licence() -> None:
    where = (Provenance("a", "1", license="CC BY 4.0"), Provenance("b", "2", license="CC BY-NC 4.0"))
    made = make_image(encoded(grey()), where, modality="CT")
    assert made.license_tier == "noncommercial"
    assert made.image_id == make_image(encoded(grey()), ()).image_id
    assert made.image_id != make_image(encoded(colour()), ()).image_id


def test_near_images_have_near_hashes() -> None:
    def far(a: bytes, b: bytes) -> int:
        return (int(read_image(a).phash, 16) ^ int(read_image(b).phash, 16)).bit_count()

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8))
    assert far(encoded(grey()), encoded(grey(), "JPEG", quality=60)) <= 6
    assert far(encoded(grey()), encoded(noise)) > 12


def test_the_hash_is_nearly_imagehashs_and_apart_for_other_images() -> None:
    apart = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        image = small.resize((700, 500 + seed), Image.Resampling.BICUBIC)
        ours, theirs = int(phash(image), 16), int(str(imagehash.phash(image)), 16)
        assert (ours ^ theirs).bit_count() <= 2
        apart.append(ours)
    assert min((a ^ b).bit_count() for n, a in enumerate(apart) for b in apart[:n]) > 8
