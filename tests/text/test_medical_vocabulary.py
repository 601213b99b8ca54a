"""The vocabulary file: every term names one concept, every link resolves, and pairs that must and must not be equal."""

import time
from collections import Counter

import pytest

from qilin.text.normalize import normalize_text, to_simplified
from qilin.text.vocabulary import (
    VOCABULARY_FILE,
    TermFinder,
    concept_of,
    concepts,
    find_terms,
    is_a,
    read_concepts,
    structures_of,
)


def test_a_term_names_one_concept() -> None:
    counts = Counter(term for concept in concepts().values() for term in concept.terms)
    assert [term for term, count in counts.items() if count > 1] == []


def test_terms_are_written_as_texts_are_compared() -> None:
    """Simplified, half-width, lower case: another form would never match."""
    terms = [term for concept in concepts().values() for term in concept.terms]
    assert [term for term in terms if normalize_text(term) != term] == []
    assert [name for name in concepts() if to_simplified(name) != name] == []


def test_links_resolve_and_have_no_cycles() -> None:
    for concept in concepts().values():
        links = (*concept.parents, *concept.part_of)
        assert [name for name in links if name not in concepts()] == [], concept.name
        # a cycle would raise RecursionError
        assert concept.name not in frozenset().union(*map(structures_of, links)), concept.name


def test_every_line_names_its_source() -> None:
    assert [concept.name for concept in concepts().values() if not concept.source] == []


def test_the_file_is_read_within_50_ms() -> None:
    start = time.process_time()
    read_concepts(VOCABULARY_FILE)
    assert time.process_time() - start < 0.05


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("CT", "电子计算机断层扫描"),
        ("MRI", "核磁共振"),
        ("MRI", "ＭＲ"),
        ("横断面", "轴位"),
        ("胸腔积液", "胸水"),
        ("气胸", "pneumothorax"),
    ],
)
def test_terms_that_are_equal(a: str, b: str) -> None:
    assert concept_of(a) is not None
    assert concept_of(a) == concept_of(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("CT", "CTA"),
        ("CT", "PET-CT"),
        ("结肠", "大肠"),
        ("积液", "胸腔积液"),
        ("T1", "T2"),
        ("渗出", "硬性渗出"),
    ],
)  # fmt: skip
def test_terms_that_differ(a: str, b: str) -> None:
    assert concept_of(a) is not None
    assert concept_of(b) is not None
    assert concept_of(a) != concept_of(b)


def test_is_a_points_from_the_precise_term_to_the_broad_one() -> None:
    assert is_a("肺结节", "结节")
    assert not is_a("结节", "肺结节")
    assert is_a("胸水", "胸腔积液")
    assert not is_a("猫", "猫")  # not in the vocabulary


def test_an_unknown_term_has_no_concept() -> None:
    assert concept_of("猫") is None
    assert concept_of("") is None


def test_find_terms_takes_the_longest_and_whole_words() -> None:
    def names(text: str, *categories: str) -> list[str]:
        return [match.concept.name for match in find_terms(text, *categories)]

    assert names("皮肤镜下皮肤") == ["皮肤镜", "皮肤"]
    assert names("section of a ct3 image", "modality") == ["CT"]
    assert names("t12椎体", "sequence") == []
    assert names("肺结节", "organ") == ["肺"]
    assert names("", "organ") == []


def test_time_grows_with_the_text_only() -> None:
    finder = TermFinder(["a" * n for n in range(1, 40)])
    start = time.process_time()
    assert list(finder.find("a" * 20_000 + "b")) == []  # no whole word, the longest terms are tried everywhere
    assert len(find_terms("肺结节" * 20_000)) == 20_000
    assert time.process_time() - start < 2
