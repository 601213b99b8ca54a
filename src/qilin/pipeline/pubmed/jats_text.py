"""Plain text of JATS elements, and the sentences in it that point to figures.

In: lxml elements. Out: text without literature references, with 10<sup>9</sup> as 10⁹ (and not 109), and for each
paragraph its sentences with the ids of the figures they name.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Elements inside a paragraph that are not part of its sentences.
EXCLUDED_TAGS = frozenset(
    ("fig", "fig-group", "table-wrap", "table-wrap-group", "graphic", "inline-graphic", "media", "tex-math", "fn")
    + ("supplementary-material", "boxed-text", "disp-formula-group", "object-id", "permissions", "attrib", "xref-group")
)
BLOCK_TAGS = frozenset(
    ("p", "title", "label", "list", "list-item", "def", "term", "disp-quote", "disp-formula", "break")
)
TO_SUPERSCRIPT = str.maketrans("0123456789+-−–()", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻⁽⁾")
SUPERSCRIPT_TEXT = re.compile(r"[0-9+\-−–()]+")

# Marks in text under construction: control characters, which XML forbids, so no article contains them.
CITATION, OPEN, SEPARATOR, CLOSE = "\x01", "\x02", "\x03", "\x04"
BRACKETED_CITATIONS = re.compile(rf"[\[(]{CITATION}[\s,;–—{CITATION}-]*[\])]")
BARE_CITATIONS = re.compile(rf"{CITATION}(?:[\s,;–—-]*{CITATION})*")
FIGURE_MARK = re.compile(rf"{OPEN}(\d+){SEPARATOR}([^{CLOSE}]*){CLOSE}")
NUMBER_RANGE = re.compile(r"(?<![\d.])(\d+)\s*[-–—]\s*(\d+)(?![\d.])")
RANGE_SEPARATOR = re.compile(r"\s*(?:[-–—~]|to|through)\s*(?:figs?\.?|figures?)?\s*", re.IGNORECASE)

# A character class comes first so that the search runs from one full stop to the next.
SENTENCE_END = re.compile(rf"[.!?。！？](?:(?<=[。！？])|[\])”\"'{CLOSE}]*\s+(?=[\"“(\[]*(?:[A-Z0-9]|{OPEN})))")
ABBREVIATIONS = frozenset(
    ("fig", "figs", "eq", "eqs", "ref", "refs", "no", "nos", "vs", "cf", "al", "e.g", "i.e", "ca", "approx", "resp")
    + ("dr", "mr", "mrs", "prof", "st", "suppl", "vol", "var", "sp", "spp", "inc", "ltd")
)


@dataclass
class MarkedText:
    """Text under construction, and the figure ids that each figure mark in it stands for."""

    parts: list[str] = field(default_factory=list)
    figure_ids: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, and its sentences with the figure ids that each one names."""

    text: str
    sentences: tuple[tuple[str, frozenset[str]], ...]


def plain_text(element: Any) -> str:
    """All text of an element on one line."""
    marked = MarkedText()
    append_text(element, marked)
    return remove_figure_marks(normalize_spacing("".join(marked.parts)))


def read_paragraph(element: Any, figure_order: Sequence[str], figure_by_number: dict[int, str]) -> Paragraph:
    """A paragraph with its sentences.

    `figure_order`: figure ids in printed order; `figure_by_number`: 2 -> id of Figure 2.
    """
    marked = MarkedText()
    append_text(element, marked)
    no_figures = frozenset[str]()
    sentences = [
        (
            remove_figure_marks(sentence),
            mentioned_figures(sentence, marked.figure_ids, figure_order, figure_by_number)
            if OPEN in sentence
            else no_figures,
        )
        for sentence in split_sentences(normalize_spacing("".join(marked.parts)))
    ]
    return Paragraph(" ".join(sentence for sentence, _ in sentences), tuple(sentences))


def append_text(element: Any, marked: MarkedText) -> None:
    """Append the text of an element in reading order."""
    is_block = element.tag in BLOCK_TAGS
    if is_block:
        marked.parts.append(" ")
    if element.text:
        marked.parts.append(element.text)
    for child in element:
        tag = child.tag
        if not isinstance(tag, str):  # an undeclared entity; the parser removes comments
            marked.parts.append(html.unescape(child.text or ""))
        elif tag == "xref":
            append_xref(child, marked)
        elif tag == "sup" and len(child) == 0 and SUPERSCRIPT_TEXT.fullmatch(child.text or ""):
            marked.parts.append(child.text.translate(TO_SUPERSCRIPT))
        elif tag not in EXCLUDED_TAGS:
            append_text(child, marked)
        if child.tail:
            marked.parts.append(child.tail)
    if is_block:
        marked.parts.append(" ")


def append_xref(xref: Any, marked: MarkedText) -> None:
    """Append a cross-reference: marked if to figures, omitted if a literature number, else its text."""
    ref_type = xref.get("ref-type")
    text = xref.text or ""
    if len(xref):
        inner = MarkedText()
        append_text(xref, inner)
        text = "".join(inner.parts)
    if ref_type == "fig":
        marked.parts += [OPEN, str(len(marked.figure_ids)), SEPARATOR, text, CLOSE]
        marked.figure_ids.append(tuple((xref.get("rid") or "").split()))
    elif ref_type == "bibr" and not re.search(r"[^\W\d_]", text):
        marked.parts.append(CITATION)
    else:
        marked.parts.append(text)


def normalize_spacing(text: str) -> str:
    """Collapse whitespace and remove citation marks with their empty brackets."""
    text = " ".join(text.split())
    if CITATION in text:
        for bracket in ("", "[", "("):  # str.replace is far faster here than a pattern that starts with spaces
            text = text.replace(f" {bracket}{CITATION}", bracket + CITATION)
        text = BARE_CITATIONS.sub("", BRACKETED_CITATIONS.sub("", text))
    return text


def remove_figure_marks(text: str) -> str:
    return FIGURE_MARK.sub(r"\2", text) if OPEN in text else text


def split_sentences(text: str) -> list[str]:
    """Sentences of English or Chinese text; "Fig. 2" and "et al. found" do not end one."""
    sentences: list[str] = []
    start = 0
    for match in SENTENCE_END.finditer(text):
        before = text[max(start, match.start() - 12) : match.start()].replace(SEPARATOR, " ")
        word = before.rpartition(" ")[2].lstrip("([")
        is_abbreviation = word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper())  # the G. of G. Smith
        if match.end() < len(text) and not (is_abbreviation and match.group()[0] == "."):
            sentences.append(text[start : match.end()].strip())
            start = match.end()
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if sentence]


def mentioned_figures(
    sentence: str,
    mark_ids: Sequence[tuple[str, ...]],
    figure_order: Sequence[str],
    figure_by_number: dict[int, str],
) -> frozenset[str]:
    """Ids of the figures a sentence names: those it links to, and those inside a range such as "Figs 1–3"."""
    mentioned: set[str] = set()
    previous_ids: tuple[str, ...] = ()
    previous_end = 0
    for match in FIGURE_MARK.finditer(sentence):
        ids = mark_ids[int(match.group(1))]
        mentioned.update(ids)
        if previous_ids and ids and RANGE_SEPARATOR.fullmatch(sentence[previous_end : match.start()]):
            mentioned.update(figures_between(previous_ids[-1], ids[0], figure_order))
        for low, high in NUMBER_RANGE.findall(match.group(2)):
            if int(low) in figure_by_number and int(high) in figure_by_number:
                numbers = range(int(low), int(high) + 1)
                mentioned.update(figure_by_number[n] for n in numbers if n in figure_by_number)
        previous_ids, previous_end = ids, match.end()
    return frozenset(mentioned)


def figures_between(first: str, last: str, figure_order: Sequence[str]) -> Sequence[str]:
    """The figures from `first` to `last` in printed order; empty if they are not in that order."""
    if first in figure_order and last in figure_order and figure_order.index(first) < figure_order.index(last):
        return figure_order[figure_order.index(first) : figure_order.index(last) + 1]
    return ()
