"""Articles to figures: what pubmed_parser gets wrong, licences, mentions, bad files, and the command."""

import json
import os
from pathlib import Path

import pytest

from builders.jats import CC_BY, CC_BY_NC, article, figure, link
from qilin.cli import main
from qilin.pipeline.execution.sharded_map import read_shards
from qilin.pipeline.pubmed.caption_classifier import judge
from qilin.pipeline.pubmed.jats import ArticleError, Figure, creative_commons, read_article
from qilin.pipeline.pubmed.jats_text import sentences

REAL = Path(__file__).parents[3] / "shared" / "data" / "jats" / "data"


def by_id(data: bytes) -> dict[str, Figure]:
    return {item.figure_id: item for item in read_article(data).figures}


def test_a_figure_keeps_its_own_caption_image_and_id() -> None:
    found = by_id(
        article(
            figure("F1", "Axial CT of the chest.", "a.jpg", "Figure 1")
            + figure("F2", "", "b.jpg", "Figure 2")
            + figure("F3", "Coronal CT.", "c.jpg").replace(' id="F3"', "")
            + '<fig id="F4"><caption><title>Both.</title><p>Left and right.</p></caption><graphic xlink:href="d1.jpg"/>'
            '<graphic mimetype="image" id="g2" xlink:href="d2.jpg"/></fig>'
        )
    )
    assert list(found) == ["F1", "F2", "fig-3", "F4"]
    assert found["F2"].caption == ""  # not its neighbour's
    assert found["F2"].images == (("b.jpg",),)  # not its position
    assert found["fig-3"].caption == "Coronal CT."
    assert (found["F4"].caption, found["F4"].images) == ("Both. Left and right.", (("d1.jpg",), ("d2.jpg",)))


def test_alternatives_are_one_image_and_a_group_speaks_for_its_members() -> None:
    forms = '<graphic xlink:href="a.svg"/><graphic xlink:href="a.png"/>'
    grouped = figure("F1", "Before.", "x", "A", f"<alternatives>{forms}</alternatives>")
    found = by_id(article(f"<fig-group><label>Figure 1</label><caption><p>MRI.</p></caption>{grouped}</fig-group>"))
    assert found["F1"].images == (("a.png", "a.svg"), ("x",))
    assert found["F1"].group == "Figure 1 MRI."


def test_mentions_and_context() -> None:
    text = (
        f"<p>He had 10<sup>9</sup>/L cells <sup><xref ref-type='bibr' rid='b1'>1</xref></sup>. See Smith et al. and "
        f"{link('F1', 'Figs. 1')}–{link('F3', '3')}. None here [<xref ref-type='bibr' rid='b1'>1</xref>, "
        f"<xref ref-type='bibr' rid='b2'>2</xref>].</p><p>In {link('F4 F5', 'Figures 4, 5')} it grew.</p>"
        f"<p>As {link('F2', 'Figures 2–4')} show.</p>"
        "<table-wrap><table><tr><td><xref ref-type='fig' rid='F5'>5</xref></td></tr></table></table-wrap>"
    )
    figures = "".join(
        figure(f"F{n}", f"No {n} of {link('F1', 'Fig. 1')}.", f"{n}.jpg", f"Fig. {n}") for n in range(1, 6)
    )
    found = by_id(article(text, f"<floats-group>{figures}</floats-group>"))
    first = "See Smith et al. and Figs. 1–3."
    assert found["F1"].mentions == (first,)
    assert found["F2"].mentions == (first, "As Figures 2–4 show.")
    assert found["F3"].mentions == found["F2"].mentions
    assert found["F4"].mentions == ("In Figures 4, 5 it grew.", "As Figures 2–4 show.")
    assert found["F5"].mentions == ("In Figures 4, 5 it grew.",)
    assert found["F1"].context == (f"He had 10⁹/L cells. {first} None here.",)


def test_sentences_do_not_end_at_abbreviations() -> None:
    text = "Dr. Wu et al. saw Fig. 2 at 3.5 cm. It (e.g. CT) grew! G. Smith agreed. 很好。对"
    assert sentences(text) == [
        "Dr. Wu et al. saw Fig. 2 at 3.5 cm.", "It (e.g. CT) grew!", "G. Smith agreed. 很好。", "对",
    ]  # fmt: skip


def test_licences_of_article_and_figure() -> None:
    own = figure("F1", "CT.", "a", inside=f"<permissions>{CC_BY_NC}</permissions>")
    lent = figure("F2", "MRI. Reprinted from Wu with permission. Arrow.", "b")
    data = article(own + lent + figure("F3", "X-ray.", "c"))
    read, found = read_article(data), by_id(data)
    assert read.licence == "CC BY 4.0"
    assert (found["F1"].licence, found["F1"].credit) == ("CC BY-NC 4.0", None)
    assert (found["F2"].licence, found["F2"].credit) == (None, "Reprinted from Wu with permission.")
    assert (found["F3"].licence, found["F3"].credit) == (None, None)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/", "CC BY-NC-ND 4.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0 1.0"),
        ("the Creative Commons Attribution-NonCommercial-ShareAlike License", "CC BY-NC-SA"),
        ("under the Creative Commons Attribution License, which permits", "CC BY"),
        ("All rights reserved", None),
    ],
)
def test_creative_commons_by_address_or_words(words: str, named: str | None) -> None:
    assert creative_commons(words) == named


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE article [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><article><front><article-meta>{}</article-meta></front></article>'
)
LATIN = article(figure("F1", "CT of the caf\u00e9.", "a.jpg")).decode().encode("latin-1")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "file is empty"),
        (b"  \n", "file is empty"),
        (article("<p>no end").replace(b"</article>", b""), "malformed XML"),
        (article("")[:400], "malformed XML"),
        (BOMB.format("&c;").encode(), "declares entities"),
        (BOMB.format('<title-group id="&c;&c;"/>').encode(), "declares entities"),
        (BOMB.format("").replace('"ha"', 'SYSTEM "file:///etc/passwd"').encode(), "declares entities"),
        (LATIN, "text is not in the encoding its header names"),
        (article("").replace(b"UTF-8", b"KLINGON-8"), "text is not in the encoding its header names"),
        (b"<html><body>Not found</body></html>", "no article-meta|not an article"),
        (b"<article><body/></article>", "no article-meta"),
        (b"\x1f\x8b\x08\x00\x00", "malformed XML"),
        (article(figure("F1", "nul\x00", "a.jpg")), "malformed XML"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_by_a_short_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ArticleError) as caught:
        read_article(data)
    assert caught.value.reason in reason.split("|")


def test_other_encodings_entities_and_namespaces_are_read() -> None:
    body = figure("F1", "CT of the caf\u00e9 &#233;&nbsp;owner.", "a.jpg")
    text = article(body).decode()
    for data in (text.replace("UTF-8", "UTF-16").encode("utf-16"), text.replace("UTF-8", "GB18030").encode("gb18030")):
        assert by_id(data)["F1"].caption == "CT of the caf\u00e9 \u00e9 owner."
    spaced = text.replace("<article ", '<article xmlns="http://jats.nlm.nih.gov" ').encode()
    assert by_id(spaced)["F1"].images == (("a.jpg",),)


def test_leaving_lists_of_references_unread_changes_nothing() -> None:
    nested = "<ref-list><ref-list><ref/></ref-list><ref/></ref-list>"
    data = article(figure("F1", "CT.", "a.jpg") + f"<p>{link('F1', 'Fig. 1')} shows it.</p>")
    for ending in (nested, "<!-- <ref-list> --><p/><!-- </ref-list> -->", "<ref-list/>"):
        changed = data.replace(b"</back>", f"</back><sub-article>{ending}</sub-article>".encode())
        assert read_article(changed) == read_article(data)


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


@pytest.mark.parametrize(("caption", "medical", "modality", "part"), CAPTIONS)
def test_medical_images_by_their_captions(caption: str, medical: str, modality: str | None, part: str | None) -> None:
    found = judge(caption)
    assert (found.medical, found.modality, found.body_part) == (medical, modality, part)


def folder(root: Path) -> Path:
    root.mkdir()
    good = figure("F1", "Chest CT. (A) Axial view. (B) Coronal view.", "f1.jpg", "Fig. 1")
    chart = figure("F2", "Bar chart of ages.", "f2.jpg", "Fig. 2")
    (root / "PMC1.1").mkdir()
    (root / "PMC1.1" / "PMC1.1.xml").write_bytes(article(good + chart, pmcid="PMC1"))
    (root / "PMC1.1" / "PMC1.1.json").write_text(json.dumps({"license_code": "CC BY-NC", "is_retracted": False}))
    lent = figure("F1", "Brain MRI. © Elsevier, with permission.", "m.jpg")
    (root / "b.nxml").write_bytes(article(lent, pmcid="PMC2"))
    (root / "c.xml").write_bytes(b"<article>")
    (root / "d.xml").write_bytes(article(good, pmcid="PMC4"))
    (root / "d.json").write_text(json.dumps({"is_retracted": True}))
    (root / "e.nxml").write_bytes(article(good, pmcid="PMC5", kind="retraction"))
    return root


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = folder(tmp_path / "articles"), tmp_path / "figures"
    assert main(["data", "figures", str(source), str(out), "--workers", "1"]) == 0
    rows = {row["row_id"]: row for row in read_shards(out)}
    assert sorted(rows) == ["PMC1/F1", "PMC2/F1"]
    assert (rows["PMC1/F1"]["license"], rows["PMC1/F1"]["license_tier"]) == ("CC BY-NC", "noncommercial")
    assert rows["PMC1/F1"]["panels"]["parts"] == [["A", "Axial view."], ["B", "Coronal view."]]
    assert rows["PMC2/F1"]["license_tier"] == "restricted"  # lent by somebody: CC BY does not cover it
    said = capsys.readouterr().out
    assert "2 figures of 5 articles" in said
    dropped = [json.loads(line) for line in (out / "dropped-00000.jsonl").read_text().splitlines()]
    assert sorted(row["reason"] for row in dropped) == [
        "article: malformed XML", "article: retracted, or a notice of retraction",
        "article: retracted, or a notice of retraction", "figure: a chart or a drawing by its caption",
    ]  # fmt: skip
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("rows-*")}
    assert main(["data", "figures", str(source), str(out), "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == 2
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("rows-*")} == before
    (source / "new.xml").write_bytes(article("", pmcid="PMC9"))
    assert main(["data", "figures", str(source), str(out)]) == 2
    assert "other work (articles, listing differ)" in capsys.readouterr().err
    assert main(["data", "figures", str(tmp_path / "none"), str(out)]) == 2
    assert main(["data", "figures", str(out), str(tmp_path / "x")]) == 2  # no articles in it


@pytest.mark.skipif(not REAL.is_dir(), reason="the real articles are not on this machine")
def test_real_articles(tmp_path: Path) -> None:
    assert main(["data", "figures", str(REAL), str(tmp_path / "out"), "--every", "--workers", "1"]) == 0
    rows = list(read_shards(tmp_path / "out"))
    assert len(rows) == 17
    assert all(row["caption"] and row["label"] and row["images"] and row["mentions"] for row in rows)
    assert {row["license"] for row in rows} == {"CC BY 2.0", "public domain", "CC BY-NC 3.0", "CC BY"}
    assert rows[0]["images"] == [["1471-2180-11-174-1"]]
    reasons = [
        json.loads(line)["reason"] for line in (tmp_path / "out" / "dropped-00000.jsonl").read_text().splitlines()
    ]
    assert sorted(reasons) == ["article: has no figures", "article: has no figures", "article: malformed XML"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    source = tmp_path / "articles"
    source.mkdir()
    (source / "ok.xml").write_bytes(article(figure("F1", "CT.", "a.jpg"), licence=CC_BY))
    os.symlink(source / "nowhere", source / "gone.xml")
    assert main(["data", "figures", str(source), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert '"article: file cannot be read"' in (tmp_path / "out" / "dropped-00000.jsonl").read_text()
