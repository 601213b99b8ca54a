"""Questions made from texts: sound ones pass, each planted fault is named, and guessers gain nothing of what stays."""

import random
from dataclasses import replace
from fractions import Fraction

import pytest

from qilin.pipeline.questions.checks import Question, check_question, read_question, sentences_with, tells
from qilin.pipeline.questions.text_only_filter import Guesses, alike, counted, reading, surplus

TEXT = "胸部CT显示右肺上叶有一个约12 mm的结节，边缘毛糙。双侧未见胸腔积液，心脏增大。左肺可见2处钙化。"
NODULE = Question("open", "肺上叶的结节位于哪一侧？", "右侧", "右肺上叶有一个约12mm的结节")
ORGANS = ("心脏", "肝脏", "脾脏", "胰腺")
SOUND = [
    NODULE,
    Question("open", "肺结节的直径约为多少？", "12毫米", "右肺上叶有一个约12 mm的结节"),
    Question("open", "图像采用了哪种成像方式？", "CT", "胸部CT显示右肺上叶"),
    Question("open", "钙化有几处？", "两处", "左肺可见2处钙化"),
    Question("yes_no", "图中是否有胸腔积液？", "否", "双侧未见胸腔积液"),
    Question("yes_no", "左肺是否有钙化？", "是", "左肺可见2处钙化"),
    Question("yes_no", "右肺有钙化吗？", "否", "左肺可见2处钙化"),
    Question("yes_no", "这是MRI图像吗？", "否", "胸部CT显示右肺上叶"),
    Question("choice", "哪个器官增大？", "心脏", "心脏增大", ORGANS),
]


@pytest.mark.parametrize("asked", SOUND, ids=lambda asked: asked.question)
def test_sound_questions_pass(asked: Question) -> None:
    assert check_question(TEXT, asked) == {}


FAULTY = [
    (replace(NODULE, evidence="左肺上叶可见肿块"), "evidence"),
    (replace(NODULE, evidence="肺"), "evidence"),
    (replace(NODULE, answer="左侧"), "laterality"),
    (replace(NODULE, question="右肺的结节边缘如何？", answer="边缘毛糙，左侧"), "laterality"),
    (replace(NODULE, question="肺结节的直径约为多少？", answer="12厘米"), "numbers"),
    (replace(NODULE, question="肺结节的直径约为多少？", answer="15毫米"), "numbers"),
    (replace(NODULE, question="结节的边缘如何？", answer="光滑锐利"), "words"),
    (replace(NODULE, question="右肺的结节位于哪一侧？", answer="右肺"), "gives away"),
    (replace(NODULE, question="难道结节不在右肺？"), "gives away"),
    (replace(NODULE, question="图注中的结节位于哪一侧？"), "refers"),
    (replace(NODULE, question="根据上述描述，结节位于哪一侧？"), "refers"),
    (replace(NODULE, question="患者的年龄是多少？", answer="右侧"), "unseen"),
    (replace(NODULE, question="与上次相比结节有何变化？"), "unseen"),
    (replace(NODULE, question="Where is the nodule?"), "language"),
    (replace(NODULE, question="この画像の結節はどこにありますか？"), "language"),
    (replace(NODULE, answer="抱歉，我无法回答"), "language"),
    (replace(NODULE, question="结节在右肺吗？"), "form"),
    (replace(NODULE, question="结节？"), "form"),
    (Question("yes_no", "图中是否有胸腔积液？", "是", "胸腔积液"), "negation"),  # the quotation leaves 未见 out
    (Question("yes_no", "左肺是否有钙化？", "否", "左肺可见2处钙化"), "negation"),
    (Question("yes_no", "右肺有钙化吗？", "是", "左肺可见2处钙化"), "laterality"),
    (Question("yes_no", "图中有骨折吗？", "否", "心脏增大"), "negation"),
    (Question("yes_no", "哪个器官增大？", "是", "心脏增大"), "form"),
    (Question("yes_no", "心脏增大吗？", "增大", "心脏增大"), "form"),
    (Question("open", "胸腔有什么异常？", "胸腔积液", "双侧未见胸腔积液"), "negation"),
    (Question("choice", "哪个器官增大？", "心脏", "心脏增大", ("肝脏", "脾脏", "胰腺")), "options"),
    (Question("choice", "哪个器官增大？", "心脏", "心脏增大", ("心脏", "心脏", "胰腺")), "options"),
    (Question("choice", "哪个器官增大？", "心脏", "心脏增大", ("心脏", "胰腺")), "options"),
    (Question("choice", "图中可见什么？", "结节", "右肺上叶有一个约12 mm的结节", ("结节", "毛糙", "骨折")), "options"),
    (Question("choice", "图中可见什么？", "右肺上叶的结节", "右肺上叶有一个约12 mm的结节，边缘毛糙",
              ("右肺上叶的结节", "骨折", "气胸")), "options"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "check"), FAULTY)
def test_faults_are_seen(asked: Question, check: str) -> None:
    assert check in check_question(TEXT, asked)


def test_a_quotation_stands_for_its_whole_sentences() -> None:
    assert sentences_with(TEXT, "胸腔积液，心脏") == "双侧未见胸腔积液，心脏增大。"
    assert sentences_with(TEXT, "边缘毛糙。双侧") == TEXT.partition("左肺")[0]
    assert sentences_with(TEXT, "１２ＭＭ的结节") is not None  # width and spaces do not count
    assert sentences_with(TEXT, "12.5") is None
    assert sentences_with("3.5 cm", "35") is None


def test_what_a_text_tells() -> None:
    assert tells("未见骨折。", "有骨折吗？") is False
    assert tells("可见骨折。", "有骨折吗？") is True
    assert tells("可见骨折。", "没有骨折吗？") is False
    assert tells("左肺气胸，右肺未见气胸。", "有气胸吗？") is None
    assert tells("主要器官为肝脏。", "肝脏是健康的吗？") is None
    assert tells("肝脏未见异常。", "肝脏是健康的吗？") is True
    assert tells("这是一张核磁共振图像。", "这是T1加权的核磁共振图像吗？") is None


def test_rows_of_a_service_are_read_or_named() -> None:
    row = {"type": "choice", "question": "哪個器官增大？", "answer": "B", "evidence": "心臟增大", "about": "organ",
           "options": ["A. 肝脏", "B. 心脏。", "C、脾脏"]}  # fmt: skip
    read = read_question(row)
    assert read == Question("choice", "哪个器官增大？", "心脏", "心脏增大", ("肝脏", "心脏", "脾脏"), "Organ")
    assert read_question("结节") == "it is no object"
    assert read_question(row | {"answer": 3}) == "answer is missing or no text"
    assert read_question(row | {"options": "A"}) == "options are no list of texts"
    assert "expected open" in str(read_question(row | {"type": "essay"}))


def test_guesses_are_read() -> None:
    asked = Question("yes_no", "有骨折吗？", "否", "")
    assert [reading(asked, said) for said in ("否。", "没有骨折", "“是”", "答案：是", "也许")] == [
        "否",
        "否",
        "是",
        "是",
        "",
    ]
    choice = Question("choice", "哪个？", "心脏", "", ORGANS)
    assert [reading(choice, said) for said in ("A", "答案是B", "C. 脾脏", "心脏", "H", "CT")] == [
        "心脏", "肝脏", "脾脏", "心脏", "", "",
    ]  # fmt: skip
    assert counted(choice, ["A", "A", "B"]) == Guesses(2, 3, "心脏")
    same = [("右肺", "右肺。"), ("CT扫描", "CT"), ("2个", "两个"), ("右上肺结节", "右上肺")]
    other = [("左肺", "右肺"), ("3个", "2个"), ("未见结节", "结节"), ("", "CT"), ("肺部右上方可见一个结节", "肺")]
    assert [alike(*pair) for pair in same + other] == [True] * 4 + [False] * 5


def test_what_stays_gives_a_guesser_nothing() -> None:
    rng = random.Random(0)
    asked, guesses = [], []
    for _ in range(400):  # a world in which 是 is commoner, and a guesser that knows it and more
        answer = rng.choice("是是是否")
        right = rng.random() < 0.8
        said = answer if right else {"是": "否", "否": "是"}[answer]
        asked.append(Question("yes_no", "?", answer, ""))
        guesses.append(Guesses(3 if right else 0, 3, said))
    for _ in range(200):
        right = rng.random() < 0.6
        asked.append(Question("choice", "?", "心脏", "", ORGANS))
        guesses.append(Guesses(3 if right else 1, 3, "心脏" if right else "肝脏"))
    for n in range(300):
        asked.append(Question("open", "?", "右肺", ""))
        guesses.append(Guesses(n % 4, 3))
    keys = [str(n) for n in range(len(asked))]
    mix = {"open": 3, "choice": 1, "yes_no": 2}
    gone = surplus(keys, asked, guesses, mix, seed=0)
    stay = [n for n in range(len(asked)) if n not in gone]

    def share(kind: str, right: bool) -> Fraction:
        of_kind = [n for n in stay if asked[n].kind == kind]
        fits = [guesses[n].leaning == asked[n].answer if right else asked[n].answer == "是" for n in of_kind]
        return Fraction(sum(fits), len(of_kind))

    assert share("yes_no", right=False) == share("yes_no", right=True) == Fraction(1, 2)
    assert Fraction(24, 100) < share("choice", right=True) <= Fraction(1, 4)
    assert not any(guesses[n].hit() for n in stay if asked[n].kind == "open")
    opened = sum(asked[n].kind == "open" for n in stay)
    assert abs(2 * opened - len(stay)) <= 2
    assert gone == surplus(keys, asked, guesses, mix, seed=0)
    assert gone != surplus(keys, asked, guesses, mix, seed=1)
    # control: without the balance the guesser is right in most
    every = [n for n in range(400) if guesses[n].leaning == asked[n].answer]
    assert len(every) > 300
