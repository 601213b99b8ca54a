"""Normalization of Chinese medical text: width, script, share of Chinese."""

from importlib import resources

import pytest

from qilin.text.normalize import (
    _converter,
    chinese_share,
    has_chinese,
    to_halfwidth,
    to_halfwidth_letters,
    to_simplified,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ｔ２加权，ＣＴ。", "T2加权,CT。"),
        ("１．５％～２％", "1.5%~2%"),
        ("10⁻³", "10⁻³"),
        ("①②", "①②"),
        ("½", "½"),
        ("左肺、右肺；（增强）", "左肺、右肺;(增强)"),
        ("a\u3000b\u00a0c\u200b", "a b c"),
    ],
)
def test_to_halfwidth(text: str, expected: str) -> None:
    assert to_halfwidth(text) == expected
    assert to_halfwidth(to_halfwidth(text)) == to_halfwidth(text)


def test_to_halfwidth_letters_keeps_chinese_punctuation() -> None:
    assert to_halfwidth_letters("ＣＴ，ＭＲＩ（平扫）") == "CT，MRI（平扫）"


def test_to_simplified() -> None:
    assert to_simplified("雙側胸腔積液，無氣胸") == "双侧胸腔积液，无气胸"
    assert to_simplified("MRI T2") == "MRI T2"
    assert to_simplified("明瞭，重覆") == "明了，重复"  # phrases whose characters stay when alone


def test_to_simplified_equals_opencc_for_every_convertible_character() -> None:
    tables = resources.files("opencc") / "dictionary"
    for name in ("TSCharacters.txt", "TSPhrases.txt"):
        for line in (tables / name).read_text(encoding="utf-8").splitlines():
            word = line.partition("\t")[0]
            assert to_simplified(f"见{word}。") == str(_converter().convert(f"见{word}。"))


def test_chinese_share() -> None:
    assert has_chinese("CT图")
    assert not has_chinese("CT ①")
    assert chinese_share("CT图像") == 0.5
    assert chinese_share(" ") == 0.0
