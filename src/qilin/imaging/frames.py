"""Counts the frames of a TIFF or GIF by its structure: Pillow takes up to a millisecond for each of them.

In: the bytes of a file that opens. Out: the number of frames, at most FRAME_LIMIT.
"""

from collections.abc import Iterator
from itertools import islice

from PIL import Image

from qilin.imaging import tiff

FRAME_LIMIT = tiff.PAGE_LIMIT
EXTENSION, FRAME = 0x21, 0x2C  # GIF blocks


def count_frames(data: bytes, image: Image.Image) -> int:
    """The number of frames of a file; other formats state it at the start."""
    if data[:4] in tiff.SIGNATURES:
        return tiff.count_pages(data)
    if image.format == "GIF":
        return sum(1 for _ in islice(gif_frames(data), FRAME_LIMIT))
    return int(getattr(image, "n_frames", 1))


def gif_frames(data: bytes) -> Iterator[int]:
    """The position of each frame; ends where the file does."""
    try:
        position = 13 + color_table_bytes(data[10])
        while data[position] in (EXTENSION, FRAME):
            if data[position] == FRAME:
                yield position
                position += 11 + color_table_bytes(data[position + 9])  # the last byte is the size of a code
            else:
                position += 2
            while data[position]:  # blocks of up to 255 bytes
                position += 1 + data[position]
            position += 1
    except IndexError:
        return


def color_table_bytes(flags: int) -> int:
    return 3 << (1 + (flags & 7)) if flags & 0x80 else 0
