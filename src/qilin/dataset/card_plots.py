"""Plots of the dataset card as SVG: samples per category as bars, the lengths of their answers as box plots.

In: per category, how often each answer length occurs. Out: the text of an SVG file, legible on light and dark pages.
"""

from collections.abc import Mapping

from jinja2 import Environment, PackageLoader

from qilin.dataset.length_stats import LengthCounts, quartiles

MAX_CATEGORIES = 12  # drawn; the others are summed up in the last line
MAX_NAME_LENGTH = 28  # characters
WIDTH, ROW_HEIGHT, TOP = 860, 24, 46  # pixels
BAR_LEFT, BAR_WIDTH, BOX_LEFT, BOX_WIDTH = 200, 250, 530, 240

TEMPLATES = Environment(
    loader=PackageLoader("qilin.dataset", "templates"),
    autoescape=lambda name: name is not None and name.endswith(".svg.jinja"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def draw_category_plot(title: str, categories: Mapping[str, LengthCounts]) -> str:
    """The SVG. A category is a bar of its sample count and a box of its length quartiles with the median marked."""
    by_count = sorted(categories.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    stats = [(name, quartiles(lengths)) for name, lengths in by_count[:MAX_CATEGORIES]]
    largest_count = max((row["n"] for _, row in stats), default=1)
    longest = max((row["high"] for _, row in stats), default=1) or 1
    rows = [
        {
            "name": name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…",
            "y": TOP + index * ROW_HEIGHT,
            "count": row["n"],
            "bar": BAR_WIDTH * row["n"] / largest_count,
            "median_length": row["median"],
            **{key: BOX_LEFT + BOX_WIDTH * row[key] / longest for key in ("low", "median", "high")},
        }
        for index, (name, row) in enumerate(stats)
    ]
    others = by_count[MAX_CATEGORIES:]
    return TEMPLATES.get_template("category_plot.svg.jinja").render(
        title=title,
        rows=rows,
        longest=longest,
        num_others=len(others),
        other_samples=sum(sum(lengths.values()) for _, lengths in others),
        others_y=TOP + MAX_CATEGORIES * ROW_HEIGHT + 13,
        width=WIDTH,
        height=TOP + (len(rows) + bool(others)) * ROW_HEIGHT + 8,
        bar_left=BAR_LEFT,
        box_left=BOX_LEFT,
        box_right=BOX_LEFT + BOX_WIDTH,
    )
