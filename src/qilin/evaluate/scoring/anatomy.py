"""Meaning of one list item: a word of the synonym table, or a place such as 左肺下叶, 左侧的肾脏, 右上角.

In: a normalised item. Out: a hashable meaning; two items mean the same when `same_meaning` says so for their question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from qilin.text.synonyms import kind_and_name, words_of


@dataclass(frozen=True)
class Place:
    """Side (left, right, both), height (upper, middle, lower, front, back), organ, kind of part; "" if unsaid."""

    side: str = ""
    height: str = ""
    organ: str = ""
    part: str = ""


@dataclass(frozen=True)
class Named:
    """A word of the synonym table, or a text that is in no table (kind "")."""

    kind: str
    name: str


_SIDES = {"左": "left", "右": "right", "双": "both", "两": "both", "左右": "both", "左右两": "both", "左右双": "both"}
_HEIGHTS = {"上": "upper", "顶": "upper", "下": "lower", "底": "lower", "中": "middle", "中间": "middle",
            "中心": "middle", "中央": "middle", "正中": "middle", "正中央": "middle",
            "前": "front", "后": "back"}  # fmt: skip
_PARTS = {"叶": "lobe", "半球": "hemisphere", "肺野": "lobe", "野": "lobe"}
_ORGAN_WORDS = "|".join(sorted(map(re.escape, [*words_of("organ"), *words_of("region")]), key=len, reverse=True))
_SIDE = r"(?:左右两|左右双|左右|左|右|双|两)"
_HEIGHT = r"(?:正中央|正中|中间|中心|中央|上|顶|下|底|中|前|后)"
_SUFFIX = r"(?:侧|边|方|角|部|面|端|部分|部位|位置|区域|区|处|半部)"
_PLACE = re.compile(
    rf"(?P<side>{_SIDE})?{_SUFFIX}?的?(?P<height>{_HEIGHT})?{_SUFFIX}?的?(?P<organ>{_ORGAN_WORDS})?的?"
    rf"(?P<side2>{_SIDE})?{_SUFFIX}?的?(?P<height2>{_HEIGHT})?(?P<part>叶|半球|肺野|野)?{_SUFFIX}?"
)
_SIDED = re.compile(rf"(?P<side>{_SIDE})(?:侧|边)?的?(?P<what>.+)$")
_LEAD = re.compile(r"^(?:是|为|在|用于|用来|位于|属于|呈|显示为?|有|最可能是|可能是|主要是|一张|一个|一种)+")
_TRAIL = re.compile(r"(?:的|了)$")
_IMAGE_WORD = re.compile(r"(?:医学)?(?:图像|图片|影像|成像|扫描|检查|照片|片子)$")


_ENGLISH = {
    "left": Place("left"), "left side": Place("left"), "right": Place("right"), "right side": Place("right"),
    "both": Place("both"), "both sides": Place("both"), "bilateral": Place("both"),
}  # fmt: skip


@lru_cache(maxsize=20_000)
def meaning(item: str) -> Place | Named:
    """What a normalised item means; a text that no table knows means itself."""
    for text in (item, _TRAIL.sub("", item), _TRAIL.sub("", _LEAD.sub("", item)), _IMAGE_WORD.sub("", item)):
        known = kind_and_name(text)
        if known:
            return Named(*known)
        place = _place(text)
        if place:
            return place
        sided = _SIDED.match(text)
        known = kind_and_name(sided["what"]) if sided else None
        if sided and known:
            return Named("", f"{_SIDES[sided['side']]} {known[1]}")
    bare = _TRAIL.sub("", _LEAD.sub("", item)) or item
    sided = _SIDED.match(bare)
    return Named("", f"{_SIDES[sided['side']]} {sided['what']}" if sided else bare)  # 左侧基底节 is 左基底节


def _place(text: str) -> Place | None:
    if text in _ENGLISH:
        return _ENGLISH[text]
    match = _PLACE.fullmatch(text)
    if match is None or not text:
        return None
    sides = [_SIDES[s] for s in (match["side"], match["side2"]) if s]
    heights = [_HEIGHTS[h] for h in (match["height"], match["height2"]) if h]
    if len(sides) > 1 or len(heights) > 1 or not (sides or heights):
        return None
    organ = kind_and_name(match["organ"]) if match["organ"] else None
    return Place("".join(sides), "".join(heights), organ[1] if organ else "", _PARTS.get(match["part"] or "", ""))


def same_meaning(a: Place | Named, b: Place | Named, question: str) -> bool:
    """Whether two meanings agree. What the question itself names (its organ, its side and organ) may be left unsaid."""
    if not (isinstance(a, Place) and isinstance(b, Place)):
        return a == b
    organ = a.organ or b.organ
    # Only lungs have upper, middle and lower lobes: 右上叶 is 右肺上叶.
    lung = any(not x.organ and x.part == "lobe" and x.height for x in (a, b)) and organ == "肺"
    if a.organ != b.organ and not lung and not ((not a.organ or not b.organ) and names_organ(question, organ)):
        return False
    if a.side != b.side and not (
        (not a.side or not b.side) and a.side + b.side in sided_organs(question).get(organ, ())
    ):
        return False
    # 左肺下叶 and 左下肺 are the same place; the left lobe of a liver is not its left side.
    if a.part != b.part and not (organ == "肺" and {a.part, b.part} <= {"", "lobe"}):
        return False
    return a.height == b.height


@lru_cache(maxsize=20_000)
def names_organ(question: str, organ: str) -> bool:
    """Whether a normalised question names an organ or region by any of its words."""
    words = [w for kind in ("organ", "region") for w, name in words_of(kind).items() if name == organ]
    return any(word in question for word in words)


@lru_cache(maxsize=20_000)
def sided_organs(question: str) -> dict[str, tuple[str, ...]]:
    """The organs that a question names together with a side: 左肺的… -> {肺: (left,)}. 图像左侧的… names none."""
    found: dict[str, tuple[str, ...]] = {}
    for side, organ in re.findall(rf"([左右双两])侧?({_ORGAN_WORDS})", question):
        known = kind_and_name(organ)
        if known:
            found[known[1]] = (*found.get(known[1], ()), _SIDES[side])
    return found
