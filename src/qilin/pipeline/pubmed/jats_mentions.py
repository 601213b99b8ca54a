"""The sentences and paragraphs of an article that name its figures.

In: the article, its figure elements with their labels and languages. Out: per figure the sentences and paragraphs in
its own language. Links are followed within the article, a translation or a reply before they are followed anywhere.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lxml import etree

from qilin.pipeline.pubmed.jats_text import NAMED_FIGURES, numbers_in_text, plain_text, read_paragraph
from qilin.pipeline.pubmed.jats_xml import ArticleError

XREFS = etree.XPath("descendant::xref[not(@ref-type='bibr')]")
XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
PARAGRAPH_TAGS = frozenset(("p", "title", "disp-quote", "td", "th"))
SCOPE_TAGS = ("sub-article", "response", "article")
MAX_REPEATED_TEXT = 64 << 20  # characters of mentions and paragraphs in all figures of an article
NUMBERED_LABEL = re.compile(
    r"(?:(?:fig(?:ure|ura|\.)?|abb(?:ildung|\.)?|image|图|圖|図|рис\.?)\s*)?(\d{1,3})[.:]?", re.IGNORECASE
)


def number_figures(figure_ids: list[str], labels: list[str]) -> dict[int, str]:
    """Figure number -> id, for labels such as "Figure 3", "Fig. 3." or "3"; the first figure of a number wins."""
    by_number: dict[int, str] = {}
    for figure_id, label in zip(figure_ids, labels, strict=True):
        if match := NUMBERED_LABEL.fullmatch(label.strip()):
            by_number.setdefault(int(match.group(1)), figure_id)
    return by_number


@dataclass
class FigureLinks:
    """What the links and numbers of one scope mean: the article itself, or a translation, reply or review in it."""

    by_id: dict[str, tuple[int, ...]] = field(default_factory=dict)
    by_number: dict[int, tuple[int, ...]] = field(default_factory=dict)
    number_of: dict[int, int] = field(default_factory=dict)


def scope_of(element: Any) -> Any:
    return next(element.iterancestors(*SCOPE_TAGS), None)


def figure_links(elements: list[Any], labels: list[str], graphics: Mapping[Any, list[Any]]) -> dict[Any, FigureLinks]:
    """Scope -> its links. A link to a group means its members; the first figure of a number wins."""
    links: dict[Any, FigureLinks] = defaultdict(FigureLinks)
    positions: dict[Any, list[int]] = defaultdict(list)  # figure or group -> its members
    label_of = dict(zip(elements, labels, strict=True))
    for position, element in enumerate(elements):
        positions[element].append(position)
        for group in element.iterancestors("fig-group", "fig"):
            positions[group].append(position)
    for element, members in positions.items():
        scope = links[scope_of(element)]
        names = [element.get("id"), *(graphic.get("id") for graphic in graphics.get(element, []))]
        for name in filter(None, names):
            scope.by_id.setdefault(name, tuple(members))
        label = label_of[element] if element in label_of else label_text(element)
        if match := NUMBERED_LABEL.fullmatch(label.strip()):
            scope.by_number.setdefault(int(match.group(1)), tuple(members))
    for scope in links.values():
        for number, numbered in scope.by_number.items():
            scope.number_of.update(dict.fromkeys(numbered, number))
    return links


def find_mentions(
    root: Any, elements: list[Any], labels: list[str], languages: list[str], graphics: Mapping[Any, list[Any]]
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """(sentences, paragraphs) per figure that name it in its own language, in printed order.

    Raises ArticleError where they add up to more than MAX_REPEATED_TEXT.
    """
    links = figure_links(elements, labels, graphics)
    everywhere: dict[str, tuple[int, ...]] = {}
    for scope in links.values():
        for name, members in scope.by_id.items():
            everywhere.setdefault(name, members)
    texts: list[tuple[dict[str, None], dict[str, None]]] = [({}, {}) for _ in elements]
    size = 0

    def add(text: str, position: int, paragraph: str, language: str) -> int:
        """Add a sentence to a figure; returns the characters that this takes."""
        if language and languages[position] not in ("", language):
            return 0  # a translation that links to the figure of the original
        mentions, contexts = texts[position]
        added = len(text) + (len(paragraph) if paragraph not in contexts else 0)
        mentions.setdefault(text)
        contexts.setdefault(paragraph)
        return added

    for element in mentioning_paragraphs(root, everywhere):
        scope, language = links.get(scope_of(element)) or FigureLinks(), language_of(element)

        def figures_of(xref: Any, scope: FigureLinks = scope) -> tuple[int, ...]:
            rid = xref.get("rid") or ""
            if " " not in rid:
                return scope.by_id.get(rid) or everywhere.get(rid, ())
            return tuple(p for name in rid.split() for p in scope.by_id.get(name) or everywhere.get(name, ()))

        paragraph = read_paragraph(element, figures_of, scope.by_number, scope.number_of)
        for text, named in paragraph.sentences:
            size += sum(add(text, position, paragraph.text, language) for position in named)
        check_size(size)
    unlinked = {position for position, (mentions, _) in enumerate(texts) if not mentions}
    if unlinked.isdisjoint(position for scope in links.values() for position in scope.number_of):
        unlinked = set()
    for element in paragraphs_with_numbers(root) if unlinked else ():
        scope, language = links.get(scope_of(element)) or FigureLinks(), language_of(element)
        paragraph = read_paragraph(element, lambda xref: (), {}, {})
        for text, _ in paragraph.sentences:
            positions = {p for number in numbers_in_text(text) for p in scope.by_number.get(number, ())}
            size += sum(add(text, position, paragraph.text, language) for position in sorted(positions & unlinked))
        check_size(size)
    return [(tuple(mentions), tuple(contexts)) for mentions, contexts in texts]


def check_size(size: int) -> None:
    if size > MAX_REPEATED_TEXT:
        raise ArticleError("its figures repeat too much text", f"the limit is {MAX_REPEATED_TEXT:,} characters")


def paragraphs_with_numbers(root: Any) -> list[Any]:
    """Every paragraph outside captions that says "Figure 2" or the like, once, in printed order: some articles do not
    link their figures."""
    paragraphs: dict[Any, None] = {}
    for element in root.iter("p"):
        if NAMED_FIGURES.search("".join(element.itertext())):
            paragraph, is_excluded = enclosing_paragraph(element)
            if not is_excluded:
                paragraphs.setdefault(element if paragraph is None else paragraph)
    return list(paragraphs)


def mentioning_paragraphs(root: Any, by_id: dict[str, tuple[int, ...]]) -> list[Any]:
    """Every paragraph outside captions that points to a figure, once, in printed order."""
    paragraphs: dict[Any, None] = {}
    for xref in XREFS(root):
        rid = xref.get("rid") or ""
        if xref.get("ref-type") == "fig" or rid in by_id or (" " in rid and any(n in by_id for n in rid.split())):
            paragraph, is_excluded = enclosing_paragraph(xref)
            if paragraph is not None and not is_excluded:
                paragraphs.setdefault(paragraph)
    return list(paragraphs)


def enclosing_paragraph(xref: Any) -> tuple[Any, bool]:
    """(the outermost paragraph-like element around a cross-reference, whether it is in a figure, table or note)"""
    paragraph = None
    for element in xref.iterancestors():
        if element.tag in PARAGRAPH_TAGS:
            paragraph = element
        elif element.tag in ("fig", "fig-group", "table-wrap", "ref-list", "fn-group", "supplementary-material"):
            return paragraph, True
        elif element.tag in ("sec", "body", "abstract", "trans-abstract") or (
            element.tag == "boxed-text" and paragraph is not None  # it is no part of the paragraph around it
        ):
            break
    return paragraph, False


def language_of(element: Any) -> str:
    """The primary subtag of the nearest xml:lang: "en" for en-US; "" if there is none."""
    while element is not None:
        if language := element.get(XML_LANG):
            return str(language).lower().replace("_", "-").partition("-")[0]
        if element.tag == "trans-abstract":
            return "und"  # BCP 47: undetermined, but not the article's
        element = element.getparent()
    return ""


def label_text(element: Any) -> str:
    label = element.find("label")
    return plain_text(label) if label is not None else ""
