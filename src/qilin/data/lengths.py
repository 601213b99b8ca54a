"""Lengths of a dataset's texts, counted: how often each occurs, and what part of the paper's table a text belongs to.

In: rows of samples. Out: histograms (there are few lengths, whatever the number of texts) and their quartiles.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

# What the paper (arXiv 2310.17956) and the page of the released files say of ChiMed-VL: part, how much of it, tokens:
# median (quartiles)
PAPER = (
    ("context", "167 M tokens", "435 (211, 757)"),
    ("description", "63 M tokens", "59 (45, 83)"),
    ("question", "10 M tokens, 469,441 pairs", "20 (16, 25)"),
    ("answer", "13 M tokens, 469,441 pairs", "22 (12, 34)"),
)
# kinds of stage 1 -> the part of the paper's table that their texts belong to
PARTS = {"context": "context", "caption": "description", "inline": "description", "report": "description"}


def part_of(kind: str, role: str) -> str | None:
    """The part of the paper's table that a message counts for; the instruction before a caption counts for none."""
    if role == "assistant":
        return PARTS.get(kind, "answer")
    return "question" if role == "user" and kind in ("vqa", "chat") else None


def quartiles(counts: Mapping[int, int]) -> dict[str, float]:
    """Of lengths, given as how often each occurs; between two texts in proportion, as numpy takes it."""
    sizes = np.array(sorted(counts))
    ends = np.cumsum([counts[size] for size in sizes.tolist()])
    places = np.array([0.25, 0.5, 0.75]) * (ends[-1] - 1)
    below, above = (sizes[np.searchsorted(ends, end(places), side="right")] for end in (np.floor, np.ceil))
    low, middle, high = (below + (above - below) * (places - np.floor(places))).tolist()
    total = sum(size * count for size, count in counts.items())
    return {"n": int(ends[-1]), "total": total, "median": middle, "low": low, "high": high}


def spread(found: Mapping[str, float]) -> str:
    return f"{found['median']:.0f} ({found['low']:.0f}, {found['high']:.0f})"


def length_of(message: Mapping[str, Any]) -> int:
    """Characters of a message."""
    return sum(len(part["text"] or "") for part in message["content"])
