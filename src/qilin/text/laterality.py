"""Laterality: the sides that a text names (left, right, both), and whether two texts name different sides.

In: a Chinese or English text. Out: a set of sides. A wrong side is a medical error, never a matter of wording.
"""

from __future__ import annotations

import re
from functools import lru_cache

LEFT, RIGHT = "left", "right"

_BOTH = re.compile(
    r"双侧|两侧|左右(?!径)|双肺|双肾|双眼|双耳|双下肺|双上肺|双手|双足|双膝|双髋|双乳|双颞|双额|两肺|两肾|两眼"
    r"|两边|双边|两下肺|两上肺|\bboth\b|\bbilateral(?:ly)?\b",
    re.IGNORECASE,
)
# 左右 after a quantity means "about": 3cm左右.
_APPROXIMATELY = re.compile(r"(?<=[\dm米分升克%岁天周月年个枚])左右(?![侧肺肾眼两上下])")
_LEFT = re.compile(r"左|\bleft\b|\bl(?=\s*(?:lung|kidney|side|lobe))\b", re.IGNORECASE)
_RIGHT = re.compile(r"右|\bright\b|\br(?=\s*(?:lung|kidney|side|lobe))\b", re.IGNORECASE)


# (left, right) -> the sides; shared, because a set takes 200 bytes
_SIDE_SETS = {
    (False, False): frozenset[str](), (True, False): frozenset((LEFT,)),
    (False, True): frozenset((RIGHT,)), (True, True): frozenset((LEFT, RIGHT)),
}  # fmt: skip


@lru_cache(maxsize=5_000)
def find_sides(text: str) -> frozenset[str]:
    """The sides a text names: {}, {left}, {right} or {left, right}. 双侧 and 两肺 name both, 3cm左右 names none."""
    text = _APPROXIMATELY.sub("", text)
    if _BOTH.search(text):
        return _SIDE_SETS[True, True]
    return _SIDE_SETS[_LEFT.search(text) is not None, _RIGHT.search(text) is not None]


def sides_conflict(a: str, b: str) -> bool:
    """Whether both texts name sides, and different ones: 左肺 and 右肺, 双侧 and 左侧."""
    sides_a, sides_b = find_sides(a), find_sides(b)
    return bool(sides_a) and bool(sides_b) and sides_a != sides_b


_BILATERAL = re.compile(r"双|两侧|两肺|两眼|两肾|两边|两叶|两下|两上|\bboth\b(?![^.,;]{0,80}\band\b)|\bbilateral", re.I)
# English phrases with "left" or "right" that name no side: left the hospital, right away. 右 and 左 always name a side.
_NO_SIDE = re.compile(
    r"\bleft (?:the (?:hospital|clinic|study|country)|untreated|in place|behind|over|in situ|against)"
    r"|\b(?:was|were|is) left\b|\bright(?:-hand(?:ed)?| away| now| after| before| angle)|\ball right|\bcopyright",
    re.IGNORECASE,
)


def named_sides(text: str) -> frozenset[str]:
    """Every side a text names, "both" kept separate: 双肺，左侧为著 names "left" and "both"."""
    text = _NO_SIDE.sub("", _APPROXIMATELY.sub("", text))
    sides = {"both"} if _BILATERAL.search(text) or re.search(r"左右(?!径)", text) else set()
    text = re.sub(r"左右", "", text)
    sides |= {LEFT} if re.search(r"左|\bleft\b|\bleftward|\blevo", text, re.IGNORECASE) else set()
    sides |= {RIGHT} if re.search(r"右|\bright\b|\brightward|\bdextro", text, re.IGNORECASE) else set()
    return frozenset(sides)
