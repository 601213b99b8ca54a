"""Guesses without the image: parsing, scoring, and that accepted questions give a guesser no advantage."""

import random
from fractions import Fraction

from qilin.pipeline.questions.checks import Question
from qilin.pipeline.questions.text_only_filter import (
    Guesses,
    is_same_answer,
    parse_guess,
    rejections_for_balance,
    score_guesses,
)

ORGANS = ("心脏", "肝脏", "脾脏", "胰腺")


def test_guesses_are_parsed() -> None:
    question = Question("yes_no", "有骨折吗？", "否", "")
    assert [parse_guess(question, reply) for reply in ("否。", "没有骨折", "“是”", "答案：是", "也许")] == [
        "否",
        "否",
        "是",
        "是",
        "",
    ]
    choice = Question("choice", "哪个？", "心脏", "", ORGANS)
    assert [parse_guess(choice, reply) for reply in ("A", "答案是B", "C. 脾脏", "心脏", "H", "CT")] == [
        "心脏", "肝脏", "脾脏", "心脏", "", "",
    ]  # fmt: skip
    assert score_guesses(choice, ["A", "A", "B"]) == Guesses(2, 3, "心脏")
    same = [("右肺", "右肺。"), ("CT扫描", "CT"), ("2个", "两个"), ("右上肺结节", "右上肺")]
    other = [("左肺", "右肺"), ("3个", "2个"), ("未见结节", "结节"), ("", "CT"), ("肺部右上方可见一个结节", "肺")]
    assert [is_same_answer(*pair) for pair in same + other] == [True] * 4 + [False] * 5


def test_accepted_questions_give_a_guesser_no_advantage() -> None:
    rng = random.Random(0)
    questions, guesses = [], []
    for _ in range(400):  # 是 is more frequent, and the guesser is right in 80 %
        answer = rng.choice("是是是否")
        right = rng.random() < 0.8
        guess = answer if right else {"是": "否", "否": "是"}[answer]
        questions.append(Question("yes_no", "?", answer, ""))
        guesses.append(Guesses(3 if right else 0, 3, guess))
    for _ in range(200):
        right = rng.random() < 0.6
        questions.append(Question("choice", "?", "心脏", "", ORGANS))
        guesses.append(Guesses(3 if right else 1, 3, "心脏" if right else "肝脏"))
    for n in range(300):
        questions.append(Question("open", "?", "右肺", ""))
        guesses.append(Guesses(n % 4, 3))
    keys = [str(n) for n in range(len(questions))]
    mix = {"open": 3, "choice": 1, "yes_no": 2}
    rejected = rejections_for_balance(keys, questions, guesses, mix, seed=0)
    accepted = [n for n in range(len(questions)) if n not in rejected]

    def share(kind: str, right: bool) -> Fraction:
        of_kind = [n for n in accepted if questions[n].kind == kind]
        fits = [
            guesses[n].majority_answer == questions[n].answer if right else questions[n].answer == "是" for n in of_kind
        ]
        return Fraction(sum(fits), len(of_kind))

    assert share("yes_no", right=False) == share("yes_no", right=True) == Fraction(1, 2)
    assert Fraction(24, 100) < share("choice", right=True) <= Fraction(1, 4)
    assert not any(guesses[n].mostly_correct for n in accepted if questions[n].kind == "open")
    open_count = sum(questions[n].kind == "open" for n in accepted)
    assert abs(2 * open_count - len(accepted)) <= 2
    assert rejected == rejections_for_balance(keys, questions, guesses, mix, seed=0)
    assert rejected != rejections_for_balance(keys, questions, guesses, mix, seed=1)
    # control: without balancing, the guesser is mostly right
    guessed = [n for n in range(400) if guesses[n].majority_answer == questions[n].answer]
    assert len(guessed) > 300
