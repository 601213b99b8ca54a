"""`qilin compare`: paired differences over images; refuses different questions."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders.evaluation import write_rows
from qilin.cli import main
from qilin.core.errors import UserError
from qilin.evaluate.compare import compare_command
from qilin.evaluate.config import CompareConfig


def write_predictions(path: Path, wrong: set[int], **fields: Any) -> Path:
    """60 questions on 30 images, those in `wrong` answered wrongly; and a caption."""
    rows = [
        {
            "id": str(i), "question": "在哪一侧?", "reference": "左侧", "prediction": "右侧" if i in wrong else "左侧",
            "answer_type": "open", "image_ids": [f"p{i // 2}"], "question_type": "Position", **fields,
        }
        for i in range(60)
    ]  # fmt: skip
    rows.append({"id": "c", "question": "", "reference": "左肺结节", "kind": "caption", "image_ids": ["p0"],
                 "prediction": "右肺结节" if wrong else "左肺结节", "answer_type": None})  # fmt: skip
    return write_rows(path, rows)


def test_difference_and_equality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_predictions(tmp_path / "good.jsonl", set())
    bad = write_predictions(tmp_path / "bad.jsonl", set(range(20)))
    result = compare_command(CompareConfig(a=good, b=bad, resamples=500))
    assert result["all"]["difference"] == pytest.approx(1 / 3)
    assert result["all"]["interval"][0] > 0
    assert result["all"]["p_value"] < 0.02
    assert result["all"]["clusters"] == 30
    assert (result["all"]["only_a"], result["all"]["only_b"]) == (20, 0)
    assert result["captions"]["difference"] > 0
    assert set(result["by_question_type"]) == {"Position"}
    assert "+0.333" in capsys.readouterr().out
    same = compare_command(CompareConfig(a=bad, b=bad, resamples=500))
    assert same["all"]["difference"] == 0
    assert same["all"]["p_value"] == 1.0


def test_several_questions_of_one_image_are_one_observation(tmp_path: Path) -> None:
    # As six independent questions p would be about 0.01; six questions of one image are no evidence.
    files = [write_predictions(tmp_path / f"{name}.jsonl", set()) for name in ("good", "bad")]
    for path, answer in zip(files, ("左侧", "右侧"), strict=True):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows[:6]:
            row |= {"image_ids": ["p0"], "prediction": answer}
        write_rows(path, rows)
    assert compare_command(CompareConfig(a=files[0], b=files[1], resamples=500))["all"]["p_value"] > 0.3


def test_different_questions_are_refused_and_missing_ones_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_predictions(tmp_path / "a.jsonl", set())
    b = write_predictions(tmp_path / "b.jsonl", set(), question="别的?")
    with pytest.raises(UserError, match=r"b\.jsonl: question of 0 is '别的\?'"):
        compare_command(CompareConfig(a=a, b=b))
    lines = a.read_text(encoding="utf-8").splitlines()
    (tmp_path / "short.jsonl").write_text("\n".join(lines[:5]) + "\n", encoding="utf-8")
    capsys.readouterr()
    result = compare_command(CompareConfig(a=a, b=tmp_path / "short.jsonl"))
    assert (result["all"]["n"], result["left_out"]) == (5, {"a": 56, "b": 0})
    assert "56 rows of A and 0 of B are left out" in " ".join(capsys.readouterr().out.split())
    other_ids = write_rows(tmp_path / "c.jsonl", [json.loads(lines[0]) | {"id": "x"}])
    with pytest.raises(UserError, match=r"c\.jsonl: no id of"):
        compare_command(CompareConfig(a=a, b=other_ids))
    assert main(["compare", str(a), str(a), "--report", str(tmp_path / "r.html")]) == 2
