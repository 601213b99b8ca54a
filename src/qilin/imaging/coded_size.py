"""The size that a coded frame declares, compared with the header's before anything is decoded.

In: a codestream of JPEG, JPEG-LS, JPEG 2000 or JPEG XL. Out: nothing, or ValueError where it would decode to more
pixels than the header promises: a file of some hundred bytes can declare a frame of gigabytes.
"""

JPEG_2000_SIZE = b"\xff\x4f\xff\x51"
STANDALONE = (0x01, *range(0xD0, 0xDA))  # JPEG markers without a segment
NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # DHT, JPG and DAC stand among the frame headers
# A codestream of 741 bytes can hold 390 million equal pixels of JPEG-LS, which take ten seconds. An empty frame of a
# scanner, 4096 x 4096 of one value, has 33,000 pixels per byte.
MAX_EMPTY_PIXELS, MAX_PIXELS_PER_BYTE = 1 << 26, 10_000
JPEG_XL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def check_coded_size(data: bytes, rows: int, columns: int) -> None:
    """Raise ValueError where a codestream declares another size, or more pixels than its bytes can describe.

    A codestream that declares no size is left to its decoder.
    """
    size = coded_size(data)
    pixels = size[0] * size[1] if size is not None else rows * columns
    if pixels > MAX_EMPTY_PIXELS and pixels > MAX_PIXELS_PER_BYTE * len(data):
        raise ValueError(f"the coded frame has {pixels:,} pixels in {len(data):,} bytes")
    if size is not None and size[0] * size[1] > rows * columns:
        raise ValueError(f"the coded frame has {size[0]} x {size[1]} pixels; expected {columns} x {rows}")


def coded_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a codestream; None where it declares none."""
    if (start := data.find(JPEG_2000_SIZE, 0, 4096)) >= 0 and not data.startswith(b"\xff\xd8"):
        right, bottom, left, top = (int.from_bytes(data[start + n : start + n + 4], "big") for n in (8, 12, 16, 20))
        return max(right - left, 0), max(bottom - top, 0)
    if data.startswith(b"\xff\x0a"):
        return jpeg_xl_size(int.from_bytes(data[2:18], "little"))
    if (start := data.find(b"jxlc", 0, 4096)) >= 0:
        return jpeg_xl_size(int.from_bytes(data[start + 6 : start + 22], "little"))
    return jpeg_size(data)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """The size in the frame header of JPEG and JPEG-LS."""
    position = data.find(b"\xff\xd8") + 2
    while 2 <= position < len(data) - 8:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF or marker in STANDALONE:  # fill bytes
            position += 1 if marker == 0xFF else 2
        elif (0xC0 <= marker <= 0xCF and marker not in NOT_FRAMES) or marker == 0xF7:
            height, width = (int.from_bytes(data[position + n : position + n + 2], "big") for n in (5, 7))
            return width, height
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def jpeg_xl_size(bits: int) -> tuple[int, int]:
    """The SizeHeader of ISO 18181-1, annex A, whose bits come least significant first."""

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)

    def length() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = length()
    if ratio := take(3):
        numerator, denominator = JPEG_XL_RATIOS[ratio - 1]
        return height * numerator // denominator, height
    return length(), height
