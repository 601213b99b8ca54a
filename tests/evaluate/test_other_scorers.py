"""The reimplemented scorers of four kits, on cases where they differ."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders.evaluation import write_rows
from qilin.cli import main
from qilin.core.errors import UserError
from qilin.evaluate.config import ScoreConfig
from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.answers import judge_prediction
from qilin.evaluate.scoring.compare_scorers import score_with_kits
from qilin.evaluate.scoring.other_scorers import KITS, cmmmu_letters, evalscope_normalize, lmms_eval_normalize

SCORERS = ("qilin", "medevalkit", "vlmevalkit", "evalscope", "lmms-eval")  # order of the points in CASES


def points(question: str, reference: str, prediction: str, options: dict[str, Any]) -> dict[str, float]:
    """The points of an answer by scorer."""
    p = Prediction("1", question, reference, prediction, **options)
    qilin = float(judge_prediction(p).correct is True)
    return {"qilin": qilin, **{name: kit.score(p).points for name, kit in KITS.items()}}


CHOICES = ["肺炎", "气胸", "结节", "正常"]
CASES: list[tuple[str, str, str, dict[str, Any], tuple[float, ...]]] = [
    # MedEvalKit strips "." but not 。
    ("图片中包含肝脏吗?", "是", "是。", {"answer_type": "closed"}, (1, 0, 1, 1, 1)),
    ("图片中包含肝脏吗?", "是", "是.", {"answer_type": "closed"}, (1, 1, 1, 1, 1)),
    # a denied statement: words of agreement match inside 不正确
    ("这种说法对吗?", "错", "不正确", {}, (1, 0, 0, 0, 0)),
    ("这种说法对吗?", "错", "不准确", {}, (1, 0, 0, 0, 0)),
    ("这种说法对吗?", "错", "不对", {}, (1, 0, 0, 0, 0)),
    ("这种说法对吗?", "错", "错误", {}, (1, 0, 1, 1, 1)),
    # CT counts as a C, which ties with B
    ("选哪个?", "B", "根据MRI与CT，选B", {"choices": tuple(CHOICES)}, (1, 0, 0, 0, 0)),
    ("选哪个?", "B", "选B", {"choices": tuple(CHOICES)}, (1, 0, 1, 1, 1)),
    # an answer without a choice is resolved by a random guess
    ("选哪个?", "B", "看不清楚", {"choices": tuple(CHOICES)}, (0, 0, 0.25, 0.25, 0.25)),
    # a blank counts in every sentence that contains it
    ("哪个器官异常?", "肺", "答案是肺。所以是右肺", {"answer_type": "open"}, (1, 0, 2, 0, 0)),
    # a reference matches inside its own denial
    ("图片中包含肝脏吗?", "是", "不是", {"answer_type": "closed"}, (0, 0, 1, 0, 0)),
    # pairs on which EvalScope and lmms-eval differ, and some on which both are wrong
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
    # English, where MedEvalKit searches yes and no as substrings
    ("is there a lesion?", "yes", "Yes, there is.", {"answer_type": "closed"}, (1, 1, 0, 0, 0)),
    ("is there a lesion?", "yes", "Yes, a nodule", {"answer_type": "closed"}, (1, 0, 0, 0, 0)),
]


@pytest.mark.parametrize(("question", "reference", "prediction", "options", "expected"), CASES)
def test_points(
    question: str, reference: str, prediction: str, options: dict[str, Any], expected: tuple[float, ...]
) -> None:
    assert points(question, reference, prediction, options) == dict(zip(SCORERS, expected, strict=True))


def test_cmmmu_letters() -> None:
    assert cmmmu_letters("根据MRI与CT，选B", CHOICES) == "BC"
    assert cmmmu_letters("(B) 因为CT", CHOICES) == "B"
    assert cmmmu_letters("考虑气胸", CHOICES) == "B"
    assert cmmmu_letters("", CHOICES) == ""


def test_normalizations_differ() -> None:
    assert evalscope_normalize("两个") == evalscope_normalize("2") == "2"
    assert lmms_eval_normalize("两个") == "两个"
    assert lmms_eval_normalize("正常") == "yes" != evalscope_normalize("正常")
    assert lmms_eval_normalize("肺（右）") == evalscope_normalize("肺(右)") == "肺"


@pytest.fixture
def predictions_file(tmp_path: Path) -> Path:
    """All CASES, and a caption that the kits do not score."""
    rows = [
        {"id": str(i), "question": question, "reference": reference, "prediction": prediction, **options}
        for i, (question, reference, prediction, options, _) in enumerate(CASES)
    ]
    rows.append({"id": "caption", "question": "", "reference": "左肺结节", "prediction": "左肺结节", "kind": "caption"})
    return write_rows(tmp_path / "p.jsonl", rows)


def test_compare_prints_all_scorers(predictions_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "r.jsonl"
    assert main(["score", str(predictions_file), "--compare", "--json", "--rows", str(rows)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["columns"]) == list(SCORERS)
    for index, name in enumerate(SCORERS):
        expected = sum(case[4][index] for case in CASES) / len(CASES)
        assert result["columns"][name]["all"]["accuracy"] == pytest.approx(expected)
        assert result["columns"][name]["about"]["checked"]
    assert result["captions_left_out"] == 1
    assert result["manifest"]["scorer"]
    assert len(rows.read_text(encoding="utf-8").splitlines()) == len(CASES)
    assert main(["score", str(predictions_file), "--compare"]) == 0
    assert "lmms-eval" in capsys.readouterr().out


def test_score_with_one_kit(predictions_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "r.jsonl"
    assert main(["score", str(predictions_file), "--scorer", "vlmevalkit", "--json", "--rows", str(rows)]) == 0
    column = json.loads(capsys.readouterr().out)["columns"]["vlmevalkit"]
    assert column["choice"]["guessed"] == 1
    correct = [json.loads(line)["correct"] for line in rows.read_text(encoding="utf-8").splitlines()]
    assert correct.count(None) == 1
    assert main(["score", str(predictions_file), "--scorer", "nokit"]) == 2
    assert main(["score", str(predictions_file), "--scorer", "evalscope", "--compare"]) == 2


def test_a_file_of_captions_only_is_refused(tmp_path: Path) -> None:
    row = {"id": "1", "question": "", "reference": "a", "prediction": "b", "kind": "caption"}
    path = write_rows(tmp_path / "p.jsonl", [row])
    with pytest.raises(UserError, match="captions only"):
        score_with_kits(ScoreConfig(file=path, compare=True))


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("<think>先看左肺</think>右肺", 1.0),
        ("看左肺</think>右肺", 1.0),  # the template opened the block
        ("<analysis>x</analysis> 右肺", 1.0),
        ("<think>a</think><think>b</think>右肺", 1.0),
        ("<think>右肺", 0.0),  # unclosed
        ("<THINK>a</THINK>右肺", 0.0),  # its tags are case-sensitive
        ("<think>右肺</think>左肺", 0.0),
    ],
)
def test_lmms_eval_removes_reasoning_before_it_scores(prediction: str, expected: float) -> None:
    row = Prediction("1", "哪里有病变?", "右肺", prediction)
    assert KITS["lmms-eval"].score(row).points == expected
    assert KITS["evalscope"].score(row).points == 0.0  # does not


def test_more_options_than_letters_cost_only_the_row() -> None:
    row = Prediction("1", "哪个?", "B", "B", choices=tuple(f"选项{n}" for n in range(40)))
    assert {kit.score(row).rule for kit in KITS.values()} == {"too many options"}
