"""Plain text of JATS elements, and the sentences in it that point to figures.

In: lxml elements. Out: text without literature references, with 10<sup>9</sup> as 10⁹ (and not 109), and for each
paragraph its sentences with the ids of the figures they name.
"""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qilin.pipeline.pubmed.jats_math import (
    FORMULA_MARK,
    SYMBOL_MARK,
    local_name,
    math_text,
    subscript,
    superscript,
    tex_text,
)

# Elements inside a paragraph that are not part of its sentences.
EXCLUDED_TAGS = frozenset(
    ("fig", "fig-group", "table-wrap", "table-wrap-group", "graphic", "media", "fn", "supplementary-material")
    + ("boxed-text", "disp-formula-group", "object-id", "permissions", "attrib", "xref-group", "alt-text", "long-desc")
)
BLOCK_TAGS = frozenset(
    ("p", "title", "label", "list", "list-item", "def", "term", "disp-quote", "disp-formula", "break")
)
FORMULA_TAGS = ("inline-formula", "disp-formula", "chem-struct")
MATH = "{http://www.w3.org/1998/Math/MathML}math"

# Marks in text under construction: control characters, which XML forbids, so no article contains them.
CITATION, OPEN, SEPARATOR, CLOSE = "\x01", "\x02", "\x03", "\x04"
BRACKETED_CITATIONS = re.compile(rf"[\[(]{CITATION}[\s,;–—{CITATION}-]*[\])]")
BARE_CITATIONS = re.compile(rf"{CITATION}(?:[\s,;–—-]*{CITATION})*")
FIGURE_MARK = re.compile(rf"{OPEN}(\d+){SEPARATOR}([^{CLOSE}]*){CLOSE}")
NUMBER_RANGE = re.compile(r"(?<!\d)(?<!\d\.)(?<!S)(\d{1,3})[A-Za-z]?\s*[-–—]\s*(\d{1,3})(?![\d.]*\d)")
NUMBER_LIST = re.compile(
    r"(?:fig(?:ure)?s?\b\.?\s*)?\d{1,3}[A-Za-z]?(?:\s*(?:,|;|&|and|,\s*and)\s*\d{1,3}[A-Za-z]?)*", re.I
)
UNLINKED_END = re.compile(r"\s*(?:[-–—~]|to|through)\s*(\d{1,3})(?!\d|\.\d|\s*(?:%|mm|cm))")
RANGE_SEPARATOR = re.compile(r"\s*(?:[-–—~]|to|through)\s*(?:figs?\.?|figures?)?\s*", re.IGNORECASE)
PLURAL = re.compile(r"fig(?:ure)?s\b", re.IGNORECASE)
LETTER = re.compile(r"[^\W\d_]")
MAX_RANGE = 60  # figures; "Figs 1-999" is not a range of figures

# "Figure 2B", "Figs. 1, 2 and 4", 图1至3; not "Figure S2", "Supplementary Figure 2" and "Figure 2.5"
FIGURE_NUMBER = r"\d{1,3}(?!\d|\.\d)(?:\s?\(?[A-Za-z](?![A-Za-z])\)?)?"
SEPARATORS = r"\s*(?:,\s*and|[,;&–—~、和及与至-]|and|to|through)\s*(?:(?:fig(?:ure)?s?\b\.?|图)\s*)?"
NAMED_FIGURES = re.compile(
    r"(?:(?P<other>suppl\w*\.?|extended data|appendix|online|补充|附)\s*)?"
    r"(?:(?<![A-Za-z])(?:fig(?:ure)?|abb(?:ildung)?|рис(?:унок)?)(?P<plural>s|en)?\b\.?|[图圖図](?P<chinese>))\s*"
    rf"(?P<numbers>{FIGURE_NUMBER}(?:{SEPARATORS}{FIGURE_NUMBER})*)",
    re.IGNORECASE,
)
NEXT_NUMBER = re.compile(r"(\D*)(\d+)")
RANGE_SIGN = re.compile(r"[A-Za-z)]?\s*(?:[-–—~至]|to|through)\s*(?:fig\w*\.?|图)?\s*", re.IGNORECASE)

# A character class comes first so that the search runs from one full stop to the next.
SENTENCE_END = re.compile(rf"[.!?。！？](?:(?<=[。！？])|[\])”\"'{CLOSE}]*\s+(?=[\"“(\[]*(?:[A-Z0-9]|{OPEN})))")
ABBREVIATIONS = frozenset(
    ("fig", "figs", "eq", "eqs", "ref", "refs", "no", "nos", "vs", "cf", "al", "e.g", "i.e", "ca", "approx", "resp")
    + ("dr", "mr", "mrs", "prof", "st", "suppl", "vol", "var", "sp", "spp", "inc", "ltd")
)


@dataclass
class MarkedText:
    """Text under construction, and the figures that each figure mark in it stands for.

    `figures_of`: a cross-reference -> the positions of its figures; None where figures do not matter.
    """

    figures_of: Callable[[Any], tuple[int, ...]] | None = None
    parts: list[str] = field(default_factory=list)
    figures: list[tuple[int, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, and its sentences with the positions of the figures that each one names."""

    text: str
    sentences: tuple[tuple[str, frozenset[int]], ...]


def plain_text(element: Any) -> str:
    """All text of an element on one line."""
    marked = MarkedText()
    append_text(element, marked)
    return normalize_spacing("".join(marked.parts))


def read_paragraph(
    element: Any,
    figures_of: Callable[[Any], tuple[int, ...]],
    by_number: Mapping[int, tuple[int, ...]],
    number_of: Mapping[int, int],
) -> Paragraph:
    """A paragraph with its sentences. `by_number`: 2 -> the positions of Figure 2; `number_of`: the reverse."""
    marked = MarkedText(figures_of)
    append_text(element, marked)
    no_figures = frozenset[int]()
    sentences = [
        (
            remove_figure_marks(sentence),
            mentioned_figures(sentence, marked.figures, by_number, number_of) if OPEN in sentence else no_figures,
        )
        for sentence in split_sentences(normalize_spacing("".join(marked.parts)))
    ]
    return Paragraph(" ".join(sentence for sentence, _ in sentences), tuple(sentences))


def append_text(element: Any, marked: MarkedText) -> None:
    """Append the text of an element in reading order."""
    parts = marked.parts
    is_block = element.tag in BLOCK_TAGS
    if is_block:
        parts.append(" ")
    if text := element.text:
        parts.append(text)
    for child in element:
        tag = child.tag
        if not isinstance(tag, str):  # an undeclared entity; the parser removes comments
            parts.append(html.unescape(child.text or ""))
        elif append := APPEND.get(tag):
            append(child, marked)
        elif tag not in EXCLUDED_TAGS:
            append_text(child, marked)
        if tail := child.tail:
            parts.append(tail)
    if is_block:
        parts.append(" ")


def inner_text(element: Any, marked: MarkedText) -> str:
    """The text of an element with the marks of the text around it."""
    if not len(element):
        return element.text or ""
    inner = MarkedText(marked.figures_of, figures=marked.figures)
    append_text(element, inner)
    return "".join(inner.parts)


def append_xref(xref: Any, marked: MarkedText) -> None:
    """Append a cross-reference: marked if to figures, omitted if a literature number, else its text."""
    text = inner_text(xref, marked)
    ref_type = xref.get("ref-type")
    figures = marked.figures_of(xref) if marked.figures_of and ref_type != "bibr" else ()
    if marked.figures_of and (figures or ref_type == "fig") and OPEN not in text:
        marked.parts += [OPEN, str(len(marked.figures)), SEPARATOR, text, CLOSE]
        marked.figures.append(figures)
    elif ref_type == "bibr" and not LETTER.search(text):
        marked.parts.append(CITATION)
    else:
        marked.parts.append(text)


def append_superscript(element: Any, marked: MarkedText) -> None:
    text = inner_text(element, marked)
    if CITATION in text or OPEN in text:
        marked.parts.append(text)
    else:
        before = next((part for part in reversed(marked.parts[-3:]) if part), "")
        marked.parts.append(superscript(text, before, element.tail or ""))


def append_subscript(element: Any, marked: MarkedText) -> None:
    text = inner_text(element, marked)
    marked.parts.append(text if CITATION in text or OPEN in text else subscript(text))


def append_formula(element: Any, marked: MarkedText) -> None:
    """A formula; one that is only a picture leaves its alternative text or a mark."""
    text = inner_text(element, marked)
    if not text.strip() and next(element.iter("graphic", "inline-graphic"), None) is not None:
        text = picture_text(element, FORMULA_MARK)
    is_block = element.tag in BLOCK_TAGS
    marked.parts.append(f" {text} " if is_block else text)


def append_alternatives(element: Any, marked: MarkedText) -> None:
    """One of several forms of the same content: MathML before text before TeX."""
    forms = {local_name(child): child for child in reversed(element) if isinstance(child.tag, str)}
    for name, child in list(forms.items()):
        if name not in ("math", "tex-math", "graphic", "inline-graphic", "media"):
            forms.setdefault("textual-form", child)
    for name in ("math", "textual-form", "tex-math"):
        if name in forms:
            append = APPEND.get(forms[name].tag, append_text)
            append(forms[name], marked)
            return
    if "inline-graphic" in forms and element.getparent().tag not in FORMULA_TAGS:
        append_inline_graphic(forms["inline-graphic"], marked)


def append_math(element: Any, marked: MarkedText) -> None:
    marked.parts.append(math_text(element))


def append_tex(element: Any, marked: MarkedText) -> None:
    if element.getparent().find(MATH) is None:
        marked.parts.append(tex_text(element.text or ""))


def append_inline_graphic(element: Any, marked: MarkedText) -> None:
    if element.getparent().tag not in FORMULA_TAGS:
        marked.parts.append(picture_text(element, SYMBOL_MARK))


def picture_text(element: Any, mark: str) -> str:
    """The alternative text of a picture, or a mark that something stood here."""
    alternative = next(element.iter("alt-text"), None)
    text = "".join(alternative.itertext()).strip() if alternative is not None else ""
    return text or mark


APPEND: dict[str, Callable[[Any, MarkedText], None]] = {
    "xref": append_xref,
    "sup": append_superscript,
    "sub": append_subscript,
    "alternatives": append_alternatives,
    "tex-math": append_tex,
    "inline-graphic": append_inline_graphic,
    MATH: append_math,
    "math": append_math,
    **dict.fromkeys(FORMULA_TAGS, append_formula),
}


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
        stop, end = match.span()
        if end == len(text):
            break
        if text[stop] == ".":
            before = text[max(start, stop - 12) : stop].replace(SEPARATOR, " ")
            word = before.rpartition(" ")[2].lstrip("([")
            if word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper()):  # the G. of G. Smith
                continue
        sentences.append(text[start:end].strip())
        start = end
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if sentence]


def mentioned_figures(
    sentence: str,
    figures: Sequence[tuple[int, ...]],
    by_number: Mapping[int, tuple[int, ...]],
    number_of: Mapping[int, int],
) -> frozenset[int]:
    """Positions of the figures a sentence names: those it links to, and those inside a range such as "Figs 1–3"."""
    mentioned: set[int] = set()
    previous: tuple[int, ...] = ()
    previous_end = 0
    for match in FIGURE_MARK.finditer(sentence):
        linked, text = figures[int(match.group(1))], match.group(2).strip()
        mentioned.update(linked)
        if previous and linked and RANGE_SEPARATOR.fullmatch(sentence[previous_end : match.start()]):
            mentioned.update(figures_between(previous[-1], linked[0]))
        for low, high in NUMBER_RANGE.findall(text):
            mentioned.update(numbered_figures(int(low), int(high), by_number))
        own_number = number_of.get(linked[-1]) if linked else None
        if NUMBER_LIST.fullmatch(text):
            numbers = set(map(int, re.findall(r"\d+", text)))
            if not linked or (len(numbers) > 1 and own_number in numbers):  # a link to Figure S2 may be called 2
                mentioned.update(position for number in numbers for position in by_number.get(number, ()))
        if own_number and PLURAL.match(text) and (end := UNLINKED_END.match(sentence, match.end())):
            mentioned.update(numbered_figures(own_number, int(end.group(1)), by_number))
        previous, previous_end = linked, match.end()
    return frozenset(mentioned)


def numbers_in_text(sentence: str) -> set[int]:
    """The numbers of the figures that a sentence names without a link: 2 for "Figure 2B", 1 to 3 for "Figs. 1-3".

    A list counts after a plural only: "in Figure 2, 3 patients" names one figure.
    """
    numbers: set[int] = set()
    for match in NAMED_FIGURES.finditer(sentence):
        if match.group("other"):
            continue
        is_list = match.group("plural") is not None or match.group("chinese") is not None
        previous = 0
        for separator, text in NEXT_NUMBER.findall(match.group("numbers")):
            if previous and not is_list and "fig" not in separator.lower():
                break
            number = int(text)
            if previous and RANGE_SIGN.fullmatch(separator) and 0 < number - previous < MAX_RANGE:
                numbers.update(range(previous, number))
            numbers.add(number)
            previous = number
    return numbers


def numbered_figures(low: int, high: int, by_number: Mapping[int, tuple[int, ...]]) -> set[int]:
    """The figures of a range of numbers; none if the article does not have both ends."""
    if low not in by_number or high not in by_number or not 0 < high - low < MAX_RANGE:
        return set()
    return {position for number in range(low, high + 1) for position in by_number.get(number, ())}


def figures_between(first: int, last: int) -> range:
    """The figures from `first` to `last` in printed order; empty if they are not in that order."""
    return range(first, last + 1) if 0 < last - first < MAX_RANGE else range(0)
