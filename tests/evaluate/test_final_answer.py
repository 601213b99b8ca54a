"""The final answer of a chat model's reply: what each step removes, what it must keep, and everyday frames."""

import re
import time
from pathlib import Path

import pytest

from builders.chat_replies import framed_rows, is_development, pair_rows
from qilin.evaluate.scoring.answers import judge_answer
from qilin.evaluate.scoring.final_answer import MAX_REPLY_CHARACTERS, FinalAnswer, extract_final_answer

ROOT = Path(__file__).parents[2]
QUESTION = "肾脏有什么病变？"


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        # reasoning
        ("<think>像结石</think>囊肿", "囊肿"),
        ("<think>像结石</think>\n<think>再想想</think>囊肿", "囊肿"),
        ("囊肿<think>检查一遍</think>", "囊肿"),
        ("## Thinking\n像结石\n## Final Response\n囊肿", "囊肿"),
        # turns and tokens
        ("<|im_start|>assistant\n囊肿<|im_end|>\n<|im_start|>user\n结石？", "囊肿"),
        ("USER: 肾脏有什么病变？ ASSISTANT: 囊肿</s>", "囊肿"),
        ("囊肿\n### Human: 结石呢？", "囊肿"),
        # formats
        ('{"思考": "结石？", "答案": "囊肿"}', "囊肿"),
        ('{"a": {"b": [{"final_answer": ["囊肿", "结石"]}]}}', "囊肿、结石"),
        ('{"answer": null}', ""),
        ('{"confidence": 0.9} 囊肿', '{"confidence": 0.9} 囊肿'),
        (r"$$\boxed{\text{囊肿}}$$", "囊肿"),
        (r"\boxed{囊肿}, \boxed{结石}", "囊肿、结石"),
        (r"\boxed{x^2} is not needed. Answer: 囊肿", "囊肿"),
        ("| 所见 | 答案 |\n| --- | --- |\n| 低密度 | 囊肿 |", "囊肿"),
        ("> **囊肿**", "囊肿"),
        # declarations
        ("答案：结石。再看一遍，答案：囊肿", "囊肿"),
        ("答案：是的", "是的"),
        ("The answer is cyst. Note that stones are common.", "cyst"),
        ("答案不是结石", "答案不是结石"),
        ("囊肿\n\n解析：结石为高密度。", "囊肿"),
        ("密度低，无强化。综上所述，考虑囊肿。", "考虑囊肿。"),
        # the question, courtesy, advice, loops, lists
        ("问题：肾脏有什么病变？答案：囊肿", "囊肿"),
        ("您好！囊肿。建议定期复查。祝您早日康复！", "囊肿。"),
        ("囊肿，建议结合临床。", "囊肿。"),
        ("囊肿。需要解释吗？", "囊肿。"),
        ("囊肿囊肿囊肿囊肿囊肿囊肿囊", "囊肿"),
        ("囊肿。结石。囊肿。结石。囊肿", "囊肿。结石。"),
        ("1. 囊肿\n2. 结石", "囊肿、结石"),
        ("1、囊肿 2、结石；3、息肉", "囊肿、结石、息肉"),
        ("病变如下：\n- **囊肿**：低密度\n- **结石**：高密度", "囊肿、结石"),
        ("囊肿\n结石", "囊肿。结石"),
    ],
)
def test_text_that_answers(reply: str, answer: str) -> None:
    assert extract_final_answer(reply, QUESTION) == FinalAnswer(answer, "" if answer else "empty")


@pytest.mark.parametrize("page", ["docs/evaluation.md", "docs/zh/evaluation.md"])
def test_table_of_the_documentation(page: str) -> None:
    rows = re.findall(r"^\|[^`\n]+\| `(.+?)` \| ([^`\n]*)`(.+?)` \|$", (ROOT / page).read_text(encoding="utf-8"), re.M)
    assert len(rows) > 12
    for reply, is_missing, answer in rows:
        expected = FinalAnswer("", answer) if is_missing else FinalAnswer(answer.replace("⏎", "\n"))
        assert extract_final_answer(reply.replace("⏎", "\n"), QUESTION) == expected, reply


@pytest.mark.parametrize(
    "answer",
    [
        *(">3cm", "<3cm", "-5", "111", "3*4cm", "L4/5", "10⁻³", "1.5", "2x3cm", "12×10^9/L", "A", "√", "×", "+", "$"),
        *(
            "是的",
            "嗯",
            "没有",
            "左肺；右肺",
            "右肺上叶见结节，未见积液。",
            "B. 气胸",
            "血压120/80mmHg",
            "C反应蛋白升高",
        ),
        *("有。", "CT：增强", "见（图1）", "HER2(3+)", "p<0.05", "无法判断", "肝脏，其次是脾脏。", "T1WI"),
    ],
)
def test_a_bare_answer_stays(answer: str) -> None:
    assert extract_final_answer(answer, QUESTION).text == ("" if answer == "$" else answer)


@pytest.mark.parametrize(
    ("reply", "missing"),
    [
        ("<think>囊肿", "unfinished"),
        ("囊肿<think>再想想", "unfinished"),
        ("<|channel|>analysis<|message|>cyst", "unfinished"),
        ("## Thinking\n囊肿", "unfinished"),
        ("<think>囊肿</think>", "empty"),
        ("", "empty"),
        ("肾脏有什么病变？", "empty"),
        ("肾脏有没有囊肿", "empty"),
        ("您还有其他问题吗？", "empty"),
        ("如有疑问请咨询医生。", "empty"),
        ("</s><pad>", "empty"),
        ("答案：", "empty"),
    ],
)
def test_no_answer(reply: str, missing: str) -> None:
    if reply == "答案：":  # nothing is declared, so the word itself is left; no rule reads it as an answer
        assert judge_answer(QUESTION, "囊肿", reply).correct is not True
    else:
        assert extract_final_answer(reply, QUESTION) == FinalAnswer("", missing)


def test_advice_answers_a_question_that_asks_for_it() -> None:
    assert extract_final_answer("建议手术切除。", "首选什么治疗？").text == "建议手术切除。"
    assert extract_final_answer("囊肿。建议手术切除。", QUESTION).text == "囊肿。"


def test_because_answers_a_question_that_asks_why() -> None:
    assert extract_final_answer("囊肿，因为无强化", "为什么？").text == "囊肿，因为无强化"
    assert extract_final_answer("囊肿，因为无强化", QUESTION).text == "囊肿"


def test_a_list_follows_its_introduction() -> None:
    reply = "图中显示了多种病变，包括囊肿、结石。"
    assert extract_final_answer(reply, "肾脏有哪些病变？").text == "囊肿、结石。"
    assert extract_final_answer(reply, "肾脏有囊肿吗？").text == reply


def test_an_affirmed_statement_is_no_repeated_question() -> None:
    assert extract_final_answer("肾脏有囊肿", "肾脏有囊肿吗？").text == "肾脏有囊肿"
    assert extract_final_answer("肾脏有囊肿吗？没有", "肾脏有囊肿吗？").text == "没有"


def test_everyday_frames() -> None:
    """The reference in a frame is right, another answer in it is wrong."""
    rows = [row for row in framed_rows() if is_development(row)][::6]
    accepted = {True: 0, False: 0}
    for row in rows:
        verdict = judge_answer(row["question"], row["reference"], row["prediction"], row["answer_type"], row["choices"])
        accepted[row["expected"]] += verdict.correct is True
    right = sum(row["expected"] for row in rows)
    assert accepted[True] >= 0.99 * right
    assert accepted[False] <= 0.005 * (len(rows) - right)


def test_hand_written_replies() -> None:
    """Half of them; bench/evaluate/chat_answers.py measures both halves."""
    rows = [row for row in pair_rows() if is_development(row)][::2]
    agreed = 0
    for row in rows:
        verdict = judge_answer(
            row["question"], row["reference"], row["prediction"], row["answer_type"], row.get("choices")
        )
        agreed += (verdict.correct is True) is row["expected"]
    assert agreed >= 0.97 * len(rows)


@pytest.mark.parametrize(
    "unit",
    [
        "答案：",
        r"\boxed{",
        "<think>",
        "</s>",
        "- a\n",
        "**",
        '{"a":',
        "[",
        "| a |\n",
        "，因为",
        "有。",
        "①",
        "<|",
        "```\n",
    ],
)
def test_long_replies_take_linear_time(unit: str) -> None:
    reply = (unit * MAX_REPLY_CHARACTERS)[: MAX_REPLY_CHARACTERS // 4] + "x!"
    start = time.process_time()
    extract_final_answer(reply, QUESTION)
    assert time.process_time() - start < 1  # 0.1 s here
