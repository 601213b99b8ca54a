"""Answers in sentences, judged by clause, polarity and quantity: hand-written pairs, with a half that no rule saw.

sentence_pairs.jsonl has one answer per line with a clinician's verdict and its reason. `read` says whether the rules
were written while looking at the row; the split is by a hash of the question. The thresholds are what is promised of
unseen answers.
"""

import json
from pathlib import Path

import pytest

from qilin.evaluate.scoring.answers import judge_answer

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "sentence_pairs.jsonl").read_text(encoding="utf-8").splitlines()
]
OPPOSITES = (("是", "否"), ("是的", "不是"), ("有", "没有"), ("能", "不能"), ("可见", "不可见"), ("存在", "不存在"),
             ("正确", "错误"), ("对", "错"), ("需要", "不需要"), ("可以", "不可以"), ("yes", "no"))  # fmt: skip


def is_accepted(row: dict, reference: str) -> bool:
    return judge_answer(row["question"], reference, row["prediction"]).correct is True


@pytest.mark.parametrize("read", [True, False])
def test_agreement_with_a_clinician(read: bool) -> None:
    verdicts = [(is_accepted(row, row["reference"]), row["expected"]) for row in ROWS if row["read"] is read]
    accepted = sum(verdict for verdict, _ in verdicts)
    both = sum(verdict and expected for verdict, expected in verdicts)
    assert len(verdicts) > 450
    assert sum(verdict is expected for verdict, expected in verdicts) / len(verdicts) >= 0.93
    assert both / accepted >= 0.97
    assert both / sum(expected for _, expected in verdicts) >= 0.90


def test_the_opposite_reference_is_refused() -> None:
    opposite = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
    rows = [row for row in ROWS if row["expected"] and row["reference"] in opposite]
    accepted = [row for row in rows if is_accepted(row, opposite[row["reference"]])]
    assert len(rows) > 150
    assert len(accepted) <= 0.02 * len(rows), accepted


def test_rows_are_balanced_and_have_reasons() -> None:
    assert all(row["why"] for row in ROWS)
    assert 0.4 < sum(row["expected"] for row in ROWS) / len(ROWS) < 0.6
    assert len({(row["question"], row["reference"], row["prediction"]) for row in ROWS}) == len(ROWS)


# The table "More precise, less precise" of docs/evaluation.md: question, reference, answers that entail it, others.
ENTAILMENT = [
    ("诊断?", "阑尾炎", ("急性阑尾炎",), ("阑尾肿瘤",)),
    ("诊断?", "肺炎", ("支气管肺炎",), ("肺炎性假瘤",)),
    ("诊断?", "腺癌", ("肺腺癌",), ("腺瘤",)),
    ("诊断?", "急性胰腺炎", ("急性胰腺炎伴胰周积液",), ("胰腺炎", "亚急性胰腺炎")),
    ("诊断?", "风湿性关节炎", ("活动期风湿性关节炎",), ("类风湿性关节炎",)),
    ("诊断?", "气胸", ("左侧气胸",), ("液气胸",)),
    ("诊断?", "贫血", ("重度贫血",), ("无贫血",)),
    ("诊断?", "肝血管瘤", ("肝右叶血管瘤",), ("肾血管瘤",)),
    ("图中有什么异常?", "肺结节", ("右肺上叶结节",), ("甲状腺结节", "结节")),
    ("图中有什么异常?", "胸腔积液", ("左侧胸腔积液",), ("积液",)),
    ("图中有什么异常?", "左侧胸腔积液", ("左侧大量胸腔积液",), ("胸腔积液",)),
    ("骨折发生在哪块骨?", "桡骨", ("桡骨远端",), ("尺骨",)),
    ("病灶在哪里?", "右侧额叶", ("右侧额叶前部",), ("额叶", "右侧额叶及颞叶")),
    ("图片主要器官是什么?", "大脑", ("脑",), ("颞叶",)),
    ("结节位于何处?", "左肺上叶", ("左肺上叶尖后段",), ("左肺",)),
    ("图中肿块位于肺的哪个部位?", "左肺", ("左侧肺",), ("左上肺",)),
    ("图中最大的器官是什么?", "肝脏", ("肝脏最大，其次是脾脏",), ("肝脏和脾脏",)),
    ("成像方式?", "MRI", ("磁共振，软组织对比良好",), ("MRI或CT",)),
    ("哪个器官属于消化系统?", "小肠", ("小肠，位于中腹部",), ("小肠、结肠",)),
]


@pytest.mark.parametrize(("question", "reference", "entailing", "other"), ENTAILMENT)
def test_entailment(question: str, reference: str, entailing: tuple[str, ...], other: tuple[str, ...]) -> None:
    verdicts = {answer: judge_answer(question, reference, answer).correct for answer in (*entailing, *other)}
    assert {answer for answer, correct in verdicts.items() if correct} == set(entailing)
