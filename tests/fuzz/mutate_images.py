"""Mutations that know the structure of DICOM, NIfTI and JPEG 2000: lengths, VRs, sizes, frames, codestream markers.

In: the bytes of a valid file and a random generator. Out: other bytes, most of which still look like such a file. The
same generator gives the same bytes.
"""

import gzip
import random
from dataclasses import dataclass

from fuzz.mutate import mutate_bytes

LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"SQ", b"UT", b"UC", b"UR", b"SV", b"UV")
SHORT_VRS = (b"US", b"SS", b"UL", b"SL", b"FL", b"FD", b"DS", b"IS", b"CS", b"LO", b"PN", b"UI", b"AT", b"DA", b"ZZ")
VRS = (*LONG_VRS, *SHORT_VRS)
TRANSFER_SYNTAXES = tuple(
    b"1.2.840.10008.1.2" + end
    for end in (b"", b".1", b".1.99", b".2", b".4.50", b".4.51", b".4.57", b".4.70", b".4.80", b".4.81", b".4.90",
                b".4.91", b".4.100", b".4.110", b".4.201", b".4.203", b".5", b".9")
)  # fmt: skip
ODD_NUMBERS = (0, 1, 2, 3, 7, 8, 16, 32, 64, 255, 256, 4096, 32767, 32768, 65535)
ODD_LENGTHS = (0, 1, 2, 5, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 3 << 30)
ODD_TEXTS = (
    b"", b"0", b"-1", b"1A", b"1e400", b"nan", b"inf", b"99999999999", b"1\\2\\3", b"\\\\", b" ", b"\0\0", b"0\\0",
    b"\xd5\xc5\xc8\xfd", "²²".encode(), b"YBR_FULL_422", b"PALETTE COLOR", b"MONOCHROME1", b"SIGMOID", b"GB18030",
    b"\\ISO 2022 IR 58", b"045Y", b"YES", b"1" * 64, b"x" * 5000, b"SEG", b"US",
)  # fmt: skip
# what decides how pixels are read; changed more often than other elements
PIXEL_TAGS = (
    0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102,
    0x00280103, 0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00280030, 0x00020010, 0x00080005, 0x00080060,
)  # fmt: skip


@dataclass(frozen=True)
class Element:
    """An element's place in a file; `vr` is empty where it is implicit."""

    start: int
    tag: int
    vr: bytes
    value: int
    length: int


def find_elements(data: bytes) -> list[Element]:
    """The elements of the first level, up to the first of undefined length."""
    elements: list[Element] = []
    position = 132
    while position + 8 <= len(data):
        tag = int.from_bytes(data[position : position + 2], "little") << 16
        tag |= int.from_bytes(data[position + 2 : position + 4], "little")
        vr = data[position + 4 : position + 6]
        if vr not in VRS:
            vr, value, size = b"", position + 8, 4
        else:
            value, size = (position + 12, 4) if vr in LONG_VRS else (position + 8, 2)
        length = int.from_bytes(data[value - size : value], "little")
        elements.append(Element(position, tag, vr, value, length))
        if length >= len(data):
            break
        position = value + length
    return elements


def mutate_dicom(data: bytes, draw: random.Random) -> bytes:
    """One to three changes of elements, or of the coded pixels."""
    for _ in range(draw.randint(1, 3)):
        elements = find_elements(data)
        change = draw.randrange(10)
        if change == 0 or not elements:
            data = mutate_bytes(data, draw)
            continue
        element = draw.choice([item for item in elements if item.tag in PIXEL_TAGS and draw.random() < 0.8] or elements)
        if change in (1, 2):
            data = mutate_pixels(data, elements[-1], draw)
        elif change == 3:
            data = with_length(data, element, draw.choice((*ODD_LENGTHS, max(element.length + draw.randint(-3, 3), 0))))
        elif change == 4 and element.vr:
            data = data[: element.start + 4] + draw.choice(VRS) + data[element.start + 6 :]
        elif change == 5:
            end = min(element.value + element.length, len(data))
            data = data[: element.start] + data[element.start : end] * draw.choice((0, 2, 3)) + data[end:]
        else:
            data = with_value(data, element, odd_value(element, draw))
    return data


def odd_value(element: Element, draw: random.Random) -> bytes:
    if element.tag == 0x00020010:
        return draw.choice(TRANSFER_SYNTAXES)
    if element.vr in (b"US", b"SS") or (not element.vr and element.length == 2):
        return b"".join(draw.choice(ODD_NUMBERS).to_bytes(2, "little") for _ in range(draw.choice((1, 1, 1, 0, 3))))
    return draw.choice(ODD_TEXTS)


def with_value(data: bytes, element: Element, value: bytes) -> bytes:
    """The element with another value and the length of it."""
    end = min(element.value + element.length, len(data))
    value += b"\0" * (len(value) % 2)
    return with_length(data[: element.value] + value + data[end:], element, len(value))


def with_length(data: bytes, element: Element, length: int) -> bytes:
    size = 2 if element.vr and element.vr not in LONG_VRS else 4
    coded = (length % (1 << (8 * size))).to_bytes(size, "little")
    return data[: element.value - size] + coded + data[element.value :]


def mutate_pixels(data: bytes, element: Element, draw: random.Random) -> bytes:
    """Damages the pixel data: a segment of the codestream, the offsets, the end."""
    head, pixels = data[: element.value], data[element.value :]
    return head + (mutate_segments if draw.random() < 0.6 else mutate_bytes)(pixels or b"\0", draw)


def mutate_segments(data: bytes, draw: random.Random) -> bytes:
    """Overwrites bytes behind a marker of a codestream (JPEG, JPEG-LS, JPEG 2000) or behind a box's name."""
    places = [place for place in range(len(data) - 1) if data[place] == 0xFF and data[place + 1] >= 0x4F][:64]
    places += [place for place in (data.find(name) + 2 for name in (b"ihdr", b"colr", b"jp2c", b"pclr")) if place > 1]
    if not places:
        return mutate_bytes(data, draw)
    place = draw.choice(places) + 2 + draw.choice((0, 0, 2, 4, 6, 8, 12, 16, 20, 24, 36))
    size = draw.choice((1, 2, 2, 4))
    number = draw.choice((*ODD_NUMBERS, *ODD_LENGTHS, draw.randrange(1 << 16))) % (1 << (8 * size))
    return data[:place] + number.to_bytes(size, "big") + data[place + size :]


# offset, bytes: sizes, type, bits, distances, offset of the data, scale, codes of the orientation
NIFTI_FIELDS = (
    *((40 + 2 * index, 2) for index in range(8)), (70, 2), (72, 2), *((76 + 4 * index, 4) for index in range(8)),
    (108, 4), (112, 4), (116, 4), (252, 2), (254, 2), (256, 4), (268, 4), (280, 4), (296, 4), (344, 4), (0, 4),
)  # fmt: skip


def mutate_nifti(data: bytes, draw: random.Random) -> bytes:
    """One to three header fields with odd numbers; compressed files stay compressed, or are damaged as they are."""
    if data[:2] == b"\x1f\x8b":
        return (
            mutate_bytes(data, draw)
            if draw.random() < 0.3
            else gzip.compress(mutate_nifti(gzip.decompress(data), draw))
        )
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.15:
            data = mutate_bytes(data, draw)
            continue
        place, size = draw.choice(NIFTI_FIELDS)
        number = draw.choice((*ODD_NUMBERS, *ODD_LENGTHS, 0x7FC00000, 0x7F800000, 0xFF800000, 0x3F800000)) % (
            1 << (8 * size)
        )
        data = data[:place] + number.to_bytes(size, "little") + data[place + size :]
    return data
