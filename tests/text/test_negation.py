"""Negation: cues, their scope and words that only look like cues."""

import pytest

from qilin.text.negation import count_negations, is_negated


@pytest.mark.parametrize(
    ("text", "word", "negated"),
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
        ("气胸（-）", "气胸", False),  # (-) is a cue only in half-width form
        ("气胸(-)", "气胸", True),
        ("并非没有积液", "积液", False),
        ("非增强型脑肿瘤", "脑肿瘤", False),
        ("没有证据表明存在肿块", "肿块", True),
        ("右肺有结节，左肺没有", "结节", False),
        ("no pleural effusion", "effusion", True),
        ("a nodule in the lung", "nodule", False),
        ("肾脏不在图像范围内", "肾脏", True),
        ("胆囊已切除", "胆囊", True),
        ("可行手术切除", "手术", False),
        ("骨折的可能性很小", "骨折", True),
        ("骨折可能性大", "骨折", False),
        ("肺炎依据不足", "肺炎", True),
        ("强化不明显", "强化", True),
        ("没有一个椎体不受累", "受累", False),
        ("不能说没有囊肿", "囊肿", False),
        ("没有任何囊肿、没有积液", "囊肿", True),  # a list, no double negation
        ("非增殖期视网膜病变", "视网膜病变", False),
        ("the fracture has been ruled out", "fracture", True),
    ],
)
def test_is_negated(text: str, word: str, negated: bool) -> None:
    start = text.index(word)
    assert is_negated(text, start, start + len(word)) is negated


def test_count_negations_ignores_false_cues() -> None:
    assert count_negations("未见异常") == 1
    assert count_negations("形态不规则,非常大") == 0
    assert count_negations("并非没有") == 2
