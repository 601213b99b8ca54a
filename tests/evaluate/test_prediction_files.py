"""Prediction files of other systems, tables, and rows that cannot be read."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.evaluation import write_rows
from qilin.cli import main
from qilin.core.errors import UserError
from qilin.dataset.reader import open_dataset
from qilin.evaluate.config import ScoreConfig
from qilin.evaluate.prediction_files import read_prediction_file
from qilin.evaluate.results import Prediction
from qilin.evaluate.score import score_file

QUESTION, REFERENCE, ANSWER = "图中哪个器官有病变?", "右肺", "病变位于右肺"
CHOICE = "哪种成像方式?"
ROW: dict[str, Any] = {"id": "1", "question": QUESTION, "reference": REFERENCE, "prediction": ANSWER}


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=4), encoding="utf-8")
    return path


def write_table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    names = list(rows[0])
    lines = [names, *([row[name] or "" for name in names] for row in rows)]
    text = "\n".join(delimiter.join(f'"{cell}"' for cell in line) for line in lines)
    path.write_text(text + "\n", encoding=encoding)
    return path


def write_xlsx(path: Path, rows: list[dict[str, Any]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl", reason="the xlsx extra is not installed")
    book = openpyxl.Workbook()
    names = list(rows[0])
    for line in (names, *([row.get(name) for name in names] for row in rows)):
        book.active.append(line)
    book.save(path)
    return path


VLMEVALKIT = [
    {"index": 11, "question": QUESTION, "answer": REFERENCE, "prediction": ANSWER, "A": None, "B": None,
     "category": "器官", "image_path": "a.jpg"},
    {"index": 12, "question": CHOICE, "answer": "B", "prediction": "答案是B", "A": "CT", "B": "MRI",
     "category": "模态", "image_path": "b.jpg"},
]  # fmt: skip
LMMS_EVAL = [
    {"doc_id": 11, "input": f"<image>\n{QUESTION}", "target": REFERENCE, "filtered_resps": [ANSWER], "doc_hash": "x"},
    {"doc_id": 12, "input": CHOICE, "target": "['MRI']", "filtered_resps": "MRI", "resps": [["<think>x</think>MRI"]]},
]
EVALSCOPE = [
    {"index": 11, "input": f"**User**: \n{QUESTION}![image](data:image/png;base64,AAAA)", "target": REFERENCE,
     "sample_score": {"score": {"value": {"acc": 0.0}, "extracted_prediction": "肺", "prediction": ANSWER},
                      "sample_id": 11, "group_id": 11, "sample_metadata": {"answer_type": "OPEN"}}},
    {"index": 12, "input": [{"role": "user", "content": [{"type": "image", "image": "x"},
                                                         {"type": "text", "text": CHOICE}]}], "target": "MRI",
     "sample_score": {"score": {"value": {"acc": 1.0}, "prediction": "MRI"}, "sample_id": 12}},
]  # fmt: skip
MEDEVALKIT = [
    {"lang": "zh", "answer_type": "OPEN", "answer": REFERENCE, "question": QUESTION, "prompt": "…", "response": ANSWER,
     "correct": False},
    {"lang": "zh", "answer_type": "CLOSED", "answer": "B", "choices": ["CT", "MRI"], "question": CHOICE,
     "response": "\\boxed{B}"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "write", "layout"),
    [
        ("a.xlsx", lambda path: write_xlsx(path, VLMEVALKIT), "VLMEvalKit predictions"),
        ("a.tsv", lambda path: write_table(path, VLMEVALKIT, "\t"), "VLMEvalKit predictions"),
        ("a.json", lambda path: write_json(path, VLMEVALKIT), "VLMEvalKit predictions"),
        ("a_samples_slake.jsonl", lambda path: write_rows(path, LMMS_EVAL), "lmms-eval samples"),
        ("slake_zh.jsonl", lambda path: write_rows(path, EVALSCOPE), "EvalScope reviews"),
        ("results.json", lambda path: write_json(path, MEDEVALKIT), "MedEvalKit results"),
    ],
)
def test_files_of_other_systems(tmp_path: Path, name: str, write: Callable[[Path], Path], layout: str) -> None:
    file = read_prediction_file(write(tmp_path / name))
    assert (file.layout, file.notes) == (layout, [])
    opened, choice = file.predictions
    assert (opened.question, opened.reference, opened.prediction) == (QUESTION, REFERENCE, ANSWER)
    assert not opened.choices
    assert choice.question == CHOICE
    assert "B" in choice.prediction or choice.prediction == "MRI"
    if layout == "VLMEvalKit predictions":
        assert (choice.id, choice.choices, choice.question_type, choice.image_ids) == (
            "12", ("CT", "MRI"), "模态", ("b.jpg",),
        )  # fmt: skip
    if layout == "MedEvalKit results":
        assert (opened.id, opened.answer_type, choice.answer_type, choice.choices) == (
            "1", "open", "closed", ("CT", "MRI"),
        )  # fmt: skip
    scores, _ = score_file(ScoreConfig(file=tmp_path / name))
    assert scores["all"]["n"] == 2
    assert scores["manifest"]["format"] == layout


LLAVA = [{"question_id": "q1", "prompt": f"<image>\n{QUESTION}", "text": ANSWER, "answer_id": "x", "model_id": "m"}]


@pytest.mark.parametrize(
    "references",
    [
        [{"id": "q1", "image": "a.jpg", "answer_type": "OPEN",
          "conversations": [{"from": "human", "value": f"{QUESTION}\n<image>"}, {"from": "gpt", "value": REFERENCE}]}],
        [{"question_id": "q1", "text": QUESTION, "answer": REFERENCE}, {"question_id": "q2", "answer": "x"}],
        [{"id": "q1", "question": QUESTION, "reference": REFERENCE}],
    ],
)  # fmt: skip
def test_llava_answers_take_their_references_from_another_file(tmp_path: Path, references: list[Any]) -> None:
    answers = write_rows(tmp_path / "answers.jsonl", LLAVA)
    for path in (write_json(tmp_path / "r.json", references), write_rows(tmp_path / "r.jsonl", references)):
        (row,) = read_prediction_file(answers, references=path).predictions
        assert (row.id, row.question, row.reference, row.prediction) == ("q1", QUESTION, REFERENCE, ANSWER)


def test_llava_answers_with_a_dataset_or_a_column_of_references(dataset: Path, tmp_path: Path) -> None:
    sample = next(iter(open_dataset(dataset).samples("test")))
    path = write_rows(tmp_path / "answers.jsonl", [LLAVA[0] | {"question_id": sample.sample_id}])
    (row,) = read_prediction_file(path, dataset=open_dataset(dataset)).predictions
    assert (row.id, row.image_ids, row.question_type) == (sample.sample_id, sample.image_ids, sample.question_type)
    with_answer = write_rows(tmp_path / "gt.jsonl", [LLAVA[0] | {"gt_answer": REFERENCE}])
    assert read_prediction_file(with_answer).predictions[0].reference == REFERENCE
    with pytest.raises(UserError, match=r"--references FILE.*--dataset.*--fields reference=COLUMN"):
        read_prediction_file(write_rows(tmp_path / "none.jsonl", LLAVA))
    with pytest.raises(UserError, match="gt.jsonl has no reference for id 'q9'"):
        read_prediction_file(write_rows(tmp_path / "q9.jsonl", [LLAVA[0] | {"question_id": "q9"}]),
                             references=with_answer)  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_with_named_columns(tmp_path: Path, encoding: str, delimiter: str) -> None:
    rows = [
        {"问题": QUESTION, "标准答案": REFERENCE, "模型": ANSWER},
        {"问题": QUESTION, "标准答案": "左肺", "模型": ""},
    ]
    path = write_table(tmp_path / "out.csv", rows, delimiter, encoding)
    for fields in (
        ("question=问题", "reference=标准答案", "prediction=模型"),
        ("question=问题,reference=标准答案,prediction=模型",),
    ):
        first, second = read_prediction_file(path, fields).predictions
        assert (first.id, first.question, first.reference, first.prediction) == ("1", QUESTION, REFERENCE, ANSWER)
        assert (second.id, second.prediction) == ("2", "")


def test_named_columns_of_nested_rows_and_their_errors(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"q": {"text": QUESTION}, "gold": [REFERENCE], "out": ANSWER}])
    fields = ("id=out", "question=q.text", "reference=out", "prediction=out")
    assert read_prediction_file(path, fields).predictions[0].question == QUESTION
    with pytest.raises(UserError, match=r"line 1: column q\.txt .*--fields question"):
        read_prediction_file(path, ("question=q.txt", "reference=out", "prediction=out"))
    with pytest.raises(UserError, match=r"line 1: field id is missing.*--fields id=COLUMN"):
        read_prediction_file(path)
    for fields, message in ((["prediction"], "FIELD=COLUMN"), (["predicton=x"], "did you mean prediction")):
        with pytest.raises(ValueError, match=message):
            ScoreConfig(file=path, fields=tuple(fields))
    assert main(["score", str(path), "--fields", "question=q.text", "--fields", "reference=out", "prediction=out"]) == 0


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ([ROW, ROW | {"id": "2"}], 2),
        ({"data": [ROW]}, 1),
        ({"a": {k: v for k, v in ROW.items() if k != "id"}, "b": ROW}, 2),
        ({name: {"0": value, "1": f"{value}2"} for name, value in ROW.items()}, 2),  # pandas to_json
        (ROW, 1),
    ],
)
def test_json_documents(tmp_path: Path, value: Any, count: int) -> None:
    assert len(read_prediction_file(write_json(tmp_path / "a.json", value)).predictions) == count


def test_a_folder_and_other_files_get_the_right_word(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"out: is a folder.*holds no JSONL"):
        read_prediction_file(tmp_path / "out")
    write_rows(tmp_path / "out" / "slake.jsonl", [ROW])
    with pytest.raises(UserError, match=r"is a folder.*slake\.jsonl"):
        read_prediction_file(tmp_path / "out")
    write_rows(tmp_path / "out" / "predictions.jsonl", [ROW])
    assert len(read_prediction_file(tmp_path / "out").predictions) == 1
    (tmp_path / "a.pkl").write_bytes(b"x")
    with pytest.raises(UserError, match="pickle"):
        read_prediction_file(tmp_path / "a.pkl")
    (tmp_path / "a.xlsx").write_bytes(b"PK not a workbook")
    with pytest.raises(UserError, match=r"a\.xlsx: not a readable xlsx|needs openpyxl"):
        read_prediction_file(tmp_path / "a.xlsx")
    with pytest.raises(UserError, match=r"a\.json: holds a list of 2|row 1: holds the value 1"):
        read_prediction_file(write_json(tmp_path / "a.json", [1, 2]))
    path = tmp_path / "twice.csv"
    path.write_text("id,question,id\n1,a,b\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"column .* occurs twice"):
        read_prediction_file(path)


BROKEN_LINES = {
    "nested": '{"id": "x", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "cut off": '{"id": "x", "question": "a',
    "no reference": json.dumps({"id": "x", "question": "a", "prediction": "b"}),
    "not an object": "[1]",
    "not UTF-8": "\udcff",
}


@pytest.mark.parametrize("name", BROKEN_LINES)
def test_a_row_that_cannot_be_read_costs_only_itself(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps(ROW | {"id": str(n)}) for n in range(30)]
    lines.insert(7, BROKEN_LINES[name])
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    scores, rows = score_file(ScoreConfig(file=path))
    assert (scores["all"]["n"], len(rows)) == (30, 30)
    assert "1 of 31 rows cannot be read and are left out" in capsys.readouterr().err
    assert "line 8" in scores["manifest"]["notes"][0]
    path.write_bytes("\n".join(lines[7:12]).encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="line 1"):  # one in five: the file is not what it seems
        read_prediction_file(path)


def test_numbers_of_thousands_of_digits_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps(ROW)[:-1]
    path.write_text(f'{line[: line.index(chr(34) + "prediction")]}"prediction": {"9" * 4301}, "n": {"1" * 9999}}}\n')
    (row,) = read_prediction_file(path).predictions
    assert row.prediction == "9" * 4301
    scores, verdicts = score_file(ScoreConfig(file=path))
    assert verdicts[0]["correct"] is not True
    assert scores["all"]["n"] == 1


def test_null_answer_types_are_inferred_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ROW | {"id": str(n), "answer_type": None, "image_ids": None} for n in range(4)]
    rows.append(ROW | {"id": "c", "question": "请描述这张图片。", "answer_type": None})
    scores, _ = score_file(ScoreConfig(file=write_rows(tmp_path / "a.jsonl", rows)))
    assert (scores["all"]["n"], scores["captions"]["n"]) == (4, 1)
    output = capsys.readouterr().err
    assert "4 rows: answer_type is null and kind is missing; read as questions" in output
    assert "1 rows: answer_type is null and kind is missing; read as captions" in output
    assert scores["clusters"]["rows_without_image"] == 5
    assert "treated as independent" in scores["clusters"]["note"]


def test_100_000_rows_are_read_in_seconds(tmp_path: Path) -> None:
    rows = [ROW | {"id": str(n)} for n in range(20_000)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    start = time.process_time()
    assert len(read_prediction_file(path).predictions) == 20_000
    assert time.process_time() - start < 2  # 0.15 s here
    assert Prediction.from_row(rows[0]) == read_prediction_file(path).predictions[0]
