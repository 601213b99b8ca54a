"""Removes personal data from Chinese report text: what patterns recognize, and what is known about this patient.

In: a text and the identifying values that stand in the report's own table row and DICOM header. Out: the text with
marks such as 【姓名】 in their places, and how many of each type. A text that still seems to hold personal data
afterwards is for the caller to reject. Patterns miss what nobody wrote down before: docs/imaging.md states measured
recall, and how to check one's own data.
"""

import re
from collections import Counter
from collections.abc import Iterable

from qilin.text.phi import PATTERNS

_NAME = r"[\u4e00-\u9fff]{1,2}(?:[\u4e00-\u9fff]|\s?[\u4e00-\u9fff])?(?:·[\u4e00-\u9fff]{1,4})?"
_ROLE = (
    r"(?:(?:报告|审核|复核|审阅|检查|记录|书写|申请|送检|初诊|诊断|签发|操作|主治|住院|经治|上级|值班|会诊)(?:医师|医生|大夫|者|人|技师|护士)"
    r"|(?:医师|医生|技师|技士|签名|签字|审核|主任))"
)
# hospitals of which no name is given: 上级医院, 当地医院
_UNNAMED = (
    "上级|外院|当地|本|我|贵|他|该|此|各|综合|专科|三甲|三级|二级|基层|大型|正规|原|某|外|转|到|去|来|在|于|至|往|就诊|"
    "住|出|入|院外|其他|其它"
)
_HOSPITAL_KIND = (
    r"(?:医院|中医院|卫生院|卫生服务中心|卫生服务站|医学中心|诊所|门诊部|疗养院|医疗中心|影像中心|体检中心)"
)
_HOSPITAL = (
    rf"(?!(?:{_UNNAMED})+{_HOSPITAL_KIND})[\u4e00-\u9fff]{{2,14}}?(?:第[一二三四五六七八九十]+)?"
    rf"(?:人民|附属|中心|协和|同济)?{_HOSPITAL_KIND}"
)
_NUMBER = r"(?:编号|号码|ID|片号|胶片号|病理号|床位?)\s*[:：]\s*[A-Za-z]{0,4}\d{2,}[A-Za-z\d-]*"
RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("电话", PATTERNS["phone"]),
    ("证件号", PATTERNS["identity number"]),
    ("编号", PATTERNS["hospital number"]),
    ("编号", re.compile(_NUMBER, re.IGNORECASE)),
    ("地址", PATTERNS["address"]),
    ("日期", PATTERNS["date"]),
    ("日期", re.compile(r"(?<!\d)(?:19|20)?\d{2}[-/.年](?:0?[1-9]|1[0-2])[-/.月](?:0?[1-9]|[12]\d|3[01])日?(?!\d)")),
    ("日期", re.compile(r"(?<!\d)(?:19|20)\d{2}\s*年(?:\s*\d{1,2}\s*月(?:份)?)?(?:\s*\d{1,2}\s*[日号])?")),
    ("日期", re.compile(r"(?<!\d)(?:0?[1-9]|1[0-2])\s*月\s*(?:0?[1-9]|[12]\d|3[01])\s*[日号]")),
    ("日期", re.compile(r"(?<!\d)(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)")),
    ("时间", re.compile(r"(?<!\d)(?:[01]?\d|2[0-3])[:：][0-5]\d(?:[:：][0-5]\d)?(?!\d)")),
    ("医院", re.compile(_HOSPITAL)),
    ("姓名", re.compile(rf"(?<=签名)\s*[:：]?\s*{_NAME}|{_ROLE}\s*[:：]\s*{_NAME}(?:\s*[/、，,]\s*{_NAME})*")),
    ("姓名", PATTERNS["name"]),
)  # fmt: skip
KEEP_LABEL = re.compile(r"^\s*[\u4e00-\u9fffA-Za-z]{1,8}\s*[:：]")  # 报告医师：王某 -> 报告医师：【姓名】
MIN_KNOWN = 2  # characters of a known value: a single one stands in ordinary words


def deidentify(text: str, known: Iterable[str] = ()) -> tuple[str, Counter[str]]:
    """(the text with marks in place of personal data, how many of each type).

    `known` are values of this patient's row and header, such as the name and the numbers; they are removed wherever
    they stand.
    """
    counts: Counter[str] = Counter()
    for value in sorted(set(filter(None, map(str.strip, known))), key=len, reverse=True):
        if len(value) >= MIN_KNOWN:
            text, number = re.subn(known_pattern(value), "【已删除】", text)
            counts["已知信息"] += number
    for label, pattern in RULES:

        def replace(match: re.Match[str], label: str = label) -> str:
            counts[label] += 1
            kept = KEEP_LABEL.match(match.group())
            return f"{kept.group() if kept and label in ('姓名', '编号') else ''}【{label}】"

        text = pattern.sub(replace, text)
    return text, +counts


def known_pattern(value: str) -> str:
    """A literal value; numbers and Latin words only as wholes, Chinese names also with spaces between characters."""
    if re.fullmatch(r"[\u4e00-\u9fff·]+", value):
        return r"\s?".join(map(re.escape, value))
    return rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])"
