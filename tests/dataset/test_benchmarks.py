"""Small copies of known test sets in their original layouts: they import, without rows of other splits."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.datasets import gradient_png
from qilin.cli import main
from qilin.dataset.benchmarks import BENCHMARKS
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Sample, text_of
from qilin.pipeline.importers.run import SOURCES


def png(angle: int) -> bytes:
    return gradient_png(angle, 40, "RGB")


def import_test_set(name: str, source: Path, out: Path, *flags: str) -> tuple[Dataset, list[Sample]]:
    assert main(["data", "import", name, str(source), str(out), *flags]) == 0
    data = open_dataset(out)
    assert data.splits() == ["test"]
    return data, list(data.samples("test"))


def test_every_benchmark_has_an_importer() -> None:
    for name, row in BENCHMARKS.items():
        assert row.importer in SOURCES, name
        assert row.layout
        assert row.license


def test_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "benchmarks"]) == 0
    output = capsys.readouterr().out
    assert "cmmmu-health" in output
    assert "qilin data import slake SOURCE slake-en --lang en" in output
    assert main(["data", "benchmarks", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(BENCHMARKS)


def test_vqa_rad(tmp_path: Path) -> None:
    images = tmp_path / "rad" / "VQA_RAD Image Folder"
    images.mkdir(parents=True)
    for i in range(3):
        (images / f"synpic{i}.jpg").write_bytes(png(i))
    common = {"image_organ": "CHEST", "question_type": "PRES", "image_case_url": "https://medpix.nlm.nih.gov/case"}
    rows = [
        {"qid": "0", "phrase_type": "freeform", "image_name": "synpic0.jpg", "question": "q?", "answer": "Yes",
         "answer_type": "CLOSED"},
        {"qid": "1", "phrase_type": "test_freeform", "image_name": "synpic1.jpg", "question": "Is it normal?",
         "answer": "No", "answer_type": "CLOSED "},
        {"qid": "2", "phrase_type": "test_para", "image_name": "synpic2.jpg", "question": "How many?", "answer": 2,
         "answer_type": "OPEN"},
        {"qid": "3", "phrase_type": "test_para", "image_name": "synpic2.jpg", "question": "", "answer": "x",
         "answer_type": "OPEN"},
    ]  # fmt: skip
    (tmp_path / "rad" / "VQA_RAD Dataset Public.json").write_text(json.dumps([common | row for row in rows]))
    data, samples = import_test_set("vqa-rad", tmp_path / "rad", tmp_path / "out", "--license", "CC0 1.0")
    assert [(s.sample_id, s.answer_type) for s in samples] == [("vqa-rad-1", "closed"), ("vqa-rad-2", "open")]
    assert text_of(samples[1].messages[-1]) == "2"
    assert data.manifest["counts"]["dropped_reasons"] == {"question is missing": 1}


def test_pmc_vqa(tmp_path: Path) -> None:
    (tmp_path / "pmc" / "images").mkdir(parents=True)
    (tmp_path / "pmc" / "images" / "PMC1_F1.jpg").write_bytes(png(1))
    with (tmp_path / "pmc" / "test_clean.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Figure_path", "Question", "Answer", *(f"Choice {x}" for x in "ABCD"), "Answer_label"])
        table.writerow(["PMC1_F1.jpg", " What is shown? ", " B:MRI ", " A:CT ", " B:MRI ", " C:PET ", " D:US ", "B"])
    _, (sample,) = import_test_set("pmc-vqa-test", tmp_path / "pmc", tmp_path / "out")
    assert sample.choices == ("CT", "MRI", "PET", "US")
    assert text_of(sample.messages[0]) == "What is shown?\nA. CT\nB. MRI\nC. PET\nD. US"
    assert text_of(sample.messages[1]) == "MRI"


def test_omnimedvqa(tmp_path: Path) -> None:
    (tmp_path / "omni" / "QA_information" / "Open-access").mkdir(parents=True)
    (tmp_path / "omni" / "Images").mkdir()
    (tmp_path / "omni" / "Images" / "a.png").write_bytes(png(1))
    row = {"dataset": "Chest CT Scan", "question_id": "Chest_0001", "question_type": "Disease Diagnosis",
           "question": "What is it?", "gt_answer": "Normal", "image_path": "Images/a.png", "option_A": "Cancer",
           "option_B": "Normal", "modality": "CT"}  # fmt: skip
    (tmp_path / "omni" / "QA_information" / "Open-access" / "Chest CT Scan.json").write_text(json.dumps([row]))
    data, (sample,) = import_test_set("omnimedvqa", tmp_path / "omni", tmp_path / "out")
    assert (sample.choices, sample.answer_type) == (("Cancer", "Normal"), "choice")
    assert data.image(sample.image_ids[0]).modality == "CT"


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_parquet_pairs(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": png(i), "path": None}, "question": f"q{i}?", "answer": a}
        for i, a in enumerate(["yes", "liver"])
    ]
    write_parquet(tmp_path / "path-vqa" / "data" / "test-00000-of-00001.parquet", rows)
    write_parquet(tmp_path / "path-vqa" / "data" / "train-00000-of-00001.parquet", rows[:1])
    _, samples = import_test_set("parquet-vqa", tmp_path / "path-vqa", tmp_path / "out")
    assert [s.answer_type for s in samples] == ["closed", "open"]


def test_training_files_of_parquet_pairs_and_never_their_test_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pairs(*names: str) -> list[dict[str, Any]]:
        return [
            {"image": {"bytes": png(ord(name[0])), "path": None}, "question": f"{name}?", "answer": "yes"}
            for name in names
        ]

    folder = tmp_path / "path-vqa" / "data"
    for split, names in (("train", "ab"), ("validation", "c"), ("test", "d")):
        write_parquet(folder / f"{split}-00000-of-00001.parquet", pairs(*names))
    words = ["data", "import", "parquet-vqa", str(tmp_path / "path-vqa")]
    for split, names in (("train", "ab"), ("validation", "c"), ("test", "d")):
        assert main([*words, str(tmp_path / split), "--split", split, "--license", "MIT"]) == 0
        data = open_dataset(tmp_path / split)
        assert [text_of(s.messages[0]) for s in data.samples(split)] == [f"{name}?" for name in names]
        assert {s.license_tier for s in data.samples(split)} == {"attribution"}
    (folder / "train-00000-of-00001.parquet").unlink()
    assert main([*words, str(tmp_path / "none"), "--split", "train"]) == 2
    assert "these rows are for testing" in capsys.readouterr().err


def test_cmmmu(tmp_path: Path) -> None:
    common = {"category": "健康与医学", "subcategory": "临床医学", "image_1_filename": "a.jpg"}
    rows = [
        {"id": "1", "type": "选择", "question": '如<img="a.jpg">所示，是?', "answer": "B", "image_1": {"bytes": png(1)},
         "option1": "肺炎", "option2": "气胸", "option3": "结节", "option4": "正常", **common},
        {"id": "2", "type": "判断", "question": "此图正常。", "answer": "错", "image_1": {"bytes": png(2)}, **common},
        {"id": "3", "type": "填空", "question": "是___", "answer": "肺", "image_1": {"bytes": png(3)}, **common},
        {"id": "4", "type": "填空", "question": "桥", "answer": "桥", "image_1": {"bytes": png(4)}, **common,
         "category": "科学"},
    ]  # fmt: skip
    write_parquet(tmp_path / "cmmmu" / "val-00000.parquet", rows)
    write_parquet(tmp_path / "cmmmu" / "test-00000.parquet", [row | {"answer": "?"} for row in rows])
    _, samples = import_test_set("cmmmu", tmp_path / "cmmmu", tmp_path / "out")
    assert [(s.sample_id, s.answer_type) for s in samples] == [
        ("cmmmu-1", "choice"), ("cmmmu-2", "closed"), ("cmmmu-3", "open"),
    ]  # fmt: skip
    assert text_of(samples[0].messages[0]).startswith("如图1所示")


def test_mmmu(tmp_path: Path) -> None:
    rows = [
        {"id": f"validation_{subject}_1", "question": "See <image 1>.", "options": "['a', 'b']", "answer": "B",
         "question_type": "multiple-choice", "image_1": {"bytes": png(i)}, "image_2": None}
        for i, subject in enumerate(("Pharmacy", "Music"))
    ]  # fmt: skip
    write_parquet(tmp_path / "mmmu" / "validation-00000.parquet", rows)
    _, (sample,) = import_test_set("mmmu", tmp_path / "mmmu", tmp_path / "out")
    assert (sample.choices, sample.question_type) == (("a", "b"), "Pharmacy")


def test_gmai(tmp_path: Path) -> None:
    with (tmp_path / "GMAI_mm_bench_VAL.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["index", "image", "question", *"ABCDE", "answer", "category"])
        table.writerow(["1", base64.b64encode(png(1)).decode(), "What?", "x", "y", "z", "", "", "C", "Disease"])
        table.writerow(["2", "no base64!", "What?", "x", "y", "", "", "", "A", "Disease"])
    data, (sample,) = import_test_set("gmai-mmbench", tmp_path / "GMAI_mm_bench_VAL.tsv", tmp_path / "out")
    assert sample.choices == ("x", "y", "z")
    assert data.manifest["counts"]["dropped_reasons"] == {"image is not base64": 1}


def test_choice_answers_are_judged(tmp_path: Path) -> None:
    from qilin.evaluate.scoring.answers import judge_answer

    question = "What is shown?\nA. CT\nB. MRI"
    assert judge_answer(question, "B", "MRI", "choice", ["CT", "MRI"]).correct is True
    assert judge_answer(question, "MRI", "B", "choice", ["CT", "MRI"]).correct is True
    assert judge_answer("此图正常。", "错", "不正确", "closed").correct is True


def test_the_wrong_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("vqa-rad", "pmc-vqa-test", "omnimedvqa", "cmmmu", "gmai-mmbench"):
        assert main(["data", "import", name, str(tmp_path), str(tmp_path / "out")]) == 2
        assert "expected" in capsys.readouterr().err or name == "omnimedvqa"
