"""Laterality: the sides that a text names, and conflicts between two texts."""

import pytest

from qilin.text.laterality import find_sides, sides_conflict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("左肺", {"left"}),
        ("右下叶", {"right"}),
        ("双侧胸腔", {"left", "right"}),
        ("两肺纹理", {"left", "right"}),
        ("左肺和右肺", {"left", "right"}),
        ("约3cm左右", set()),
        ("左右两侧", {"left", "right"}),
        ("bilateral", {"left", "right"}),
        ("the left lung", {"left"}),
        ("肝脏", set()),
    ],
)
def test_find_sides(text: str, expected: set[str]) -> None:
    assert find_sides(text) == expected


def test_sides_conflict() -> None:
    assert sides_conflict("左肺", "右肺")
    assert sides_conflict("双侧", "左侧")
    assert not sides_conflict("左肺", "肺")
    assert not sides_conflict("左肺右侧", "右侧左肺")
