"""The answer scorer: the table of pairs in answer_pairs.jsonl, which is also documentation, and general properties."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qilin.evaluate.scoring.answers import exact_match, judge_answer
from qilin.evaluate.scoring.final_answer import NO_ANSWER_RULES
from qilin.evaluate.scoring.multiple_choice import choices_in, selected_options
from qilin.text.normalize import normalize_answer, split_list_items
from qilin.text.polarity import polarity
from qilin.text.yes_no import is_yes_no_question

PAIRS = [
    json.loads(line)
    for line in (Path(__file__).parent / "answer_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    if line.strip()
]


RULE_FILES = ("answers", "answer_clause", "measures", "which_of")


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p['reference']}|{p['prediction']}"[:60])
def test_verdict_of_pair(pair: dict[str, Any]) -> None:
    verdict = judge_answer(
        pair["question"], pair["reference"], pair["prediction"], pair.get("answer_type"), pair.get("choices")
    )
    assert verdict.correct is pair["correct"], f"{pair['why']}; rule {verdict.rule}"


def test_table_covers_all_verdicts_without_duplicates() -> None:
    verdicts = [pair["correct"] for pair in PAIRS]
    assert len(PAIRS) >= 300
    assert verdicts.count(True) >= 100
    assert verdicts.count(False) >= 100
    assert verdicts.count(None) >= 15
    reasons = [pair["why"] for pair in PAIRS]
    assert all(reasons)
    assert len(set(reasons)) > 200  # written for the pair, not generated
    assert sum("reader" in pair for pair in PAIRS) == 2  # known limits: a human reader decides otherwise
    assert all(pair["reader"] is not pair["correct"] and "limit" in pair["why"] for pair in PAIRS if "reader" in pair)
    keys = [(p["question"], p["reference"], p["prediction"], tuple(p.get("choices") or ())) for p in PAIRS]
    assert len(set(keys)) == len(keys)


def test_every_rule_has_pairs_and_is_documented() -> None:
    folder = Path(inspect.getfile(judge_answer)).parent
    source = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in RULE_FILES)
    rules = {name for call in re.findall(r"Verdict\((.*)\)", source) for name in re.findall(r'"([a-z/ ]+)"', call)}
    assert {"equal", "yes/no", "side", "which side", "one of its kind"} <= rules
    by_rule: dict[str, int] = {}
    for pair in PAIRS:
        verdict = judge_answer(
            pair["question"], pair["reference"], pair["prediction"], pair.get("answer_type"), pair.get("choices")
        )
        by_rule[verdict.rule] = by_rule.get(verdict.rule, 0) + 1
    rules |= set(NO_ANSWER_RULES)
    assert rules - {"failed"} == set(by_rule)  # fails for a rule without a pair; no pair makes a rule fail
    assert min(by_rule.values()) >= 2, by_rule
    docs = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [rule for rule in rules if f"`{rule}`" not in docs] == []
    count = re.search(r"holds more than (\d+)\s+pairs", docs)
    assert count is not None
    assert len(PAIRS) > int(count.group(1))


@pytest.mark.parametrize("page", ["docs/evaluation.md", "docs/zh/evaluation.md"])
def test_examples_in_the_documentation_are_pairs(page: str) -> None:
    pairs = {(pair["reference"], pair["prediction"]): pair for pair in PAIRS}
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z /`,、]+`) \| [^|`]+ \|([^|]*)\|([^|]*)\|$", text, re.M)
    assert len(rows) > 15
    for names, right, wrong in rows:
        for cell, expected in ((right, True), (wrong, False)):
            for reference, answer in re.findall(r"`([^`]+?) / ([^`]+)`", cell):
                pair = pairs[reference, answer]
                verdict = judge_answer(
                    pair["question"], reference, answer, pair.get("answer_type"), pair.get("choices")
                )
                assert (verdict.correct is True) is expected, (names, reference, answer)
                assert f"`{verdict.rule}`" in names or not expected, (names, reference, answer, verdict.rule)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("是。", "是"),
        ("ＣＴ ！", "ct"),
        ("答案是：左肺。", "左肺"),
        ("图中显示肝脏", "肝脏"),
        ("这是CT", "ct"),
        ("雙肺", "双肺"),
        ("左肺、右肺", "左肺,右肺"),
        ("10⁻³", "10⁻³"),
        ("①", "①"),
        ("“横断面”", "横断面"),
        ("T2 加权", "t2加权"),
        ("left  lung", "left lung"),
        ("是的", "是的"),
        ("", ""),
        ("。。", ""),
    ],
)
def test_normalize_answer(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


def test_exact_match_ignores_meaning() -> None:
    assert exact_match("ＣＴ。", "ct")
    assert not exact_match("X光", "X-Ray")
    assert not exact_match("是", "是的")


RANDOM_TEXTS = st.text(
    alphabet="左右双肺肝脏肾是的不没有无未见正常异常图中显示个两二三2１①CTMRI-x光BA,，、。？ 和与厘米cm.0", max_size=24
)


@settings(max_examples=300, deadline=None)
@given(RANDOM_TEXTS)
def test_normalize_answer_is_idempotent(text: str) -> None:
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=30),
    st.text(max_size=30),
    st.text(max_size=30),
    st.sampled_from(["open", "closed", "choice", None]),
)
def test_any_string_gets_a_verdict(question: str, reference: str, prediction: str, answer_type: str | None) -> None:
    verdict = judge_answer(question, reference, prediction, answer_type)
    assert verdict.correct in (True, False, None)
    assert verdict.rule


PHRASES = [
    "左侧", "右", "双侧", "胸腔积液", "气胸", "肺", "肾脏", "下叶", "是", "不", "未见", "没有", "正常", "异常",
    "吗", "多少", "个", "两", "2", "12mm", "cm", "A", "B", "选", "答案是", "，", "、", "和", "比", "大",
    "还是", "CT", "MRI", "x-ray", "T2", "良性", "图中显示", "无法判断", "(", "”", "left lung", "no ",
]  # fmt: skip
SENTENCES = st.lists(st.sampled_from(PHRASES), max_size=7).map("".join)


@settings(max_examples=300, deadline=None)
@given(SENTENCES, SENTENCES, SENTENCES)
def test_any_sentence_of_known_phrases_gets_a_verdict(question: str, reference: str, prediction: str) -> None:
    for answer_type, choices in ((None, None), ("closed", None), ("choice", ["左肺", "右肺", "气胸"])):
        verdict = judge_answer(question, reference, prediction, answer_type, choices)
        assert verdict.correct in (True, False, None)
    assert normalize_answer(normalize_answer(prediction)) == normalize_answer(prediction)


@settings(max_examples=200, deadline=None)
@given(RANDOM_TEXTS)
def test_an_answer_matches_itself(text: str) -> None:
    if normalize_answer(text):
        assert judge_answer("图中是什么?", text, text).correct is True


# Reference and prediction of a pair of plain answers may be swapped: equality of meaning is symmetric.
@pytest.mark.parametrize(
    "pair", [p for p in PAIRS if p.get("symmetric")], ids=lambda p: f"{p['reference']}|{p['prediction']}"
)
def test_symmetric_pair(pair: dict[str, Any]) -> None:
    assert judge_answer(pair["question"], pair["prediction"], pair["reference"]).correct is pair["correct"]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["左", "右", "双侧"]),
    st.sampled_from(["左", "右", "双侧"]),
    st.sampled_from(["肺", "肾脏", "颞叶", "胸腔积液", "下叶", "侧肾脏有结石"]),
    st.sampled_from(["病变在哪?", "图中有什么异常?", "哪一侧的肺异常,左侧还是右侧?"]),
)
def test_a_wrong_side_is_never_correct(side: str, other: str, finding: str, question: str) -> None:
    verdict = judge_answer(question, side + finding, other + finding)
    assert verdict.correct is (side == other)


@pytest.mark.parametrize(
    ("answer", "choices", "expected"),
    [
        ("B", 4, {1}),
        ("Ｂ", 4, {1}),
        ("(b)", 4, {1}),
        ("答案是B。", 4, {1}),
        ("根据MRI与CT，选B", 4, {1}),
        ("MRI", 4, None),
        ("CTA检查", 4, None),
        ("B超", 4, None),
        ("选乙", 4, {1}),
        ("A、C", 4, {0, 2}),
        ("不选A，选B", 4, {1}),
        ("E", 4, None),
        ("A lesion is seen", 4, None),
        ("A和B都对", 4, {0, 1}),
        ("A或B", 4, None),
    ],
)
def test_selected_letters(answer: str, choices: int, expected: set[int] | None) -> None:
    options = selected_options(answer, [f"选择{i}号" for i in range(choices)])
    assert options == (frozenset(expected) if expected else None)


def test_selected_texts() -> None:
    choices = ["肺炎", "气胸", "肺结节", "正常"]
    assert selected_options("考虑为气胸", choices) == {1}
    assert selected_options("不是肺炎，是气胸", choices) == {1}
    assert selected_options("肺炎或气胸", choices) is None
    assert selected_options("B. 气胸", ["A. 肺炎", "B. 气胸"]) == {1}


def test_choices_in_the_question() -> None:
    assert choices_in("病变是什么? A.肺炎 B.气胸 C.结节") == ("肺炎", "气胸", "结节")
    assert choices_in("这是B超吗?") == ()


@pytest.mark.parametrize(
    ("question", "yes_no"),
    [
        ("图片中包含肝脏吗?", True),
        ("这张图片看起来是否正常?", True),
        ("图中有没有器官可以被用于呼吸?", True),
        ("病变在左侧还是右侧?", False),
        ("图中最大的器官是什么?", False),
        ("Is there a nodule?", True),
        ("有几个肾脏?", False),
    ],
)
def test_is_yes_no_question(question: str, yes_no: bool) -> None:
    assert is_yes_no_question(normalize_answer(question)) is yes_no


def test_polarity_is_none_for_contradictory_or_vague_answers() -> None:
    assert polarity("是的,图中没有肝脏", "图片中包含肝脏吗") is None
    assert polarity("大概吧", "图片中包含肝脏吗") is None


def test_split_list_items() -> None:
    assert split_list_items("左肺和右肺,心脏") == ("左肺", "右肺", "心脏")
