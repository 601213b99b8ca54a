"""Length statistics of texts, and those that the paper of ChiMed-VL reports, for comparison.

In: how often each length occurs. Out: quartiles, the median and totals. The dataset card counts characters, `qilin data
stats` counts characters or tokens.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

LengthCounts = Counter[int]  # length -> number of texts

# part, its size, tokens per text: median (quartiles), from arXiv 2310.17956 and the page of the released files
PAPER_LENGTHS = (
    ("context", "167 M tokens", "435 (211, 757)"),
    ("description", "63 M tokens", "59 (45, 83)"),
    ("question", "10 M tokens, 469,441 pairs", "20 (16, 25)"),
    ("answer", "13 M tokens, 469,441 pairs", "22 (12, 34)"),
)
CAPTION_PARTS = {"context": "context", "caption": "description", "inline": "description", "report": "description"}


def paper_part(kind: str, role: str) -> str | None:
    """The part of PAPER_LENGTHS that a message belongs to; None for the instruction before a caption."""
    if role == "assistant":
        return CAPTION_PARTS.get(kind, "answer")
    return "question" if role == "user" and kind in ("vqa", "chat") else None


def quartiles(counts: Mapping[int, int]) -> dict[str, float]:
    """{"n", "total", "median", "low", "high"} of lengths, interpolated linearly as by numpy.percentile."""
    lengths = np.array(sorted(counts))
    cumulative = np.cumsum([counts[length] for length in lengths.tolist()])
    positions = np.array([0.25, 0.5, 0.75]) * (cumulative[-1] - 1)
    below, above = (
        lengths[np.searchsorted(cumulative, bound(positions), side="right")] for bound in (np.floor, np.ceil)
    )
    low, median, high = (below + (above - below) * (positions - np.floor(positions))).tolist()
    total = sum(length * count for length, count in counts.items())
    return {"n": int(cumulative[-1]), "total": total, "median": median, "low": low, "high": high}


def format_quartiles(stats: Mapping[str, float]) -> str:
    """'435 (211, 757)': median (quartiles)."""
    return f"{stats['median']:.0f} ({stats['low']:.0f}, {stats['high']:.0f})"


def message_length(message: Mapping[str, Any]) -> int:
    """Characters of a message."""
    return sum(len(part["text"] or "") for part in message["content"])
