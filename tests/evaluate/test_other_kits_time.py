"""Other kits' rules read long answers in linear time, and what their regular expressions read."""

import random
import re
import time

import pytest

from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.other_scorers import KITS, _strip_marks, _tagged_text, cmmmu_numbers


@pytest.mark.parametrize(
    "unit", ["(", "（", "<answer>", "1", "1.1e", "-", "ANSWER: ", "\\boxed{", "（)", "是", "。", "A"]
)
def test_other_kits_take_linear_time(unit: str) -> None:
    answer = unit * (60_000 // len(unit))
    start = time.process_time()
    for kit in KITS.values():
        for choices in ((), ("甲", "乙")):
            kit.score(Prediction("1", "q", "对", answer, choices=choices))
            kit.score(Prediction("1", "q", "x", answer, choices=choices))
    assert time.process_time() - start < 2


def test_other_kits_texts_are_those_of_their_regular_expressions() -> None:
    draw = random.Random(0)
    alphabet = [
        "(",
        ")",
        "（",
        "）",
        "<answer>",
        "</answer>",
        "1",
        "23",
        ".",
        "e",
        "E",
        "-",
        "+",
        "，",
        "234",
        "x",
        " ",
    ]
    for _ in range(3000):
        text = "".join(draw.choices(alphabet, k=draw.randint(0, 14)))
        bracketless = re.sub(r"（[^）]*）", " ", re.sub(r"\([^)]*\)", " ", text.strip().lower()))
        assert _strip_marks(text, "") == _strip_marks(bracketless, "")
        tagged = " ".join(re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL)).strip() or text
        assert _tagged_text(text) == tagged
        numbers = re.findall(r"-?\d{1,3}(?:，\d{3})+", text) + re.findall(r"-?\d+(?:\.\d+)?[eE][+-]?\d+", text)
        plain = re.findall(r"-?(?:\d+\.\d+|\.\d+|\d+)(?![eE][+-]?\d+)(?!，\d)", text)
        assert cmmmu_numbers(text) == numbers + plain
