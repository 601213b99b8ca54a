"""Removes personal data from Chinese report text: what patterns recognize, and what is known about this patient.

In: a text and the identifying values that stand in the report's own table row and DICOM header. Out: the text with
marks such as 【姓名】 in their places, and how many of each type. A text that still seems to hold personal data
afterwards is for the caller to reject. Patterns miss what nobody wrote down before: docs/imaging.md states measured
recall, and how to check one's own data.
"""

import re
from collections import Counter
from collections.abc import Iterable

from qilin.text.phi import HOSPITAL, rules
from qilin.text.vocabulary import concept_of

HOSPITAL_LETTERS = 14
# the last of these words before a name starts it: 患者曾于 | 华西 | 医院
_LEAD = re.compile(
    r"于|在|由|到|至|往|赴|去|来自|自(?!贡)|来|经|转自|转入|转往|转|从|与|较|对比|对照|参照|比较|结合|外院|既往|曾|请|为|后|前|送检|"
    r"送|示|患者|病人|单位|因|随访|随诊|就诊|诊|结节|囊肿|骨折|术后|炎|癌|病变|改变|积液|报告|了|的|是|建议|考虑|联系|返回|结果|"
    r"意见|及|或|并|居|住"
)
# hospitals of which no name is given: 上级医院, 当地医院
_UNNAMED = re.compile(
    r"(?:上级|下级|同级|外地|当地|地方|本地|本|我|贵|他|该|此|各|综合|专科|三甲|三级|二级|一级|甲等|乙等|基层|大型|正规|原|某|外|"
    r"其他|其它|就近|附近|住|出|入|院|县|市|区|镇|乡|村|省|社区|私立|公立|内|民营|私人|多家|两家|一家|家|几|另|国内|国外|教学|有条件|"
    r"相关|相应|定点|上述|不同|多个|个|所)*"
)
REMAINING = re.compile(r"[^\0]+")
MIN_KNOWN = 2  # characters of a known value: a single one stands in ordinary words


def deidentify(text: str, known: Iterable[str] = ()) -> tuple[str, Counter[str]]:
    """(the text with marks in place of personal data, how many of each type).

    `known` are values of this patient's row and header, such as the name and the numbers; they are removed wherever
    they stand.
    """
    text = text.replace("\0", " ")
    pieces, position = [], 0
    spans = personal_spans(text, known)
    for start, end, label in spans:
        pieces += [text[position:start], f"【{label}】"]
        position = end
    counts = Counter("已知信息" if label == "已删除" else label for _, _, label in spans)
    return "".join(pieces) + text[position:], counts


def personal_spans(text: str, known: Iterable[str] = ()) -> list[tuple[int, int, str]]:
    """(start, end, label) of what `deidentify` replaces, in order."""
    spans: list[tuple[int, int, str]] = []
    rest = text.replace("\0", " ")
    for value in sorted(set(filter(None, map(str.strip, known))), key=len, reverse=True):
        if len(value) >= MIN_KNOWN:
            rest = remove(rest, "已删除", re.compile(known_pattern(value)), spans)
    for label, pattern in rules():
        rest = remove(rest, label, pattern, spans)
    return sorted(spans)


def remove(text: str, label: str, pattern: re.Pattern[str], spans: list[tuple[int, int, str]]) -> str:
    """Appends what the pattern removes (its first group, or all that matches); the text with \\0 in its place."""
    pieces, position = [], 0
    for match in pattern.finditer(text):
        start, end = match.span(1 if pattern.groups else 0)
        if pattern is HOSPITAL:
            start = start_of_hospital(text, match.start(), position)
        if start == end or (label == "姓名" and concept_of(text[start:end]) is not None):  # 肺炎，男，50岁
            continue
        spans += [(start + run.start(), start + run.end(), label) for run in REMAINING.finditer(text[start:end])]
        pieces += [text[position:start], "\0" * (end - start)]
        position = end
    return "".join(pieces) + text[position:]


def start_of_hospital(text: str, kind: int, minimum: int) -> int:
    """Where the name begins whose last word (医院) begins at `kind`; the end of that word if no hospital is named."""
    start = kind
    while start > max(minimum, kind - HOSPITAL_LETTERS) and "\u4e00" <= text[start - 1] <= "\u9fff":
        start -= 1
    for word in _LEAD.finditer(text, start, kind):
        start = word.end()
    match = HOSPITAL.match(text, kind)
    assert match is not None
    if _UNNAMED.fullmatch(text, start, kind) and not re.search("[一二三四五六附]院", match.group()):
        return match.end()
    return start


def known_pattern(value: str) -> str:
    """A literal value; numbers and Latin words only as wholes, Chinese names also with spaces between characters."""
    if re.fullmatch(r"[\u4e00-\u9fff·]+", value):
        return r"\s?".join(map(re.escape, value))
    return rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])"
