"""Quantities in answers: every number with its own unit or measure word, as an interval of one kind.

In: a normalized text (normalize_text). Out: Quantity rows: 12mm, 3×2cm, 5-8mm, >3cm, 120/80mmhg, 14天, 2级, 每日3次,
30%, 三分之一, 第5肋, 3个. Two quantities are the same if kind and bounds agree: 14天 is 2周, 3天 is not 3周.
A number without a unit is a count. Days and months have no common unit: 30天 is not 1个月.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from qilin.text.numbers import (
    CHINESE_NUMERALS,
    COUNT_WORDS,
    ENGLISH_NUMBERS,
    MAX_NUMBER_CHARACTERS,
    NOT_COUNT,
    UNITS,
    parse_number,
)

Bounds = tuple[Fraction | None, Fraction | None]  # (3, 3) is 3, (3, None) more than 3, (None, 3) less, (3, 5) a range


@dataclass(frozen=True)
class Quantity:
    """What text[start:end] measures: one or more (low, high) in the base unit of its kind; "about" is ignored."""

    kind: str  # length, day, month, per day, share, grade 级, ordinal, count, …
    bounds: tuple[Bounds, ...]  # several: 3×2cm in ascending order, 120/80 in the order of the text
    start: int
    end: int
    negated: bool = False

    def is_same(self, other: Quantity) -> bool:
        return self.kind == other.kind and self.bounds == other.bounds


_TIMES: dict[str, tuple[str, Fraction]] = {
    **dict.fromkeys(("小时", "个小时", "h", "hour", "hours", "hrs"), ("day", Fraction(1, 24))),
    **dict.fromkeys(("分钟", "min", "mins", "minute", "minutes"), ("day", Fraction(1, 1440))),
    **dict.fromkeys(("秒", "秒钟", "s", "sec", "second", "seconds"), ("day", Fraction(1, 86400))),
    **dict.fromkeys(("天", "日", "d", "day", "days"), ("day", Fraction(1))),
    **dict.fromkeys(
        ("周", "星期", "个星期", "礼拜", "个礼拜", "week", "weeks", "w", "wk", "wks"), ("day", Fraction(7))
    ),
    **dict.fromkeys(("月", "个月", "个多月", "month", "months"), ("month", Fraction(1))),
    **dict.fromkeys(("年", "岁", "周岁", "year", "years", "years old"), ("month", Fraction(12))),
}
_OTHER_UNITS: dict[str, tuple[str, Fraction]] = {
    **dict.fromkeys(("℃", "°c", "摄氏度"), ("celsius", Fraction(1))),
    **dict.fromkeys(("℉", "°f", "华氏度"), ("fahrenheit", Fraction(1))),
    **dict.fromkeys(("μg", "ug", "mcg", "微克"), ("weight", Fraction(1, 10**6))),
    **dict.fromkeys(("毫克", "mg"), ("weight", Fraction(1, 1000))),
    **dict.fromkeys(("nm", "纳米"), ("length", Fraction(1, 10**6))),
    **dict.fromkeys(("°",), ("angle", Fraction(1))),
    **dict.fromkeys(("毫升", "ml", "millilitre", "milliliter"), ("volume", Fraction(1))),
    **dict.fromkeys(("percent", "per cent"), ("share", Fraction(1))),
    **dict.fromkeys(("centimeter", "centimeters", "centimetre", "centimetres"), ("length", Fraction(10))),
    **dict.fromkeys(("millimeter", "millimeters", "millimetre", "millimetres"), ("length", Fraction(1))),
    **dict.fromkeys(("msv", "毫希"), ("dose", Fraction(1))),
    **dict.fromkeys(("gy", "戈瑞"), ("absorbed dose", Fraction(1))),
}
_ALL_UNITS = UNITS | _TIMES | _OTHER_UNITS | {"bpm": ("times per day", Fraction(1440))}
_DENOMINATORS = {"l": Fraction(1), "升": Fraction(1), "dl": Fraction(1, 10), "分升": Fraction(1, 10),
                 "ml": Fraction(1, 1000), "毫升": Fraction(1, 1000), "μl": Fraction(1, 10**6),
                 "ul": Fraction(1, 10**6)}  # fmt: skip

_NUMBER = (
    rf"(?:(?<![\d.^])\d{{1,3}}(?:,\d{{3}})+(?![\d.])|(?<![\d.^a-z])\d+(?:\.\d+)?(?!\d)"
    rf"|(?<![{CHINESE_NUMERALS}])[{CHINESE_NUMERALS}]+(?:点[{CHINESE_NUMERALS}]+)?"
    rf"|半|\b(?:{'|'.join(ENGLISH_NUMBERS)})\b)"
)
_PERIODS = "小时|分钟|分|星期|礼拜|周|天|日|晚|晨|月|年|minute|min|hour|day|week|month|year"
_PERIOD_UNITS = {"分": "分钟", "晚": "天", "晨": "天"}
_RATES = (
    re.compile(
        rf"(?:每隔|每|一(?=[日天周]))(?P<n>{_NUMBER})?个?(?P<unit>{_PERIODS})(?:服用?|口服|给药"
        rf"|约)?(?P<times>{_NUMBER})(?P<what>次|滴)"
    ),
    re.compile(rf"(?P<n>{_NUMBER})(?P<unit>{_PERIODS})(?P<times>{_NUMBER})(?P<what>次|滴)"),
    re.compile(
        rf"(?P<times>{_NUMBER})\s*(?P<what>次|滴|times|beats)?\s*(?:/|每|per"
        rf"|a(?=\s))\s*(?P<n>{_NUMBER})?\s*(?P<unit>{_PERIODS})"
    ),
)
_RATE_WORD = re.compile(r"[每次滴/]|per|a\s")
_LATIN_RATE = re.compile(r"(?<![a-z])(?:(qd|bid|tid|qid)|q(\d{1,2})h|(once|twice) (?:daily|a day))(?![a-z])")
_LATIN_TIMES = {"qd": 1, "bid": 2, "tid": 3, "qid": 4, "once": 1, "twice": 2}
_OF = r"(?:压)?(?:为|是|约|:)*"
_PRESSURE_WORDS = (
    re.compile(rf"收缩{_OF}(?P<high>\d{{2,3}})[^\d收舒]{{0,10}}舒张{_OF}(?P<low>\d{{2,3}})"),
    re.compile(rf"舒张{_OF}(?P<low>\d{{2,3}})[^\d收舒]{{0,10}}收缩{_OF}(?P<high>\d{{2,3}})"),
)
_PERCENT = re.compile(rf"百分之(?P<number>{_NUMBER})")
_PARTS = re.compile(rf"(?P<total>{_NUMBER})分之(?P<part>{_NUMBER})")
_ROMAN = {"ⅰ": 1, "ⅱ": 2, "ⅲ": 3, "ⅳ": 4, "ⅴ": 5, "i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5}
_GRADE = re.compile(
    rf"(?:(?P<roman>(?<![a-z])(?:iii|ii|iv|i|v)(?=[a-c]?\d?\s*[级期度型类])|[ⅰⅱⅲⅳⅴ])|(?P<number>{_NUMBER}))"
    rf"(?P<letter>[a-c]?\d?)\s*(?P<word>级|期|度(?!数)|型|类)"
)
_ENGLISH_GRADE = re.compile(r"\b(?P<word>grade|stage|type)\s+(?P<number>iii|ii|iv|i|v|\d+)(?P<letter>[a-c]?)\b")
_GRADE_WORD = re.compile(r"[级期度型类]|grade|stage|type")
_ENGLISH_GRADES = {"grade": "级", "stage": "期", "type": "型"}
_SPINE = re.compile(
    rf"(?P<region>[颈胸腰骶])椎?(?:第)?(?P<number>\d+|[{CHINESE_NUMERALS}]+)(?!\d)(?:椎体?)?(?:[/-](?:(?P=region)椎?)?(?P<next>\d{{1,2}})(?![\d%a-z]))?"
    rf"|第(?P<number2>\d+|[{CHINESE_NUMERALS}]+)(?P<region2>[颈胸腰骶])椎体?"
    rf"|(?<![a-z])(?P<letter>[ctls])(?P<number3>\d{{1,2}})(?:椎体?)?(?![\d加a-z])"
    rf"(?:[/-](?:(?P=letter))?(?P<next3>\d{{1,2}})(?![\d%a-z]))?"
)
_SPINE_LETTERS = {"c": "颈", "t": "胸", "l": "腰", "s": "骶"}
_ORDINAL = re.compile(rf"第(?P<number>{_NUMBER})(?![,.:。;])|(?<![a-z\d])(?P<english>\d{{1,2}})(?:st|nd|rd|th)\b")
_POWER = re.compile(r"\s*[x×*]\s*10\^(-?\d{1,2})(?!\d)")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_POWERS_OF_TEN = re.compile(r"10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")

_UNIT = "|".join(
    sorted(
        (re.escape(u) + (r"(?![a-z])" if u[-1].isascii() and u[-1].isalpha() else "") for u in _ALL_UNITS),
        key=len,
        reverse=True,
    )
)
_COMPOUND = re.compile(
    rf"\s*(?P<unit>{_UNIT}|[a-zμ]{{1,6}}(?=/))?\s*/\s*(?P<per>dl|ml|μl|ul|l|分升|毫升|升|kg|公斤|min|h|d|m2"
    rf"|m²)(?![a-z])"
)
_UNIT_AFTER = re.compile(
    rf"\s*(?P<unit>{_UNIT}|(?:mmol|μmol|umol|nmol|pmol|ng|pg|iu|u|meq|mci|kv|ma|hz|mhz|t)(?![a-z]))"
)
_COUNT_AFTER = re.compile(rf"\s*(?P<pair>对|双)|\s*(?:{'|'.join(COUNT_WORDS)})|\s*(?P<times>次)")
_JOINS = {
    "product": re.compile(r"\s*(?:[x×*]|乘以?|by)\s*"),
    "range": re.compile(r"\s*(?:-|~|至|到|—+|to)\s*(?:约)?"),
    "slash": re.compile(r"\s*/\s*"),
}
_MORE = (
    "不小于|不低于|不少于|大于等于|大于|超过|多于|高于|长于|至少|起码|>=|≥|>"
    "|more than|greater than|larger than|over|at least|above"
)
_LESS = (
    "不超过|不大于|不高于|不多于|小于等于|小于|少于|低于|短于|不足|不到|未达到?|至多|最多|<=|≤|<"
    "|less than|smaller than|under|below|at most|up to"
)
_LESS_OR_MORE_BEFORE = re.compile(
    rf"(?:(?P<more>{_MORE})|(?P<less>{_LESS})|(?P<negated>不是|并非|而非|不为|不等于|非|≠|\bnot))"
    r"(?:等于|或等于)?(?:约|为|有|是|大约|about)?\s*$"
)
_LESS_OR_MORE_AFTER = re.compile(
    r"\s*(?:及|或)?(?:(?P<more>以上|or more|or greater)|(?P<less>以下|以内|之内"
    r"|or less))"
)
_ABOUT_AFTER = re.compile(r"[余多来]?")


_GRADE_RANGE = re.compile(rf"(?<![a-z\d])(i{{1,3}}|iv|v|[ⅰⅱⅲⅳⅴ]|\d|[{CHINESE_NUMERALS}])[级期度型]?\s*[-~至到或/]\s*$")


def _grade_number(text: str) -> Fraction | None:
    return Fraction(_ROMAN[text]) if text in _ROMAN else _fraction(text)


def _fraction(text: str) -> Fraction | None:
    return parse_number(text.replace(",", "")) if len(text) <= MAX_NUMBER_CHARACTERS else None


def _is_numeral(text: str) -> bool:
    return not text[0].isdigit()


class _Reader:
    """Reads one text; a quantity that was read is blanked out, so that no later pattern reads its numbers again."""

    def __init__(self, text: str) -> None:
        text = _POWERS_OF_TEN.sub(lambda m: "10^" + m.group(1).translate(_SUPERSCRIPTS), text)
        self.text = text
        self.quantities: list[Quantity] = []

    def read(self) -> tuple[Quantity, ...]:
        # A look for the words of a pattern first takes a tenth of the time of the pattern.
        if "分之" in self.text:
            self._each(_PERCENT, lambda m: ("share", [_fraction(m["number"])]))
            self._each(_PARTS, lambda m: ("share", [_share(_fraction(m["part"]), _fraction(m["total"]))]))
        self._each(_SPINE, self._spine)
        self._each(_ORDINAL, lambda m: ("ordinal", [_fraction(m["number"] or m["english"])]))
        self.text = NOT_COUNT.sub(lambda m: "\x00" * len(m.group()), self.text)  # 十二指肠, 第一 as in 首先
        if _RATE_WORD.search(self.text):
            for pattern in _RATES:
                self._each(pattern, self._rate)
        self._each(_LATIN_RATE, self._latin_rate)
        if "收缩" in self.text:
            for pattern in _PRESSURE_WORDS:
                self._each(pattern, lambda m: ("pressure", [_fraction(m["high"]), _fraction(m["low"])]))
        if _GRADE_WORD.search(self.text):
            self._each(_GRADE, self._grade)
            self._each(_ENGLISH_GRADE, self._grade)
        self._measures()
        return tuple(sorted(self.quantities, key=lambda quantity: quantity.start))

    def _each(
        self, pattern: re.Pattern[str], value_of: Callable[[re.Match[str]], tuple[str, list[Fraction | None]] | None]
    ) -> None:
        for match in list(pattern.finditer(self.text)):
            value = value_of(match)
            if value is not None:
                self._add(value[0], value[1], *match.span())

    def _add(self, kind: str, values: list[Fraction | None], start: int, end: int, is_range: bool = False) -> None:
        if any(value is None for value in values):
            return
        if kind.startswith("grade"):
            first = _GRADE_RANGE.search(self.text, max(0, start - 8), start)
            if first:
                values, is_range = [_grade_number(first[1]), *values], True
        before = _LESS_OR_MORE_BEFORE.search(self.text, max(0, start - 16), start)
        after = _LESS_OR_MORE_AFTER.match(self.text, end)
        more = (before and before["more"]) or (after and after["more"])
        less = (before and before["less"]) or (after and after["less"])
        bounds: tuple[Bounds, ...]
        if is_range:
            bounds = ((values[0], values[1]),)
        else:
            bounds = tuple((None if less else value, None if more else value) for value in values)
        self.quantities.append(Quantity(kind, bounds, start, end, bool(before and before["negated"])))
        self.text = self.text[:start] + "\x00" * (end - start) + self.text[end:]

    def _rate(self, match: re.Match[str]) -> tuple[str, list[Fraction | None]] | None:
        unit = _PERIOD_UNITS.get(match["unit"], match["unit"])
        kind, factor = _TIMES[unit]
        times = _fraction(match["times"])
        interval = _fraction(match["n"]) if match["n"] else Fraction(1)
        if times is None or not interval:
            return None
        return f"{'drops' if match['what'] == '滴' else 'times'} per {kind}", [times / (interval * factor)]

    def _latin_rate(self, match: re.Match[str]) -> tuple[str, list[Fraction | None]] | None:
        hours = int(match[2]) if match[2] else 0
        if match[2] and not hours:
            return None
        return "times per day", [Fraction(24, hours) if hours else Fraction(_LATIN_TIMES[match[1] or match[3]])]

    def _grade(self, match: re.Match[str]) -> tuple[str, list[Fraction | None]] | None:
        roman = match.groupdict().get("roman")
        number = (
            Fraction(_ROMAN[roman])
            if roman
            else Fraction(_ROMAN[n])
            if (n := match["number"]) in _ROMAN
            else _fraction(n)
        )
        word = _ENGLISH_GRADES.get(match["word"], match["word"])
        if word == "类" and re.search(r"rads\W{0,3}$", self.text[: match.start()]):  # BI-RADS 4类 is 4级
            word = "级"
        return f"grade {word}{match['letter']}", [number]

    def _spine(self, match: re.Match[str]) -> tuple[str, list[Fraction | None]] | None:
        region = match["region"] or match["region2"] or _SPINE_LETTERS[match["letter"]]
        if match["letter"] == "t" and "椎" not in self.text:  # T1 and T2 are weightings elsewhere
            return None
        numbers = [match["number"] or match["number2"] or match["number3"], match["next"] or match["next3"]]
        return f"vertebra {region}", [_fraction(number) for number in numbers if number]  # L4/5 is L4-L5

    def _measures(self) -> None:
        """Numbers with a unit, a measure word or nothing after them, joined to products, ranges and pairs."""
        matches = list(re.finditer(_NUMBER, self.text))
        index = 0
        while index < len(matches):
            numbers, kinds = [matches[index]], []
            join, end = "", 0
            while True:
                kind, factor, end = self._unit(numbers[-1])
                kinds.append((kind, factor))
                if index + len(numbers) >= len(matches) or len(numbers) == 8:
                    break
                following = matches[index + len(numbers)]
                gap = self.text[end : following.start()]
                name = next((name for name, pattern in _JOINS.items() if len(gap) < 8 and pattern.fullmatch(gap)), "")
                if not name or (join and name != join) or (name != "product" and len(numbers) == 2):
                    break
                join = name
                numbers.append(following)
            self._measure(numbers, kinds, join, end)
            while index < len(matches) and matches[index].start() < max(end, numbers[-1].end()):
                index += 1

    def _measure(self, numbers: list[re.Match[str]], kinds: list[tuple[str, Fraction]], join: str, end: int) -> None:
        last = kinds[-1]
        if all(kind == "" for kind, _ in kinds):  # no unit at all: a count, unless a numeral stands alone in a word
            alone = len(numbers) == 1 and _is_numeral(numbers[0].group())
            if alone and not numbers[0].group().isascii() and end - numbers[0].start() != len(self.text.strip()):
                return
            last = ("count", Fraction(1))
        units = [pair if pair[0] else last for pair in kinds]
        values = [_fraction(n.group()) for n in numbers]
        if join == "slash" and last == ("count", Fraction(1)):
            low, high = values[0], values[1]
            # 1/3 is a share; 140/90 without a unit can only be a blood pressure
            is_pressure = low is not None and high is not None and 60 <= low <= 260 and 30 <= high <= 160
            kind, values = ("pressure", values) if is_pressure else ("share", [_share(low, high)])
        elif len({kind for kind, _ in units}) > 1:
            for number, (kind, factor), value in zip(numbers, units, values, strict=True):
                self._add(kind, [_times(value, factor)], number.start(), number.end())
            return
        else:
            kind = units[0][0]
            values = [_times(value, factor) for value, (_, factor) in zip(values, units, strict=True)]
        if self.text[end : end + 1] == "半" and kind in ("month", "day") and values[0] is not None:
            values = [values[0] + units[0][1] / 2]
            end += 1
        if join == "product" and None not in values:
            values.sort(key=lambda value: value or Fraction(0))
        self._add(kind, values, numbers[0].start(), end, is_range=join == "range")

    def _unit(self, number: re.Match[str]) -> tuple[str, Fraction, int]:
        """(kind, factor, end) of the unit after a number; kind is "" where there is none."""
        end, factor = number.end(), Fraction(1)
        power = _POWER.match(self.text, end)
        if power:
            end, factor = power.end(), Fraction(10) ** int(power.group(1))
        end += len(_ABOUT_AFTER.match(self.text, end).group())  # type: ignore[union-attr]  # it matches ""
        compound = _COMPOUND.match(self.text, end)
        if compound:
            unit = compound["unit"] or ""
            kind, unit_factor = _ALL_UNITS.get(unit, (unit, Fraction(1)))
            per = _DENOMINATORS.get(compound["per"])
            if per is not None:
                return f"{kind or 'count'}/l", factor * unit_factor / per, compound.end()
            return f"{kind}/{compound['per']}", factor * unit_factor, compound.end()
        match = _UNIT_AFTER.match(self.text, end)
        if match:
            kind, unit_factor = _ALL_UNITS.get(match["unit"], (match["unit"], Fraction(1)))
            return kind, factor * unit_factor, match.end()
        if power:
            return "count", factor, end
        counted = _COUNT_AFTER.match(self.text, end)
        if counted:
            kind = "times" if counted["times"] else "count"
            return kind, Fraction(2 if counted["pair"] else 1), counted.end()
        return "", factor, end


def _share(part: Fraction | None, total: Fraction | None) -> Fraction | None:
    return part / total * 100 if part is not None and total else None


def _times(value: Fraction | None, factor: Fraction) -> Fraction | None:
    return None if value is None else value * factor


@lru_cache(maxsize=5_000)
def find_quantities(text: str) -> tuple[Quantity, ...]:
    """Every quantity of a normalized text, in order."""
    return _Reader(text).read()
