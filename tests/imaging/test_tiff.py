"""TIFF layouts that Pillow refuses or reads wrongly give the right pixels, or a refusal that names the layout."""

import itertools
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest

from qilin.imaging.decode import read_image, to_rgb
from qilin.imaging.errors import ImageError
from qilin.imaging.frames import count_frames
from qilin.imaging.tiff import count_pages

HEIGHT, WIDTH = 12, 20
GRAY = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)  # dark at the top, bright at the bottom
COLOR = np.stack([GRAY, GRAY[:, ::-1], 1 - GRAY], axis=-1)


def write_tiff(samples: np.ndarray, order: str = "<", compress: bool = False, **tags: Any) -> bytes:
    """A TIFF of one page: strips of 5 rows, or planes of one strip each where `samples` is (planes, height, width)."""
    is_planar = tags.get("planar") == 2
    height, width = samples.shape[1:3] if is_planar else samples.shape[:2]
    num_samples = len(samples) if is_planar else (samples.shape[2] if samples.ndim == 3 else 1)
    ordered = samples.astype(samples.dtype.newbyteorder(order))
    strips = list(ordered) if is_planar else [ordered[top : top + 5] for top in range(0, height, 5)]
    coded = [zlib.compress(strip.tobytes()) if compress else strip.tobytes() for strip in strips]
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    number, head_bytes, entry_bytes = ("Q", 16, 20) if tags.get("big") else ("I", 8, 12)
    offsets = [head_bytes + sum(map(len, coded[:n])) for n in range(len(coded))]
    compression = tags.get("compression", 8 if compress else 1)
    entries = {
        **{256: [width], 257: [height], 258: [samples.dtype.itemsize * 8] * num_samples, 259: [compression]},
        **{262: [tags.get("photometric", 1)], 273: offsets, 274: [tags.get("orientation", 1)], 277: [num_samples]},
        **{278: [height if is_planar else 5], 279: list(map(len, coded)), 284: [tags.get("planar", 1)]},
        **({338: [tags["extra"]]} if "extra" in tags else {}),
        339: [kind] * num_samples,
    }
    start = head_bytes + sum(map(len, coded))
    directory, lists = struct.pack(order + ("Q" if tags.get("big") else "H"), len(entries)), b""
    lists_start = start + len(directory) + entry_bytes * len(entries) + struct.calcsize(number)
    for tag, values in sorted(entries.items()):
        content = struct.pack(f"{order}{len(values)}I", *values)
        if len(content) > struct.calcsize(number):
            value, lists = struct.pack(order + number, lists_start + len(lists)), lists + content
        else:
            value = content.ljust(struct.calcsize(number), b"\0")
        directory += struct.pack(f"{order}HH{number}", tag, 4, len(values)) + value
    mark = b"II" if order == "<" else b"MM"
    head = (
        mark + struct.pack(f"{order}HHHQ", 43, 8, 0, start)
        if tags.get("big")
        else mark + struct.pack(f"{order}HI", 42, start)
    )
    return head + b"".join(coded) + directory + bytes(struct.calcsize(number)) + lists


def as_type(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype[0] == "f":
        return (values * 700 - 200).astype(dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return np.round(values * (float(high) - low) + low).clip(low, high).astype(dtype)


def pixels(data: bytes) -> np.ndarray:
    """(height, width, 3), 0 to 1; the stored PNG and the file itself give the same."""
    direct = np.asarray(to_rgb(data)).astype(float) / 255
    assert np.array_equal(np.asarray(to_rgb(read_image(data).bytes)) / 255, direct)
    return direct


ORDERS = list(itertools.product("<>", (False, True)))  # byte order, compressed


@pytest.mark.parametrize(("order", "compress"), ORDERS)
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("dtype", ["i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
def test_gray_of_any_type(dtype: str, photometric: int, order: str, compress: bool) -> None:
    data = write_tiff(as_type(GRAY, dtype), order, compress, photometric=photometric)
    expected = GRAY if photometric else 1 - GRAY
    assert np.abs(pixels(data) - expected[..., None]).max() < 0.02


@pytest.mark.parametrize(("order", "compress"), ORDERS)
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "f4"])
def test_color_of_any_type(dtype: str, planar: int, order: str, compress: bool) -> None:
    samples = as_type(COLOR, dtype)
    if planar == 2:
        samples = np.ascontiguousarray(samples.transpose(2, 0, 1))
    data = write_tiff(samples, order, compress, photometric=2, planar=planar)
    assert np.abs(pixels(data) - COLOR).max() < 0.02


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("extra", [0, 1, 2])
def test_alpha_is_applied_once(extra: int, dtype: str, planar: int, compress: bool) -> None:
    """Associated alpha has multiplied the colors already; an extra sample of no meaning changes nothing."""
    alpha = np.where(np.arange(WIDTH) < 8, 0.5, 1.0) * np.ones_like(GRAY)
    for values, photometric in ((GRAY[..., None], 1), (COLOR, 2)):
        colors = values * alpha[..., None] if extra == 1 else values
        samples = as_type(np.concatenate([colors, alpha[..., None]], axis=-1), dtype)
        if planar == 2:
            samples = np.ascontiguousarray(samples.transpose(2, 0, 1))
        data = write_tiff(samples, compress=compress, photometric=photometric, extra=extra, planar=planar)
        expected = values * alpha[..., None] if extra else values
        assert np.abs(pixels(data) - expected).max() < 0.02


@pytest.mark.parametrize(("order", "compress"), ORDERS)
def test_bigtiff(order: str, compress: bool) -> None:
    """Pillow takes a big-endian one for a classic TIFF."""
    for values, photometric in ((GRAY, 1), (COLOR, 2)):
        data = write_tiff(as_type(values, "u2"), order, compress, photometric=photometric, big=True)
        assert np.abs(pixels(data) - values.reshape(HEIGHT, WIDTH, -1)).max() < 0.02
        assert count_pages(data) == 1


@pytest.mark.parametrize("dtype", ["u1", "f8"])
def test_orientation_is_applied(dtype: str) -> None:
    data = write_tiff(as_type(GRAY, dtype), orientation=6)
    assert np.abs(pixels(data) - np.rot90(GRAY, -1)[..., None]).max() < 0.02


def test_an_unknown_layout_is_refused_by_name() -> None:
    with pytest.raises(ImageError, match="layout is not supported: photometric interpretation 9 with 3 samples"):
        to_rgb(write_tiff(as_type(COLOR, "u2"), photometric=9))
    with pytest.raises(ImageError, match="compression 34712"):  # JPEG 2000
        to_rgb(write_tiff(as_type(COLOR, "u1"), photometric=2, compression=34712))
    data = write_tiff(as_type(COLOR, "f4"), photometric=2).replace(
        struct.pack("<HHI", 339, 4, 3), struct.pack("<HHI", 339, 4, 1)
    )  # one sample format, which is now an offset
    with pytest.raises(ImageError, match="sample format"):
        to_rgb(data)


def test_many_pages_are_counted_fast() -> None:
    page = struct.pack("<H", 0)
    chain = b"".join(page + struct.pack("<I", 8 + 6 * (n + 1)) for n in range(50_000))
    started = time.perf_counter()
    assert count_pages(b"II*\0" + struct.pack("<I", 8) + chain + page + bytes(4)) == 50_001
    assert time.perf_counter() - started < 2
    loop = b"II*\0" + struct.pack("<I", 8) + page + struct.pack("<I", 8)
    assert count_pages(loop) == 1


def test_pages_are_counted_as_pillow_counts_them() -> None:
    import io

    from PIL import Image

    frames = [Image.new("L", (5 + n, 7), n) for n in range(4)]
    for file_format in ("TIFF", "GIF"):
        buffer = io.BytesIO()
        frames[0].save(buffer, file_format, save_all=True, append_images=frames[1:])
        image = Image.open(io.BytesIO(buffer.getvalue()))
        assert count_frames(buffer.getvalue(), image) == getattr(image, "n_frames", 0) == 4
