"""Answers that are quantities: sizes, durations, rates, grades, counts, each compared with its own unit.

In: a normalized question, reference and answer. Out: a Verdict, or None where the reference is no quantity. An answer
may say more (3枚囊肿，最大约2cm), but a second quantity of the same kind contradicts the first unless it is in another
clause with words of its own. Rounding is an error: 3cm is not 3.2cm.
"""

from __future__ import annotations

import re
from fractions import Fraction

from qilin.evaluate.results import Verdict
from qilin.text.laterality import sides_conflict
from qilin.text.negation import count_negations
from qilin.text.numbers import MAX_NUMBER_CHARACTERS, parse_number
from qilin.text.polarity import polarity
from qilin.text.quantities import Quantity, find_quantities

NOTHING = re.compile(
    r"(?:图中|图片中|图像中|该图中)?(?:无|没有|未见|未发现|不存在|不包含|均无|未见明显|无明显|没有任何|没有发现|没)"
    r"(?:任何|明显)?(?:的)?(?:疾病|异常|病变|病灶|伤害|结节|器官|损害|影响|危害|它|他)?(?:存在|出现)?|none|nothing"
    r"|正常|无病|健康|0|零"
)
# Words around a quantity that say what is measured, or nothing.
_FRAME = re.compile(
    r"约为?|大约|大概|左右|上下|余|多|最大|最长|直径|长径|短径|大小|径线?|长度|厚度|宽度|面积|体积|容积|剂量|用量"
    r"|每次|口服|术后|病程|疗程|病史|年龄|患[者儿]|血压"
    r"|收缩压|舒张压|心率|脉搏|体温|呼吸|频率|数量|总共|一共|共计|共有|共|有|可见|见|为|是|在|的|达|了|仅|只|才"
    r"|之后?|后|前|内|需要?|持续|服药|服用|给药"
    r"|who|approximately|about|the|is|are|was|there|measures?|in|diameter|of|for|a|an|lesions?"
    r"|[,。;:()\s\x00]"
)
_SIDE_WORDS = re.compile(r"[左右双两]侧?|[上下前后中]")
_NOT_A_QUANTITY = re.compile(r"[双两左右一][侧边肺肾眼耳肢叶]")  # 两侧 names both sides
_PAIR = re.compile(r"一对|一双|双侧|两侧|双|左右各一")
_SINGLE = re.compile(r"单个|单发|单枚|单处|单只|单根|单侧|孤立|(?:仅|只)(?:可?见|有|显示)?(?:患者)?[左右]")
_TOTAL = re.compile(r"(?:总共|一共|共计|合计|总计|共)(?:有|为|约)*$")
_CLAUSE = re.compile(r"[,。;]")


def judge_quantity(q: str, r: str, p: str) -> Verdict | None:
    """The verdict on an answer to a reference that is a quantity, its side and words of the question aside."""
    expected = find_quantities(r)
    if not expected or _NOT_A_QUANTITY.fullmatch(r) or _rest(r, expected, q):
        return None
    kinds = {quantity.kind for quantity in expected}
    if sides_conflict(r, p):
        return Verdict(False, "side")
    if kinds == {"count"}:
        return _judge_count(q, expected, p)
    stated = find_quantities(p)
    if not stated:
        return Verdict(False, "measure") if re.search(r"\d", p) else Verdict(None, "unparsable")
    if len(expected) == 1:
        if _grade_is_implied(expected[0], q, p):
            return Verdict(True, "measure")
        return Verdict(_states(expected[0], stated, r, p), "measure")
    affirmed = [quantity for quantity in stated if not quantity.negated]
    is_same = len(affirmed) == len(expected) and all(any(e.is_same(a) for a in affirmed) for e in expected)
    return Verdict(is_same, "measure")


def contradicts_quantities(r: str, p: str) -> bool:
    """Whether a reference in words holds a quantity of which the answer states another, or denies it."""
    stated = find_quantities(p)
    for expected in find_quantities(r):
        same_kind = [quantity for quantity in stated if quantity.kind == expected.kind]
        if same_kind and not any(expected.is_same(quantity) and not quantity.negated for quantity in same_kind):
            return True
    return False


def without_quantities(text: str) -> str:
    """The text without its quantities and the words that say what they measure, for a comparison of the rest."""
    for quantity in reversed(find_quantities(text)):
        text = text[: quantity.start] + text[quantity.end :]
    return re.sub(r"(?:大小|直径|长径|约|左右|最大径|为)+(?=$|[,。;])", "", text).strip(",。; ")


def _rest(r: str, expected: tuple[Quantity, ...], q: str) -> str:
    """What the reference says besides its quantities, words of the question and of measuring."""
    rest = without_spans(r, expected)
    for word in re.findall(r"[a-z]+|[\u4e00-\u9fff]", _FRAME.sub("", rest)):
        if word not in q and not _SIDE_WORDS.fullmatch(word):
            return rest
    return ""


def without_spans(text: str, quantities: tuple[Quantity, ...]) -> str:
    """The text with its quantities and the comparisons around them blanked out."""
    for quantity in quantities:
        text = text[: quantity.start] + "\x00" * (quantity.end - quantity.start) + text[quantity.end :]
    return re.sub(
        r"不小于|不低于|不少于|大于|超过|多于|高于|至少|不超过|不大于|不高于|小于|少于|低于|不足|不到|至多|以上|以下"
        r"|以内|之内|等于|[<>≤≥=]",
        "",
        text,
    )


def _states(expected: Quantity, stated: tuple[Quantity, ...], r: str, p: str) -> bool:
    """Whether the quantities of an answer state the expected one and no other of its kind."""
    affirmed = [quantity for quantity in stated if not quantity.negated]
    same_kind = [quantity for quantity in affirmed if quantity.kind == expected.kind]
    if not same_kind and expected.kind.startswith("grade"):  # IIa期 is an II期
        return any(a.kind.startswith(expected.kind) and a.bounds == expected.bounds for a in affirmed)
    if not same_kind:
        return len(affirmed) == 1 and _unit_is_implied(expected, affirmed[0], r, p)
    if all(expected.is_same(quantity) for quantity in same_kind):
        return True
    totals = [quantity for quantity in same_kind if _TOTAL.search(p, 0, quantity.start)]
    if totals:
        return all(expected.is_same(quantity) for quantity in totals)
    first_clause_end = next((m.start() for m in _CLAUSE.finditer(p) if m.start() >= same_kind[0].end), len(p))
    in_first = [quantity for quantity in same_kind if quantity.start < first_clause_end]
    others = [quantity for quantity in same_kind if quantity.start >= first_clause_end]
    return all(expected.is_same(quantity) for quantity in in_first) and not any(_is_bare(p, other) for other in others)


def _is_bare(p: str, quantity: Quantity) -> bool:
    """Whether the clause of a quantity says nothing else: an alternative rather than a further remark."""
    start = max((m.end() for m in _CLAUSE.finditer(p) if m.end() <= quantity.start), default=0)
    end = next((m.start() for m in _CLAUSE.finditer(p) if m.start() >= quantity.end), len(p))
    clause = p[start : quantity.start] + p[quantity.end : end]
    return not re.sub(r"约|左右|大约|或者?|也?可能|是|为|和|至|\s", "", clause)


def _unit_is_implied(expected: Quantity, stated: Quantity, r: str, p: str) -> bool:
    """72 for 72次/分, 38.2度 for 38.2℃, 0.3 for 30%: the question leaves no other unit."""
    if expected.kind == "share" and stated.kind == "count":
        return stated.bounds == tuple((_part(low), _part(high)) for low, high in expected.bounds)
    if stated.kind == f"times per {expected.kind}":  # every six months, for an interval of six months
        return stated.bounds == tuple((_inverse(low), _inverse(high)) for low, high in expected.bounds)
    if expected.kind == "celsius" and stated.kind == "grade 度":
        return stated.bounds == expected.bounds
    number = parse_number(p) if len(p) <= MAX_NUMBER_CHARACTERS else None
    written = re.search(r"\d+(?:\.\d+)?", r)
    is_rate = expected.kind.startswith("times per")
    return is_rate and number is not None and written is not None and number == Fraction(written.group())


def _inverse(value: Fraction | None) -> Fraction | None:
    return 1 / value if value else None


def _grade_is_implied(expected: Quantity, q: str, p: str) -> bool:
    """4 for 4级, if the question asks for the 级."""
    number = parse_number(p) if len(p) <= MAX_NUMBER_CHARACTERS else None
    asks_grade = expected.kind.startswith("grade") and expected.kind[6:7] in q
    return asks_grade and expected.bounds == ((number, number),)


def _part(value: Fraction | None) -> Fraction | None:
    return None if value is None else value / 100


def _judge_count(q: str, expected: tuple[Quantity, ...], p: str) -> Verdict:
    numbers = [quantity for quantity in find_quantities(p) if quantity.kind == "count" and not quantity.negated]
    if _PAIR.match(p) or (not numbers and _PAIR.search(p)):
        return Verdict(expected[0].bounds == ((Fraction(2), Fraction(2)),), "count")
    if not numbers and _SINGLE.search(p):
        return Verdict(expected[0].bounds == ((Fraction(1), Fraction(1)),), "count")
    is_nothing = NOTHING.fullmatch(p) or (count_negations(p) and polarity(p, q) is not True)
    if not numbers and is_nothing and not find_quantities(p):
        return Verdict(expected[0].bounds == ((Fraction(0), Fraction(0)),), "count")
    if len(expected) > 1 or not numbers:
        return Verdict(None, "unparsable")
    distinct = {quantity.bounds for quantity in numbers}
    if len(distinct) > 1 and not _states(expected[0], tuple(numbers), "", p):
        return Verdict(None, "unparsable")
    return Verdict(distinct == {expected[0].bounds} or len(distinct) > 1, "count")
