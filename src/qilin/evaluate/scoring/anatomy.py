"""Meaning of one list item: a term of the vocabulary, or a location such as 左肺下叶, 左侧的肾脏, 右上角.

Input: a normalized item. Output: a hashable meaning; `same_meaning` compares two of them in the context of a question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from qilin.text.vocabulary import concept_of, find_terms, terms_of


@dataclass(frozen=True)
class Location:
    """Side (left, right, both), level (upper, middle, lower, front, back), organ, type of part; "" if not stated."""

    side: str = ""
    level: str = ""
    organ: str = ""
    part: str = ""


@dataclass(frozen=True)
class Term:
    """A term of the vocabulary, or a text that is not in it (category "")."""

    category: str
    name: str


Meaning = Location | Term

_SIDES = {"左": "left", "右": "right", "双": "both", "两": "both", "左右": "both", "左右两": "both", "左右双": "both"}
_LEVELS = {"上": "upper", "顶": "upper", "下": "lower", "底": "lower", "中": "middle", "中间": "middle",
           "中心": "middle", "中央": "middle", "正中": "middle", "正中央": "middle",
           "前": "front", "后": "back"}  # fmt: skip
_PARTS = {"叶": "lobe", "半球": "hemisphere", "肺野": "lobe", "野": "lobe"}
_ORGAN_WORDS = "|".join(sorted(map(re.escape, [*terms_of("organ"), *terms_of("region")]), key=len, reverse=True))
_SIDE = r"(?:左右两|左右双|左右|左|右|双|两)"
_LEVEL = r"(?:正中央|正中|中间|中心|中央|上|顶|下|底|中|前|后)"
_SUFFIX = r"(?:侧|边|方|角|极|部|面|端|部分|部位|位置|区域|区|处|半部)"
_LOCATION = re.compile(
    rf"(?P<side>{_SIDE})?{_SUFFIX}?的?(?P<level>{_LEVEL})?{_SUFFIX}?的?(?P<organ>{_ORGAN_WORDS})?的?"
    rf"(?P<side2>{_SIDE})?{_SUFFIX}?的?(?P<level2>{_LEVEL})?(?P<part>叶|半球|肺野|野)?{_SUFFIX}?"
)
_ENGLISH_LEVELS = {"upper": "upper", "lower": "lower", "middle": "middle", "anterior": "front", "posterior": "back"}
_ENGLISH_LOCATION = re.compile(
    r"(?:(?P<side>left|right|both|bilateral) )?(?:(?P<level>upper|lower|middle|anterior|posterior) )?"
    r"(?P<part>lobe|zone|lungs?)(?: of (?:the )?(?:(?P<side2>left|right) )?(?P<organ>lung|liver|kidney))?"
)
_ENGLISH_SIDED = re.compile(r"(?P<side>left|right) (?P<term>[a-z].+)$")
_SIDED = re.compile(rf"(?P<side>{_SIDE})(?:侧|边)?的?(?P<term>.+)$")
_LEAD = re.compile(r"^(?:是|为|在|用于|用来|位于|属于|呈|显示为?|有|最可能是|可能是|主要是|一张|一个|一种)+")
_TRAIL = re.compile(r"(?:的|了)$")
_IMAGE_WORD = re.compile(r"(?:医学)?(?:图像|图片|影像|成像|扫描|检查|照片|片子)$")
_ENGLISH = {
    "left": Location("left"), "left side": Location("left"), "right": Location("right"),
    "right side": Location("right"), "both": Location("both"), "both sides": Location("both"),
    "bilateral": Location("both"),
    "od": Location("right", organ="眼睛"), "os": Location("left", organ="眼睛"), "ou": Location("both", organ="眼睛"),
}  # fmt: skip


@lru_cache(maxsize=20_000)
def parse_meaning(item: str) -> Meaning:
    """The meaning of a normalized item; a text that is not in the vocabulary becomes a Term of itself."""
    item = item.removeprefix("the ")
    for text in (item, _TRAIL.sub("", item), _TRAIL.sub("", _LEAD.sub("", item)), _IMAGE_WORD.sub("", item)):
        concept = concept_of(text)
        if concept:
            return Term(concept.category, concept.name)
        location = _parse_location(text)
        if location:
            return location
        sided = _SIDED.match(text) or _ENGLISH_SIDED.match(text)
        concept = concept_of(sided["term"]) if sided else None
        if sided and concept and text.isascii() and concept.category in ("organ", "region"):
            return Location(sided["side"], "", concept.name)
        if sided and concept:
            return Term("", f"{_SIDES.get(sided['side'], sided['side'])} {concept.name}")
    bare = _TRAIL.sub("", _LEAD.sub("", item)) or item
    sided = _SIDED.match(bare)
    return Term("", f"{_SIDES[sided['side']]} {sided['term']}" if sided else bare)  # 左侧基底节 is 左基底节


def _parse_location(text: str) -> Location | None:
    if text in _ENGLISH:
        return _ENGLISH[text]
    english = _ENGLISH_LOCATION.fullmatch(text)
    if english:
        return _english_location(english)
    match = _LOCATION.fullmatch(text)
    if match is None or not text:
        return None
    sides = [_SIDES[s] for s in (match["side"], match["side2"]) if s]
    levels = [_LEVELS[s] for s in (match["level"], match["level2"]) if s]
    if len(sides) > 1 or len(levels) > 1 or not (sides or levels):
        return None
    organ = concept_of(match["organ"]) if match["organ"] else None
    return Location("".join(sides), "".join(levels), organ.name if organ else "", _PARTS.get(match["part"] or "", ""))


def _english_location(match: re.Match[str]) -> Location:
    """right lower lobe, upper lobe of the left lung."""
    side = match["side"] or match["side2"] or ""
    organ = concept_of(match["organ"] or ("lung" if match["part"].startswith("lung") else ""))
    return Location(
        "both" if side == "bilateral" else side,
        _ENGLISH_LEVELS.get(match["level"] or "", ""),
        organ.name if organ else "",
        "lobe" if match["part"] in ("lobe", "zone") else "",
    )


def _omits(term: str, shorter: str, question: str) -> bool:
    """粉碎性 for 粉碎性骨折, if the question asks about the 骨折 and does not name 粉碎性 itself."""
    if len(shorter) < 2 or not term.startswith(shorter):
        return False
    noun = term[len(shorter) :]
    return len(noun) > 1 and noun in question and shorter not in question


def same_meaning(a: Meaning, b: Meaning, question: str) -> bool:
    """Whether two meanings agree. Either may omit what the question itself names (its organ, its side and organ)."""
    if not (isinstance(a, Location) and isinstance(b, Location)):
        if isinstance(a, Term) and isinstance(b, Term):
            return a == b or _omits(a.name, b.name, question) or _omits(b.name, a.name, question)
        return False
    organ = a.organ or b.organ
    # Only lungs have upper, middle and lower lobes: 右上叶 is 右肺上叶.
    implied_lung = any(not x.organ and x.part == "lobe" and x.level for x in (a, b)) and organ == "肺"
    organ_omitted = (not a.organ or not b.organ) and names_organ(question, organ)
    if a.organ != b.organ and not implied_lung and not organ_omitted:
        return False
    side_omitted = (not a.side or not b.side) and a.side + b.side in sided_organs(question).get(organ, ())
    if a.side != b.side and not side_omitted:
        return False
    # 左肺下叶 and 左下肺 are the same location; the left lobe of a liver is not its left side.
    if a.part != b.part and not (organ == "肺" and {a.part, b.part} <= {"", "lobe"}):
        return False
    return a.level == b.level


@lru_cache(maxsize=2_000)
def names_organ(question: str, organ: str) -> bool:
    """Whether a normalized question names an organ or region by any of its words."""
    return any(match.concept.name == organ for match in find_terms(question, "organ", "region"))


@lru_cache(maxsize=2_000)
def sided_organs(question: str) -> dict[str, tuple[str, ...]]:
    """The organs that a question names together with a side: 左肺的… -> {肺: (left,)}. 图像左侧的… names none."""
    organ_sides: dict[str, tuple[str, ...]] = {}
    for side, organ in re.findall(rf"([左右双两])侧?({_ORGAN_WORDS})", question):
        concept = concept_of(organ)
        if concept:
            organ_sides[concept.name] = (*organ_sides.get(concept.name, ()), _SIDES[side])
    return organ_sides
