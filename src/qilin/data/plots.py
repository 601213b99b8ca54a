"""Plots of a dataset's card: how many samples there are and how long they are, by source, kind, modality or licence.

In: for each name how often each length occurs. Out: an SVG of a bar and a box a name, which every page that shows a
card can draw, in letters that stay legible on white and on black.
"""

from collections.abc import Mapping
from xml.sax.saxutils import escape

from qilin.data.lengths import quartiles

WIDTH, ROW, TOP = 860, 24, 46
NAMES, BARS, BOXES = 190, 250, 240  # the room of each column, in pixels
MOST = 12  # names shown; the rest is added up
GREY, BLUE, ORANGE = "#808080", "#3b7dd8", "#d8863b"


def plot(what: str, found: Mapping[str, Mapping[int, int]]) -> str:
    """The SVG. Each name: its count as a bar; the quartiles of its lengths as a box with the median marked."""
    rows = sorted(found.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    shown = [(name, quartiles(lengths)) for name, lengths in rows[:MOST]]
    most = max((row["n"] for _, row in shown), default=1)
    longest = max((row["high"] for _, row in shown), default=1) or 1
    left, middle = NAMES + 10, NAMES + BARS + 90
    lines = [
        text(10, 18, f"samples by {what}", weight="bold"),
        text(middle, 18, "characters of the answers: quartiles, median", weight="bold"),
        text(middle, 36, "0"),
        text(middle + BOXES, 36, f"{longest:,.0f}", anchor="end"),
    ]
    for place, (name, row) in enumerate(shown):
        y = TOP + place * ROW
        low, median, high = (middle + BOXES * row[key] / longest for key in ("low", "median", "high"))
        lines += [
            text(NAMES, y + 13, name if len(name) <= 28 else name[:27] + "…", anchor="end"),
            box(left, y + 2, max(1.0, BARS * row["n"] / most), 14, BLUE),
            text(left + BARS * row["n"] / most + 6, y + 13, f"{row['n']:,}"),
            box(low, y + 2, max(1.0, high - low), 14, ORANGE),
            box(median - 1, y, 2, 18, GREY),
            text(max(high, middle) + 6, y + 13, f"{row['median']:,.0f}"),
        ]
    if rest := rows[MOST:]:
        count = sum(sum(lengths.values()) for _, lengths in rest)
        lines.append(text(10, TOP + MOST * ROW + 13, f"and {len(rest):,} more with {count:,} samples"))
    height = TOP + (len(shown) + bool(rest)) * ROW + 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    style = f'<g font-family="sans-serif" font-size="12" fill="{GREY}">'
    return "\n".join([head, style, *lines, "</g>", "</svg>", ""])


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {where}>{escape(words)}</text>"
