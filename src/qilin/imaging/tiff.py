"""Reads the TIFF layouts that Pillow refuses or reads wrongly without saying so.

In: the bytes of a TIFF file. Out: a Pillow image, or None where Pillow reads the layout rightly. libtiff decompresses
the bytes, through Pillow; numpy gives them their type, sign, byte order and planes.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

LITTLE_ENDIAN, BIG_ENDIAN = b"II", b"MM"
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK = 0, 1, 2, 5  # PhotometricInterpretation
COLOR_CHANNELS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, CMYK: 4}
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # SampleFormat
ASSOCIATED, UNASSOCIATED = 1, 2  # ExtraSamples: color already multiplied by alpha, or not
NO_COMPRESSION, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, ZSTD, LZMA = 1, 5, 8, 32946, 32773, 50000, 34925
BYTEWISE = (NO_COMPRESSION, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, ZSTD, LZMA)  # they compress bytes, whatever these mean
SAMPLEWISE = (2, 3, 4, 6, 7, 32771, 32809)  # fax, JPEG, ThunderScan: they define the samples themselves
NO_PREDICTOR, DIFFERENCES, FLOAT_DIFFERENCES = 1, 2, 3
BIG_ENDIAN_BIGTIFF = b"MM\0+"  # which Pillow takes for a classic TIFF
SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")  # the last two are wrong but read
PAGE_LIMIT = 100_000  # pages are counted up to here


@dataclass(frozen=True)
class Layout:
    """What the tags of the first page say."""

    byte_order: bytes
    is_big_endian_bigtiff: bool
    width: int
    height: int
    bits: int  # of a sample; 0 where the samples differ
    sample_format: int
    photometric: int
    num_samples: int  # of a pixel, alpha included
    extra: tuple[int, ...]  # what the samples after the colors are
    is_planar: bool
    compression: int
    predictor: int
    fill_order: int
    orientation: int
    tile: tuple[int, int] | None  # (width, height); None: strips
    rows_per_strip: int
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]


def count_pages(data: bytes) -> int:
    """The number of pages, by the offsets alone: Pillow reads the tags of each page, a millisecond per page."""
    order = "<" if data[:2] == LITTLE_ENDIAN else ">"
    is_big = data[2:4] in (b"\x2b\0", b"\0\x2b")
    count_format, entry_bytes, next_format = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    seen_offsets: set[int] = set()
    try:
        (offset,) = struct.unpack_from(order + next_format, data, 8 if is_big else 4)
        while offset and offset not in seen_offsets and len(seen_offsets) < PAGE_LIMIT:
            (num_entries,) = struct.unpack_from(order + count_format, data, offset)
            seen_offsets.add(offset)
            end = offset + struct.calcsize(order + count_format) + entry_bytes * num_entries
            (offset,) = struct.unpack_from(order + next_format, data, end)
    except struct.error:  # a page that lies outside the file; the first one is decoded anyway
        pass
    return len(seen_offsets)


def read_layout(data: bytes) -> Layout:
    """The layout of the first page. Raises KeyError, ValueError or what Pillow raises on damaged tags."""
    tags: Any = ImageFileDirectory_v2(data[:16] if data[:4] == b"II+\0" else data[:8])
    if data[:4] == BIG_ENDIAN_BIGTIFF:
        tags._bigtiff, tags.next = True, int.from_bytes(data[8:16], "big")
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    bits, formats = tags.get(258, (1,)), tags.get(339, (UNSIGNED,))
    num_samples = tags.get(277, len(bits))
    return Layout(
        byte_order=data[:2],
        is_big_endian_bigtiff=data[:4] == BIG_ENDIAN_BIGTIFF,
        width=int(tags[256]),
        height=int(tags[257]),
        bits=int(bits[0]) if len(set(bits)) == 1 else 0,
        sample_format=int(formats[0]) if len(set(formats)) == 1 else 0,
        photometric=int(tags.get(262, WHITE_IS_ZERO)),
        num_samples=int(num_samples),
        extra=tuple(tags.get(338, ())),
        is_planar=tags.get(284, 1) == 2 and num_samples > 1,
        compression=int(tags.get(259, NO_COMPRESSION)),
        predictor=int(tags.get(317, NO_PREDICTOR)),
        fill_order=int(tags.get(266, 1)),
        orientation=int(tags.get(274, 1)),
        tile=(int(tags[322]), int(tags[323])) if 324 in tags else None,
        rows_per_strip=int(tags.get(278, tags[257])),
        offsets=tuple(tags.get(324) or tags.get(273, ())),
        byte_counts=tuple(tags.get(325) or tags.get(279, ())),
    )


def is_read_by_pillow(layout: Layout) -> bool:
    """Whether Pillow 11 to 13 gives the right pixels: compared with tifffile over 1,000 layouts."""
    if layout.compression not in BYTEWISE or layout.is_big_endian_bigtiff:
        return layout.compression in SAMPLEWISE and not layout.is_big_endian_bigtiff
    is_gray, has_extra = layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO), bool(layout.extra)
    if layout.is_planar:  # Pillow reads 16 bits as 8, and multiplies by alpha or not by the compression
        is_color = layout.photometric in (RGB, CMYK)
        return layout.bits == 8 and layout.sample_format == UNSIGNED and is_color and not has_extra
    if layout.sample_format == UNSIGNED:
        if layout.bits <= 8:
            return not (is_gray and has_extra and (layout.photometric == WHITE_IS_ZERO or ASSOCIATED in layout.extra))
        if layout.photometric == BLACK_IS_ZERO and not has_extra:
            return layout.bits == 16 or (layout.bits == 12 and layout.byte_order == LITTLE_ENDIAN)
        return layout.photometric in (RGB, CMYK) and layout.bits == 16
    # compressed samples come in the machine's byte order, which Pillow takes for the file's
    is_plain = layout.photometric == BLACK_IS_ZERO and not has_extra and layout.byte_order == LITTLE_ENDIAN
    return is_plain and (layout.sample_format, layout.bits) in ((SIGNED, 16), (SIGNED, 32), (FLOAT, 32))


def layout_problem(layout: Layout) -> str | None:
    """Why neither Pillow nor `read_pixels` reads a layout."""
    if layout.compression not in BYTEWISE:
        return f"compression {layout.compression}"
    bits_of = {UNSIGNED: (8, 10, 12, 14, 16, 32, 64), SIGNED: (8, 16, 32, 64), FLOAT: (16, 32, 64)}
    if layout.photometric not in COLOR_CHANNELS or layout.num_samples < COLOR_CHANNELS[layout.photometric]:
        return f"photometric interpretation {layout.photometric} with {layout.num_samples} samples per pixel"
    if layout.bits not in bits_of.get(layout.sample_format, ()):
        return f"{layout.bits} bits of sample format {layout.sample_format}"
    if layout.photometric == CMYK and layout.sample_format != UNSIGNED:
        return f"CMYK of sample format {layout.sample_format}"
    if layout.predictor != NO_PREDICTOR and layout.bits % 8:
        return f"{layout.bits} bits with predictor {layout.predictor}"
    return None


def decoded_bytes(layout: Layout) -> int:
    """The bytes of all samples, with what tiles add at the edges."""
    width, height = layout.width, layout.height
    if layout.tile:
        width = -(-width // layout.tile[0]) * layout.tile[0]
        height = -(-height // layout.tile[1]) * layout.tile[1]
    return width * height * layout.num_samples * max(layout.bits, 8) // 8


def read_pixels(data: bytes, layout: Layout, scale_to_8_bits: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """The first page as L, RGB or CMYK of 8 bits, or as gray of mode F; on black where it has alpha.

    `scale_to_8_bits` brings color of float or signed samples to 8 bits, all channels alike.
    """
    planes = layout.num_samples if layout.is_planar else 1
    segments = len(layout.offsets) // planes
    if not segments:
        raise ValueError("no strips or tiles")
    parts = [
        read_plane(data, layout, layout.num_samples // planes, slice(plane * segments, (plane + 1) * segments))
        for plane in range(planes)
    ]
    samples = parts[0] if planes == 1 else np.concatenate(parts, axis=2)
    num_colors = COLOR_CHANNELS[layout.photometric]
    color, extra = samples[..., :num_colors], samples[..., num_colors:]
    if layout.photometric == WHITE_IS_ZERO:
        color = inverted(color, layout)
    has_alpha = layout.sample_format == UNSIGNED and layout.extra[:1] == (UNASSOCIATED,) and extra.shape[2] > 0
    if has_alpha and (layout.bits == 8 or num_colors == 3):
        color = np.concatenate([color, extra[..., :1]], axis=2)  # Pillow composes it
    elif has_alpha:
        color = color * (extra[..., :1] / np.float32(largest(layout)))
    if layout.sample_format == UNSIGNED and (layout.bits == 8 or num_colors > 1):
        color = (color >> (layout.bits - 8)).astype(np.uint8)
    elif layout.sample_format == SIGNED and layout.bits == 8:
        color = (color.astype(np.int16) + 128).astype(np.uint8)
    elif num_colors > 1:
        color = scale_to_8_bits(color.astype(np.float32))
    else:
        return Image.fromarray(np.ascontiguousarray(color[..., 0], dtype=np.float32))
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[num_colors] + "A" * (color.shape[2] - num_colors)
    return Image.frombytes(mode, (layout.width, layout.height), np.ascontiguousarray(color).tobytes())


def inverted(color: np.ndarray, layout: Layout) -> np.ndarray:
    """Dark for bright, within the samples' type."""
    if layout.sample_format == FLOAT:
        return -color
    return ~color if layout.sample_format == SIGNED else largest(layout) - color


def largest(layout: Layout) -> Any:
    """The largest unsigned sample, of the samples' type."""
    return np.array((1 << layout.bits) - 1, dtype=sample_type(layout).newbyteorder("="))[()]


def sample_type(layout: Layout) -> np.dtype[Any]:
    """The type of a sample in the file; of 10, 12 or 14 bits, after unpacking."""
    order = "<" if layout.byte_order == LITTLE_ENDIAN else ">"
    kind = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}[layout.sample_format]
    return np.dtype(f"{order}{kind}{-(-layout.bits // 8)}")


def read_plane(data: bytes, layout: Layout, num_samples: int, segments: slice) -> np.ndarray:
    """(height, width, samples) of one plane, which holds `num_samples` of each pixel."""
    offsets, byte_counts = layout.offsets[segments], layout.byte_counts[segments]
    width, segment_rows = layout.tile or (layout.width, min(layout.rows_per_strip, layout.height))
    rows = segment_rows * len(offsets) if layout.tile else layout.height
    row_bytes = -(-width * num_samples * layout.bits // 8)
    raw = decompress(data, layout, (row_bytes, rows, segment_rows), offsets, byte_counts)
    samples = typed_samples(raw, layout, width, num_samples)
    if not layout.tile:
        return samples
    across = -(-layout.width // width)
    down = len(offsets) // across
    grid = samples[: down * across * segment_rows].reshape(down, across, segment_rows, width, num_samples)
    rows_of_tiles = grid.transpose(0, 2, 1, 3, 4).reshape(down * segment_rows, across * width, num_samples)
    return rows_of_tiles[: layout.height, : layout.width]


def decompress(
    data: bytes,
    layout: Layout,
    shape: tuple[int, int, int],
    offsets: tuple[int, ...],
    byte_counts: tuple[int, ...],
) -> np.ndarray:
    """(rows, bytes of a row): the same strips or tiles, read as 8-bit gray by a directory of tags that says so."""
    row_bytes, rows, segment_rows = shape
    start = len(data) + len(data) % 2
    tags: dict[int, tuple[int, ...]] = {
        256: (row_bytes,),
        257: (rows,),
        258: (8,),
        259: (layout.compression,),
        262: (BLACK_IS_ZERO,),
    }
    tags |= {266: (layout.fill_order,), 273: offsets, 277: (1,), 278: (segment_rows,), 279: byte_counts}
    body = b"II*\0" + struct.pack("<I", start) + data[8:].ljust(start - 8, b"\0") + directory(tags, start)
    with Image.open(io.BytesIO(body), formats=("TIFF",)) as image:
        image.load()
        return np.asarray(image)


def directory(tags: dict[int, tuple[int, ...]], start: int) -> bytes:
    """Little-endian TIFF tags of 32-bit numbers that stand at byte `start`; one number stands in its entry."""
    entries, lists = struct.pack("<H", len(tags)), b""
    lists_start = start + 2 + 12 * len(tags) + 4
    for tag, numbers in tags.items():
        content = struct.pack(f"<{len(numbers)}I", *numbers)
        value = content if len(numbers) == 1 else struct.pack("<I", lists_start + len(lists))
        lists += b"" if len(numbers) == 1 else content
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + value
    return entries + struct.pack("<I", 0) + lists


def typed_samples(raw: np.ndarray, layout: Layout, width: int, num_samples: int) -> np.ndarray:
    """Rows of bytes -> (rows, width, samples) of numbers in the machine's byte order, the predictor undone."""
    rows, dtype = len(raw), sample_type(layout)
    if layout.bits % 8:
        digits = np.unpackbits(raw, axis=1)[:, : width * num_samples * layout.bits]
        digits = digits.reshape(rows, width, num_samples, layout.bits)
        padded = np.zeros((rows, width, num_samples, 16), np.uint8)
        padded[..., 16 - layout.bits :] = digits
        return np.packbits(padded, axis=3).view(">u2")[..., 0].astype(np.uint16)
    predictor = layout.predictor if layout.compression not in (NO_COMPRESSION, PACKBITS) else NO_PREDICTOR
    if predictor == FLOAT_DIFFERENCES:  # bytes of equal significance stand together, the highest first
        sums = np.cumsum(raw.reshape(rows, -1, num_samples), axis=1, dtype=np.uint8)
        by_significance = sums.reshape(rows, dtype.itemsize, width * num_samples).transpose(0, 2, 1)
        values = np.ascontiguousarray(by_significance).view(dtype.newbyteorder(">"))
        return values.reshape(rows, width, num_samples).astype(dtype.newbyteorder("="))
    values = np.ascontiguousarray(raw).view(dtype).reshape(rows, width, num_samples)
    if predictor == DIFFERENCES:
        unsigned = values.view(dtype.str.replace("i", "u").replace("f", "u"))
        native = unsigned.dtype.newbyteorder("=")
        return np.cumsum(unsigned, axis=1, dtype=native).view(dtype.newbyteorder("="))
    return values.astype(dtype.newbyteorder("="))
