"""Compound figures taken apart: a caption at (A), (B) …, an image at its gutters; what is not certain stays whole.

In: a caption, or an image. Out: a Division with its panels, or with the doubt that kept the figure whole; boxes of
tiles in reading order. A gutter counts only where its sides end abruptly, as filled rectangles do, on black at least
one of them: the empty ground of a radiograph and the white of a chart are no gutters.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

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
        return []  # two layouts explain the image as well, and differ
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


# (A), (A, B), (a–c); A) or A: or A, at the beginning of a sentence
LETTERS = r"[A-Za-z](?:\s*(?:[-–—,&/]|and|to)\s*[A-Za-z])*"
LEADING = re.compile(
    rf"(?:^|(?<=[.;:,]\s)|(?<=[.;:,]\sand\s)|(?<=[.;:。]))(?:\(({LETTERS})\)|([A-Z])(?=[,:]\s)|([A-Za-z])\))[:.,]?\s*"
)
IN_BRACKETS = re.compile(rf"\(({LETTERS})\)")
WIDE = str.maketrans("（）：，；", "():,;")
SHORTEST = 8  # characters of a panel's own words: below, something else than a panel was marked


@dataclass(frozen=True)
class Division:
    """A caption's panels, (letter, words) each, after the words that all share; or why it stays whole."""

    lead: str = ""
    panels: tuple[tuple[str, str], ...] = ()
    doubt: str | None = None


def divide_caption(caption: str) -> Division:
    """The panels of a caption, where their letters run A, B, C … each once and open their own words."""
    text = caption.translate(WIDE)
    found = [(m.start(), m.end(), letters(next(filter(None, m.groups())))) for m in LEADING.finditer(text)]
    inside = [letter for m in IN_BRACKETS.finditer(text) for letter in letters(m.group(1))]
    if len(found) < 2 or not any(row for *_, row in found):
        return Division(
            doubt="its letters do not open the panels' words" if len(set(inside)) > 1 else "no panels are named"
        )
    named = [letter for *_, row in found for letter in row]
    expected = [chr(ord(named[0]) + place) for place in range(len(named))] if named else []
    if named != expected or named[0].upper() != "A":
        return Division(doubt="its letters do not run A, B, C")
    if set(inside) - set(named):
        return Division(doubt="it names letters that open no words")
    ends = [start for start, *_ in found[1:]] + [len(caption)]
    words = [caption[end:stop].strip(" ;,") for (_, end, _), stop in zip(found, ends, strict=True)]
    if min(map(len, words)) < SHORTEST:
        return Division(doubt="a panel has no words of its own")
    panels = [(letter.upper(), text) for (*_, row), text in zip(found, words, strict=True) for letter in row]
    return Division(caption[: found[0][0]].strip(), tuple(panels))


def letters(words: str) -> list[str]:
    """ "A" -> [A]; "A, C" -> [A, C]; "A–C" -> [A, B, C]; [] where it is no such list."""
    parts = re.split(r"\s*([-–—,&/]|and|to)\s*", words)
    found = [parts[0]]
    for sign, letter in zip(parts[1::2], parts[2::2], strict=True):
        if sign in ("-", "–", "—", "to"):
            found += [chr(code) for code in range(ord(found[-1]) + 1, ord(letter) + 1)]
        else:
            found.append(letter)
    return found


Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Run = tuple[int, int]  # the first of some rows, and the one after the last

FILLED = 0.5  # share of the pixels beside a gutter that do not have its colour
DIFFERENT = 30  # grey levels between a gutter and the tile beside it
BESIDE = 4  # pixels beside a gutter among which the tile must begin
UNEQUAL = 0.25  # of the longest tile's side, below which a strip is none
SPAN, DENSE = 0.3, 0.2  # share of a dark image's sides that its content takes, and of the box around it
DEEPEST = 3


def divide_image(image: Image.Image) -> list[Box]:
    """The tiles of a compound image in reading order; one box (all of it) where no gutter is certain."""
    grey = np.asarray(image.convert("L"), dtype=np.int16)  # (height, width)
    return equal_tiles(grey) or tiles(grey, (0, 0, image.width, image.height), DEEPEST)


def equal_tiles(grey: np.ndarray) -> list[Box]:
    """The tiles of a whole grid of equal ones on black ground; [] where it is none, or not certain."""
    height, width = grey.shape
    rows, columns = equal_gutters(grey), equal_gutters(grey.T)
    lines = [0, *(edge for cut in rows for edge in cut), height]
    marks = [0, *(edge for cut in columns for edge in cut), width]
    boxes = [
        (left, top, right, bottom)
        for top, bottom in zip(lines[::2], lines[1::2], strict=True)
        for left, right in zip(marks[::2], marks[1::2], strict=True)
    ]
    return boxes if len(boxes) > 1 else []


def tiles(grey: np.ndarray, box: Box, depth: int) -> list[Box]:
    """Cut along rows first, so that a grid reads line by line; then each strip along columns."""
    left, top, right, bottom = box
    part = grey[top:bottom, left:right]
    if depth:
        for axis in (0, 1):
            cuts = gutters(part if axis == 0 else part.T)
            if not cuts:
                continue
            edges = [0, *(edge for cut in cuts for edge in cut), part.shape[axis]]
            strips = list(zip(edges[::2], edges[1::2], strict=True))
            sides = [end - start for start, end in strips]
            if min(sides) < max(SMALLEST, UNEQUAL * max(sides)):  # a head line of a machine's screen is no tile
                continue
            boxes = [
                (left, top + start, right, top + end) if axis == 0 else (left + start, top, left + end, bottom)
                for start, end in strips
            ]
            return [tile for inner in boxes for tile in tiles(grey, inner, depth - 1)]
    return [box]


def gutters(part: np.ndarray) -> list[Run]:
    """Runs of rows (start, end) that are even white or black from side to side, with a tile's edge on both sides; on
    black also those with an edge on one side and a dark image, which has none of its own, on the other."""
    height = part.shape[0]
    found, half = [], []  # half: (start, end, whether the edge is before it)
    white = even_rows(part, 255)
    for ground, even in ((255, white), (0, even_rows(part, 0))):
        seen = np.abs(part - ground) > DIFFERENT
        filled = seen.mean(axis=1) >= FILLED
        for start, end in inner_runs(even):
            before, after = slice(max(0, start - DEEP), start), slice(end, end + DEEP)
            ends, begins = filled[before][-BESIDE:].any(), filled[after][:BESIDE].any()
            if ends and begins:
                found.append((start, end))
            # a dark image's own margin on a white page is no gutter
            elif ground == 0 and ends and sharp(seen[before][::-1]) and not white[before].any():
                half.append((start, end, True))
            elif ground == 0 and begins and sharp(seen[after]) and not white[after].any():
                half.append((start, end, False))
    cuts = sorted(found + beside_dark(part, found, half))
    edges = [0, *(edge for cut in cuts for edge in cut), height]
    strips = [part[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    return [] if len(cuts) > len(found) and any(map(may_be_two, strips)) else cuts


def even_rows(part: np.ndarray, ground: int) -> np.ndarray:
    return np.asarray((np.abs(part - ground) <= NEAR).mean(axis=1) >= EVEN)  # (height,)


def inner_runs(even: np.ndarray) -> list[Run]:
    """The runs between two others, wide enough for a gutter."""
    narrowest = max(2, round(0.004 * len(even)))
    return [(start, end) for start, end in runs(even) if start and end < len(even) and end - start >= narrowest]


def beside_dark(part: np.ndarray, found: Sequence[Run], half: Sequence[tuple[int, int, bool]]) -> list[Run]:
    """The gutters between a tile's edge and a dark image: at the edge and as wide as the others (or narrow), for what
    is black beyond may be the image's own. Where words or a scale stand beyond, there is no gutter."""
    wide = int(np.median([end - start for start, end in found])) if found else max(2, round(0.004 * len(part)))
    cuts = {
        (start, min(end, start + wide)) if first else (max(start, end - wide), end): first for start, end, first in half
    }
    edges = sorted([(0, 0), *found, *cuts, (len(part), len(part))])
    kept = []
    for cut, first in cuts.items():
        place = edges.index(cut)
        beyond = part[cut[1] : edges[place + 1][0]] if first else part[edges[place - 1][1] : cut[0]]
        if is_dark_image(beyond):
            kept.append(cut)
    return kept


def is_dark_image(part: np.ndarray) -> bool:
    """Whether what stands on black is as large in both directions, and as dense, as a body: no words, no scale."""
    seen = part > DIFFERENT
    rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return False
    inner = seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return bool(inner.mean() >= DENSE and all(np.greater_equal(inner.shape, SPAN * np.array(part.shape))))


def may_be_two(strip: np.ndarray) -> bool:
    """Whether black divides it into what could be two dark images, or one of two things: nothing tells."""
    black = inner_runs(even_rows(strip, 0))
    return any(is_dark_image(strip[:start]) and is_dark_image(strip[end:]) for start, end in black)


def runs(flags: np.ndarray) -> list[Run]:
    """Where flags are true without a break: (start, end) of each run."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def match_panels(division: Division, boxes: Sequence[Box]) -> str | None:
    """Why a divided caption and a divided image do not belong together; None where panel n is tile n."""
    if division.doubt:
        return division.doubt
    if len(boxes) != len(division.panels):
        return f"{len(division.panels)} panels are named, {len(boxes)} tiles are seen"
    return None
