"""Numbers, counts and measurements in Chinese medical text: 2, ２, 二, 两, 十二, 半, 1/2, 两个结节, 3×2cm.

In: a text. Out: exact Fractions and quantities in base units, or None where the text is not a number (never a guess).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from qilin.text.normalize import to_halfwidth_letters

# --- numbers and counts --------------------------------------------------------------------------------------------

CHINESE_NUMERALS = "零〇一二两俩三四五六七八九十百千万亿壹贰叁肆伍陆柒捌玖拾"
MAX_NUMBER_CHARACTERS = 100  # nothing in medicine has more; Python refuses to convert more than 4,300 digits

_CHINESE_NUMBER = re.compile(rf"[{CHINESE_NUMERALS}]+(?:点[{CHINESE_NUMERALS}]+)?")
_PLAIN_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
ENGLISH_NUMBERS = {"zero": 0, "none": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6,
          "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12}  # fmt: skip

# Measure words (classifiers) of things, and those after which a number is a measurement of its own kind.
COUNT_WORDS = (
    "个", "枚", "处", "颗", "只", "块", "条", "片", "根", "种", "例", "支", "类", "张", "粒", "名", "位", "项", "节",
    "叶", "层", "段", "侧", "团", "簇", "灶", "点", "人",
)  # fmt: skip
MEASURE_WORDS = (*COUNT_WORDS, "次", "级", "期", "度", "分", "岁", "年", "月", "周", "天", "日")

# Compounds in which a numeral character is not a count.
_NOT_COUNTS = ("十二指肠", "三尖瓣", "二尖瓣", "四肢", "三叉", "一些", "一般", "一致", "一样", "一侧", "一定", "统一",
               "单一", "之一", "一起", "一旦", "一直", "一过性", "第一", "第二", "第三", "百分", "四周", "三角", "千金",
               "两侧", "二侧", "万一", "七窍", "一点", "一部分")  # fmt: skip
_COUNT_IN_TEXT = re.compile(rf"([{CHINESE_NUMERALS}]+)(?=(?:{'|'.join(MEASURE_WORDS)}))")
NOT_COUNT = re.compile("|".join(_NOT_COUNTS))


@lru_cache(maxsize=20_000)
def parse_number(text: str) -> Fraction | None:
    """The value of a text that is one number, else None: "12", "1,024", "2.5", "1/2", "十二", "两", "半", "一点五"."""
    word = to_halfwidth_letters(text).strip()
    if len(word) > MAX_NUMBER_CHARACTERS:
        return None
    if _PLAIN_NUMBER.fullmatch(word):
        return Fraction(word.replace(",", ""))
    if re.fullmatch(r"\d+/[1-9]\d*", word):
        return Fraction(word)
    if word.lower() in ENGLISH_NUMBERS:
        return Fraction(ENGLISH_NUMBERS[word.lower()])
    if word == "半":
        return Fraction(1, 2)
    if not _CHINESE_NUMBER.fullmatch(word):
        return None
    import cn2an

    try:
        value = cn2an.cn2an(word.replace("俩", "两").replace("〇", "零"), "smart")
    except (ValueError, LookupError):  # numeral characters in an invalid order: 十百; cn2an fails at 一十千千 itself
        return None
    return Fraction(str(value))


@lru_cache(maxsize=20_000)
def counts_to_digits(text: str) -> str:
    """Replace Chinese numerals before a measure word by digits: 两个结节 -> 2个结节. 十二指肠, 三尖瓣, 两侧 stay."""
    compounds = NOT_COUNT.findall(text)

    def to_digits(match: re.Match[str]) -> str:
        number = parse_number(match.group(1))
        return match.group(1) if number is None else str(number)

    converted = _COUNT_IN_TEXT.sub(to_digits, NOT_COUNT.sub("\x00", text))
    for compound in compounds:
        converted = converted.replace("\x00", compound, 1)
    return converted


_COUNT = re.compile(
    rf"(?:总共|一共|共计|共有|共|有|约|大约|大概|数量(?:是|为)?)*"
    rf"([+-]?\d+(?:\.\d+)?(?:/\d+)?|[{CHINESE_NUMERALS}]+|半|[a-z]+)"
    rf"\s*(?:{'|'.join(MEASURE_WORDS)})?(?:的)?(.*)"
)


@lru_cache(maxsize=20_000)
def parse_count(text: str) -> tuple[Fraction, str] | None:
    """(count, noun after it), else None: "两个" -> (2, ""), "共3枚结节" -> (3, "结节"), "2" -> (2, "")."""
    word = to_halfwidth_letters(text).strip().lower()
    if NOT_COUNT.match(word):
        return None
    match = _COUNT.fullmatch(word)
    if match is None:
        return None
    number = parse_number(match.group(1))
    if number is None or re.search(r"\d|^[.,/~或至到-]", match.group(2)):
        return None
    return number, match.group(2).strip()


# --- measurements ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """A value in the base unit of its quantity.

    The base units: length mm, area mm2, volume ml, weight g, density HU, share %, rate per minute, pressure mmHg.
    """

    quantity: str
    value: Fraction


# unit in lower case -> (quantity, factor to the base unit)
UNITS: dict[str, tuple[str, Fraction]] = {
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
    "斤": ("weight", Fraction(500)),
    "hu": ("density", Fraction(1)),
    "%": ("share", Fraction(1)),
    "bpm": ("rate", Fraction(1)),
    "次/分": ("rate", Fraction(1)),
    "次/分钟": ("rate", Fraction(1)),
    "mmhg": ("pressure", Fraction(1)),
    "kpa": ("pressure", Fraction(760000, 101325)),
    "毫米汞柱": ("pressure", Fraction(1)),
}

_UNIT = "|".join(sorted((re.escape(unit) for unit in UNITS), key=len, reverse=True))
_NUMERALS = "零〇一二两三四五六七八九十百千"
# The lookbehinds keep a search from trying every tail of a number: 4,000 digits without a unit took 7 seconds.
_NUMBER = (
    rf"(?:(?:(?<!\d)|(?<=m[23]))\d++(?:\.\d++)?|(?<![{_NUMERALS}])[{_NUMERALS}]+(?:点[零一二三四五六七八九]+)?|半)"
)
# At most eight factors: without a bound, 2x3x2x3x… took time with the square of its length.
_QUANTITY = re.compile(
    rf"((?:{_NUMBER}\s*+(?:{_UNIT})?\s*+[x×*]\s*+){{0,7}}{_NUMBER})\s*+({_UNIT})(?![a-z])", re.IGNORECASE
)
_PART = re.compile(rf"({_NUMBER})\s*({_UNIT})?", re.IGNORECASE)


@lru_cache(maxsize=20_000)
def find_measurements(text: str) -> tuple[Measurement, ...]:
    """Every number with a unit, in the order of the text; 3×2cm gives two lengths in mm."""
    measurements: list[Measurement] = []
    for match in _QUANTITY.finditer(to_halfwidth_letters(text).lower()):
        for number, unit in _PART.findall(match.group(1)):
            quantity, factor = UNITS[unit or match.group(2)]
            value = parse_number(number)
            if value is not None:
                measurements.append(Measurement(quantity, value * factor))
    return tuple(measurements)


def remove_measurements(text: str) -> str:
    """The text without its measurements."""
    return _QUANTITY.sub("", to_halfwidth_letters(text))
