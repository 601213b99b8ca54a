"""Questions that ask which of several things is larger, brighter, abnormal: the answer may describe them all.

In: a normalized question, reference and answer. Out: a Verdict, or None where the question or the answer is not of this
form. 肝脏比脾脏大 answers which is larger (肝脏) and which is smaller (脾脏).
"""

from __future__ import annotations

import re
from functools import lru_cache

from qilin.evaluate.results import Verdict
from qilin.evaluate.scoring.anatomy import parse_meaning, same_meaning
from qilin.text.abnormality import abnormality
from qilin.text.alternatives import COMPLEMENTS, CONTRARIES, complement_sign
from qilin.text.laterality import find_sides
from qilin.text.vocabulary import find_terms
from qilin.text.yes_no import normality, question_normality

_MORE, _LESS = "大高多长亮粗重宽厚深快", "小低少短暗细轻窄薄浅慢"
_ADJECTIVE = f"[{_MORE}{_LESS}]"
_ASKS_EXTREME = re.compile(rf"(?:更|最|较|比较|相对)(?:为)?({_ADJECTIVE})")
_ENGLISH_ASKS = re.compile(
    r"\b(larger|largest|bigger|biggest|higher|highest|longer|smaller|smallest|lower|lowest|shorter)\b"
)
MAX_CLAUSE_CHARACTERS = 100  # of a comparison that rules read
_A_THAN_B = re.compile(rf"(.+?)比(.+?)(?:更|要|还|略|稍|明显)?({_ADJECTIVE})")
_A_OVER_B = re.compile(r"(.+?)(大于|高于|多于|长于|>|小于|低于|少于|短于|<)(.+?)(?:[><].*)?$")
_A_IS_MORE = re.compile(
    rf"(?:其中|图中)?(.+?)(?:的?(?:体积|面积|密度|信号|直径|长度|位置|范围))?(?:更|最|较|比较"
    rf"|相对较?)?(?:为)?({_ADJECTIVE})$"
)
_EQUAL = re.compile(r"一样|相等|相同|差不多|无差别|equal|the same")


def judge_comparison(q: str, r: str, p: str) -> Verdict | None:
    """Which is larger, smaller, brighter, answered by a comparison."""
    extreme = _ASKS_EXTREME.search(q)
    if extreme is None:
        return None
    wants_more = extreme[1] in _MORE
    if _EQUAL.search(p) and _EQUAL.search(r) is None:
        return Verdict(None, "unparsable")
    for clause in re.split(r"[,。;]", p):
        if not clause or len(clause) > MAX_CLAUSE_CHARACTERS:
            continue
        named = _compared(clause, wants_more, q)
        if named is None:
            continue
        name, is_winner = named
        is_reference = any(same_meaning(parse_meaning(r), parse_meaning(word), q) for word in (name, name.rstrip("的")))
        if is_winner:
            return Verdict(is_reference, "comparison")
        if is_reference:
            return Verdict(False, "comparison")
        if _is_offered(r, q) and _is_offered(name, q) and len(_offered(q)) <= 2:
            return Verdict(True, "comparison")  # the other of the two
        return None
    return None


def _compared(clause: str, wants_more: bool, q: str) -> tuple[str, bool] | None:
    """(what a clause puts first or last, whether that is what the question asks for)."""
    clause = re.sub(r"^(?:因为|由于|图中|其中|是)", "", clause)
    match = _A_THAN_B.match(clause)
    if match:
        return (match[1], True) if (match[3] in _MORE) is wants_more else (_strip(match[2]), True)
    match = _A_OVER_B.match(clause)
    if match:
        return (_strip(match[1]), True) if (match[2] in "大于高于多于长于>") is wants_more else (_strip(match[3]), True)
    match = _A_IS_MORE.fullmatch(clause)
    if match and not re.search(r"不|没|无|其次", match[1]) and find_terms(match[1], "organ", "region"):
        return match[1], (match[2] in _MORE) is wants_more
    return None


def _strip(name: str) -> str:
    return re.sub(r"(?:的)?(?:体积|面积|密度|信号)?(?:更|要|还|略|稍|明显)?$", "", name)


def _offered(q: str) -> set[str]:
    return {match.concept.name for match in find_terms(q, "organ", "region")}


def _is_offered(text: str, q: str) -> bool:
    return bool({match.concept.name for match in find_terms(text, "organ", "region")} & _offered(q)) or text in q


@lru_cache(maxsize=64)
def _appearance_words(words: str, opposite: str) -> re.Pattern[str]:
    return re.compile(f"{words}|{opposite}|[不欠未]")


@lru_cache(maxsize=5_000)
def _appearances(r: str) -> tuple[tuple[str, str, str], ...]:
    """(words, opposite, rest) for the complements that a short reference names, with what else it says."""
    pairs = ((*pair, _appearance_words(*pair).sub("", r)) for pair in (*COMPLEMENTS, *CONTRARIES))
    return tuple((words, opposite, rest) for words, opposite, rest in pairs if len(rest) <= 4 and rest != r)


def judge_appearance(q: str, r: str, p: str) -> Verdict | None:
    """A reference that is one of two complements: 不光滑 and 边缘毛糙, 边界清楚 and 边界清晰."""
    for words, opposite, rest in _appearances(r):
        if not set(rest) <= set(q) | set("边缘界形态呈的较尚密度信号强化"):
            continue
        expected, stated = complement_sign(r, words, opposite), complement_sign(p, words, opposite)
        if expected is not None and stated is not None:
            return Verdict(stated is expected, "appearance")
    return None


_ASKS_WHICH = re.compile(r"哪|谁|which")


def judge_state(q: str, r: str, p: str) -> Verdict | None:
    """Which of the organs or sides that a question names is normal or abnormal, answered by their states."""
    if _ASKS_WHICH.search(q) is None:
        return None
    asked_state = question_normality(q)
    offered = _offered(q)
    reference_organs = {match.concept.name for match in find_terms(r, "organ", "region")}
    asks_sides = len(find_sides(q)) == 2 and len(find_sides(r)) == 1
    if not (asks_sides or (len(offered) > 1 and reference_organs & offered)):
        return None
    if asked_state is None:
        asked_state = False if re.search(r"有|存在|出现", q) else None
    if asked_state is None:
        return None
    named: set[str] = set()
    inherited: set[str] = set()
    for clause in re.split(r"[,。;(]", p):
        keys = (
            find_sides(clause)
            if asks_sides
            else {m.concept.name for m in find_terms(clause, "organ", "region")} & offered
        )
        keys = set(keys) or (inherited if clause else set())
        inherited = keys
        state = normality(clause)
        if state is None:
            abnormal = abnormality(clause)
            state = None if abnormal is None else not abnormal
        if state is asked_state:
            named |= keys
    expected = set(find_sides(r)) if asks_sides else reference_organs & offered
    return Verdict(named == expected, "which is abnormal") if named else None
