"""Published data sets in miniature, in their own layouts, and the resolver of image names."""

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from builders.jats import article, figure
from qilin.cli import main
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Sample, text_of
from qilin.imaging.archive_paths import crop, crop_path, read_path_or_member
from qilin.imaging.decode import ImageError
from qilin.pipeline.importers.column_maps import COLUMN_MAPS
from qilin.pipeline.importers.published import LAYOUTS
from qilin.pipeline.importers.run import SOURCES
from qilin.pipeline.pubmed.image_lookup import resolve, zips


def jpg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").rotate(shade * 7).resize((60, 60)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def put(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpg(number))
    return root


def imported(name: str, source: Path, *words: str) -> tuple[Dataset, dict[str, Sample]]:
    out = source.parent / f"out-{name}"
    assert main(["data", "import", name, str(source), str(out), *words]) == 0
    data = open_dataset(out)
    return data, {row.sample_id: row for split in data.splits() for row in data.samples(split)}


def dropped(data: Dataset) -> list[str]:
    return sorted(json.loads(line)["reason"] for line in (data.path / "dropped.jsonl").read_text().splitlines())


def asked(sample: Sample) -> tuple[str, str]:
    return text_of(sample.messages[0]), text_of(sample.messages[1])


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_layout_is_named_with_its_source() -> None:
    for name in (*COLUMN_MAPS, *LAYOUTS):
        assert name in SOURCES
        assert COLUMN_MAPS[name].layout if name in COLUMN_MAPS else LAYOUTS[name]


def test_pmc_oa(tmp_path: Path) -> None:
    root = put(tmp_path / "pmc_oa", "images/PMC1_Fig1_2.jpg", "images/PMC1_Fig1_3.jpg")
    lines(root / "pmc_oa.jsonl", [
        {"image": "PMC1_Fig1_2.jpg", "caption": "A. Axial CT."}, {"image": "PMC1_Fig1_3.jpg", "caption": "B. MRI."},
        {"image": "PMC1_Fig1_3.jpg"}, {"caption": "no image"}, {"image": "PMC9_Fig1_1.jpg", "caption": "gone"},
    ])  # fmt: skip
    data, rows = imported("pmc-oa", root, "--split", "train")
    assert asked(rows["pmc_oa-PMC1_Fig1_2.jpg"])[1] == "A. Axial CT."
    assert {(row.kind, row.lang, row.group) for row in rows.values()} == {("caption", "en", "PMC1")}
    assert dropped(data) == [
        "image file is missing", "neither a text nor a question with its answer", "row without an image",
    ]  # fmt: skip


def test_pmc_oa_beta_as_it_is_and_as_it_first_was(tmp_path: Path) -> None:
    """One file beside pmc_oa.jsonl; before, a file a split with two fields more."""
    folder = "caption_T060_filtered_top4_sep_v0_subfigures"
    root = put(tmp_path / "pmc_oa", f"{folder}/PMC5_Fig1_2.jpg")
    row = {"image": "PMC5_Fig1_2.jpg", "caption": "A, a film. B, a scan."}
    lines(root / "pmc_oa.jsonl", [row | {"caption": "A film."}])
    lines(root / "pmc_oa_beta.jsonl", [row])
    _, rows = imported("pmc-oa", root / "pmc_oa_beta.jsonl", "--split", "train")
    assert {name: (asked(row)[1], row.group) for name, row in rows.items()} == {
        "pmc_oa_beta-PMC5_Fig1_2.jpg": ("A, a film. B, a scan.", "PMC5")
    }
    old = lines(root / "valid.jsonl", [row | {"pmcid": "PMC5", "url_name": "1471-2121-4-13-3.jpg"}])
    assert main(["data", "import", "pmc-oa", str(old), str(tmp_path / "old")]) == 0
    assert [sample.group for sample in open_dataset(tmp_path / "old").samples("validation")] == ["PMC5"]


def test_pmc_case_report(tmp_path: Path) -> None:
    root = put(tmp_path / "case", "figures/PMC7_F1.jpg", "figures/PMC7_F2.jpg")
    rows_in = [
        {"PMC_id": "PMC7", "img_ref": "['F1', 'F2']", "context": "A man came.", "inline": "Fig 1 shows it.",
         "question": "Q: What is seen?", "answer": "A: A mass."},
        {"PMC_id": "PMC7", "img_ref": "['F1', 'F2']", "context": "A man came.", "inline": "Fig 1 shows it.",
         "question": "Q: Where?", "answer": "A: Left lung."},
        {"PMC_id": "PMC7", "img_ref": "[]", "context": "c", "inline": "", "question": "Q: x", "answer": "A: y"},
        {"PMC_id": "PMC7", "img_ref": "['F1']", "context": "", "inline": "", "question": "Q: x", "answer": "A:"},
    ]  # fmt: skip
    table(root / "train.csv", rows_in)
    data, rows = imported("pmc-case-report", root)
    assert sorted(rows) == ["train-1", "train-1-context", "train-1-inline", "train-2"]
    assert asked(rows["train-2"]) == ("Where?", "Left lung.")
    assert len(rows["train-1"].image_ids) == 2
    assert {row.group for row in rows.values()} == {"PMC7"}
    assert [asked(rows[f"train-1-{kind}"])[1] for kind in ("context", "inline")] == ["A man came.", "Fig 1 shows it."]
    assert dropped(data) == ["neither a text nor a question with its answer", "row without an image"]


def test_pmc_case_report_as_the_hub_has_its_filtered_version(tmp_path: Path) -> None:
    root = put(tmp_path / "case", "figures/PMC7_F1.jpg", "figures/PMC8_F1.jpg")
    row = {"context": "A man came.", "question": "What is seen?", "answer": "A mass.", "inline": "",
           "img_ref": "['F1']"}  # fmt: skip
    (root / "data").mkdir()
    for split, article_id in (("train", "PMC7"), ("test", "PMC8")):
        rows_in = pa.Table.from_pylist([row | {"PMC_id": article_id}, {**row, "PMC_id": article_id, "answer": None}])
        pq.write_table(rows_in, root / "data" / f"{split}-00000-of-00001.parquet")
    data, rows = imported("pmc-case-report", root, "--images", str(root / "figures"))
    assert {split: sorted(s.kind for s in data.samples(split)) for split in data.splits()} == {
        "train": ["context", "vqa"], "test": ["context", "vqa"],
    }  # fmt: skip
    assert {asked(sample)[1] for sample in rows.values()} == {"A man came.", "A mass."}
    assert dropped(data) == ["empty answer", "empty answer"]


def test_both_versions_of_pmc_vqa(tmp_path: Path) -> None:
    root = put(tmp_path / "vqa", "figures/PMC1_Fig1_1.jpg", "images/PMC2_Fig2_9.jpg")
    choices = {"Choice A": " A:CT ", "Choice B": " B:MRI ", "Choice C": "C: X-ray", "Choice D": "D:PET"}
    first = {"Figure_path": "PMC1_Fig1_1.jpg", "Question": "Which modality?", "Answer": "MRI", **choices}
    table(root / "train.csv", [first | {"Answer_label": "B"}, first | {"Answer_label": "", "Answer": "Scan"}])
    second = {"index": 1, "Figure_path": "PMC2_Fig2_9.jpg", "Caption": "An X-ray.", "Question": "Kind?", **choices}
    table(root / "test_2.csv", [second | {"Answer": "C", "split": "test"}, second | {"Answer": "A", "split": "test"}])
    data, rows = imported("pmc-vqa", root)
    one = rows["train-1"]
    assert asked(one) == ("Which modality?\nA. CT\nB. MRI\nC. X-ray\nD. PET", "MRI")
    assert (one.choices, one.answer_type, one.license_tier) == (("CT", "MRI", "X-ray", "PET"), "choice", "sharealike")
    assert sorted(row.sample_id for row in data.samples("test")) == ["test_2-1", "test_2-1-caption", "test_2-2"]
    assert asked(rows["test_2-1"])[1] == "X-ray"
    assert dropped(data) == ["the answer is none of the choices"]


def test_vqa_rad_to_train_on_leaves_the_test_alone(tmp_path: Path) -> None:
    root = put(tmp_path / "rad", "VQA_RAD Image Folder/s1.jpg", "VQA_RAD Image Folder/s2.jpg")
    common = {"question": "Is it normal?", "answer": "No", "answer_type": "CLOSED ", "question_type": "ABN"}
    rows_in = [
        {"qid": "1", "phrase_type": "freeform", "image_name": "s1.jpg", "image_organ": "CHEST", **common},
        {"qid": "2", "phrase_type": "test_freeform", "image_name": "s2.jpg", "image_organ": "HEAD", **common},
    ]
    (root / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows_in))
    data, rows = imported("vqa-rad-train", root)
    assert list(rows) == ["VQA_RAD Dataset Public-1"]
    assert (data.splits(), data.image_table()["body_part"].to_pylist()) == (["train"], ["CHEST"])


def test_roco(tmp_path: Path) -> None:
    root = put(tmp_path / "data", "train/radiology/images/PMC5_a.001.jpg", "validation/radiology/images/PMC6_b.jpg")
    (root / "train/radiology/captions.txt").write_text("ROCO_1\t Chest film.\nROCO_2\tGone.\nbroken\n")
    (root / "train/radiology/licences.txt").write_text("ROCO_ID,PMC_ID,CC\nROCO_1,PMC5_a.001.jpg,CC BY-NC\n")
    (root / "validation/radiology/captions.txt").write_text("ROCO_9\tA knee.\n")
    (root / "validation/radiology/licences.txt").write_text("ROCO_ID,PMC_ID,CC\nROCO_9,PMC6_b.jpg,NO-CC CODE\n")
    data, rows = imported("roco", root)
    assert {name: (row.license_tier, row.group) for name, row in rows.items()} == {
        "ROCO_1": ("noncommercial", "PMC5"), "ROCO_9": ("unknown", "PMC6"),
    }  # fmt: skip
    assert data.splits() == ["train", "validation"]
    assert dropped(data) == ["image file is missing", "line without a tab between id and caption"]


def test_roco_v2(tmp_path: Path) -> None:
    root = put(tmp_path / "roco2", "train/ROCOv2_1.jpg")
    table(root / "train_captions.csv", [{"ID": "ROCOv2_1", "Caption": "A film."}])
    _, rows = imported("roco-v2", root)
    assert asked(rows["train_captions-ROCOv2_1"])[1] == "A film."


def talk(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]


def test_pubmedvision_in_english_and_chinese(tmp_path: Path) -> None:
    root = put(tmp_path / "pmv", "images/pmc_1_0.jpg", "images/pmc_1_1.jpg")
    rows_in = [
        {"id": "a", "image": ["images/pmc_1_0.jpg", "images/pmc_1_1.jpg"], "modality": "CT", "body_part": "Chest",
         "conversations": talk("What is it?", "A mass.")},
        {"id": "b", "image": ["images/pmc_1_0.jpg"],
         "conversations": talk("这是什么？", "肿块。", "在哪里？", "左肺。")},
    ]  # fmt: skip
    (root / "PubMedVision.json").write_text(json.dumps(rows_in))
    data, rows = imported("pubmedvision", root / "PubMedVision.json", "--split", "train")
    assert [(row.kind, row.lang, len(row.image_ids)) for row in rows.values()] == [("vqa", "en", 2), ("chat", "zh", 1)]
    assert data.image_table()["modality"].to_pylist() == ["CT", "CT"]


def test_llava_med_with_its_misspelt_field(tmp_path: Path) -> None:
    root = put(tmp_path / "med", "images/111_F1.jpg")
    rows_in = [{"id": "111_F1", "image": "111_F1.jpg", "domain": {"mri": True, "ct_scan": False},
                "conversatons": talk("Describe it.\n<image>", "An MRI.")}]  # fmt: skip
    (root / "alignment.json").write_text(json.dumps(rows_in))
    data, rows = imported("llava-med", root / "alignment.json", "--split", "train")
    assert asked(rows["alignment-1-111_F1"]) == ("Describe it.", "An MRI.")
    assert data.image_table()["modality"].to_pylist() == ["mri"]


CHIMED = [
    {"id": "1", "image": "PMC1_F1.jpg", "conversations": talk("<image>\n描述图片。", "一张CT。")},
    {"id": "1", "image": "PMC1_F1.jpg", "caption": "一张CT。", "context": "病人来诊。"},
    {"id": "1", "img": "PMC1_F1.jpg", "instruction": "这是什么？", "output": "一张CT。"},
]


@pytest.mark.parametrize("row", CHIMED)
def test_chimed_vl_in_the_usual_forms(tmp_path: Path, row: dict[str, Any]) -> None:
    root = put(tmp_path / "chimed", "images/PMC1_F1.jpg")
    _, rows = imported("chimed-vl", lines(root / "alignment.jsonl", [row]), "--split", "train")
    assert "一张CT。" in [asked(sample)[1] for sample in rows.values()]
    assert {sample.group for sample in rows.values()} == {"PMC1"}
    assert len(rows) == (2 if "context" in row else 1)


def test_chimed_vl_in_another_form_is_refused_with_its_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = lines(tmp_path / "x.jsonl", [{"bild": "a.jpg", "worte": "b"}])
    assert main(["data", "import", "chimed-vl", str(file), str(tmp_path / "out")]) == 2
    assert "its rows have the fields bild, worte; expected `conversations`" in capsys.readouterr().err


def test_pmc_inline(tmp_path: Path) -> None:
    root = put(tmp_path / "inline", "figures/PMC3_F1.jpg", "figures/PMC3_F2.jpg")
    (root / "papers").mkdir()
    sentences = [{"text": "Nothing here.", "img_ref": []}, {"text": "Figs 1, 2 show it.", "img_ref": ["F1", "F2"]}]
    (root / "papers" / "PMC3.json").write_text(json.dumps(sentences))
    _, rows = imported("pmc-inline", root / "papers", "--split", "train")
    assert [(row.kind, len(row.image_ids), row.group) for row in rows.values()] == [("inline", 2, "PMC3")]


def test_iu_xray_and_mimic(tmp_path: Path) -> None:
    root = put(tmp_path / "iu", "images/CXR1_IM-1/0.png", "images/CXR1_IM-1/1.png", "images/CXR1_IM-2/0.png")
    rows_in = {
        "train": [{"id": "CXR1_IM-1", "report": "Clear.", "image_path": ["CXR1_IM-1/0.png", "CXR1_IM-1/1.png"]}],
        "test": [{"id": "CXR2_IM-2", "report": "Mass.", "image_path": ["CXR1_IM-2/0.png"]}, {"id": "x", "report": ""}],
    }
    (root / "annotation.json").write_text(json.dumps(rows_in))
    data, rows = imported("iu-xray", root)
    assert {n: (r.kind, r.group, len(r.image_ids)) for n, r in rows.items()} == {
        "CXR1_IM-1": ("report", "CXR1", 2), "CXR2_IM-2": ("report", "CXR2", 1),
    }  # fmt: skip
    assert data.splits() == ["train", "test"]
    mimic = put(tmp_path / "mimic", "files/p10/p10000032/s5/d1.jpg", "files/p10/p10000032/s5/d2.jpg")
    with gzip.open(mimic / "mimic-cxr-2.0.0-split.csv.gz", "wt") as file:
        file.write(
            "dicom_id,study_id,subject_id,split\nd1,5,10000032,train\nd2,5,10000032,train\nd3,6,10000032,train\n"
        )
    report = " FINAL REPORT\n EXAMINATION: CHEST\n\n FINDINGS: The lungs\n are clear.\n\n IMPRESSION: Normal.\n"
    (mimic / "files/p10/p10000032/s5.txt").write_text(report)
    data, rows = imported("mimic-cxr-jpg", mimic)
    assert asked(rows["s5"])[1] == "The lungs are clear. Normal."
    assert (rows["s5"].group, rows["s5"].license_tier) == ("p10000032", "restricted")
    assert dropped(data) == ["report is missing"]


def compound() -> bytes:
    page = Image.new("RGB", (310, 150), "white")
    for place in range(2):
        tile = Image.new("RGB", (150, 150), (90 + 40 * place,) * 3)
        ImageDraw.Draw(tile).ellipse((30, 30, 80, 80), fill="white")
        page.paste(tile, (place * 160, 0))
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def store(root: Path) -> Path:
    """A folder as `qilin data pmc` leaves it: two articles."""
    for number, image in ((11, "f1.png"), (12, "f1.jpg")):
        folder = root / "articles" / f"{number:03d}" / f"PMC{number}.1"
        folder.mkdir(parents=True)
        caption = "Chest CT. (A) Axial view. (B) Coronal view." if number == 11 else "Knee MRI."
        body = figure("F1", caption, image.partition(".")[0], "Fig. 1") + figure("F2", "The view.", "f2.jpg", "Fig. 2")
        (folder / f"PMC{number}.1.xml").write_bytes(article(body, pmcid=f"PMC{number}"))
        (folder / f"PMC{number}.1.json").write_text(json.dumps({"pmcid": f"PMC{number}", "pmid": 9000 + number}))
        (folder / image).write_bytes(compound() if number == 11 else jpg(3))
    return root


def test_figures_with_panels(tmp_path: Path) -> None:
    pmc = store(tmp_path / "pmc")
    assert main(["data", "figures", str(pmc / "articles"), str(tmp_path / "figures"), "--workers", "1"]) == 0
    data, rows = imported("figures", tmp_path / "figures", "--images", str(pmc / "articles"), "--split", "train")
    assert sorted(rows) == ["PMC11/F1-A", "PMC11/F1-B", "PMC11/F1-caption", "PMC12/F1-caption"]
    assert asked(rows["PMC11/F1-B"])[1] == "Chest CT. Coronal view."
    assert data.image(rows["PMC11/F1-B"].image_ids[0]).width == 150
    assert {row.group for row in rows.values()} == {"PMC11", "PMC12"}
    assert (
        data.image(rows["PMC12/F1-caption"].image_ids[0]).provenance[0].attribution == "A rare case, Journal of Cases"
    )
    assert dropped(data) == ["unsure whether it is medical (--unsure takes it): names no kind of image"] * 2
    words = ["--images", str(pmc / "articles"), "--split", "train", "--unsure"]
    out = tmp_path / "unsure"
    assert main(["data", "import", "figures", str(tmp_path / "figures"), str(out), *words]) == 0
    assert dropped(open_dataset(out)) == ["image file is missing"] * 2
    assert main(["data", "import", "figures", str(tmp_path / "figures"), str(tmp_path / "none")]) == 2


def test_the_resolver(tmp_path: Path) -> None:
    base, pmc = put(tmp_path / "images", "PMC1_F1.jpg", "sub/x.jpg"), store(tmp_path / "pmc")
    with zipfile.ZipFile(base / "a.zip", "w") as archive:
        archive.writestr("deep/PMC2_Fig1_1.jpg", jpg(5))
        archive.writestr("../../evil.jpg", jpg(6))

    def found(name: str) -> tuple[str, bool]:
        where = resolve(name, (base,), pmc)
        return where.path.relative_to(tmp_path).as_posix(), where.whole

    assert found("PMC1_F1.jpg") == ("images/PMC1_F1.jpg", False)
    assert found("sub/x") == ("images/sub/x.jpg", False)
    assert found("PMC2_Fig1_1.jpg") == ("images/a.zip/deep/PMC2_Fig1_1.jpg", False)
    assert read_path_or_member(base / "a.zip/deep/PMC2_Fig1_1.jpg") == jpg(5)
    assert found("PMC12_Fig1_7.jpg") == ("pmc/articles/012/PMC12.1/f1.jpg", True)
    assert found("PMC12_F1.jpg") == ("pmc/articles/012/PMC12.1/f1.jpg", False)
    assert found("PMC12_f1.jpg") == ("pmc/articles/012/PMC12.1/f1.jpg", False)
    assert found("9012_F1.jpg") == ("pmc/articles/012/PMC12.1/f1.jpg", False)
    for gone in ("PMC12_Fig2_1.jpg", "PMC12_Fig9_1.jpg", "PMC99_F1.jpg", "8_F1.jpg", "x.jpg"):
        assert not resolve(gone, (base,), pmc).path.exists()
    climbed = resolve("../pmc/articles/012/PMC12.1/f1.jpg", (base,))
    assert not climbed.path.exists()  # a name does not leave its folder
    (base / "b.zip").write_bytes((base / "a.zip").read_bytes()[:-40])  # cut short: its list stands at the end
    zips.cache_clear()
    assert found("PMC2_Fig1_1.jpg") == ("images/a.zip/deep/PMC2_Fig1_1.jpg", False)
    with pytest.raises(ImageError, match="zip is damaged: b.zip"):
        read_path_or_member(resolve("PMC99_F1.jpg", (base,), pmc).path)


def test_whole_figures_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, pmc = put(tmp_path / "oa", "images/PMC1_Fig1_1.jpg"), store(tmp_path / "pmc")
    names = ("PMC1_Fig1_1.jpg", "PMC12_Fig1_1.jpg", "PMC77_Fig1_1.jpg")
    lines(root / "pmc_oa.jsonl", [{"image": name, "caption": f"Text of {name}."} for name in names])
    data, rows = imported("pmc-oa", root, "--pmc", str(pmc), "--split", "train")
    assert len(rows) == 2
    assert data.manifest["settings"]["pictures"] == {"found": 1, "whole_figure": 1, "missing": 1}
    assert "1 found, 1 only as the whole figure, 1 missing" in capsys.readouterr().out


def test_paths_through_files(tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(compound())
    part = crop_path(tmp_path / "c.png", (160, 0, 310, 150))
    assert Image.open(io.BytesIO(read_path_or_member(part))).size == (150, 150)
    assert read_path_or_member(part) == crop(compound(), "box=160,0,310,150")
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 nothing")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("zero.jpg", b"")
    for path, reason in (
        ("bad.zip/a.jpg", "zip is damaged"), ("empty.zip/zero.jpg", "image file is empty"),
        ("empty.zip/none.jpg", "image file is missing"), ("none.zip/a.jpg", "image file"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=reason):
            read_path_or_member(tmp_path / path)
