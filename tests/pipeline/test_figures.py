"""`qilin data extract-figures`: caption classes, figure rows, rejected articles and figures, real articles."""

import json
import os
from pathlib import Path

import pytest

from builders.jats import CC_BY, article, figure
from qilin.cli import main
from qilin.pipeline.execution.sharded_map import read_shards
from qilin.pipeline.pubmed.caption_classifier import classify_caption

REAL = Path(__file__).parents[3] / "shared" / "data" / "jats" / "data"

CAPTIONS = [
    ("Axial CT of the chest shows a nodule (arrow).", "yes", "CT", "Chest"),
    ("T2-weighted MRI of the left knee.", "yes", "MRI", "Limb"),
    ("Hematoxylin and eosin staining of the liver.", "yes", "Pathology", "Abdomen"),
    ("Fundus photograph of the right eye.", "yes", "Fundus", "Eye"),
    ("Kaplan-Meier survival curves of both arms.", "no", None, None),
    ("Flow chart of the study.", "no", None, None),
    ("X-ray diffraction spectra.", "no", None, None),
    ("Chest CT before and after. P < 0.05.", "yes", "CT", "Chest"),
    ("ROC curve of the classifier. CT features were used.", "no", "CT", None),
    ("The lesion.", "unsure", None, None),
    ("", "unsure", None, None),
]


@pytest.mark.parametrize(("caption", "medical", "modality", "body_part"), CAPTIONS)
def test_captions_are_classified(caption: str, medical: str, modality: str | None, body_part: str | None) -> None:
    result = classify_caption(caption)
    assert (result.medical, result.modality, result.body_part) == (medical, modality, body_part)


def write_articles(root: Path) -> Path:
    root.mkdir()
    medical = figure("F1", "Chest CT. (A) Axial view. (B) Coronal view.", "f1.jpg", "Fig. 1")
    chart = figure("F2", "Bar chart of ages.", "f2.jpg", "Fig. 2")
    (root / "PMC1.1").mkdir()
    (root / "PMC1.1" / "PMC1.1.xml").write_bytes(article(medical + chart, pmcid="PMC1"))
    (root / "PMC1.1" / "PMC1.1.json").write_text(json.dumps({"license_code": "CC BY-NC", "is_retracted": False}))
    credited = figure("F1", "Brain MRI. © Elsevier, with permission.", "m.jpg")
    (root / "b.nxml").write_bytes(article(credited, pmcid="PMC2"))
    (root / "c.xml").write_bytes(b"<article>")
    (root / "d.xml").write_bytes(article(medical, pmcid="PMC4"))
    (root / "d.json").write_text(json.dumps({"is_retracted": True}))
    (root / "e.nxml").write_bytes(article(medical, pmcid="PMC5", article_type="retraction"))
    return root


def test_articles_become_figure_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_articles(tmp_path / "articles"), tmp_path / "figures"
    assert main(["data", "extract-figures", str(source), str(out), "--workers", "1"]) == 0
    rows = {row["row_id"]: row for row in read_shards(out)}
    assert sorted(rows) == ["PMC1/F1", "PMC2/F1"]
    assert (rows["PMC1/F1"]["license"], rows["PMC1/F1"]["license_tier"]) == ("CC BY-NC", "noncommercial")
    assert rows["PMC1/F1"]["panels"]["parts"] == [["A", "Axial view."], ["B", "Coronal view."]]
    assert rows["PMC2/F1"]["license_tier"] == "restricted"  # credited to somebody else: CC BY does not cover it
    assert "2 figures of 5 articles" in capsys.readouterr().out
    dropped = [json.loads(line) for line in (out / "dropped-00000.jsonl").read_text().splitlines()]
    assert sorted(row["reason"] for row in dropped) == [
        "article: malformed XML", "article: retracted, or a notice of retraction",
        "article: retracted, or a notice of retraction", "figure: a chart or a drawing by its caption",
    ]  # fmt: skip
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("rows-*")}
    assert main(["data", "extract-figures", str(source), str(out), "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == 2
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("rows-*")} == before
    (source / "new.xml").write_bytes(article("", pmcid="PMC9"))
    assert main(["data", "extract-figures", str(source), str(out)]) == 2
    assert "(articles, listing differ)" in capsys.readouterr().err
    assert main(["data", "extract-figures", str(tmp_path / "none"), str(out)]) == 2
    assert main(["data", "extract-figures", str(out), str(tmp_path / "x")]) == 2  # no articles in it


@pytest.mark.skipif(not REAL.is_dir(), reason="the real articles are not on this machine")
def test_real_articles(tmp_path: Path) -> None:
    arguments = ["--include-nonmedical", "--workers", "1"]
    assert main(["data", "extract-figures", str(REAL), str(tmp_path / "out"), *arguments]) == 0
    rows = list(read_shards(tmp_path / "out"))
    assert len(rows) == 17
    assert all(row["caption"] and row["label"] and row["images"] and row["mentions"] for row in rows)
    assert {row["license"] for row in rows} == {"CC BY 2.0", "public domain", "CC BY-NC 3.0", "CC BY"}
    assert rows[0]["images"] == [["1471-2180-11-174-1"]]
    reasons = [
        json.loads(line)["reason"] for line in (tmp_path / "out" / "dropped-00000.jsonl").read_text().splitlines()
    ]
    assert sorted(reasons) == ["article: has no figures", "article: has no figures", "article: malformed XML"]


def test_an_unreadable_file_is_rejected(tmp_path: Path) -> None:
    source = tmp_path / "articles"
    source.mkdir()
    (source / "ok.xml").write_bytes(article(figure("F1", "CT.", "a.jpg"), license=CC_BY))
    os.symlink(source / "nowhere", source / "gone.xml")
    assert main(["data", "extract-figures", str(source), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert '"article: file cannot be read"' in (tmp_path / "out" / "dropped-00000.jsonl").read_text()
