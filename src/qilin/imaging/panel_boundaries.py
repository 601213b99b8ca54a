"""Boundaries between tiles that no wide white or black gutter divides: colored bands, thin lines, abutting tiles.

In: gray levels of a part of a figure, (lines, across). Out: bands of lines between tiles; an empty one, (n, n), where
tiles abut. A boundary runs straight through the part, and what is on both sides of it is an image.
"""

import numpy as np

Run = tuple[int, int]  # first line of a band, and the line after its last

UNIFORM_LEVELS = 14  # gray levels by which JPEG changes a uniform background
BAND_SHARE = 0.985  # of a band's pixels that have its color
WHITE_LEVEL, WHITE_SHARE = 235, 0.86  # a white band may hold the letters of the tiles beside it
CONTRAST = 30  # gray levels between a band and the tile beside it
MIN_FILL, MIN_FILL_THIN = 0.5, 0.7  # of the pixels beside a band that do not have its color
TILE_LINES, MIN_TILE_FILL = 16, 0.25  # beside a band, and the mean fill in them: a table's line is not a tile
MAX_UNIFORM_SHARE = 0.9  # of the pixels beside a thin band
THIN_LINES = 3  # bands of this width or narrower are thin
FILL_LINES = 4  # beside a band, within which the tile must begin

# Lines at which the gray levels jump
MIN_JUMP = 12  # gray levels
JUMP_RATIO = 1.5  # to the largest change in the lines around
MIN_JUMP_SHARE, MIN_SEGMENT_SHARE = 0.6, 0.25  # of the pixels along a line, and of those in all segments but one
SEGMENTS = 6
SIDE_LINES = slice(3, 11)  # beside a jump, which must not be background
MAX_BACKGROUND_SHARE = 0.55
MIN_EQUAL_SHARE, MIN_EQUAL_MEAN = 0.3, 0.5  # of the pixels along the lines between tiles of one size
MAX_EQUAL_TILES, EQUAL_TOLERANCE = 5, 0.006  # the tolerance is a share of the part
MIN_SHARE_OF_PART = 0.18  # of the lines between a jump and the next boundary: the edge of a collimator is near the edge


def find_boundaries(part: np.ndarray) -> list[Run]:
    """Bands of any color and straight jumps between images, in order."""
    bands = find_bands(part)
    jumps = [line for line in find_jumps(part) if all(not start - 6 <= line <= end + 6 for start, end in bands)]
    return sorted(bands + [(line, line) for line in jumps])


def find_bands(part: np.ndarray) -> list[Run]:
    """Bands of one color, a single line or more, with tiles on both sides."""
    levels = np.median(part, axis=1)  # (lines,)
    shares = (np.abs(part - levels[:, None]) <= UNIFORM_LEVELS).mean(axis=1)
    uniform = (shares >= BAND_SHARE) | ((levels >= WHITE_LEVEL) & (shares >= WHITE_SHARE))
    bands = []
    for start, end in uniform_runs(uniform, levels):
        if start == 0 or end == len(part):
            continue
        level = np.median(levels[start:end])
        differs = (np.abs(part - level) > CONTRAST).mean(axis=1)
        min_fill = MIN_FILL if end - start > THIN_LINES else MIN_FILL_THIN
        before, after = differs[max(0, start - FILL_LINES) : start], differs[end : end + FILL_LINES]
        if end - start <= THIN_LINES and not are_images_beside(part, start, end, MAX_UNIFORM_SHARE):
            continue  # a line on a uniform background
        are_tiles = is_tile(differs[max(0, start - TILE_LINES) : start]) and is_tile(differs[end : end + TILE_LINES])
        if before.max() >= min_fill and after.max() >= min_fill and are_tiles:
            bands.append((start, end))
    return bands


def is_tile(fill: np.ndarray) -> bool:
    """Whether the lines beside a band, with these shares of content, are more than a line or two."""
    return bool(fill.mean() >= MIN_TILE_FILL)


def uniform_runs(uniform: np.ndarray, levels: np.ndarray) -> list[Run]:
    """Runs of uniform lines of nearly one color."""
    runs, start = [], None
    for line in range(len(uniform) + 1):
        is_inside = line < len(uniform) and uniform[line]
        if start is not None and (not is_inside or abs(levels[line] - levels[start]) > UNIFORM_LEVELS):
            runs.append((start, line))
            start = None
        if is_inside and start is None:
            start = line
    return runs


def find_jumps(part: np.ndarray) -> list[int]:
    """Lines at which the gray levels jump along all of their length, the strongest first where two are close."""
    if min(part.shape) < 4 * SIDE_LINES.stop:
        return []
    changes = np.abs(np.diff(part, axis=0))  # (lines - 1, across)
    shares, segments = jump_shares(changes)
    margin = max(SIDE_LINES.stop, round(MIN_SHARE_OF_PART * len(part)))
    candidates = [
        int(line)
        for line in np.argsort(-shares, kind="stable")
        if shares[line] >= MIN_JUMP_SHARE
        and segments[line] >= MIN_SEGMENT_SHARE
        and margin <= line < len(part) - margin
    ]
    lines: list[int] = []
    for line in candidates:
        if all(abs(line - other) >= margin for other in lines) and are_images_beside(
            part, line + 1, line + 1, MAX_BACKGROUND_SHARE
        ):
            lines.append(line)
    equal = equal_jumps(shares, segments)
    if equal and all(min(abs(line - other) for other in equal) <= 3 for line in lines):
        lines = equal
    return sorted(line + 1 for line in lines)


def equal_jumps(shares: np.ndarray, segments: np.ndarray) -> list[int]:
    """The jumps between tiles of one size, which may be weaker than one anywhere; [] for none."""
    reach = max(2, round(EQUAL_TOLERANCE * len(shares)))
    for tiles in range(MAX_EQUAL_TILES, 1, -1):
        middles = [round(len(shares) * n / tiles) for n in range(1, tiles)]
        lines = [middle - reach + int(np.argmax(shares[middle - reach : middle + reach + 1])) for middle in middles]
        line_shares = shares[lines]
        if line_shares.min() >= MIN_EQUAL_SHARE and line_shares.mean() >= MIN_EQUAL_MEAN and segments[lines].max() > 0:
            return lines
    return []


def jump_shares(changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each line: the share of its pixels at which it jumps, and the second lowest share of a segment of it."""
    padded = np.pad(changes, ((6, 6), (0, 0)))
    count = len(changes)

    def shifted(offset: int) -> np.ndarray:
        return padded[6 + offset : 6 + offset + count]

    jump = np.maximum.reduce([shifted(offset) for offset in (-1, 0, 1)])
    around = np.maximum.reduce([shifted(offset) for offset in (-6, -5, -4, -3, 3, 4, 5, 6)])
    jumps = (jump > MIN_JUMP) & (jump > JUMP_RATIO * around)
    segments = np.stack([segment.mean(axis=1) for segment in np.array_split(jumps, SEGMENTS, axis=1)])
    return jumps.mean(axis=1), np.sort(segments, axis=0)[1]


def are_images_beside(part: np.ndarray, start: int, end: int, max_share: float) -> bool:
    """Whether neither side of a band is mostly of one color: the table below a patient, the margin of a film."""
    first, last = SIDE_LINES.start, SIDE_LINES.stop
    sides = part[max(0, start - last) : start - first], part[end + first : end + last]
    return all(side.size and (np.abs(side - np.median(side)) <= UNIFORM_LEVELS).mean() <= max_share for side in sides)
