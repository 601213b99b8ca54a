"""The words of a JATS element as one plain line, and the sentences in it that point to figures.

In: lxml elements. Out: text without references to the literature, 10<sup>9</sup> as 10⁹ (and not 109), and for each
paragraph the sentences with the ids of the figures they name.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# What stands inside a paragraph and is not part of its sentences.
APART = frozenset(
    ("fig", "fig-group", "table-wrap", "table-wrap-group", "graphic", "inline-graphic", "media", "tex-math", "fn")
    + ("supplementary-material", "boxed-text", "disp-formula-group", "object-id", "permissions", "attrib", "xref-group")
)
BLOCKS = frozenset(("p", "title", "label", "list", "list-item", "def", "term", "disp-quote", "disp-formula", "break"))
SUPER = str.maketrans("0123456789+-−–()", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻⁽⁾")
SUPERABLE = re.compile(r"[0-9+\-−–()]+")

# Marks in the text while it is put together: control characters, which no XML may hold, so no article has them.
CITED, OPEN, SEPARATOR, CLOSE = "\x01", "\x02", "\x03", "\x04"
CITED_IN_BRACKETS = re.compile(rf"[\[(]{CITED}[\s,;–—{CITED}-]*[\])]")
CITED_BARE = re.compile(rf"{CITED}(?:[\s,;–—-]*{CITED})*")
NAMED = re.compile(rf"{OPEN}(\d+){SEPARATOR}([^{CLOSE}]*){CLOSE}")
RANGE = re.compile(r"(?<![\d.])(\d+)\s*[-–—]\s*(\d+)(?![\d.])")
BETWEEN = re.compile(r"\s*(?:[-–—~]|to|through)\s*(?:figs?\.?|figures?)?\s*", re.IGNORECASE)

# one class first, so that the search runs from stop to stop
SENTENCE_END = re.compile(rf"[.!?。！？](?:(?<=[。！？])|[\])”\"'{CLOSE}]*\s+(?=[\"“(\[]*(?:[A-Z0-9]|{OPEN})))")
ABBREVIATIONS = frozenset(
    ("fig", "figs", "eq", "eqs", "ref", "refs", "no", "nos", "vs", "cf", "al", "e.g", "i.e", "ca", "approx", "resp")
    + ("dr", "mr", "mrs", "prof", "st", "suppl", "vol", "var", "sp", "spp", "inc", "ltd")
)


@dataclass
class Marked:
    """Text under construction: its parts, and the ids each mark in it stands for."""

    parts: list[str] = field(default_factory=list)
    marks: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, and its sentences with the figure ids each one names."""

    text: str
    sentences: tuple[tuple[str, frozenset[str]], ...]


def plain(element: Any) -> str:
    """All words of an element in one line."""
    made = Marked()
    walk(element, made)
    return unmarked(tidy("".join(made.parts)))


def paragraph(element: Any, order: Sequence[str], numbers: dict[int, str]) -> Paragraph:
    """A paragraph with its sentences. `order`: figure ids as printed; `numbers`: 2 -> id of Figure 2."""
    made = Marked()
    walk(element, made)
    text = tidy("".join(made.parts))
    none = frozenset[str]()
    rows = [(unmarked(row), named(row, made.marks, order, numbers) if OPEN in row else none) for row in sentences(text)]
    return Paragraph(" ".join(row for row, _ in rows), tuple(rows))


def walk(element: Any, made: Marked) -> None:
    """Add the words of an element, in reading order."""
    tag = element.tag
    block = tag in BLOCKS
    if block:
        made.parts.append(" ")
    if element.text:
        made.parts.append(element.text)
    for child in element:
        kind = child.tag
        if not isinstance(kind, str):  # an entity that no header declares; comments are not read
            made.parts.append(html.unescape(child.text or ""))
        elif kind == "xref":
            reference(child, made)
        elif kind == "sup" and len(child) == 0 and SUPERABLE.fullmatch(child.text or ""):
            made.parts.append(child.text.translate(SUPER))
        elif kind not in APART:
            walk(child, made)
        if child.tail:
            made.parts.append(child.tail)
    if block:
        made.parts.append(" ")


def reference(xref: Any, made: Marked) -> None:
    """A pointer: to figures it is marked, to the literature by number it is left out, any other is words."""
    kind = xref.get("ref-type")
    words = xref.text or ""
    if len(xref):
        inner = Marked()
        walk(xref, inner)
        words = "".join(inner.parts)
    if kind == "fig":
        made.parts += [OPEN, str(len(made.marks)), SEPARATOR, words, CLOSE]
        made.marks.append(tuple((xref.get("rid") or "").split()))
    elif kind == "bibr" and not re.search(r"[^\W\d_]", words):
        made.parts.append(CITED)
    else:
        made.parts.append(words)


def tidy(text: str) -> str:
    """One space between words, no empty brackets where references stood."""
    text = " ".join(text.split())
    if CITED in text:
        for before in ("", "[", "("):  # the space goes with them; far faster than a pattern that begins with spaces
            text = text.replace(f" {before}{CITED}", before + CITED)
        text = CITED_BARE.sub("", CITED_IN_BRACKETS.sub("", text))
    return text


def unmarked(text: str) -> str:
    return NAMED.sub(r"\2", text) if OPEN in text else text


def sentences(text: str) -> list[str]:
    """Sentences of English or Chinese text; "Fig. 2" and "et al. found" do not end one."""
    rows: list[str] = []
    start = 0
    for match in SENTENCE_END.finditer(text):
        word = (
            text[max(start, match.start() - 12) : match.start()].replace(SEPARATOR, " ").rpartition(" ")[2].lstrip("([")
        )
        short = word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper())  # the G. of G. Smith
        if match.end() < len(text) and not (short and match.group()[0] == "."):
            rows.append(text[start : match.end()].strip())
            start = match.end()
    rows.append(text[start:].strip())
    return [row for row in rows if row]


def named(
    sentence: str, marks: Sequence[tuple[str, ...]], order: Sequence[str], numbers: dict[int, str]
) -> frozenset[str]:
    """The figures a sentence names: those it links, and those a range such as "Figs 1–3" passes over."""
    found: set[str] = set()
    before: tuple[str, ...] = ()
    end = 0
    for match in NAMED.finditer(sentence):
        ids = marks[int(match.group(1))]
        found.update(ids)
        if before and ids and BETWEEN.fullmatch(sentence[end : match.start()]):
            found.update(between(before[-1], ids[0], order))
        for low, high in RANGE.findall(match.group(2)):
            if int(low) in numbers and int(high) in numbers:
                found.update(numbers[n] for n in range(int(low), int(high) + 1) if n in numbers)
        before, end = ids, match.end()
    return frozenset(found)


def between(first: str, last: str, order: Sequence[str]) -> Sequence[str]:
    """The figures from one to another as the article prints them; nothing where they are not in that order."""
    if first in order and last in order and order.index(first) < order.index(last):
        return order[order.index(first) : order.index(last) + 1]
    return ()
