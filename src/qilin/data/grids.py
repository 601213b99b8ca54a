"""Compounds of equal tiles on black, where a dark picture has no edge of its own: the others' edges tell its place.

In: grey levels. Out: the gutters of an axis, or none. A gutter is certain where equal tiles, laid out from side to
side, put every gutter on black, every sharp and straight edge of the picture on the edge of a tile, and no other layout
does so as well. A round thing on black has no straight edge, and things that are not equal do not fit.
"""

from dataclasses import dataclass

import numpy as np

NEAR = 14  # grey levels that JPEG moves an even ground by
EVEN = 0.995  # share of a gutter's pixels that have its colour
BRIGHT = 30  # grey levels of a tile beside its edge
DEEP, SHARP = 8, 2  # lines beside a black band in which something begins, and in which an edge must begin
STRAIGHT = 0.9  # share of what begins in DEEP lines that begins in SHARP ones: of a circle's rim it is half
LONG = 0.25  # share of the line that an edge must take
CLOSE = 2  # pixels between an edge and the layout's
MOST = 5  # tiles of an axis
SMALLEST = 48  # pixels of a tile's side


@dataclass(frozen=True)
class Edges:
    """What is seen along an axis: black lines, and where tiles certainly end (before a band) and begin (after one)."""

    black: np.ndarray  # (lines,)
    ends: tuple[int, ...]
    begins: tuple[int, ...]


def equal_gutters(part: np.ndarray) -> list[tuple[int, int]]:
    """The gutters (start, end) between equal tiles along the first axis of grey levels (lines, across); [] for none."""
    seen = edges_of(part)
    if not seen.ends and not seen.begins:
        return []
    best = [layout for tiles in range(2, MOST + 1) for layout in layouts(seen, tiles)]
    if not best:
        return []
    most = max(matched for matched, _, _ in best)
    found = [(off, lines) for matched, off, lines in best if matched == most]
    if len({len(lines) for _, lines in found}) > 1 or np.ptp([lines for _, lines in found], axis=0).max() > 2 * CLOSE:
        return []  # two layouts explain the picture as well, and differ
    nearest = min(off for off, _ in found)
    lines = np.median([lines for off, lines in found if off == nearest], axis=0).round().astype(int).tolist()
    return list(zip(lines[::2], lines[1::2], strict=True))


def edges_of(part: np.ndarray) -> Edges:
    black = (part <= NEAR).mean(axis=1) >= EVEN
    bright = part > BRIGHT
    turns = np.flatnonzero(np.diff(black.astype(np.int8)))
    ends = tuple(int(t) + 1 for t in turns if black[t + 1] and sharp(bright[max(0, t + 1 - DEEP) : t + 1][::-1]))
    begins = tuple(int(t) + 1 for t in turns if black[t] and sharp(bright[t + 1 : t + 1 + DEEP]))
    return Edges(black, ends, begins)


def sharp(beside: np.ndarray) -> bool:
    """Whether what begins in the lines beside a band begins in the first of them, along enough of its length."""
    deep, first = beside.any(axis=0), beside[:SHARP].any(axis=0)
    return bool(deep.mean() >= LONG and first.sum() >= STRAIGHT * deep.sum())


def layouts(seen: Edges, tiles: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """(edges explained, pixels off them, gutter lines) of the layouts of so many equal tiles that are possible."""
    total = len(seen.black)
    blacks = np.concatenate(([0], np.cumsum(seen.black)))
    outer = min(lead(seen.black), lead(seen.black[::-1]), total // 6)
    narrowest = max(2, round(0.004 * total))
    margins = np.arange(outer + 1)[:, None]
    gutters = np.arange(narrowest, max(narrowest + 1, total // (4 * tiles)))[None, :]
    side = (total - 2 * margins - (tiles - 1) * gutters) / tiles  # (margins, gutters)
    sound = side >= SMALLEST
    begins = [np.rint(margins + n * (side + gutters)).astype(int) for n in range(tiles)]
    ends = [np.rint(begin + side).astype(int) for begin in begins]
    for n in range(tiles):
        first, last = np.clip(begins[n], 0, total), np.clip(ends[n], 0, total)
        sound &= (last - first) - (blacks[last] - blacks[first]) > 0.25 * side  # a tile is not empty
        if n:
            before = np.clip(ends[n - 1], 0, total)
            sound &= (first - before) - (blacks[first] - blacks[before]) <= 1  # its gutter is black
    explained, inner, off = (np.zeros(side.shape, dtype=int) for _ in range(3))
    for edges, places in ((seen.ends, ends), (seen.begins, begins)):
        for edge in edges:
            away = np.abs(np.array(places) - edge)  # (tiles, margins, gutters)
            near = away <= CLOSE
            sound &= near.any(axis=0)  # an edge within a tile: these are no equal tiles
            explained += near.any(axis=0)
            inner += (near[:-1] if edges is seen.ends else near[1:]).any(axis=0)
            off += away.min(axis=0)
    sound &= inner >= tiles - 1
    return [
        (
            int(explained[at]),
            int(off[at]),
            tuple(int(line[at]) for pair in zip(ends[:-1], begins[1:], strict=True) for line in pair),
        )
        for at in map(tuple, np.argwhere(sound))
    ]


def lead(flags: np.ndarray) -> int:
    """How many flags are true from the beginning."""
    return len(flags) if flags.all() else int(np.argmin(flags))
