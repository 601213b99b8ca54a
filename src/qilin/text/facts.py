"""Facts in a Chinese caption or report: findings, organs, modality and attributes, extracted by a vocabulary and rules.

In: a text and a vocabulary: category -> name -> terms. Out: a set of short strings: `modality=CT`, `organ=肺` (any
category but the special ones below), `结节` (an affirmed finding), `no 结节` (a negated one), attributes of a finding
(`结节|side=左侧`, `结节|place=上`, `结节|size=大`, `结节|number=2`, `结节|mm=12`), and `normal`.

Special categories: `finding`; `thing` (白细胞: not a fact itself, but it can be counted); `side`, `place`, `size`
(attributes of the nearest finding in the sentence). The longest term wins across all categories: 皮肤镜 hides 皮肤,
左眼 hides 左.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qilin.core.errors import UserError
from qilin.core.files import read_json
from qilin.text.negation import is_negated
from qilin.text.normalize import to_halfwidth, to_simplified
from qilin.text.numbers import counts_to_digits, find_measurements
from qilin.text.vocabulary import TermFinder, concepts

Vocabulary = Mapping[str, Mapping[str, tuple[str, ...]]]

ATTRIBUTES = ("side", "place", "size")
ATTRIBUTE_OWNERS = ("finding", "thing")

# Compounds of an organ and a finding: 肺结节 states 结节 and organ=肺, as 肺内见结节 does.
_COMPOUNDS: dict[str, tuple[str, str]] = {
    "肺结节": ("肺", "结节"),
    "肺肿块": ("肺", "肿块"),
    "肺浸润": ("肺", "浸润"),
    "肺水肿": ("肺", "水肿"),
    "脑水肿": ("大脑", "水肿"),
    "脑肿瘤": ("大脑", "肿瘤"),
    "脑出血": ("大脑", "出血"),
}


def _split_compounds(
    organs: Mapping[str, tuple[str, ...]], findings: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Both tables, with the terms of each compound added to its organ and to its finding."""
    organ_terms = dict(organs)
    finding_terms = {name: terms for name, terms in findings.items() if name not in _COMPOUNDS}
    for compound, (organ, finding) in _COMPOUNDS.items():
        organ_terms[organ] += findings[compound]
        finding_terms[finding] += findings[compound]
    return {"organ": organ_terms, "finding": finding_terms}


# Not findings of an image: what the patient feels, and words that refer to a finding named elsewhere.
_NO_FINDINGS = frozenset(("病变", "炎症", "感染"))
# Densities, signals and echoes: 低密度 next to 脑梗死 is a fact of its own.
_DENSITIES = re.compile(r"(?:高|低|等|混杂|无|混合)(?:密度|信号|回声)|透亮")


def _table(*categories: str) -> dict[str, tuple[str, ...]]:
    return {
        name: concept.terms
        for name, concept in concepts().items()
        if concept.category in categories and name not in _NO_FINDINGS
    }


DEFAULT_VOCABULARY: Vocabulary = {
    "modality": _table("modality"),
    "region": _table("region"),
    "phase": _table("phase"),  # 动脉期 names no artery
    **_split_compounds(_table("organ"), _table("finding", "disease", "sign")),
    "appearance": {name: terms for name, terms in _table("appearance").items() if _DENSITIES.fullmatch(name)},
    "side": {
        "双侧": ("双侧", "两侧", "双边", "双肺", "两肺", "双肾", "两肾", "双眼", "左右两", "bilateral"),
        "左侧": ("左", "left"),
        "右侧": ("右", "right"),
    },
    "place": {
        "上": ("上叶", "上肺", "上部", "上方", "上野", "上段", "上极", "上象限", "顶部", "肺尖"),
        "下": ("下叶", "下肺", "下部", "下方", "下野", "下段", "下极", "下象限", "底部", "肺底"),
        "中": ("中叶", "中部", "中野", "中央", "中心", "中间", "中段"),
        "前": ("前部", "前方", "前段", "前叶"),
        "后": ("后部", "后方", "后段", "后叶"),
    },
    "size": {
        "大": ("较大", "巨大", "体积大", "大片", "大量", "大型"),
        "中": ("大小中等", "中等大小", "中等大", "中量"),
        "小": ("较小", "微小", "体积小", "少量", "小片", "小型", "细小"),
    },
}

# 胸腔积液:无 is one statement
_SENTENCE = re.compile(r"[。;!?\n]+|:(?!无|未见|没有|否|阴性|未发现|不存在)|\.(?!\d)")
_BOTH_SIDES = re.compile(r"[两二](?=[侧边肺肾眼耳上下])")
COUNTED = re.compile(
    r"(?<![\d.a-z])(\d+)\s*(?:个|枚|处|颗|块|条|片|根|粒|团|簇|灶)|(多发|多个|多枚|多处|数枚|数个|若干)|(单发|单个|孤立)"
)
_NORMAL = re.compile(r"正常|健康|\bnormal\b")
_ABNORMAL = re.compile(r"(?:明显|显著|任何)?(?:异常|病变|病灶)|\babnormalit\w+")
# 余未见异常 and 其他部位正常 describe the rest of the image, not all of it.
REST = re.compile(r"余|其他|其它|另")


@dataclass(frozen=True)
class Mention:
    """A term of the vocabulary at text[start:end], and whether it is negated there."""

    category: str
    name: str
    start: int
    end: int
    negated: bool


def read_vocabulary(path: Path) -> Vocabulary:
    """A vocabulary from JSON: {"finding": {"结节": ["结节", "结节影"]}, …}. Raises UserError for any other content."""
    content = read_json(path)
    try:
        return {category: {name: tuple(terms) for name, terms in table.items()} for category, table in content.items()}
    except (AttributeError, TypeError):
        raise UserError(f"{path}: expected category -> name -> list of terms, found another structure") from None


def extract_facts(text: str, vocabulary: Vocabulary = DEFAULT_VOCABULARY) -> frozenset[str]:
    """Every fact that the text states, negated findings included; the module docstring lists their forms."""
    facts: set[str] = set()
    states_normal = False
    for sentence in split_sentences(text):
        facts |= extract_sentence_facts(sentence, vocabulary)
        states_normal = states_normal or _states_normal(sentence)
    if states_normal and not any(is_finding(fact) for fact in facts):
        facts.add("normal")
    return frozenset(facts)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text: half-width, simplified, lower case, counts as digits."""
    simplified = _BOTH_SIDES.sub("双", to_simplified(to_halfwidth(text)).lower())  # 两侧 counts nothing
    normalized = counts_to_digits(simplified)
    return [sentence for sentence in _SENTENCE.split(normalized) if sentence]


def find_contradictions(text: str, vocabulary: Vocabulary = DEFAULT_VOCABULARY) -> frozenset[str]:
    """Findings that a text both affirms and negates at the same location: 左肺结节。左肺未见结节。

    左肺结节,右肺未见结节 is no contradiction: the clauses name different sides (or locations, or organs). Nor is
    余未见结节. Each distinct statement is compared once, however often a text repeats it.
    """
    affirmed: dict[str, set[_Location]] = {}
    negated: dict[str, set[_Location]] = {}
    for sentence in split_sentences(text):
        for clause, mentions in _mentions_by_clause(sentence, vocabulary):
            is_rest = bool(REST.search(clause))
            names = {
                category: frozenset(other.name for other in mentions if other.category == category)
                for category in ("side", "place", "organ")
            }
            for name, is_negative in {(m.name, m.negated) for m in mentions if m.category == "finding"}:
                if is_negative and is_rest:
                    continue
                # 肺结节 names its organ too
                organs = {
                    organ
                    for organ, terms in vocabulary.get("organ", {}).items()
                    if name.startswith(tuple(terms)) and organ != name
                }
                location = (names["side"], names["place"], names["organ"] | organs)
                (negated if is_negative else affirmed).setdefault(name, set()).add(location)
    return frozenset(
        name
        for name, locations in affirmed.items()
        for other, other_locations in negated.items()
        if (name.endswith(other) or other.endswith(name))
        and any(not _are_apart(a, b) for a in locations for b in other_locations)
    )


_Location = tuple[frozenset[str], frozenset[str], frozenset[str]]  # sides, places, organs


def _are_apart(a: _Location, b: _Location) -> bool:
    return any(names and others and not names & others for names, others in zip(a, b, strict=True))


def _mentions_by_clause(sentence: str, vocabulary: Vocabulary) -> list[tuple[str, list[Mention]]]:
    """The comma-separated clauses of a sentence, each with the terms that begin in it."""
    mentions = find_mentions(sentence, vocabulary)
    clauses, start, index = [], 0, 0
    for clause in sentence.split(","):
        end, first = start + len(clause), index
        while index < len(mentions) and mentions[index].start < end:
            index += 1
        clauses.append((clause, mentions[first:index]))
        start = end + 1
    return clauses


def _clause_span(sentence: str, start: int, end: int) -> tuple[int, int]:
    """(start, end) of the comma-separated clause around sentence[start:end]."""
    clause_end = sentence.find(",", end)
    return sentence.rfind(",", 0, start) + 1, len(sentence) if clause_end < 0 else clause_end


def is_finding(fact: str) -> bool:
    """Whether a fact affirms a finding, rather than negating or describing one, or naming an organ or modality."""
    return not fact.startswith("no ") and "|" not in fact and "=" not in fact and fact != "normal"


def extract_sentence_facts(sentence: str, vocabulary: Vocabulary) -> set[str]:
    """The facts of one half-width, simplified, lower-case sentence."""
    facts: set[str] = set()
    mentions = find_mentions(sentence, vocabulary)
    owners = [mention for mention in mentions if mention.category in ATTRIBUTE_OWNERS]
    for mention in mentions:
        fact = f"{mention.category}={mention.name}"
        if mention.category == "finding":
            facts.add(f"no {mention.name}" if mention.negated else mention.name)
        elif mention.category in ATTRIBUTES:
            facts |= _attach_attribute(fact, mention.start, mention.end, owners, sentence)
        elif mention.category not in ATTRIBUTE_OWNERS and not mention.negated:
            facts.add(fact)
    for match in COUNTED.finditer(sentence):
        number = match.group(1) or ("many" if match.group(2) else "1")
        facts |= _attach_attribute(f"number={number}", *match.span(), owners, sentence, is_count=True)
    start = 0
    for clause in sentence.split(","):
        end = start + len(clause)
        for measurement in find_measurements(clause):
            if measurement.quantity == "length":
                facts |= _attach_attribute(f"mm={float(measurement.value):g}", start, end, owners, sentence)
        start = end + 1
    return facts


def _attach_attribute(
    attribute: str, start: int, end: int, owners: list[Mention], sentence: str, is_count: bool = False
) -> set[str]:
    """{"finding|attribute"} for the nearest finding in the clause, else in the sentence; {} if there is none."""
    clause_start, clause_end = _clause_span(sentence, start, end)
    in_clause = [owner for owner in owners if clause_start <= owner.start < clause_end]
    candidates = in_clause or owners
    if not candidates or (not in_clause and _states_normal(sentence[clause_start:clause_end])):
        return set()
    owner = min(candidates, key=lambda owner: (max(owner.start - end, start - owner.end), owner.start))
    if owner.negated or (owner.category == "thing" and not is_count):
        return set()
    return {f"{owner.name}|{attribute}"}


def _states_normal(sentence: str) -> bool:
    if REST.search(sentence):
        return False
    is_normal = any(not is_negated(sentence, *match.span()) for match in _NORMAL.finditer(sentence))
    return is_normal or any(is_negated(sentence, *match.span()) for match in _ABNORMAL.finditer(sentence))


def find_mentions(sentence: str, vocabulary: Vocabulary) -> list[Mention]:
    """Every term of the vocabulary in a sentence, in order; at each position the longest term of any category."""
    finder, meanings = _compiled(vocabulary)
    return [
        Mention(category, name, start, end, is_negated(sentence, start, end))
        for start, end in finder.find(sentence)
        for category, name in meanings[sentence[start:end]]
    ]


_Compiled = tuple[TermFinder, dict[str, list[tuple[str, str]]]]
_COMPILED: dict[int, tuple[Vocabulary, _Compiled]] = {}


def _compiled(vocabulary: Vocabulary) -> _Compiled:
    """(a finder of all terms; term -> its (category, name) meanings), cached by identity.

    Hashing 10,000 terms for every sentence cost more than finding them.
    """
    cached = _COMPILED.get(id(vocabulary))
    if cached is None or cached[0] is not vocabulary:
        if len(_COMPILED) >= 16:  # a caller that builds a new vocabulary for each call must not fill the memory
            _COMPILED.clear()
        cached = _COMPILED[id(vocabulary)] = (vocabulary, _compile(vocabulary))
    return cached[1]


def _compile(vocabulary: Vocabulary) -> _Compiled:
    meanings: dict[str, list[tuple[str, str]]] = {}
    for category, table in vocabulary.items():
        for name, terms in table.items():
            for term in terms:
                meanings.setdefault(term.lower(), []).append((category, name))
    return TermFinder(meanings), meanings
