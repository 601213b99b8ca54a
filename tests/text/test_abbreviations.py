"""Ambiguous abbreviations: every meaning is a term of the vocabulary, and only a whole answer is read as one."""

import pytest

from qilin.evaluate.scoring.answers import judge_answer
from qilin.text.abbreviations import MEANINGS, stands_for
from qilin.text.vocabulary import concepts


def test_meanings_are_preferred_terms_of_the_vocabulary() -> None:
    assert {name for names in MEANINGS.values() for name in names} <= set(concepts())
    assert all(key == key.lower() for key in MEANINGS)


@pytest.mark.parametrize(
    ("reference", "answer", "correct"),
    [
        ("皮肌炎", "DM", True),
        ("糖尿病", "DM", True),
        ("痛风", "DM", False),
        ("DM", "糖尿病", True),
        ("胸腔积液", "PE", True),
        ("气胸", "PE", False),
        ("骨关节炎", "OA。", True),
    ],
)
def test_a_whole_answer(reference: str, answer: str, correct: bool) -> None:
    assert judge_answer("最可能的诊断？", reference, answer).correct is correct


def test_words_with_the_letters_are_no_abbreviations() -> None:
    assert not stands_for("peach", "肺栓塞")
    assert not stands_for("mm", "12mm")
