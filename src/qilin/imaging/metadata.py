"""Removes metadata from JPEG and PNG files without touching their pixels: GPS, names, dates, comments, previews.

In: the bytes of a file that decodes, its format and orientation. Out: the same coded pixels without metadata. A file
that holds none keeps its bytes exactly. Color profiles stay, because they say what the pixels mean.
"""

import struct
import zlib
from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# what decodes or displays the pixels; chunks of other names may hold anything
PNG_CHUNKS = {
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"sBIT", b"bKGD"),
    *(b"pHYs", b"hIST", b"sPLT"),
}
EXIF_HEADER = b"Exif\0\0"
SCAN, END = 0xDA, 0xD9  # JPEG markers
STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


def orientation_exif(orientation: int) -> bytes:
    """EXIF that holds the orientation alone, as Pillow writes it."""
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def strip_metadata(data: bytes, file_format: str, orientation: int) -> bytes:
    """A JPEG or PNG without metadata; the orientation stays, as EXIF of one tag."""
    parts = jpeg_parts(data, orientation) if file_format == "JPEG" else png_parts(data, orientation)
    return b"".join(parts)


def jpeg_parts(data: bytes, orientation: int) -> Iterator[bytes]:
    """The segments that decode the pixels, from the first marker to the end of the first image."""
    exif = EXIF_HEADER + orientation_exif(orientation) if orientation != 1 else b""
    yield data[:2]
    for marker, segment in jpeg_segments(data):
        if exif and marker != 0xE0:  # after JFIF, which has to be the first one
            yield jpeg_segment(0xE1, exif)
            exif = b""
        if is_needed(marker, segment[4:]):
            yield segment


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def is_needed(marker: int, content: bytes) -> bool:
    """Whether a segment decodes the pixels: JFIF, a color profile, Adobe's transform, or none of the others' kind."""
    if 0xE0 <= marker <= 0xEF:
        names = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
        return marker in names and content.startswith(names[marker])
    return marker != 0xFE  # a comment


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, bytes) of each segment after the start marker; the coded pixels belong to the scan before them."""
    position = 2
    while position + 2 <= len(data):
        start = data.index(0xFF, position)  # bytes between segments belong to nothing
        position = start + 1
        while data[position] == 0xFF:  # fill bytes
            position += 1
        marker = data[position]
        if marker == END:
            yield marker, b"\xff\xd9"
            return
        if marker in STANDALONE:
            end = position + 1
        else:
            end = position + 1 + struct.unpack_from(">H", data, position + 1)[0]
            if marker == SCAN:
                end = scan_end(data, end)
        yield marker, b"\xff" + data[position:end]
        position = end


def scan_end(data: bytes, position: int) -> int:
    """Where the coded pixels end: at the next marker that is neither a stuffed zero nor a restart."""
    while True:
        position = data.find(0xFF, position)
        if position < 0 or position + 1 >= len(data):
            return len(data)
        following = data[position + 1]
        if following != 0xFF and following != 0 and not 0xD0 <= following <= 0xD7:
            return position
        position += 1 if following == 0xFF else 2


def png_parts(data: bytes, orientation: int) -> Iterator[bytes]:
    """The chunks that decode or display the pixels."""
    yield PNG_SIGNATURE
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if name in PNG_CHUNKS:
            yield data[position:end]
        if name == b"IHDR" and orientation != 1:
            yield png_chunk(b"eXIf", orientation_exif(orientation))
        position = end
        if name == b"IEND":
            return


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
