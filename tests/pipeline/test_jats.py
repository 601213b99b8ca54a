"""Reading JATS articles: figures, mentions, licenses, bad files and encodings, among them faults of pubmed_parser."""

import pytest

from builders.jats import CC_BY_NC, article, figure, link
from qilin.pipeline.pubmed.credits import creative_commons
from qilin.pipeline.pubmed.jats import ArticleError, Figure, read_article
from qilin.pipeline.pubmed.jats_text import split_sentences


def by_id(data: bytes) -> dict[str, Figure]:
    return {item.figure_id: item for item in read_article(data).figures}


def test_a_figure_keeps_its_own_caption_image_and_id() -> None:
    figures = by_id(
        article(
            figure("F1", "Axial CT of the chest.", "a.jpg", "Figure 1")
            + figure("F2", "", "b.jpg", "Figure 2")
            + figure("F3", "Coronal CT.", "c.jpg").replace(' id="F3"', "")
            + '<fig id="F4"><caption><title>Both.</title><p>Left and right.</p></caption><graphic xlink:href="d1.jpg"/>'
            '<graphic mimetype="image" id="g2" xlink:href="d2.jpg"/></fig>'
        )
    )
    assert list(figures) == ["F1", "F2", "fig-3", "F4"]
    assert figures["F2"].caption == ""  # not its neighbor's
    assert figures["F2"].images == (("b.jpg",),)  # not its position
    assert figures["fig-3"].caption == "Coronal CT."
    assert (figures["F4"].caption, figures["F4"].images) == ("Both. Left and right.", (("d1.jpg",), ("d2.jpg",)))


def test_alternatives_are_one_image_and_members_share_their_group_caption() -> None:
    forms = '<graphic xlink:href="a.svg"/><graphic xlink:href="a.png"/>'
    grouped = figure("F1", "Before.", "x", "A", f"<alternatives>{forms}</alternatives>")
    figures = by_id(article(f"<fig-group><label>Figure 1</label><caption><p>MRI.</p></caption>{grouped}</fig-group>"))
    assert figures["F1"].images == (("a.png", "a.svg"), ("x",))
    assert figures["F1"].group == "Figure 1 MRI."


def test_mentions_and_context() -> None:
    text = (
        f"<p>He had 10<sup>9</sup>/L cells <sup><xref ref-type='bibr' rid='b1'>1</xref></sup>. See Smith et al. and "
        f"{link('F1', 'Figs. 1')}–{link('F3', '3')}. None here [<xref ref-type='bibr' rid='b1'>1</xref>, "
        f"<xref ref-type='bibr' rid='b2'>2</xref>].</p><p>In {link('F4 F5', 'Figures 4, 5')} it grew.</p>"
        f"<p>As {link('F2', 'Figures 2–4')} show.</p>"
        "<table-wrap><table><tr><td><xref ref-type='fig' rid='F5'>5</xref></td></tr></table></table-wrap>"
    )
    figure_xml = "".join(
        figure(f"F{n}", f"No {n} of {link('F1', 'Fig. 1')}.", f"{n}.jpg", f"Fig. {n}") for n in range(1, 6)
    )
    figures = by_id(article(text, f"<floats-group>{figure_xml}</floats-group>"))
    first = "See Smith et al. and Figs. 1–3."
    assert figures["F1"].mentions == (first,)
    assert figures["F2"].mentions == (first, "As Figures 2–4 show.")
    assert figures["F3"].mentions == figures["F2"].mentions
    assert figures["F4"].mentions == ("In Figures 4, 5 it grew.", "As Figures 2–4 show.")
    assert figures["F5"].mentions == ("In Figures 4, 5 it grew.",)
    assert figures["F1"].context == (f"He had 10⁹/L cells. {first} None here.",)


def test_sentences_do_not_end_at_abbreviations() -> None:
    text = "Dr. Wu et al. saw Fig. 2 at 3.5 cm. It (e.g. CT) grew! G. Smith agreed. 很好。对"
    assert split_sentences(text) == [
        "Dr. Wu et al. saw Fig. 2 at 3.5 cm.", "It (e.g. CT) grew!", "G. Smith agreed. 很好。", "对",
    ]  # fmt: skip


def test_licenses_of_article_and_figure() -> None:
    own = figure("F1", "CT.", "a", inside=f"<permissions>{CC_BY_NC}</permissions>")
    credited = figure("F2", "MRI. Reprinted from Wu with permission. Arrow.", "b")
    data = article(own + credited + figure("F3", "X-ray.", "c"))
    parsed, figures = read_article(data), by_id(data)
    assert parsed.license == "CC BY 4.0"
    assert (figures["F1"].license, figures["F1"].credit) == ("CC BY-NC 4.0", None)
    assert (figures["F2"].license, figures["F2"].credit) == (None, "Reprinted from Wu with permission.")
    assert (figures["F3"].license, figures["F3"].credit) == (None, None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/", "CC BY-NC-ND 4.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0 1.0"),
        ("the Creative Commons Attribution-NonCommercial-ShareAlike License", "CC BY-NC-SA"),
        ("under the Creative Commons Attribution License, which permits", "CC BY"),
        ("All rights reserved", None),
    ],
)
def test_creative_commons_by_url_or_name(text: str, name: str | None) -> None:
    assert creative_commons(text) == name


ENTITY_BOMB = (
    '<?xml version="1.0"?><!DOCTYPE article [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><article><front><article-meta>{}</article-meta></front></article>'
)
LATIN1 = article(figure("F1", "CT of the caf\u00e9.", "a.jpg")).decode().encode("latin-1")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "file is empty"),
        (b"  \n", "file is empty"),
        (article("<p>no end").replace(b"</article>", b""), "malformed XML"),
        (article("")[:400], "malformed XML"),
        (ENTITY_BOMB.format("&c;").encode(), "declares entities"),
        (ENTITY_BOMB.format('<title-group id="&c;&c;"/>').encode(), "declares entities"),
        (ENTITY_BOMB.format("").replace('"ha"', 'SYSTEM "file:///etc/passwd"').encode(), "declares entities"),
        (LATIN1, "text is not in the encoding its header names"),
        (article("").replace(b"UTF-8", b"KLINGON-8"), "text is not in the encoding its header names"),
        (b"<html><body>Not figures</body></html>", "no article-meta|not an article"),
        (b"<article><body/></article>", "no article-meta"),
        (b"\x1f\x8b\x08\x00\x00", "malformed XML"),
        (article(figure("F1", "nul\x00", "a.jpg")), "malformed XML"),
    ],
)  # fmt: skip
def test_bad_files_are_rejected_with_a_constant_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ArticleError) as caught:
        read_article(data)
    assert caught.value.reason in reason.split("|")


def test_encodings_entities_and_namespaces() -> None:
    body = figure("F1", "CT of the caf\u00e9 &#233;&nbsp;owner.", "a.jpg")
    text = article(body).decode()
    for data in (text.replace("UTF-8", "UTF-16").encode("utf-16"), text.replace("UTF-8", "GB18030").encode("gb18030")):
        assert by_id(data)["F1"].caption == "CT of the caf\u00e9 \u00e9 owner."
    namespaced = text.replace("<article ", '<article xmlns="http://jats.nlm.nih.gov" ').encode()
    assert by_id(namespaced)["F1"].images == (("a.jpg",),)


def test_skipping_reference_lists_changes_nothing() -> None:
    nested = "<ref-list><ref-list><ref/></ref-list><ref/></ref-list>"
    data = article(figure("F1", "CT.", "a.jpg") + f"<p>{link('F1', 'Fig. 1')} shows it.</p>")
    for ending in (nested, "<!-- <ref-list> --><p/><!-- </ref-list> -->", "<ref-list/>"):
        changed = data.replace(b"</back>", f"</back><sub-article>{ending}</sub-article>".encode())
        assert read_article(changed) == read_article(data)
