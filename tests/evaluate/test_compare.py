"""`qilin compare`: paired differences by image, refused where the questions differ."""

import json
from pathlib import Path
from typing import Any

import pytest

from qilin.cli import main
from qilin.core.errors import UserError
from qilin.evaluate.compare import compare_command
from qilin.evaluate.config import CompareConfig


def write(path: Path, wrong: set[int], **more: Any) -> Path:
    """60 questions on 30 images; those in `wrong` answered wrongly."""
    rows = [
        {
            "id": str(i), "question": "在哪一侧?", "reference": "左侧", "prediction": "右侧" if i in wrong else "左侧",
            "answer_type": "open", "image_ids": [f"p{i // 2}"], "question_type": "Position", **more,
        }
        for i in range(60)
    ]  # fmt: skip
    rows.append({"id": "c", "question": "", "reference": "左肺结节", "kind": "caption", "image_ids": ["p0"],
                 "prediction": "右肺结节" if wrong else "左肺结节", "answer_type": None})  # fmt: skip
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_difference_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write(tmp_path / "good.jsonl", set()), write(tmp_path / "bad.jsonl", set(range(20)))
    found = compare_command(CompareConfig(a=good, b=bad, resamples=500))
    assert found["all"]["difference"] == pytest.approx(1 / 3)
    assert found["all"]["interval"][0] > 0
    assert found["all"]["p_value"] < 0.02
    assert found["all"]["clusters"] == 30
    assert (found["all"]["only_a"], found["all"]["only_b"]) == (20, 0)
    assert found["captions"]["difference"] > 0
    assert set(found["by_question_type"]) == {"Position"}
    assert "+0.333" in capsys.readouterr().out
    same = compare_command(CompareConfig(a=bad, b=bad, resamples=500))
    assert same["all"]["difference"] == 0
    assert same["all"]["p_value"] == 1.0


def test_one_bad_image_is_no_proof(tmp_path: Path) -> None:
    # Six questions of one image: as six independent questions p would be about 0.03, as one image nothing is shown.
    good, bad = write(tmp_path / "good.jsonl", set()), write(tmp_path / "bad.jsonl", set())
    for path, answer in ((good, "左侧"), (bad, "右侧")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows[:6]:
            row |= {"image_ids": ["p0"], "prediction": answer}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert compare_command(CompareConfig(a=good, b=bad, resamples=500))["all"]["p_value"] > 0.9


def test_other_questions_are_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", set()), write(tmp_path / "b.jsonl", set(), question="别的?")
    with pytest.raises(UserError, match="question of 0 is '别的\\?'"):
        compare_command(CompareConfig(a=a, b=b))
    lines = a.read_text(encoding="utf-8").splitlines()
    (tmp_path / "short.jsonl").write_text("\n".join(lines[:5]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="56 ids of the other file are missing"):
        compare_command(CompareConfig(a=a, b=tmp_path / "short.jsonl"))
    assert main(["compare", str(a), str(a), "--report", str(tmp_path / "r.html")]) == 2
