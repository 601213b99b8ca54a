"""Quantities: which texts state the same one, and which differ in unit, bounds or kind."""

from fractions import Fraction

import pytest

from qilin.text.normalize import normalize_text
from qilin.text.quantities import Quantity, find_quantities


def only_quantity(text: str) -> Quantity:
    (quantity,) = find_quantities(normalize_text(text))
    return quantity


@pytest.mark.parametrize(
    "texts",
    [
        ("12mm", "1.2厘米", "约１.２ cm左右", "12毫米"),
        ("3×2cm", "30mm×20mm", "2*3厘米", "3厘米乘2厘米"),
        ("5-8mm", "5至8毫米", "5mm到8mm", "0.5~0.8cm"),
        (">3cm", "超过30mm", "3厘米以上", "more than 3 cm"),
        ("120/80mmHg", "收缩压120，舒张压80", "舒张压80，收缩压120", "120/80"),
        ("14天", "两周", "2个星期", "14 days"),
        ("18个月", "一岁半", "1年半"),
        ("Ⅲ级", "三级", "III级", "grade 3"),
        ("每日3次", "一天三次", "3次/日", "tid", "每8小时1次"),
        ("72次/分", "每分钟72次", "72 bpm"),
        ("30%", "百分之三十"),
        ("1/3", "三分之一"),
        ("第5肋", "第五"),
        ("腰1", "L1", "第1腰椎", "腰1椎体"),
        ("12×10^9/L", "12×10⁹/L"),
        ("90g/L", "9g/dL"),
        ("37.5℃", "37.5摄氏度"),
        ("一对", "2个", "two"),
    ],
)
def test_same_quantity(texts: tuple[str, ...]) -> None:
    first, *others = map(only_quantity, texts)
    assert all(first.is_same(other) for other in others)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("3天", "3周"),
        ("30天", "1个月"),
        ("6岁", "6个月"),
        ("2级", "2期"),
        ("3度", "3级"),
        ("2cm", "1-2cm"),
        ("2cm", "小于2cm"),
        (">3cm", "<3cm"),
        ("120/80mmHg", "80/120mmHg"),
        ("3.5cm", "2.8/3.5cm"),
        ("II期", "I-II期"),
        ("每日3次", "每3日1次"),
        ("7mmol/L", "7mg/dL"),
        ("12×10^9/L", "12×10^12/L"),
        ("第3", "3个"),
        ("500mg", "500μg"),
    ],
)
def test_different_quantities(text: str, other: str) -> None:
    assert not only_quantity(text).is_same(only_quantity(other))


@pytest.mark.parametrize("text", ["十二指肠", "三尖瓣", "T2加权", "CA125", "一般", "一侧", "CD20", "9" * 200 + "mm"])
def test_no_quantity(text: str) -> None:
    assert find_quantities(normalize_text(text)) == ()


def test_a_denied_quantity_is_marked() -> None:
    assert only_quantity("不是12mm").negated
    assert only_quantity("12mm") == Quantity("length", ((Fraction(12), Fraction(12)),), 0, 4)
