"""Question checks: correct questions pass, each planted fault fails its check."""

from dataclasses import replace

import pytest

from qilin.pipeline.questions.checks import Question, check_question, evidence_sentences, implied_answer, read_question

TEXT = "胸部CT显示右肺上叶有一个约12 mm的结节，边缘毛糙。双侧未见胸腔积液，心脏增大。左肺可见2处钙化。"
NODULE = Question("open", "肺上叶的结节位于哪一侧？", "右侧", "右肺上叶有一个约12mm的结节")
ORGANS = ("心脏", "肝脏", "脾脏", "胰腺")
CORRECT = [
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


@pytest.mark.parametrize("question", CORRECT, ids=lambda question: question.question)
def test_correct_questions_pass(question: Question) -> None:
    assert check_question(TEXT, question) == {}


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
    (Question("yes_no", "图中是否有胸腔积液？", "是", "胸腔积液"), "negation"),  # the quotation omits 未见
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


@pytest.mark.parametrize(("question", "check"), FAULTY)
def test_faults_fail_their_check(question: Question, check: str) -> None:
    assert check in check_question(TEXT, question)


def test_evidence_is_extended_to_full_sentences() -> None:
    assert evidence_sentences(TEXT, "胸腔积液，心脏") == "双侧未见胸腔积液，心脏增大。"
    assert evidence_sentences(TEXT, "边缘毛糙。双侧") == TEXT.partition("左肺")[0]
    assert evidence_sentences(TEXT, "１２ＭＭ的结节") is not None  # width and spaces are ignored
    assert evidence_sentences(TEXT, "12.5") is None
    assert evidence_sentences("3.5 cm", "35") is None


def test_implied_answers() -> None:
    assert implied_answer("未见骨折。", "有骨折吗？") is False
    assert implied_answer("可见骨折。", "有骨折吗？") is True
    assert implied_answer("可见骨折。", "没有骨折吗？") is False
    assert implied_answer("左肺气胸，右肺未见气胸。", "有气胸吗？") is None
    assert implied_answer("主要器官为肝脏。", "肝脏是健康的吗？") is None
    assert implied_answer("肝脏未见异常。", "肝脏是健康的吗？") is True
    assert implied_answer("这是一张核磁共振图像。", "这是T1加权的核磁共振图像吗？") is None


def test_rows_of_a_reply_are_read_or_rejected() -> None:
    row = {"type": "choice", "question": "哪個器官增大？", "answer": "B", "evidence": "心臟增大", "about": "organ",
           "options": ["A. 肝脏", "B. 心脏。", "C、脾脏"]}  # fmt: skip
    read = read_question(row)
    assert read == Question("choice", "哪个器官增大？", "心脏", "心脏增大", ("肝脏", "心脏", "脾脏"), "Organ")
    assert read_question("结节") == "not an object"
    assert read_question(row | {"answer": 3}) == "answer is missing or not a text"
    assert read_question(row | {"options": "A"}) == "options is not a list of texts"
    assert "expected open" in str(read_question(row | {"type": "essay"}))
