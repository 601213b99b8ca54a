"""`qilin data extract-figures`: caption classes, figure rows, rejected articles and figures, real articles."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from builders.import_sources import write_jpegs
from builders.jats import CC_BY, article, figure, link
from qilin.cli import main
from qilin.dataset.reader import open_dataset
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
    ("Fluoroscopy after a Pipeline Flex device was deployed.", "yes", "Angiography", None),
    ("Biopsy with effaced nodal architecture.", "yes", "Pathology", None),
    ("MRI of the spine with a lumbar curve.", "yes", "MRI", "Spine"),
    ("CT with a lung algorithm.", "yes", "CT", "Chest"),
    ("MRI with partial regression of the tumor.", "yes", "MRI", None),
    ("CT with scattered nodules.", "yes", "CT", None),
    ("T₂-weighted image of the knee.", "yes", "MRI", "Limb"),
    ("Logistic regression of CT findings.", "unsure", "CT", None),
    ("Correlation of CT volume and age.", "unsure", "CT", None),
    ("Pipeline of the CT analysis.", "unsure", "CT", None),
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


def extract(source: Path, out: Path) -> dict[str, dict[str, Any]]:
    assert main(["data", "extract-figures", str(source), str(out), "--include-nonmedical", "--workers", "1"]) == 0
    return {row["row_id"]: row for row in read_shards(out)}


def test_all_articles_of_a_set_are_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    articles = [article(figure("F1", "CT.", "f1.jpg"), pmcid=f"PMC{n}") for n in (1, 2)]
    articles += [article(figure("F1", "MRI.", "f3.jpg"), pmcid="PMC3"), article("").replace(b"article-meta", b"meta")]
    inner = b"".join(data[data.index(b"<article") :] for data in articles)
    (tmp_path / "in" / "set.xml").write_bytes(b"<pmc-articleset>" + inner + b"</pmc-articleset>")
    records = b"".join(
        b"<record><metadata>" + data[data.index(b"<article") :].replace(b"<article ", b'<article xmlns="http://j" ')
        + b"</metadata></record>" for data in articles[:3]
    )  # fmt: skip
    (tmp_path / "in" / "oai.xml").write_bytes(
        b'<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><ListRecords>' + records + b"</ListRecords></OAI-PMH>"
    )
    assert main(["data", "extract-figures", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1"]) == 0
    rows = list(read_shards(tmp_path / "out"))
    assert [row["article"] for row in rows] == ["PMC1", "PMC2", "PMC3"] * 2
    images = [row["images"] for row in rows[:3]]  # two articles of the set name a f1.jpg: it is nobody's
    assert images == [[["PMC1/f1.jpg"]], [["PMC2/f1.jpg"]], [["PMC3/f3.jpg", "f3.jpg"]]]
    (dropped,) = read_shards(tmp_path / "out", "dropped")
    assert (dropped["row"]["file"], dropped["reason"]) == ("set.xml#4", "article: no article-meta")


def test_articles_without_an_id_are_named_by_their_path(tmp_path: Path) -> None:
    data = re.sub(rb"<article-id.*?</article-id>", b"", article(figure("F1", "CT.", "f1.jpg")))
    for folder in ("one", "two"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "fulltext.xml").write_bytes(data)
    assert list(extract(tmp_path / "in", tmp_path / "out")) == ["one/fulltext/F1", "two/fulltext/F1"]


def test_group_captions_languages_and_names_reach_the_dataset(tmp_path: Path) -> None:
    members = figure("a", "", "g1.jpg", "(a)") + figure("b", "", "g2.jpg", "(b)")
    shared = "<label>Figure 1</label><caption><p>CT, axial and coronal.</p></caption>"
    named = figure("F2", "MRI.", "images/f%202.TIF") + figure("F3", "X-ray.", "https://h.example/x/F3.PNG?v=1")
    spanish = figure("S", "TC de tórax.", "s.jpg")
    data = article(
        f'<p>{link("G", "Figure 1")} shows it.</p><fig-group id="G">{shared}{members}</fig-group>{named}',
        f"<sub-article xml:lang='es' article-type='translation'><body>{spanish}</body></sub-article>",
    )
    write_jpegs(tmp_path / "in", "g1.jpg", "g2.jpg", "images/F 2.jpg", "f3.png", "s.jpg")
    (tmp_path / "in" / "a.xml").write_bytes(data.replace(b"<article ", b'<article xml:lang="en" '))
    assert extract(tmp_path / "in", tmp_path / "figures")["PMC100/b"]["mentions"] == ["Figure 1 shows it."]
    out = tmp_path / "data"
    options = ["--images", str(tmp_path / "in"), "--split", "train", "--include-unsure"]
    assert main(["data", "import", "figures", str(tmp_path / "figures"), str(out), *options]) == 0
    samples = {sample.sample_id.partition("/")[2]: sample for sample in open_dataset(out).samples("train")}
    assert sorted(samples) == ["F2-caption", "F3-caption", "G-caption", "G-context", "G-inline", "S-caption"]
    assert len(samples["G-caption"].image_ids) == 2
    assert {name: sample.lang for name, sample in samples.items() if sample.lang != "en"} == {"S-caption": "es"}


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
