"""Reading JATS articles: figures, mentions, licenses, bad files and encodings, among them faults of pubmed_parser."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lxml import etree

from builders.jats import CC_BY_NC, article, figure, link
from qilin.pipeline.pubmed.credits import creative_commons
from qilin.pipeline.pubmed.jats import ArticleError, Figure, read_article
from qilin.pipeline.pubmed.jats_text import split_sentences

REAL = Path(__file__).parents[3] / "shared" / "data" / "jats" / "data"


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


# --- one file, nothing else -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("doctype", ['PUBLIC "-//X//Y" "{}"', 'SYSTEM "{}"'])
@pytest.mark.parametrize(
    "address", ["http://dtd.example.org/3.0/journal.dtd", "ftp://h/a.dtd", "{file}", "file://{file}"]
)
def test_the_dtd_of_a_doctype_is_not_opened(doctype: str, address: str, tmp_path: Path) -> None:
    secret = tmp_path / "planted.dtd"
    secret.write_text('<!ENTITY word "secret"><!ATTLIST graphic href CDATA "secret.jpg">')
    head = f"<!DOCTYPE article {doctype.format(address.format(file=secret))}>"
    text = article(figure("F1", "CT &word;.", "a.jpg")).decode()
    data = (head + text[text.index("<article") :]).encode()
    assert by_id(data)["F1"].caption == "CT &word;."
    assert "secret" not in repr(read_article(data))
    if "file" in address:  # the control: a parser that loads it
        loaded = etree.fromstring(data, etree.XMLParser(load_dtd=True, no_network=True))
        assert "secret" in etree.tostring(loaded, encoding="unicode")


def test_no_file_is_opened_while_an_article_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dtd")  # who opens it to read waits for a writer
    code = (
        "import sys; from qilin.pipeline.pubmed.jats import ArticleError, read_articles\n"
        "print([type(found).__name__ for data in sys.argv[1:] for found in read_articles(data.encode())])"
    )
    text = article(figure("F1", "CT.", "a.jpg")).decode()
    bare, pipe = text[text.index("<article") :], tmp_path / "pipe.dtd"
    heads = (f'SYSTEM "{pipe}"', f'[<!ENTITY % p SYSTEM "{pipe}"> %p;]', f'[<!ENTITY e SYSTEM "{pipe}">]')
    files = [f"<!DOCTYPE article {head}>{bare}" for head in heads]
    result = subprocess.run(
        [sys.executable, "-c", code, *files], capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stdout.strip() == "['Article', 'ArticleError', 'ArticleError']"


@pytest.mark.parametrize(
    "filler",
    ["<ref-list>" * 50_000 + "</ref-list>" * 50_000, "<ref-list/>" * 90_000 + "<ref-list></ref-list>",
     "<table-wrap-foot/>" * 60_000 + "<table-wrap></table-wrap>"],
)  # fmt: skip
def test_long_lists_take_linear_time(filler: str) -> None:
    started = time.process_time()
    assert list(by_id(article(figure("F1", "CT.", "a.jpg") + filler))) == ["F1"]
    assert time.process_time() - started < 2  # quadratic: a minute


def test_deep_nesting_is_refused_by_name() -> None:
    with pytest.raises(ArticleError) as caught:
        read_article(article(figure("F1", "<bold>" * 300 + "CT" + "</bold>" * 300, "a.jpg")))
    assert caught.value.reason == "larger or more deeply nested than an article"
    assert by_id(article(figure("F1", "<bold>" * 200 + "CT" + "</bold>" * 200, "a.jpg")))["F1"].caption == "CT"


# --- formulas -------------------------------------------------------------------------------------------------------


def math(content: str) -> str:
    return f"<inline-formula><mml:math>{content}</mml:math></inline-formula>"


FRACTION = "<mml:mfrac><mml:mn>1</mml:mn><mml:mn>2</mml:mn></mml:mfrac>"
FORMULAS = [
    (math(FRACTION) + " dose", "1/2 dose"),
    (math("<mml:mn>2</mml:mn>" + FRACTION), "2 1/2"),
    (math("<mml:msup><mml:mn>10</mml:mn><mml:mrow><mml:mo>−</mml:mo><mml:mn>3</mml:mn></mml:mrow></mml:msup>"), "10⁻³"),
    (math("<mml:msub><mml:mi>T</mml:mi><mml:mn>2</mml:mn></mml:msub>"), "T₂"),
    (math("<mml:msqrt><mml:mi>x</mml:mi><mml:mo>+</mml:mo><mml:mn>1</mml:mn></mml:msqrt>"), "√(x+1)"),
    (math("<mml:mover><mml:mi>x</mml:mi><mml:mo>¯</mml:mo></mml:mover>"), "x\u0304"),
    (math("<mml:mmultiscripts><mml:mi>F</mml:mi><mml:mprescripts/><mml:none/><mml:mn>18</mml:mn></mml:mmultiscripts>"),
     "¹⁸F"),
    ("10<sup><bold>6</bold></sup> copies", "10⁶ copies"),
    ("10<sup>−1.5</sup> and 10<sup>n</sup>", "10^(−1.5) and 10^n"),
    ("the 4<sup>th</sup> case at 37 <sup>o</sup>C", "the 4th case at 37 °C"),
    ("H<sub>2</sub>O, T<sub>max</sub>, F<sub>[1,2]</sub>", "H₂O, Tmax, F[1,2]"),
    ("R<sup>2 </sup>= 0.4", "R² = 0.4"),
    ("<alternatives><textual-form>alpha</textual-form><inline-graphic xlink:href='e.gif'/></alternatives>", "alpha"),
    ("<alternatives><sup>2</sup><tex-math>$x$</tex-math></alternatives>", "²"),
    ("T1 is <inline-formula><inline-graphic xlink:href='e.gif'/></inline-formula> ms", "T1 is [formula] ms"),
    ("see <inline-graphic xlink:href='e.gif'/>", "see [symbol]"),
    ("<inline-formula><alternatives><mml:math><mml:mi>x</mml:mi></mml:math><tex-math>$y$</tex-math>"
     "<inline-graphic xlink:href='e.gif'/></alternatives></inline-formula>", "x"),
    (r"<inline-formula><tex-math>\documentclass{m} \begin{document}$10^{9}$\end{document}</tex-math></inline-formula>",
     "10^{9}"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "text"), FORMULAS)
def test_formulas_keep_their_value(content: str, text: str) -> None:
    assert by_id(article(figure("F1", content, "a.jpg")))["F1"].caption == text


# --- links, groups, languages ---------------------------------------------------------------------------------------


def test_links_without_a_type_and_ranges_with_one_link() -> None:
    figures = "".join(figure(f"F{n}", "CT.", f"{n}.jpg", f"Figure {n}") for n in range(1, 5))
    text = (
        "<p>See <xref rid='F1'>Figure 1</xref>.</p>"
        f"<p>Compare {link('F2', 'Figs. 2')}–4.</p><p>Later {link('F3', 'Figure 3')}-1 was seen.</p>"
        "<p>Not <xref ref-type='bibr' rid='F4'>4</xref> and <xref rid='T1'>Table 1</xref>.</p>"
        f"<p>All of {link('F1', 'Figures 1A and 3B')}.</p>"
    )
    mentions = {name: item.mentions for name, item in by_id(article(text + figures)).items()}
    assert mentions["F1"] == ("See Figure 1.", "All of Figures 1A and 3B.")
    assert mentions["F2"] == ("Compare Figs. 2–4.",)
    assert mentions["F3"] == ("Compare Figs. 2–4.", "Later Figure 3-1 was seen.", "All of Figures 1A and 3B.")
    assert mentions["F4"] == ("Compare Figs. 2–4.",)


@pytest.mark.parametrize(
    ("sentence", "numbers"),
    [
        ("The mass grew (Figure 2).", {2}),
        ("Figs. 1, 2 and 4 show it.", {1, 2, 4}),
        ("See figures 1–3.", {1, 2, 3}),
        ("Fig 1A; Fig. 3b-d are similar.", {1, 3}),
        ("FIGURE 3 shows a nodule.", {3}),
        ("如图2所示，图 3、4 为术后。", {2, 3, 4}),
        ("图1至图3。", {1, 2, 3}),
        ("Abbildung 2 zeigt es.", {2}),
        ("In Figure 2, 3 patients died.", {2}),
        ("See Figure S2 and Supplementary Figure 3.", set()),
        ("Extended Data Fig. 1, and Table 2.", set()),
        ("A ratio of 2 was significant in config 3.", set()),
        ("Figure 2.5 of that book", set()),
        ("(a) 补充图2", set()),
    ],
)
def test_figures_named_without_a_link(sentence: str, numbers: set[int]) -> None:
    figures = "".join(figure(f"F{n}", f"Figure {n} here.", f"{n}.jpg", f"Figure {n}") for n in range(1, 5))
    other = "<p>See Figure 1 in <xref ref-type='bibr' rid='b1'>[1]</xref>.</p>" if not numbers else ""
    read = read_article(article(f"<sec><p>It came. {sentence} It went.</p></sec>", figures)).figures
    assert {n for n, item in enumerate(read, 1) if any(sentence in text for text in item.mentions)} == numbers
    assert all(item.context for n, item in enumerate(read, 1) if n in numbers)
    if other:
        assert read_article(article(other, figures)).figures[0].mentions  # the control


def test_a_caption_without_its_element() -> None:
    graphic = '<graphic xlink:href="a"/>'
    loose = f'<fig id="F1">{graphic}Fig. 3. The <italic>structure</italic> of EM; {graphic} a vector</fig>'
    figures = by_id(
        article(loose + f'<fig id="F2"> <label>Figure 2</label>;{graphic}\n</fig>' + figure("F3", "Own.", "b"))
    )
    assert figures["F1"].caption == "Fig. 3. The structure of EM; a vector"
    assert [figures[name].caption for name in ("F2", "F3")] == ["", "Own."]


def test_a_linked_figure_keeps_its_linked_sentences_only() -> None:
    text = f"<p>See {link('F1', 'Figure 1')}. Later, Figure 1 was redrawn. Figure 2 was not.</p>"
    figures = by_id(article(text, figure("F1", "One.", "1", "Figure 1") + figure("F2", "Two.", "2", "Figure 2")))
    assert figures["F1"].mentions == ("See Figure 1.",)
    assert figures["F2"].mentions == ("Figure 2 was not.",)


@pytest.mark.parametrize("prefixes", [["xlink"], ["xlink", "mml"], ["xlink", "own"]])
def test_undeclared_prefixes_get_their_namespace(prefixes: list[str]) -> None:
    """Articles cut from a larger file, whose root declared the prefixes."""
    body = figure(
        "F1", "A mass of <mml:math><mml:msup><mml:mn>10</mml:mn><mml:mn>9</mml:mn></mml:msup></mml:math>.", "a"
    )
    data = article(body + ('<p own:x="1">Text.</p>' if "own" in prefixes else ""))
    for prefix in prefixes:
        data = re.sub(rf'xmlns:{prefix}="[^"]*"'.encode(), b"", data)
    (item,) = read_article(data).figures
    assert (item.images, item.caption) == ((("a",),), "A mass of 10⁹.")
    assert item.images == read_article(article(body)).figures[0].images


def test_groups_boxes_and_nested_figures_keep_caption_links_and_images() -> None:
    caption = "<label>{}</label><caption><p>{}</p></caption>"
    body = (
        f"<p>{link('G', 'Figure 1')} and {link('H', 'Figure 2')} here. "
        f"<boxed-text id='B'>{caption.format('Box 1', 'X-ray.')}"
        f"<p>In the box {link('m1', 'Figure 1a')} is large.</p><graphic xlink:href='box.jpg'/></boxed-text></p>"
        f"<fig-group id='G'>{caption.format('Figure 1', 'CT, two views.')}{figure('m1', '', 'm1.jpg', '(a)')}"
        f"{figure('m2', 'Own.', 'm2.jpg', '(b)')}</fig-group>"
        f"<fig-group id='H'>{caption.format('Figure 2', 'MRI.')}<graphic xlink:href='h.jpg'/></fig-group>"
        f"<fig id='outer'>{caption.format('Figure 3', 'Both.')}{figure('inner', 'One.', 'i.jpg')}</fig>"
        "<sec><graphic id='g' xlink:href='g.jpg'><caption><p>Alone.</p></caption></graphic></sec>"
    )
    figures = by_id(article(body))
    assert {name: (item.caption, item.images) for name, item in figures.items()} == {
        "B": ("X-ray.", (("box.jpg",),)), "m1": ("CT, two views.", (("m1.jpg",),)), "m2": ("Own.", (("m2.jpg",),)),
        "H": ("MRI.", (("h.jpg",),)), "inner": ("One.", (("i.jpg",),)), "g": ("Alone.", (("g.jpg",),)),
    }  # fmt: skip
    assert (figures["m1"].shared_caption, figures["m2"].shared_caption) == ("G", "")
    assert figures["inner"].group == "Figure 3 Both."
    first = "Figure 1 and Figure 2 here."
    assert figures["m1"].mentions == (first, "In the box Figure 1a is large.")
    assert figures["m2"].mentions == figures["H"].mentions == (first,)


def test_languages_are_named_and_not_mixed() -> None:
    both = (
        '<fig id="F1"><caption xml:lang="zh"><p>胸部CT。</p></caption><caption xml:lang="en"><p>Chest CT.</p></caption>'
        '<graphic xlink:href="a.jpg"/></fig>'
    )
    other = f"<p>Ver {link('F1', 'Figura 1')} y {link('F2', 'Figura 2')}.</p>" + figure("F2", "TC.", "b.jpg")
    data = article(
        f"<p>See {link('F1', 'Figure 1')}.</p>{both}",
        f'<sub-article article-type="translation" xml:lang="es"><body>{other}</body></sub-article>',
    ).replace(b"<article ", b'<article xml:lang="en-US" ')
    figures = by_id(data)
    assert [(f.language, f.caption, f.mentions) for f in figures.values()] == [
        ("en", "Chest CT.", ("See Figure 1.",)), ("es", "TC.", ("Ver Figura 1 y Figura 2.",)),
    ]  # fmt: skip
    assert figures["F1"].translations == {"zh": "胸部CT。"}


def test_an_id_that_is_there_twice_is_looked_up_in_its_own_part() -> None:
    reply = f"<p>Now {link('F1', 'Image 1')}.</p>" + figure("F1", "MRI.", "r.jpg", "Image 1")
    figures = by_id(
        article(f"<p>See {link('F1', 'Figure 1')}.</p>{figure('F1', 'CT.', 'a.jpg')}",
                f"<sub-article article-type='reply'><body>{reply}</body></sub-article>")
    )  # fmt: skip
    assert {name: (f.caption, f.mentions) for name, f in figures.items()} == {
        "F1": ("CT.", ("See Figure 1.",)), "F1-2": ("MRI.", ("Now Image 1.",)),
    }  # fmt: skip


# --- credits and retractions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "is_credited"),
    [
        ("Lesion, shown with the parents' written permission.", False),
        ("Hand of the child. Permission was given by the mother.", False),
        ("H&amp;E stain modified from the standard protocol.", False),
        ("Map. Source: the authors.", False),
        ("Drawing. © The Authors.", False),
        ("CT. Reproduced with permission from Wu et al.", True),
        ("CT. Used with permission of Springer and of the patient.", True),
        ("CT with the patient's consent. Reprinted from Wu.", True),
        ("CT. Courtesy of Dr. Wu.", True),
        ("Diagram adapted from Wu et al.", True),
        ("Map. Source: World Atlas.", True),
        ("CT. © Elsevier.", True),
        ("CT of the chest.", False),
    ],
)
def test_consent_and_own_work_are_no_credit(caption: str, is_credited: bool) -> None:
    assert (by_id(article(figure("F1", caption, "a.jpg")))["F1"].credit is not None) == is_credited


@pytest.mark.parametrize(
    ("title", "is_retracted"),
    [
        ("RETRACTED: A case", True), ("Retracted Article: a case", True), ("[Retracted] A case", True),
        ("Retraction note to: A case", True), ("A case (Retracted)", True), ("WITHDRAWN: A case", True),
        ("Retraction of the eyelid in thyroid disease", False), ("Retracted eardrums on CT", False), ("A case", False),
    ],
)  # fmt: skip
def test_retracted_articles_are_known_by_their_title(title: str, is_retracted: bool) -> None:
    data = article("").replace(b"A <italic>rare</italic> case", title.encode())
    assert read_article(data).is_retracted == is_retracted


def test_every_figure_of_real_articles_is_found_as_an_independent_reading_counts_them() -> None:
    paths = sorted(REAL.glob("*.nxml"))
    if not paths:
        pytest.skip("the real articles are not on this machine")
    expected = found = 0
    for path in paths:
        text = re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        labels = re.findall(r"<fig\b[^>]*>(?:(?!</fig>).)*?<label>(.*?)</label>", text, re.DOTALL)
        figures = read_article(path.read_bytes()).figures
        expected += len(re.findall(r"<fig[ >]", text))
        found += len([figure for figure in figures if figure.images and figure.label in labels])
    assert expected == 17
    assert found >= 0.99 * expected
