"""A yes-no question taken apart, and the clauses of an answer that speak about what it asks.

In: a normalized question and answer. Out: the question's statement, target, sides, levels and organs; the clauses of
the answer that are about the same ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from qilin.text.laterality import find_sides
from qilin.text.negation import negated_spans
from qilin.text.vocabulary import find_terms, structures_of
from qilin.text.yes_no import A_NOT_A

CLAUSE_BREAK = re.compile(r"[,。;!?\n]+|(?=但是|(?<!不)但(?!凡)|然而|不过|而是|而非)")


@dataclass(frozen=True)
class YesNoQuestion:
    """A yes-no question taken apart."""

    text: str
    statement: str  # without 是否, 有没有, 吗
    location: (
        str  # what stands before the verb of presence: 肺内 in 肺内有钙化吗; the whole statement without such a verb
    )
    target: str  # what stands after it: 钙化; the predicate of the statement without such a verb
    asks_presence: bool
    is_negative: bool  # 没有结节吗
    sides: frozenset[str]
    levels: frozenset[str]
    organs: frozenset[str]


_QUESTION_END = re.compile(r"(?:了|的)?(?:吗|么|嘛|吧|呢)?[?.。]*$")
_PRESENCE = re.compile(
    r"(?:可以|能够?|可)?(?:被)?(?:观察到|看到|见到|看见|存在着?|出现了?|显示出?|发现|包含有?|包括|含有|伴有|患有|见"
    r"|含|有)(?:了|到|任何)?"
)
_LEVEL = re.compile(
    r"([上中下])(?=[肺叶部段极腹肢颌野象段侧方])|(?<=肺)([上中下])"
    r"|(?<=[左右双两])([上中下])(?![肢颌])"
)


@lru_cache(maxsize=1_000)
def take_apart(question: str) -> YesNoQuestion:
    """The parts of a normalized yes-no question."""
    statement = _QUESTION_END.sub("", A_NOT_A.sub(_keep_verb, question))
    verb = next((m for m in _PRESENCE.finditer(statement) if not _in_word(statement, m)), None)
    location, target = (statement[: verb.start()], statement[verb.end() :]) if verb else ("", statement)
    if verb and not target:  # 子宫可见吗: the subject is the target
        location, target = "", location
    return YesNoQuestion(
        question,
        statement,
        location,
        target,
        verb is not None,
        bool(negated_spans(statement)),
        find_sides(statement),
        _levels(statement),
        _organs(statement),
    )


def _keep_verb(match: re.Match[str]) -> str:
    return "有" if match.group() in ("有没有", "有无") else "能" if "能" in match.group() else ""


def _in_word(statement: str, verb: re.Match[str]) -> bool:
    """有 in 具有, 所有, 没有 and 见 in 常见 are no verbs of presence."""
    return statement[max(0, verb.start() - 1) : verb.start()] in tuple("具所没未不无常罕少") and verb.start() > 0


def _levels(text: str) -> frozenset[str]:
    return frozenset(next(filter(None, match.groups())) for match in _LEVEL.finditer(text))


def _organs(text: str) -> frozenset[str]:
    return frozenset(match.concept.name for match in find_terms(text, "organ", "region"))


def find_all(text: str, word: str) -> list[tuple[int, int]]:
    """Spans of a word in a text; a pattern for every word would fill the cache of re."""
    spans = []
    start = text.find(word)
    while word and start >= 0:
        spans.append((start, start + len(word)))
        start = text.find(word, start + len(word))
    return spans


def relevant_clauses(text: str, question: YesNoQuestion) -> list[str]:
    """The clauses about the side, level and organ of the question; a clause without one inherits the last one's."""
    relevant: list[tuple[str, bool]] = []
    sides, levels = frozenset[str](), frozenset[str]()
    for clause in CLAUSE_BREAK.split(text):
        if not clause:
            continue
        own_sides, own_levels, organs = find_sides(clause), _levels(clause), _organs(clause)
        sides = own_sides or (sides if not organs else frozenset())
        levels = own_levels or (levels if not organs and not own_sides else frozenset())
        if sides and question.sides and not sides & question.sides:
            continue
        if levels and question.levels and not levels & question.levels:
            continue
        is_rest = re.match(r"其余|其他|其它|余(?!量)", clause) is not None
        if not is_rest:
            relevant.append((clause, _is_elsewhere(organs, question.organs)))
    if all(is_elsewhere for _, is_elsewhere in relevant):
        return [clause for clause, _ in relevant]
    return [clause for clause, is_elsewhere in relevant if not is_elsewhere]


def _is_elsewhere(organs: frozenset[str], asked_organs: frozenset[str]) -> bool:
    """Whether a clause names only organs that neither are, contain nor belong to those of the question."""
    if not organs or not asked_organs:
        return False
    around = frozenset().union(*map(structures_of, asked_organs))
    return not any(name in around or structures_of(name) & asked_organs for name in organs)
