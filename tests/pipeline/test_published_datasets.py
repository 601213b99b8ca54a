"""Miniatures of published data sets in their own layouts: tables, reports and figures."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.import_sources import (
    dropped_reasons,
    first_exchange,
    run_import_command,
    write_csv,
    write_jpegs,
    write_jsonl,
)
from builders.pmc_store import write_pmc_store
from qilin.cli import main
from qilin.dataset.benchmarks import BENCHMARKS
from qilin.dataset.reader import open_dataset
from qilin.pipeline.importers.config import DIALOG_LAYOUTS
from qilin.pipeline.importers.run import SOURCES


def test_every_published_layout_names_its_source() -> None:
    own_layouts = {"slake", "llava", "folder", "figures", *DIALOG_LAYOUTS}
    test_sets = {benchmark.importer for benchmark in BENCHMARKS.values()}
    for name in SOURCES.keys() - own_layouts - test_sets:
        assert SOURCES[name].layout, name


def test_pmc_oa(tmp_path: Path) -> None:
    root = write_jpegs(tmp_path / "pmc_oa", "images/PMC1_Fig1_2.jpg", "images/PMC1_Fig1_3.jpg")
    write_jsonl(root / "pmc_oa.jsonl", [
        {"image": "PMC1_Fig1_2.jpg", "caption": "A. Axial CT."}, {"image": "PMC1_Fig1_3.jpg", "caption": "B. MRI."},
        {"image": "PMC1_Fig1_3.jpg"}, {"caption": "no image"}, {"image": "PMC9_Fig1_1.jpg", "caption": "gone"},
    ])  # fmt: skip
    data, rows = run_import_command("pmc-oa", root, "--split", "train")
    assert first_exchange(rows["pmc_oa-PMC1_Fig1_2.jpg"])[1] == "A. Axial CT."
    assert {(row.kind, row.lang, row.group) for row in rows.values()} == {("caption", "en", "PMC1")}
    assert dropped_reasons(data) == [
        "image file is missing", "neither a text nor a question with its answer", "row without an image",
    ]  # fmt: skip


def test_both_versions_of_pmc_oa_beta(tmp_path: Path) -> None:
    """Today one file next to pmc_oa.jsonl; formerly one file per split with two more fields."""
    folder = "caption_T060_filtered_top4_sep_v0_subfigures"
    root = write_jpegs(tmp_path / "pmc_oa", f"{folder}/PMC5_Fig1_2.jpg")
    row = {"image": "PMC5_Fig1_2.jpg", "caption": "A, a film. B, a scan."}
    write_jsonl(root / "pmc_oa.jsonl", [row | {"caption": "A film."}])
    write_jsonl(root / "pmc_oa_beta.jsonl", [row])
    _, rows = run_import_command("pmc-oa", root / "pmc_oa_beta.jsonl", "--split", "train")
    assert {name: (first_exchange(row)[1], row.group) for name, row in rows.items()} == {
        "pmc_oa_beta-PMC5_Fig1_2.jpg": ("A, a film. B, a scan.", "PMC5")
    }
    old = write_jsonl(root / "valid.jsonl", [row | {"pmcid": "PMC5", "url_name": "1471-2121-4-13-3.jpg"}])
    assert main(["data", "import", "pmc-oa", str(old), str(tmp_path / "old")]) == 0
    assert [sample.group for sample in open_dataset(tmp_path / "old").samples("validation")] == ["PMC5"]


def test_pmc_case_report(tmp_path: Path) -> None:
    root = write_jpegs(tmp_path / "case", "figures/PMC7_F1.jpg", "figures/PMC7_F2.jpg")
    source_rows = [
        {"PMC_id": "PMC7", "img_ref": "['F1', 'F2']", "context": "A man came.", "inline": "Fig 1 shows it.",
         "question": "Q: What is seen?", "answer": "A: A mass."},
        {"PMC_id": "PMC7", "img_ref": "['F1', 'F2']", "context": "A man came.", "inline": "Fig 1 shows it.",
         "question": "Q: Where?", "answer": "A: Left lung."},
        {"PMC_id": "PMC7", "img_ref": "[]", "context": "c", "inline": "", "question": "Q: x", "answer": "A: y"},
        {"PMC_id": "PMC7", "img_ref": "['F1']", "context": "", "inline": "", "question": "Q: x", "answer": "A:"},
    ]  # fmt: skip
    write_csv(root / "train.csv", source_rows)
    data, rows = run_import_command("pmc-case-report", root)
    assert sorted(rows) == ["train-1", "train-1-context", "train-1-inline", "train-2"]
    assert first_exchange(rows["train-2"]) == ("Where?", "Left lung.")
    assert len(rows["train-1"].image_ids) == 2
    assert {row.group for row in rows.values()} == {"PMC7"}
    assert first_exchange(rows["train-1-context"])[1] == "A man came."
    assert first_exchange(rows["train-1-inline"])[1] == "Fig 1 shows it."
    assert dropped_reasons(data) == ["neither a text nor a question with its answer", "row without an image"]


def test_filtered_pmc_case_report_of_the_hub(tmp_path: Path) -> None:
    root = write_jpegs(tmp_path / "case", "figures/PMC7_F1.jpg", "figures/PMC8_F1.jpg")
    row = {"context": "A man came.", "question": "What is seen?", "answer": "A mass.", "inline": "",
           "img_ref": "['F1']"}  # fmt: skip
    (root / "data").mkdir()
    for split, article_id in (("train", "PMC7"), ("test", "PMC8")):
        source_rows = pa.Table.from_pylist(
            [row | {"PMC_id": article_id}, {**row, "PMC_id": article_id, "answer": None}]
        )
        pq.write_table(source_rows, root / "data" / f"{split}-00000-of-00001.parquet")
    data, rows = run_import_command("pmc-case-report", root, "--images", str(root / "figures"))
    assert {split: sorted(s.kind for s in data.samples(split)) for split in data.splits()} == {
        "train": ["context", "vqa"], "test": ["context", "vqa"],
    }  # fmt: skip
    assert {first_exchange(sample)[1] for sample in rows.values()} == {"A man came.", "A mass."}
    assert dropped_reasons(data) == ["empty answer", "empty answer"]


def test_both_versions_of_pmc_vqa(tmp_path: Path) -> None:
    root = write_jpegs(tmp_path / "vqa", "figures/PMC1_Fig1_1.jpg", "images/PMC2_Fig2_9.jpg")
    choices = {"Choice A": " A:CT ", "Choice B": " B:MRI ", "Choice C": "C: X-ray", "Choice D": "D:PET"}
    first = {"Figure_path": "PMC1_Fig1_1.jpg", "Question": "Which modality?", "Answer": "MRI", **choices}
    write_csv(root / "train.csv", [first | {"Answer_label": "B"}, first | {"Answer_label": "", "Answer": "Scan"}])
    second = {"index": 1, "Figure_path": "PMC2_Fig2_9.jpg", "Caption": "An X-ray.", "Question": "Kind?", **choices}
    write_csv(
        root / "test_2.csv", [second | {"Answer": "C", "split": "test"}, second | {"Answer": "A", "split": "test"}]
    )
    data, rows = run_import_command("pmc-vqa", root)
    one = rows["train-1"]
    assert first_exchange(one) == ("Which modality?\nA. CT\nB. MRI\nC. X-ray\nD. PET", "MRI")
    assert (one.choices, one.answer_type, one.license_tier) == (("CT", "MRI", "X-ray", "PET"), "choice", "sharealike")
    assert sorted(row.sample_id for row in data.samples("test")) == ["test_2-1", "test_2-1-caption", "test_2-2"]
    assert first_exchange(rows["test_2-1"])[1] == "X-ray"
    assert dropped_reasons(data) == ["the answer is none of the choices"]


def test_vqa_rad_train_excludes_test_questions(tmp_path: Path) -> None:
    root = write_jpegs(tmp_path / "rad", "VQA_RAD Image Folder/s1.jpg", "VQA_RAD Image Folder/s2.jpg")
    common = {"question": "Is it normal?", "answer": "No", "answer_type": "CLOSED ", "question_type": "ABN"}
    source_rows = [
        {"qid": "1", "phrase_type": "freeform", "image_name": "s1.jpg", "image_organ": "CHEST", **common},
        {"qid": "2", "phrase_type": "test_freeform", "image_name": "s2.jpg", "image_organ": "HEAD", **common},
    ]
    (root / "VQA_RAD Dataset Public.json").write_text(json.dumps(source_rows))
    data, rows = run_import_command("vqa-rad-train", root)
    assert list(rows) == ["VQA_RAD Dataset Public-1"]
    assert (data.splits(), data.image_table()["body_part"].to_pylist()) == (["train"], ["CHEST"])


def test_roco(tmp_path: Path) -> None:
    root = write_jpegs(
        tmp_path / "data", "train/radiology/images/PMC5_a.001.jpg", "validation/radiology/images/PMC6_b.jpg"
    )
    (root / "train/radiology/captions.txt").write_text("ROCO_1\t Chest film.\nROCO_2\tGone.\nbroken\n")
    (root / "train/radiology/licences.txt").write_text("ROCO_ID,PMC_ID,CC\nROCO_1,PMC5_a.001.jpg,CC BY-NC\n")
    (root / "validation/radiology/captions.txt").write_text("ROCO_9\tA knee.\n")
    (root / "validation/radiology/licences.txt").write_text("ROCO_ID,PMC_ID,CC\nROCO_9,PMC6_b.jpg,NO-CC CODE\n")
    data, rows = run_import_command("roco", root)
    assert {name: (row.license_tier, row.group) for name, row in rows.items()} == {
        "ROCO_1": ("noncommercial", "PMC5"), "ROCO_9": ("unknown", "PMC6"),
    }  # fmt: skip
    assert data.splits() == ["train", "validation"]
    assert dropped_reasons(data) == ["image file is missing", "line without a tab between id and caption"]


def test_roco_v2(tmp_path: Path) -> None:
    root = write_jpegs(tmp_path / "roco2", "train/ROCOv2_1.jpg")
    write_csv(root / "train_captions.csv", [{"ID": "ROCOv2_1", "Caption": "A film."}])
    _, rows = run_import_command("roco-v2", root)
    assert first_exchange(rows["train_captions-ROCOv2_1"])[1] == "A film."


def test_pmc_inline(tmp_path: Path) -> None:
    root = write_jpegs(tmp_path / "inline", "figures/PMC3_F1.jpg", "figures/PMC3_F2.jpg")
    (root / "papers").mkdir()
    sentences = [{"text": "Nothing here.", "img_ref": []}, {"text": "Figs 1, 2 show it.", "img_ref": ["F1", "F2"]}]
    (root / "papers" / "PMC3.json").write_text(json.dumps(sentences))
    _, rows = run_import_command("pmc-inline", root / "papers", "--split", "train")
    assert [(row.kind, len(row.image_ids), row.group) for row in rows.values()] == [("inline", 2, "PMC3")]


def test_iu_xray_and_mimic(tmp_path: Path) -> None:
    root = write_jpegs(tmp_path / "iu", "images/CXR1_IM-1/0.png", "images/CXR1_IM-1/1.png", "images/CXR1_IM-2/0.png")
    source_rows = {
        "train": [{"id": "CXR1_IM-1", "report": "Clear.", "image_path": ["CXR1_IM-1/0.png", "CXR1_IM-1/1.png"]}],
        "test": [{"id": "CXR2_IM-2", "report": "Mass.", "image_path": ["CXR1_IM-2/0.png"]}, {"id": "x", "report": ""}],
    }
    (root / "annotation.json").write_text(json.dumps(source_rows))
    data, rows = run_import_command("iu-xray", root)
    assert {n: (r.kind, r.group, len(r.image_ids)) for n, r in rows.items()} == {
        "CXR1_IM-1": ("report", "CXR1", 2), "CXR2_IM-2": ("report", "CXR2", 1),
    }  # fmt: skip
    assert data.splits() == ["train", "test"]
    names = ("p10000032/s5/d1.jpg", "p10000032/s5/d2.jpg", "p10000099/s7/d4.jpg")
    mimic = write_jpegs(tmp_path / "mimic", *(f"files/p10/{name}" for name in names))
    with gzip.open(mimic / "mimic-cxr-2.0.0-split.csv.gz", "wt") as file:
        file.write(
            "dicom_id,study_id,subject_id,split\nd1,5,10000032,train\nd2,5,10000032,train\nd3,6,10000032,train\nd4,7,10000099,validate\n"
        )
    report = " FINAL REPORT\n EXAMINATION: CHEST\n\n FINDINGS: The lungs\n are clear.\n\n IMPRESSION: Normal.\n"
    (mimic / "files/p10/p10000032/s5.txt").write_text(report)
    (mimic / "files/p10/p10000099/s7.txt").write_text("A small effusion.")
    data, rows = run_import_command("mimic-cxr-jpg", mimic)
    assert first_exchange(rows["s5"])[1] == "The lungs are clear. Normal."
    assert (rows["s5"].group, rows["s5"].license_tier) == ("p10000032", "restricted")
    assert {split: [sample.sample_id for sample in data.samples(split)] for split in data.splits()} == {
        "train": ["s5"], "validation": ["s7"],
    }  # fmt: skip
    assert dropped_reasons(data) == ["report is missing"]


def test_encodings_of_reports_and_captions(tmp_path: Path) -> None:
    """--encoding applies to every published layout, not only to tables."""
    iu = write_jpegs(tmp_path / "iu", "images/CXR1_IM-1/0.png")
    row = {"id": "CXR1_IM-1", "report": "心影增大，双肺清晰。", "image_path": ["CXR1_IM-1/0.png"]}
    (iu / "annotation.json").write_text(json.dumps({"train": [row]}, ensure_ascii=False), encoding="gb18030")
    _, rows = run_import_command("iu-xray", iu, "--encoding", "gb18030")
    assert first_exchange(rows["CXR1_IM-1"])[1] == row["report"]

    mimic = write_jpegs(tmp_path / "mimic", "files/p10/p10000032/s5/d1.jpg")
    table = "dicom_id,study_id,subject_id,split\nd1,5,10000032,train\n"
    (mimic / "mimic-cxr-2.0.0-split.csv").write_text(table, encoding="utf-16")
    (mimic / "files/p10/p10000032/s5.txt").write_text("Opacité à gauche.", encoding="utf-16")
    _, rows = run_import_command("mimic-cxr-jpg", mimic, "--encoding", "utf-16")
    assert first_exchange(rows["s5"])[1] == "Opacité à gauche."

    roco = write_jpegs(tmp_path / "roco", "train/radiology/images/PMC5_a.001.jpg")
    (roco / "train/radiology/captions.txt").write_text("PMC5_a.001\t右下肺野片狀影。\n", encoding="big5hkscs")
    _, rows = run_import_command("roco", roco, "--encoding", "big5hkscs")
    assert first_exchange(rows["PMC5_a.001"])[1] == "右下肺野片狀影。"


def test_figures_with_panels(tmp_path: Path) -> None:
    pmc = write_pmc_store(tmp_path / "pmc")
    assert main(["data", "extract-figures", str(pmc / "articles"), str(tmp_path / "figures"), "--workers", "1"]) == 0
    data, rows = run_import_command(
        "figures", tmp_path / "figures", "--images", str(pmc / "articles"), "--split", "train"
    )
    assert sorted(rows) == ["PMC11/F1-A", "PMC11/F1-B", "PMC11/F1-caption", "PMC12/F1-caption"]
    assert first_exchange(rows["PMC11/F1-B"])[1] == "Chest CT. Coronal view."
    assert data.image(rows["PMC11/F1-B"].image_ids[0]).width == 150
    assert {row.group for row in rows.values()} == {"PMC11", "PMC12"}
    assert (
        data.image(rows["PMC12/F1-caption"].image_ids[0]).provenance[0].attribution == "A rare case, Journal of Cases"
    )
    reason = "unsure whether it is medical (--include-unsure imports it): names no kind of image"
    assert dropped_reasons(data) == [reason] * 2
    words = ["--images", str(pmc / "articles"), "--split", "train", "--include-unsure"]
    out = tmp_path / "unsure"
    assert main(["data", "import", "figures", str(tmp_path / "figures"), str(out), *words]) == 0
    assert dropped_reasons(open_dataset(out)) == ["image file is missing"] * 2
    assert main(["data", "import", "figures", str(tmp_path / "figures"), str(tmp_path / "none")]) == 2


def test_whole_figures_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, pmc = write_jpegs(tmp_path / "oa", "images/PMC1_Fig1_1.jpg"), write_pmc_store(tmp_path / "pmc")
    names = ("PMC1_Fig1_1.jpg", "PMC12_Fig1_1.jpg", "PMC77_Fig1_1.jpg")
    write_jsonl(root / "pmc_oa.jsonl", [{"image": name, "caption": f"Text of {name}."} for name in names])
    data, rows = run_import_command("pmc-oa", root, "--pmc", str(pmc), "--split", "train")
    assert len(rows) == 2
    assert data.manifest["settings"]["pictures"] == {"found": 1, "whole_figure": 1, "missing": 1}
    assert "1 found, 1 only as the whole figure, 1 missing" in capsys.readouterr().out
