"""Lengths, areas, volumes, weights and a few rates with their units, converted to one base unit each.

In: a text such as "约1.2cm×0.8厘米". Out: Measure rows that can be compared exactly (Fractions, no rounding).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from qilin.text.numerals import parse_number
from qilin.text.width import narrow_letters


@dataclass(frozen=True)
class Measure:
    """A quantity in its base unit: length in mm, area in mm2, volume in ml, weight in g, density in hu, share in %."""

    kind: str
    value: Fraction


# unit as written (lower case) -> (kind, factor to the base unit)
_UNITS: dict[str, tuple[str, Fraction]] = {
    "mm": ("length", Fraction(1)),
    "毫米": ("length", Fraction(1)),
    "㎜": ("length", Fraction(1)),
    "公厘": ("length", Fraction(1)),
    "cm": ("length", Fraction(10)),
    "厘米": ("length", Fraction(10)),
    "㎝": ("length", Fraction(10)),
    "公分": ("length", Fraction(10)),
    "dm": ("length", Fraction(100)),
    "分米": ("length", Fraction(100)),
    "m": ("length", Fraction(1000)),
    "米": ("length", Fraction(1000)),
    "μm": ("length", Fraction(1, 1000)),
    "um": ("length", Fraction(1, 1000)),
    "微米": ("length", Fraction(1, 1000)),
    "mm2": ("area", Fraction(1)),
    "mm²": ("area", Fraction(1)),
    "平方毫米": ("area", Fraction(1)),
    "cm2": ("area", Fraction(100)),
    "cm²": ("area", Fraction(100)),
    "平方厘米": ("area", Fraction(100)),
    "ml": ("volume", Fraction(1)),
    "毫升": ("volume", Fraction(1)),
    "cc": ("volume", Fraction(1)),
    "cm3": ("volume", Fraction(1)),
    "cm³": ("volume", Fraction(1)),
    "立方厘米": ("volume", Fraction(1)),
    "l": ("volume", Fraction(1000)),
    "升": ("volume", Fraction(1000)),
    "mg": ("weight", Fraction(1, 1000)),
    "毫克": ("weight", Fraction(1, 1000)),
    "g": ("weight", Fraction(1)),
    "克": ("weight", Fraction(1)),
    "kg": ("weight", Fraction(1000)),
    "千克": ("weight", Fraction(1000)),
    "公斤": ("weight", Fraction(1000)),
    "hu": ("density", Fraction(1)),
    "%": ("share", Fraction(1)),
    "bpm": ("rate", Fraction(1)),
    "次/分": ("rate", Fraction(1)),
    "次/分钟": ("rate", Fraction(1)),
    "mmhg": ("pressure", Fraction(1)),
    "kpa": ("pressure", Fraction(760000, 101325)),
    "毫米汞柱": ("pressure", Fraction(1)),
}

_UNIT = "|".join(sorted((re.escape(unit) for unit in _UNITS), key=len, reverse=True))
_NUMBER = r"(?:\d+(?:\.\d+)?|[零〇一二两三四五六七八九十百千]+(?:点[零一二三四五六七八九]+)?|半)"
_QUANTITY = re.compile(rf"((?:{_NUMBER}\s*(?:{_UNIT})?\s*[x×*]\s*)*{_NUMBER})\s*({_UNIT})(?![a-z])", re.IGNORECASE)
_PART = re.compile(rf"({_NUMBER})\s*({_UNIT})?", re.IGNORECASE)


@lru_cache(maxsize=20_000)
def measures(text: str) -> tuple[Measure, ...]:
    """Every quantity with a unit, in the order of the text; 3×2cm gives both sides, each in mm.

    A number without a unit is no measure: what it counts is unknown.
    """
    found: list[Measure] = []
    for match in _QUANTITY.finditer(narrow_letters(text).lower()):
        for number, unit in _PART.findall(match.group(1)):
            kind, factor = _UNITS[unit or match.group(2)]
            value = parse_number(number)
            if value is not None:
                found.append(Measure(kind, value * factor))
    return tuple(found)


def without_measures(text: str) -> str:
    """The text with its quantities taken out, to see what else it says."""
    return _QUANTITY.sub("", narrow_letters(text))
