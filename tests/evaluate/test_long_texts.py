"""No answer, however long or odd, breaks the scorer or takes more than linear time."""

import time

import pytest

from qilin.evaluate.results import Prediction, Verdict
from qilin.evaluate.scoring import answers
from qilin.evaluate.scoring.answers import exact_match, judge_answer
from qilin.evaluate.scoring.multiple_choice import selected_options
from qilin.evaluate.scoring.text_metrics import token_f1
from qilin.text.normalize import MAX_ANSWER_CHARACTERS, normalize_answer
from qilin.text.numbers import find_measurements, parse_number
from qilin.text.polarity import polarity
from qilin.text.yes_no import word_polarity

REFERENCES = {
    "有结节吗?": "没有",
    "多大?": "3cm",
    "几个?": "2",
    "肝比脾大吗?": "是",
    "图中有什么?": "左肺,右肺",
    "正常吗?": "正常",
}


@pytest.mark.parametrize(
    "unit",
    [
        "no ",
        "不是",
        "是,",
        "2x3x",
        "1",
        "千",
        "。",
        "比大",
        "a,",
        "A  ",
        "((",
        "答案是:",
        "**",
        "可能",
        "未见结节",
        "肝癌",
        "左肺和",
        "、",
        "1个",
        "百分之",
        "没有一",
        "而是",
        "肝比脾",
        "(a)",
        "选  ",
        " ",
    ],
)
def test_the_longest_answer_that_rules_read_takes_less_than_a_second(unit: str) -> None:
    answer = (unit * MAX_ANSWER_CHARACTERS)[: MAX_ANSWER_CHARACTERS - 2] + "x!"
    start = time.process_time()
    for question, reference in REFERENCES.items():
        judge_answer(question, reference, answer)
        judge_answer(question, answer, answer[1:])
    judge_answer("哪个?", "B", answer, "choice", ("甲", "乙"))
    assert time.process_time() - start < 5  # 0.3 s here; a quadratic rule took 7 to 47 s for each


def test_longer_answers_are_unparsable_unless_equal() -> None:
    long_answer = "".join(f"第{number}层没有," for number in range(MAX_ANSWER_CHARACTERS // 5))
    assert judge_answer("有结节吗?", "没有", long_answer) == Verdict(None, "too long")
    assert judge_answer("有结节吗?", long_answer, long_answer + "。") == Verdict(True, "equal")
    assert judge_answer("有结节吗?", "没有", "没有," * MAX_ANSWER_CHARACTERS).correct is True  # a loop counts once


@pytest.mark.long
def test_very_long_texts_are_linear() -> None:
    start = time.process_time()
    for unit in ("。", "雙肺", "**", "1"):
        text = unit * 200_000 + "x"
        exact_match(text, "x")
        token_f1(text, text[1:])
    assert time.process_time() - start < 20  # 3 s here


@pytest.mark.parametrize("count", [1, 2, 3, 20, 1400])
def test_repeated_words_answer_as_one(count: int) -> None:
    assert polarity("no " * count + "no", "is there a nodule") is False
    assert polarity("yes, " * count + "yes") is True
    assert polarity("否," * count + "没有结节", "有结节吗") is False
    assert word_polarity("不是" * (2 * (count % 9)) + "对") is True
    assert word_polarity("不是" * (2 * (count % 9) + 1) + "对") is False


def test_numbers_that_python_does_not_convert() -> None:
    for digits in (101, 309, 4300, 4301, 30_000):
        assert parse_number("9" * digits) is None
        assert find_measurements("9" * digits + "mm") == ()
        assert judge_answer("几个?", "2", "9" * digits).correct is None
        assert judge_answer("多大?", "3mm", "9" * digits + "mm").correct is not True
    assert parse_number("9" * 100) == 10**100 - 1
    assert parse_number("一十千千") is None  # cn2an itself fails at it with a KeyError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("3×2cm", [30, 20]),
        ("3x2x1.5 cm", [30, 20, 15]),
        ("12.3.4mm", [3.4]),
        ("三千克", [3000]),
        ("2cm23×2cm", [200, 30, 20]),
    ],
)
def test_measurements_keep_their_values(text: str, values: list[float]) -> None:
    assert [float(m.value) for m in find_measurements(text)] == values


def test_letters_with_spaces_do_not_take_exponential_time() -> None:
    assert selected_options("A  B  C  D  " * 30 + "!x", "abcdefgh") is None
    assert selected_options("A 、 C", ("甲", "乙", "丙")) == {0, 2}


def test_long_lists_are_compared_as_sets() -> None:
    items = [f"第{n}项" for n in range(150)]
    assert judge_answer("有什么?", ",".join(items), ",".join(reversed(items))).correct is True
    assert judge_answer("有什么?", ",".join(items), ",".join(reversed(items[1:]))).correct is not True


def test_a_fault_of_a_rule_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(q: str, r: str, p: str) -> Verdict:
        raise RecursionError

    monkeypatch.setattr(answers, "_by_yes_no", fail)
    assert judge_answer("这里有什么奇怪的?", "一匹马", "一头牛") == answers.RULE_FAILED


def test_frames_around_an_answer_are_removed_at_any_depth() -> None:
    assert normalize_answer("答案是:" * 900 + "左肺") == "左肺"
    assert Prediction("1", "q", "r", "x" * 10**5).to_row()["prediction"] == "x" * 10**5  # rows are kept as they are
