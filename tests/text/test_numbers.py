"""Numbers, counts and measurements in Chinese medical text."""

from fractions import Fraction

import pytest

from qilin.text.numbers import (
    Measurement,
    counts_to_digits,
    find_measurements,
    parse_count,
    parse_number,
    remove_measurements,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", 2),
        ("２", 2),
        ("两", 2),
        ("二", 2),
        ("俩", 2),
        ("十二", 12),
        ("一百零五", 105),
        ("零", 0),
        ("〇", 0),
        ("半", Fraction(1, 2)),
        ("1/2", Fraction(1, 2)),
        ("2.50", Fraction(5, 2)),
        ("一点五", Fraction(3, 2)),
        ("1,024", 1024),
        ("-3", -3),
        ("two", 2),
        ("Two", 2),
        ("两个", None),
        ("十二指肠", None),
        ("T2", None),
        ("", None),
        ("十百", None),
        ("1/0", None),
        ("10⁻³", None),
    ],
)
def test_parse_number(text: str, expected: Fraction | int | None) -> None:
    assert parse_number(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("两个", (2, "")),
        ("2个", (2, "")),
        ("共3枚结节", (3, "结节")),
        ("有两个肾脏", (2, "肾脏")),
        ("两只", (2, "")),
        ("一个心脏", (1, "心脏")),
        ("2", (2, "")),
        ("十二指肠", None),
        ("一些", None),
        ("肺", None),
        ("2.5.1", None),
        ("2-3", None),
    ],
)
def test_parse_count(text: str, expected: tuple[int, str] | None) -> None:
    assert parse_count(text) == expected


def test_counts_to_digits() -> None:
    text = "两个结节,十二枚,十二指肠,三尖瓣,一侧,两侧胸腔,左右两侧"
    assert counts_to_digits(text) == "2个结节,12枚,十二指肠,三尖瓣,一侧,两侧胸腔,左右两侧"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12mm", [("length", 12)]),
        ("1.2厘米", [("length", 12)]),
        ("1.2 CM", [("length", 12)]),
        ("约３×２cm", [("length", 30), ("length", 20)]),
        ("3cm×20mm", [("length", 30), ("length", 20)]),
        ("两厘米", [("length", 20)]),
        ("5ml", [("volume", 5)]),
        ("5cm3", [("volume", 5)]),
        ("60%", [("share", 60)]),
        ("结节2个", []),
        ("T2加权", []),
        ("3 months", []),
    ],
)
def test_find_measurements(text: str, expected: list[tuple[str, int]]) -> None:
    assert find_measurements(text) == tuple(Measurement(quantity, Fraction(value)) for quantity, value in expected)


def test_remove_measurements() -> None:
    assert remove_measurements("约12mm结节") == "约结节"
