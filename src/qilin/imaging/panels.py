"""Splits a compound figure into its tiles, at gutters that are certain; otherwise it stays whole.

In: an image. Out: boxes of tiles in reading order. A gutter counts only where the content beside it ends abruptly, as
filled rectangles do; on black one such side is enough. The empty background of a radiograph and the white of a chart
are not gutters. Measured in bench/results/panels.json.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qilin.imaging.panel_boundaries import TILE_LINES, find_boundaries, is_tile

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Run = tuple[int, int]  # first line of a band of rows, and the line after its last

JPEG_NOISE = 14  # gray levels by which JPEG changes a uniform background
UNIFORM_SHARE = 0.995  # of a gutter's pixels that have its color
CONTRAST = 30  # gray levels between a gutter and the tile beside it
MIN_TILE_SIDE = 48  # pixels

# An edge on black: what appears within CONTENT_LINES of the band must appear within EDGE_LINES of it.
CONTENT_LINES, EDGE_LINES = 8, 2
MIN_EDGE_SHARE = 0.9  # of that content; for the rim of a circle it is half
MIN_EDGE_LENGTH = 0.25  # of the line

# Grids of equal tiles on black
EDGE_TOLERANCE = 2  # pixels between an edge and the layout's
MAX_TILES_PER_AXIS = 5

# Gutters of unequal tiles
MIN_FILL = 0.5  # of the pixels beside a gutter that do not have its color
FILL_LINES = 4  # beside a gutter, within which the tile must begin
MIN_RELATIVE_SIDE = 0.25  # of the longest tile's side; a smaller strip is not a tile
MIN_CONTENT_SPAN, MIN_CONTENT_DENSITY = 0.3, 0.2  # of a dark image's sides, and of the box around its content
MAX_DEPTH = 3


def split_image(image: Image.Image) -> list[Box]:
    """The tiles of a compound image in reading order; one box (all of it) where no gutter is certain."""
    gray = np.asarray(image.convert("L"), dtype=np.int16)  # (height, width)
    return split_equal_grid(gray) or split_at_gutters(gray, (0, 0, image.width, image.height), MAX_DEPTH)


# --- grids of equal tiles on black ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AxisEdges:
    """Along one axis: which lines are black, and where tiles certainly end (before a band) and begin (after one)."""

    black: np.ndarray  # (lines,)
    ends: tuple[int, ...]
    begins: tuple[int, ...]


def split_equal_grid(gray: np.ndarray) -> list[Box]:
    """The tiles of a grid of equal tiles on black; [] where there is none, or where it is not certain."""
    height, width = gray.shape
    rows = [0, *(line for gutter in equal_gutters(gray) for line in gutter), height]
    columns = [0, *(line for gutter in equal_gutters(gray.T) for line in gutter), width]
    boxes = [
        (left, top, right, bottom)
        for top, bottom in zip(rows[::2], rows[1::2], strict=True)
        for left, right in zip(columns[::2], columns[1::2], strict=True)
    ]
    return boxes if len(boxes) > 1 else []


def equal_gutters(gray: np.ndarray) -> list[Run]:
    """Gutters between equal tiles along the first axis of gray levels (lines, across); [] for none."""
    edges = find_edges(gray)
    if not edges.ends and not edges.begins:
        return []
    layouts = [layout for tiles in range(2, MAX_TILES_PER_AXIS + 1) for layout in possible_layouts(edges, tiles)]
    if not layouts:
        return []
    max_matched = max(matched for matched, _, _ in layouts)
    best = [(distance, lines) for matched, distance, lines in layouts if matched == max_matched]
    line_sets = [lines for _, lines in best]
    if len({len(lines) for lines in line_sets}) > 1 or np.ptp(line_sets, axis=0).max() > 2 * EDGE_TOLERANCE:
        return []  # two different layouts explain the image equally well
    min_distance = min(distance for distance, _ in best)
    closest = [lines for distance, lines in best if distance == min_distance]
    gutter_lines = np.median(closest, axis=0).round().astype(int).tolist()
    return list(zip(gutter_lines[::2], gutter_lines[1::2], strict=True))


def find_edges(gray: np.ndarray) -> AxisEdges:
    black = (gray <= JPEG_NOISE).mean(axis=1) >= UNIFORM_SHARE
    bright = gray > CONTRAST
    changes = [int(line) for line in np.flatnonzero(np.diff(black.astype(np.int8)))]
    ends = tuple(
        n + 1 for n in changes if black[n + 1] and has_sharp_edge(bright[max(0, n + 1 - CONTENT_LINES) : n + 1][::-1])
    )
    begins = tuple(n + 1 for n in changes if black[n] and has_sharp_edge(bright[n + 1 : n + 1 + CONTENT_LINES]))
    return AxisEdges(black, ends, begins)


def has_sharp_edge(content: np.ndarray) -> bool:
    """Whether the content in the lines beside a band starts right at the band, along enough of its length."""
    anywhere, at_edge = content.any(axis=0), content[:EDGE_LINES].any(axis=0)
    return bool(anywhere.mean() >= MIN_EDGE_LENGTH and at_edge.sum() >= MIN_EDGE_SHARE * anywhere.sum())


def possible_layouts(edges: AxisEdges, tiles: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """Layouts of `tiles` equal tiles that fit the edges: (edges explained, total distance in pixels, gutter lines)."""
    total = len(edges.black)
    black_before = np.concatenate(([0], np.cumsum(edges.black)))
    max_margin = min(leading_count(edges.black), leading_count(edges.black[::-1]), total // 6)
    min_gutter = max(2, round(0.004 * total))
    margins = np.arange(max_margin + 1)[:, None]
    gutters = np.arange(min_gutter, max(min_gutter + 1, total // (4 * tiles)))[None, :]
    side = (total - 2 * margins - (tiles - 1) * gutters) / tiles  # (margins, gutters)
    valid = side >= MIN_TILE_SIDE
    begins = [np.rint(margins + n * (side + gutters)).astype(int) for n in range(tiles)]
    ends = [np.rint(begin + side).astype(int) for begin in begins]
    for n in range(tiles):
        first, last = np.clip(begins[n], 0, total), np.clip(ends[n], 0, total)
        valid &= (last - first) - (black_before[last] - black_before[first]) > 0.25 * side  # a tile is not empty
        if n:
            previous = np.clip(ends[n - 1], 0, total)
            valid &= (first - previous) - (black_before[first] - black_before[previous]) <= 1  # its gutter is black
    explained, inner, distance = (np.zeros(side.shape, dtype=int) for _ in range(3))
    for observed, expected in ((edges.ends, ends), (edges.begins, begins)):
        for edge in observed:
            offsets = np.abs(np.array(expected) - edge)  # (tiles, margins, gutters)
            matches = offsets <= EDGE_TOLERANCE
            valid &= matches.any(axis=0)  # an edge inside a tile: the tiles are not equal
            explained += matches.any(axis=0)
            inner += (matches[:-1] if observed is edges.ends else matches[1:]).any(axis=0)
            distance += offsets.min(axis=0)
    valid &= inner >= tiles - 1
    return [
        (
            int(explained[at]),
            int(distance[at]),
            tuple(int(line[at]) for pair in zip(ends[:-1], begins[1:], strict=True) for line in pair),
        )
        for at in map(tuple, np.argwhere(valid))
    ]


def leading_count(flags: np.ndarray) -> int:
    """The number of true flags at the start."""
    return len(flags) if flags.all() else int(np.argmin(flags))


# --- gutters of unequal tiles -----------------------------------------------------------------------------------------


def split_at_gutters(gray: np.ndarray, box: Box, depth: int) -> list[Box]:
    """Cut along rows first, so that a grid is read line by line; then cut each strip along columns."""
    left, top, right, bottom = box
    part = gray[top:bottom, left:right]
    if depth:
        for axis in (0, 1):
            lines = part if axis == 0 else part.T
            gutters = merge_gutters(find_gutters(lines), find_boundaries(lines))
            if not gutters:
                continue
            strips = between(gutters, part.shape[axis])
            sides = [end - start for start, end in strips]
            if min(sides) < max(MIN_TILE_SIDE, MIN_RELATIVE_SIDE * max(sides)):  # a screen's header line is not a tile
                continue
            boxes = [
                (left, top + start, right, top + end) if axis == 0 else (left + start, top, left + end, bottom)
                for start, end in strips
            ]
            return [tile for inner in boxes for tile in split_at_gutters(gray, inner, depth - 1)]
    return [box]


def merge_gutters(gutters: Sequence[Run], boundaries: Sequence[Run]) -> list[Run]:
    """Both, without a boundary that is in a gutter or beside one."""
    others = [
        (start, end)
        for start, end in boundaries
        if all(end + FILL_LINES < first or start - FILL_LINES > last for first, last in gutters)
    ]
    return sorted([*gutters, *others])


def find_gutters(part: np.ndarray) -> list[Run]:
    """Bands of uniform white or black rows with a tile's edge on both sides; on black also those with an edge on one
    side and a dark image, which has no edge, on the other."""
    certain: list[Run] = []
    one_sided: list[tuple[int, int, bool]] = []  # start, end, whether the edge is before the band
    white = uniform_rows(part, 255)
    for background, uniform in ((255, white), (0, uniform_rows(part, 0))):
        content = np.abs(part - background) > CONTRAST
        fill = content.mean(axis=1)
        filled = fill >= MIN_FILL
        for start, end in inner_runs(uniform):
            before, after = slice(max(0, start - CONTENT_LINES), start), slice(end, end + CONTENT_LINES)
            ends = filled[before][-FILL_LINES:].any() and is_tile(fill[max(0, start - TILE_LINES) : start])
            begins = filled[after][:FILL_LINES].any() and is_tile(fill[end : end + TILE_LINES])
            if ends and begins:
                certain.append((start, end))
            # the margin of a dark image on a white page is not a gutter
            elif background == 0 and ends and has_sharp_edge(content[before][::-1]) and not white[before].any():
                one_sided.append((start, end, True))
            elif background == 0 and begins and has_sharp_edge(content[after]) and not white[after].any():
                one_sided.append((start, end, False))
    gutters = sorted(certain + gutters_beside_dark(part, certain, one_sided))
    strips = [part[start:end] for start, end in between(gutters, part.shape[0])]
    return [] if len(gutters) > len(certain) and any(map(may_be_two_images, strips)) else gutters


def between(gutters: Sequence[Run], total: int) -> list[Run]:
    """The strips between gutters."""
    lines = [0, *(line for gutter in gutters for line in gutter), total]
    return list(zip(lines[::2], lines[1::2], strict=True))


def uniform_rows(part: np.ndarray, background: int) -> np.ndarray:
    return np.asarray((np.abs(part - background) <= JPEG_NOISE).mean(axis=1) >= UNIFORM_SHARE)  # (height,)


def inner_runs(uniform: np.ndarray) -> list[Run]:
    """Uniform bands that touch neither end and are wide enough for a gutter."""
    min_gutter = max(2, round(0.004 * len(uniform)))
    return [(start, end) for start, end in runs(uniform) if start and end < len(uniform) and end - start >= min_gutter]


def gutters_beside_dark(
    part: np.ndarray, certain: Sequence[Run], one_sided: Sequence[tuple[int, int, bool]]
) -> list[Run]:
    """Gutters between a tile's edge and a dark image: at the edge and as wide as the others (or narrow), since the
    black beyond may belong to the image. Where text or a scale follows instead, there is no gutter."""
    width = int(np.median([end - start for start, end in certain])) if certain else max(2, round(0.004 * len(part)))
    candidates = {
        (start, min(end, start + width)) if edge_before else (max(start, end - width), end): edge_before
        for start, end, edge_before in one_sided
    }
    borders = sorted([(0, 0), *certain, *candidates, (len(part), len(part))])
    gutters = []
    for gutter, edge_before in candidates.items():
        index = borders.index(gutter)
        neighbor = part[gutter[1] : borders[index + 1][0]] if edge_before else part[borders[index - 1][1] : gutter[0]]
        if is_dark_image(neighbor):
            gutters.append(gutter)
    return gutters


def is_dark_image(part: np.ndarray) -> bool:
    """Whether the content on black is as large in both directions, and as dense, as a body: not text, not a scale."""
    content = part > CONTRAST
    rows, columns = (np.flatnonzero(content.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return False
    inner = content[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    large = np.greater_equal(inner.shape, MIN_CONTENT_SPAN * np.array(part.shape))
    return bool(inner.mean() >= MIN_CONTENT_DENSITY and all(large))


def may_be_two_images(strip: np.ndarray) -> bool:
    """Whether black divides the strip into what may be two dark images, or one image of two things: undecidable."""
    black = inner_runs(uniform_rows(strip, 0))
    return any(is_dark_image(strip[:start]) and is_dark_image(strip[end:]) for start, end in black)


def runs(flags: np.ndarray) -> list[Run]:
    """(start, end) of each run of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]
