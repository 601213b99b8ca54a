"""The small pieces of Chinese medical text, each as a table of examples."""

from fractions import Fraction
from importlib import resources

import pytest

from qilin.text.laterality import sides, sides_conflict
from qilin.text.negation import is_denied, negations
from qilin.text.normalize import _converter, chinese_share, has_chinese, narrow, narrow_letters, simplified
from qilin.text.numbers import Measure, counts_as_digits, measures, parse_count, parse_number, without_measures


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
def test_narrow(text: str, expected: str) -> None:
    assert narrow(text) == expected
    assert narrow(narrow(text)) == narrow(text)


def test_narrow_letters_keeps_chinese_punctuation() -> None:
    assert narrow_letters("ＣＴ，ＭＲＩ（平扫）") == "CT，MRI（平扫）"


def test_simplified() -> None:
    assert simplified("雙側胸腔積液，無氣胸") == "双侧胸腔积液，无气胸"
    assert simplified("MRI T2") == "MRI T2"
    assert simplified("明瞭，重覆") == "明了，重复"  # phrases of characters that stay when they are alone


def test_simplified_asks_opencc_wherever_it_would_change_something() -> None:
    tables = resources.files("opencc") / "dictionary"
    for name in ("TSCharacters.txt", "TSPhrases.txt"):
        for line in (tables / name).read_text(encoding="utf-8").splitlines():
            word = line.partition("\t")[0]
            assert simplified(f"见{word}。") == str(_converter().convert(f"见{word}。"))


def test_chinese_share() -> None:
    assert has_chinese("CT图")
    assert not has_chinese("CT ①")
    assert chinese_share("CT图像") == 0.5
    assert chinese_share(" ") == 0.0


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


def test_counts_as_digits() -> None:
    assert counts_as_digits("两个结节,十二枚,十二指肠,三尖瓣,一侧") == "2个结节,12枚,十二指肠,三尖瓣,一侧"


MM = "length"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12mm", [(MM, 12)]),
        ("1.2厘米", [(MM, 12)]),
        ("1.2 CM", [(MM, 12)]),
        ("约３×２cm", [(MM, 30), (MM, 20)]),
        ("3cm×20mm", [(MM, 30), (MM, 20)]),
        ("两厘米", [(MM, 20)]),
        ("5ml", [("volume", 5)]),
        ("5cm3", [("volume", 5)]),
        ("60%", [("share", 60)]),
        ("结节2个", []),
        ("T2加权", []),
        ("3 months", []),
    ],
)
def test_measures(text: str, expected: list[tuple[str, int]]) -> None:
    assert measures(text) == tuple(Measure(kind, Fraction(value)) for kind, value in expected)


def test_without_measures() -> None:
    assert without_measures("约12mm结节") == "约结节"


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
def test_sides(text: str, expected: set[str]) -> None:
    assert sides(text) == expected


def test_sides_conflict() -> None:
    assert sides_conflict("左肺", "右肺")
    assert sides_conflict("双侧", "左侧")
    assert not sides_conflict("左肺", "肺")
    assert not sides_conflict("左肺右侧", "右侧左肺")


@pytest.mark.parametrize(
    ("text", "word", "denied"),
    [
        ("未见结节", "结节", True),
        ("可见结节", "结节", False),
        ("见结节", "结节", False),
        ("未见明显结节及积液", "积液", True),
        ("未见骨折，可见积液", "积液", False),
        ("未见骨折但可见积液", "积液", False),
        ("未见气胸、积液或结节。", "结节", True),
        ("无明显异常", "异常", True),
        ("并非肺炎", "肺炎", True),
        ("不是肺炎而是肺结核", "肺结核", False),
        ("不是肺炎而是肺结核", "肺炎", True),
        ("肺不张", "肺不张", False),
        ("右肺肺不张，无积液", "肺不张", False),
        ("右肺肺不张，无积液", "积液", True),
        ("形态不规则结节", "结节", False),
        ("不能排除结节", "结节", False),
        ("已排除气胸", "气胸", True),
        ("气胸已排除", "气胸", True),
        ("积液不存在", "积液", True),
        ("气胸（-）", "气胸", False),  # the mark is read after `narrow`
        ("气胸(-)", "气胸", True),
        ("并非没有积液", "积液", False),
        ("非增强型脑肿瘤", "脑肿瘤", False),
        ("没有证据表明存在肿块", "肿块", True),
        ("右肺有结节，左肺没有", "结节", False),
        ("no pleural effusion", "effusion", True),
        ("a nodule in the lung", "nodule", False),
    ],
)
def test_denied(text: str, word: str, denied: bool) -> None:
    start = text.index(word)
    assert is_denied(text, start, start + len(word)) is denied


def test_negations_counts_cues_only() -> None:
    assert negations("未见异常") == 1
    assert negations("形态不规则,非常大") == 0
    assert negations("并非没有") == 2
