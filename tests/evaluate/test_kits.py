"""How four kits would score: the cases that set them apart, read as they read them."""

import json
from pathlib import Path
from typing import Any

import pytest

from qilin.cli import main
from qilin.core.errors import UserError
from qilin.evaluate.scoring.aggregate import judge_prediction
from qilin.evaluate.scoring.other_scorers import KITS, cmmmu_letters, evalscope_plain, lmms_plain

ORDER = ("qilin", "medevalkit", "vlmevalkit", "evalscope", "lmms-eval")


def points(reference: str, prediction: str, question: str = "", **more: Any) -> tuple[float, ...]:
    """What Qilin and the kits in ORDER count for an answer."""
    row = {"id": "1", "question": question, "reference": reference, "prediction": prediction, **more}
    return (float(judge_prediction(row, prediction).correct is True), *(KITS[name].mark(row).points for name in ORDER[1:]))


CHOICES = ["肺炎", "气胸", "结节", "正常"]
CASES: list[tuple[str, str, str, dict[str, Any], tuple[float, ...]]] = [
    # MedEvalKit takes "." off, 。 never
    ("图片中包含肝脏吗?", "是", "是。", {"answer_type": "closed"}, (1, 0, 1, 1, 1)),
    ("图片中包含肝脏吗?", "是", "是.", {"answer_type": "closed"}, (1, 1, 1, 1, 1)),
    # a statement denied: words of agreement are found inside 不正确
    ("这种说法对吗?", "错", "不正确", {}, (1, 0, 0, 0, 0)),
    ("这种说法对吗?", "错", "不准确", {}, (1, 0, 0, 0, 0)),
    ("这种说法对吗?", "错", "不对", {}, (1, 0, 0, 0, 0)),
    ("这种说法对吗?", "错", "错误", {}, (1, 0, 1, 1, 1)),
    # CT gives a C, and B and C are equally common
    ("选哪个?", "B", "根据MRI与CT，选B", {"choices": CHOICES}, (1, 0, 0, 0, 0)),
    ("选哪个?", "B", "选B", {"choices": CHOICES}, (1, 0, 1, 1, 1)),
    # nothing to read is settled by lot
    ("选哪个?", "B", "看不清楚", {"choices": CHOICES}, (0, 0, 0.25, 0.25, 0.25)),
    # a blank counted for every sentence that holds it
    ("哪个器官异常?", "肺", "答案是肺。所以是右肺", {"answer_type": "open"}, (0, 0, 2, 0, 0)),
    # and a reference found inside its own denial
    ("图片中包含肝脏吗?", "是", "不是", {"answer_type": "closed"}, (0, 0, 1, 0, 0)),
    # six plain pairs on which EvalScope and lmms-eval differ, and some on which both are wrong
    ("图中有几个肾脏?", "2", "两个", {"answer_type": "open"}, (1, 0, 0, 1, 0)),
    ("图中有几个肾脏?", "2", "两", {"answer_type": "open"}, (1, 0, 0, 1, 0)),
    ("成像方式是什么?", "X-Ray", "X光", {"answer_type": "open"}, (1, 0, 0, 1, 0)),
    ("成像方式是什么?", "X-Ray", "x ray", {"answer_type": "open"}, (1, 0, 0, 1, 1)),
    ("肺部正常吗?", "正常", "是", {"answer_type": "closed"}, (1, 0, 0, 0, 1)),
    ("肺部正常吗?", "是", "正常", {"answer_type": "closed"}, (1, 0, 0, 0, 1)),
    ("图中有肝脏吗?", "存在", "有", {"answer_type": "closed"}, (1, 0, 0, 1, 0)),
    ("肺部有异常吗?", "没有", "异常", {"answer_type": "closed"}, (0, 0, 0, 0, 1)),
    ("哪侧肺异常?", "左肺、右肺", "右肺，左肺", {"answer_type": "open"}, (1, 0, 0, 0, 0)),
    ("病变在哪?", "左侧", "右侧", {"answer_type": "open"}, (0, 0, 0, 0, 0)),
    # English, where MedEvalKit looks for the letters of yes and no
    ("is there a lesion?", "yes", "Yes, there is.", {"answer_type": "closed"}, (1, 1, 0, 0, 0)),
    ("is there a lesion?", "yes", "Yes, a nodule", {"answer_type": "closed"}, (1, 0, 0, 0, 0)),
]


@pytest.mark.parametrize(("question", "reference", "prediction", "more", "expected"), CASES)
def test_case(
    question: str, reference: str, prediction: str, more: dict[str, Any], expected: tuple[float, ...]
) -> None:
    found = dict(zip(ORDER, points(reference, prediction, question, **more), strict=True))
    assert found == dict(zip(ORDER, expected, strict=True))


def test_letters_as_cmmmu_reads_them() -> None:
    assert cmmmu_letters("根据MRI与CT，选B", CHOICES) == "BC"
    assert cmmmu_letters("(B) 因为CT", CHOICES) == "B"
    assert cmmmu_letters("考虑气胸", CHOICES) == "B"
    assert cmmmu_letters("", CHOICES) == ""


def test_plain_forms_differ_where_they_should() -> None:
    assert evalscope_plain("两个") == evalscope_plain("2") == "2"
    assert lmms_plain("两个") == "两个"
    assert lmms_plain("正常") == "yes" != evalscope_plain("正常")
    assert lmms_plain("肺（右）") == evalscope_plain("肺(右)") == "肺"


def rows_file(folder: Path) -> Path:
    path = folder / "p.jsonl"
    rows = [
        {"id": str(i), "question": q, "reference": r, "prediction": p, **more}
        for i, (q, r, p, more, _) in enumerate(CASES)
    ]
    rows.append({"id": "caption", "question": "", "reference": "左肺结节", "prediction": "左肺结节", "kind": "caption"})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_compare_prints_all_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(rows_file(tmp_path)), "--compare", "--json", "--rows", str(tmp_path / "r.jsonl")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["columns"]) == list(ORDER)
    for place, name in enumerate(ORDER):
        expected = sum(case[4][place] for case in CASES) / len(CASES)
        assert found["columns"][name]["all"]["accuracy"] == pytest.approx(expected)
        assert found["columns"][name]["about"]["checked"]
    assert found["captions_left_out"] == 1
    assert found["manifest"]["scorer"]
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(CASES)
    assert main(["score", str(rows_file(tmp_path)), "--compare"]) == 0
    assert "lmms-eval" in capsys.readouterr().out


def test_as_one_kit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "r.jsonl"
    assert main(["score", str(rows_file(tmp_path)), "--scorer", "vlmevalkit", "--json", "--rows", str(rows)]) == 0
    column = json.loads(capsys.readouterr().out)["columns"]["vlmevalkit"]
    assert column["choice"]["guessed"] == 1
    judged = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    assert [row["correct"] for row in judged].count(None) == 1
    assert main(["score", str(rows_file(tmp_path)), "--scorer", "nokit"]) == 2
    assert main(["score", str(rows_file(tmp_path)), "--scorer", "evalscope", "--compare"]) == 2


def test_captions_alone_are_refused(tmp_path: Path) -> None:
    from qilin.evaluate.config import ScoreConfig
    from qilin.evaluate.scoring.compare_scorers import score_with_kits

    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "1", "question": "", "reference": "a", "prediction": "b", "kind": "caption"}\n')
    with pytest.raises(UserError, match="captions only"):
        score_with_kits(ScoreConfig(file=path, compare=True))
