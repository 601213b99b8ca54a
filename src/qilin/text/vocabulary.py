"""The vocabulary of medical terms: which terms are interchangeable, and which concept is a kind of which.

In: vocabulary.tsv beside this file, one concept per line. Out: `concept_of` (the concept that a term names), `is_a`
(whether one term is the same as or a kind of another), `find_terms` (the longest terms in a text, in linear time).

Columns of the file: term (the preferred one, unique), category, synonyms, abbreviations, english, taiwan, is_a,
part_of, source; several values are separated by "|". The terms of one line are interchangeable as an answer: CTA and
PET-CT are not CT, 结肠 is not 大肠, 积液 alone is not 胸腔积液. Taiwan terms are written in simplified characters, the
form in which texts are compared. is_a names broader concepts (肝细胞癌 is a 肝癌), part_of the structure that contains
this one (肺上叶: 肺). source names the kind of reference work that uses the term. Ambiguous abbreviations (RA, PE) are
left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from qilin.text.normalize import normalize_text

VOCABULARY_FILE = Path(__file__).with_suffix(".tsv")
COLUMNS = ("term", "category", "synonyms", "abbreviations", "english", "taiwan", "is_a", "part_of", "source")
# What an image or a patient may show; "finding" is what is seen, "disease" what it is called.
FINDING_CATEGORIES = ("finding", "disease", "sign", "symptom")
MAX_CACHED_CHARACTERS = 200  # the terms of 2,000 long reports would take too much memory


@dataclass(frozen=True)
class Concept:
    """One line of the vocabulary. `terms`: all interchangeable terms, the preferred one first, in lower case."""

    name: str
    category: str
    terms: tuple[str, ...]
    parents: tuple[str, ...]  # names of broader concepts
    part_of: tuple[str, ...]  # names of larger structures
    source: str


@dataclass(frozen=True, slots=True)
class TermMatch:
    """A term of the vocabulary at text[start:end]."""

    start: int
    end: int
    concept: Concept


class TermFinder:
    """Finds the longest terms in a text, left to right, without overlap.

    A term is looked up by its first two characters and its length, so the time grows with the text and hardly with the
    number of terms; a regular expression of 6,000 alternatives tries them one by one. ASCII terms match only whole
    words: ct is not in section, t1 not in t12.
    """

    def __init__(self, terms: Iterable[str]) -> None:
        self.terms = frozenset(terms)
        lengths: dict[str, set[int]] = {}
        for term in self.terms:
            lengths.setdefault(term[:2], set()).add(len(term))
        self.lengths = {start: tuple(sorted(values, reverse=True)) for start, values in lengths.items()}
        # where a term may begin: most positions of a text are none
        single, first, second = (
            re.escape("".join(sorted(characters)))
            for characters in (
                {term for term in self.terms if len(term) == 1},
                {term[0] for term in self.terms if term},
                {term[1] for term in self.terms if len(term) > 1},
            )
        )
        self.starts = re.compile(f"[{single}\x00]|[{first}\x00](?=[{second}\x00])")

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """(start, end) of every match."""
        lengths, terms, num_characters, end = self.lengths, self.terms, len(text), 0
        for start in self.starts.finditer(text):
            position = start.start()
            if position < end:
                continue
            for length in lengths.get(text[position : position + 2], ()):
                stop = min(position + length, num_characters)
                if text[position:stop] in terms and _is_whole_word(text, position, stop):
                    end = stop
                    break
            if position >= end and text[position] in terms and _is_whole_word(text, position, position + 1):
                end = position + 1
            if position < end:
                yield position, end


def _is_whole_word(text: str, start: int, end: int) -> bool:
    """Whether no ASCII letter or digit continues the term at text[start:end] on either side."""
    before, after = text[start - 1 : start] if start else "", text[end : end + 1]
    return not (_continues(before, text[start]) or _continues(text[end - 1], after))


def _continues(a: str, b: str) -> bool:
    return a.isascii() and b.isascii() and ((a.isalpha() and b.isalpha()) or (a.isdigit() and b.isdigit()))


def read_concepts(path: Path) -> dict[str, Concept]:
    """Preferred term -> concept, in the order of the file."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    assert tuple(header.split("\t")) == COLUMNS, f"{path}: expected the columns {COLUMNS}"
    concepts: dict[str, Concept] = {}
    for line in lines:
        name, category, synonyms, abbreviations, english, taiwan, is_a_names, part_of, source = line.split("\t")
        terms = "|".join((name, synonyms, abbreviations, english, taiwan)).lower().split("|")
        unique_terms = tuple(dict.fromkeys(term for term in terms if term))
        concepts[name] = Concept(name, category, unique_terms, _names(is_a_names), _names(part_of), source)
    return concepts


def _names(cell: str) -> tuple[str, ...]:
    return tuple(cell.split("|")) if cell else ()


@lru_cache(maxsize=1)
def concepts() -> dict[str, Concept]:
    """Preferred term -> concept; the file is read at the first call."""
    return read_concepts(VOCABULARY_FILE)


@lru_cache(maxsize=1)
def _concept_by_term() -> dict[str, Concept]:
    return {term: concept for concept in concepts().values() for term in concept.terms}


@lru_cache(maxsize=1)
def categories() -> tuple[str, ...]:
    """The categories, in the order of the file."""
    return tuple(dict.fromkeys(concept.category for concept in concepts().values()))


@lru_cache(maxsize=20_000)
def concept_of(term: str) -> Concept | None:
    """The concept that a term names, in any script, width and case; None for a term that is not in the vocabulary."""
    return _concept_by_term().get(term) or _concept_by_term().get(normalize_text(term))


@lru_cache(maxsize=20_000)
def is_a(term: str, broader: str) -> bool:
    """Whether a term means the same as another one or a kind of it: 肝细胞癌 and 肝癌, not the reverse."""
    concept, other = concept_of(term), concept_of(broader)
    return concept is not None and other is not None and other.name in _ancestors(concept.name)


@cache
def _ancestors(name: str) -> frozenset[str]:
    """The names of a concept and of all broader ones."""
    return frozenset((name,)).union(*map(_ancestors, concepts()[name].parents))


@cache
def structures_of(name: str) -> frozenset[str]:
    """The names of a structure, of the broader ones and of those that contain them: 肺上叶 -> 肺上叶, 肺."""
    concept = concepts()[name]
    return frozenset((name,)).union(*map(structures_of, (*concept.parents, *concept.part_of)))


@lru_cache(maxsize=64)
def _finder(names: tuple[str, ...]) -> TermFinder:
    return TermFinder(term for term, c in _concept_by_term().items() if not names or c.category in names)


def find_terms(text: str, *category_names: str) -> list[TermMatch]:
    """The longest terms in a normalized text, of the categories named or of all of them."""
    if len(text) <= MAX_CACHED_CHARACTERS:  # several rules look for the same terms in a question or answer
        return list(_cached_terms(text, category_names))
    return _terms(text, category_names)


def _terms(text: str, category_names: tuple[str, ...]) -> list[TermMatch]:
    by_term = _concept_by_term()
    return [TermMatch(start, end, by_term[text[start:end]]) for start, end in _finder(category_names).find(text)]


@lru_cache(maxsize=2_000)
def _cached_terms(text: str, category_names: tuple[str, ...]) -> tuple[TermMatch, ...]:
    return tuple(_terms(text, category_names))


@lru_cache(maxsize=64)
def terms_of(category: str) -> dict[str, str]:
    """Every term of one category -> the preferred term."""
    return {term: concept.name for term, concept in _concept_by_term().items() if concept.category == category}
