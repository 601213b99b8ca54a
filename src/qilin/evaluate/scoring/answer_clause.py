"""The clause that answers an open question, and whether it entails the reference.

In: a normalized question, reference and answer (with LIST_MARK in place of 、). Out: a Verdict, or None where no clause
entails the reference. An answer is right if its first statement, or the conclusion that it draws, names the reference
or something more precise (entailment.py); glosses, reasons, places and further findings in clauses of their own are set
aside. It is wrong if it names an alternative (或, 也可能), something else beside it (和, 、), or the reference only in
second place.
"""

from __future__ import annotations

import re
from functools import lru_cache

from qilin.evaluate.results import Verdict
from qilin.evaluate.scoring.anatomy import Location, parse_meaning
from qilin.evaluate.scoring.entailment import (
    ASKS_WHERE,
    bare_answer,
    clause_entails,
    core_of,
    is_about_another_organ,
    item_entails,
    written_alike,
)
from qilin.evaluate.scoring.measures import without_spans
from qilin.text.abnormality import ABNORMAL
from qilin.text.clauses import LIST_MARK, Clause, split_clauses
from qilin.text.negation import is_negated
from qilin.text.normalize import split_list_items
from qilin.text.quantities import find_quantities
from qilin.text.vocabulary import FINDING_CATEGORIES, concept_of, find_terms, is_a

_SETTLED = ("denial", "reason", "second", "rest", "advice", "alternative")  # clauses that do not answer
MAX_CLAUSE_CHARACTERS = 200  # a longer clause answers no question
_MAX_CLAUSES = 60  # an answer of more is a report; the rest of it is not read
_EXTRA_VERB = re.compile(r"可见|见|包括|包含|包|含|伴有?|显示|合并|并有")
_INSIDE = re.compile(r"中[心央]|内部?(?=[见有可呈])|其内|周[围边]|边缘|局部")
_STATES_LOCATION = re.compile(r"位于|在|靠近|邻近|毗邻|处于|占据|紧邻")
_CORRECTS = re.compile(r"而是|实际|但(?:是)?(?:实际|其实|应|是)|其实|应(?:该)?为|应(?:该)?是")
_OR_START = re.compile(r"或|要么|也?可能(?:是|为)|也可能|亦可|也可|也许|还可能|or |possibly|maybe")
_STRONG = re.compile(
    r"而是|因此|所以|故|因而|综上|应(?:该)?(?:为|是|诊断|考虑)|(?<!再)考虑|提示|符合|诊断|倾向|最可能|更可能|首先"
    r"|可能性(?:较|最|很)?大|即|说明|支持|consistent|suggest|therefore|so "
)


def judge_statement(q: str, r: str, p: str) -> Verdict | None:
    """True if the clause of an answer that answers entails the reference; False if it is undecided; else None."""
    references = _reference_items(written_alike(r))
    p = written_alike(p)
    clauses = split_clauses(p)[:_MAX_CLAUSES]
    live = [clause for clause in clauses if clause.role not in _SETTLED and len(clause.text) <= MAX_CLAUSE_CHARACTERS]
    if not live or not references:
        return None
    if len(references) > 1:
        return Verdict(True, "list") if _lists_all(q, references, live) else None
    reference = _without_organ_of(q, references[0])
    positions = [index for index, clause in enumerate(live) if clause_entails(q, reference, clause)]
    if not positions:
        return None
    first = positions[0]
    if any(_OR_START.match(clause.text) for clause in clauses if clause.role == "alternative"):
        return Verdict(False, "undecided")
    if any(_competes(q, reference, clause) for clause in live[:first]) and not _is_strong(live[first]):
        return Verdict(False, "second place")
    if any(_replaces(q, reference, clause) for clause in live[first + 1 :] if not clause_entails(q, reference, clause)):
        return Verdict(False, "something else")
    if any(_contradicts(reference, gloss) for gloss in live[first].glosses):
        return Verdict(False, "something else")
    if _is_longer_list(q, reference, live) or _describes_otherwise(q, reference, live):
        return Verdict(False, "something else")
    return Verdict(True, "clause")


def _reference_items(r: str) -> tuple[str, ...]:
    items = split_list_items(r)
    return (r,) if len(items) <= 1 else items


def _without_organ_of(q: str, r: str) -> str:
    """支气管 for 肺支气管, if the question names the lung."""
    organs = find_terms(q, "organ", "region")
    words = sorted({term for match in organs for term in match.concept.terms}, key=len, reverse=True)
    word = next((word for word in words if r.startswith(word) and concept_of(r) is None), "")
    return r[len(word) :].removeprefix("的") if concept_of(r[len(word) :]) else r


def _contradicts(reference: str, gloss: str) -> bool:
    """CT(MRI) for CT: the gloss names another thing of the same category."""
    expected, stated = core_of(reference)[2], concept_of(gloss)
    if expected is None or stated is None or expected.category != stated.category:
        return False
    if expected.category == "appearance":  # 黑色(低密度) describes one thing twice
        return False
    return not (is_a(stated.name, expected.name) or is_a(expected.name, stated.name))


# Words that make a clause more than a name: a verb, a description, a measure.
_MORE_THAN_A_NAME = re.compile(
    r"^非|见|显示|呈|占|位于|伴|有|是|为|负责|属于|未|无|不|清|光|均|常|受|比|邻|近|约|用|从|至|到|在|靠|贴|供|储|考虑|提示|尤其|包|含|导|建议|[a-z0-9]"
)


def _is_longer_list(q: str, reference: str, live: list[Clause]) -> bool:
    """小肠,十二指肠 for 小肠: every clause is a bare name, and one of them is something else."""
    names = [clause.text for clause in live]
    if len(names) < 2 or any(len(name) > 8 or _MORE_THAN_A_NAME.search(name) for name in names):
        return False
    return any(_is_another_name(q, reference, c.text) for c in live if not clause_entails(q, reference, c))


def _is_another_name(q: str, reference: str, name: str) -> bool:
    if item_entails(q, reference, name) or item_entails(q, name, reference) or _INSIDE.match(name):
        return False
    is_known = concept_of(name) is not None or isinstance(parse_meaning(name), Location)
    return name != reference and (is_known or name[-2:] == reference[-2:] or len(name) <= 3)


def _describes_otherwise(q: str, reference: str, live: list[Clause]) -> bool:
    """中央高信号,周边低信号 for 高信号: another density, signal or echo, not of another organ or sequence."""
    concept = core_of(reference)[2]
    if concept is None or concept.name[-2:] not in ("密度", "信号", "回声"):
        return False
    for clause in live:
        named = [
            m.concept for m in find_terms(clause.text, "appearance") if not is_negated(clause.text, m.start, m.end)
        ]
        is_other = any(c.name[-2:] == concept.name[-2:] and not is_a(c.name, concept.name) for c in named)
        sequences = {match.concept.name for match in find_terms(clause.text, "sequence")}
        is_elsewhere = sequences - {match.concept.name for match in find_terms(q, "sequence")}
        if is_other and not is_elsewhere and not is_about_another_organ(clause.text, q) and "相对" not in clause.text:
            return True
    return False


def _is_strong(clause: Clause) -> bool:
    return _STRONG.search(clause.text) is not None


def _lists_all(q: str, references: tuple[str, ...], live: list[Clause]) -> bool:
    """Whether the items of the answering clauses and those of the reference entail each other one to one."""
    items: list[str] = []
    for index, clause in enumerate(live):
        if index and _EXTRA_VERB.search(clause.text) and clause.role == "statement" and not _is_strong(clause):
            continue
        items += [part for part in _ITEM_BREAK.split(clause.text) if part]
    items = [bare_answer(_LISTS.split(item)[-1], q) for item in items if not _only_counts(item, q)]
    items = [
        item
        for item in items
        if item and not set(item) <= set("的等种个两三四五项类主要以为其中有可采用相结合方式法共")
    ]
    endings = ("", references[-1][-2:], references[-1][-1:])
    for ending in endings:
        candidates = [item if item.endswith(ending) else item + ending for item in items]
        used = [any(item_entails(q, reference, item) for item in candidates) for reference in references]
        extra = [item for item in candidates if not any(item_entails(q, reference, item) for reference in references)]
        if all(used) and not extra:
            return True
    return False


_ITEM_BREAK = re.compile(rf"{LIST_MARK}|和|与|及|以及|伴有?|合并|并发?|还有")
_LISTS = re.compile(r"包括|包含|分别[是为]|主要[是为有]|[有为是](?=.{2})|表现为")


def _only_counts(item: str, q: str) -> bool:
    """有两块骨 before the list itself."""
    quantities = find_quantities(item)
    return bool(quantities) and set(bare_answer(without_spans(item, quantities).replace("\x00", ""), q)) <= set(q)


# --- what speaks against it -------------------------------------------------------------------------------------------


def _competes(q: str, reference: str, clause: Clause) -> bool:
    """Whether a clause before the one that entails the reference is an answer of its own."""
    if clause_entails(q, reference, clause):
        return False
    bare = bare_answer(clause.text, q)
    if reference in clause.text or re.match(r"根据|从|由|通过", clause.text):
        return False
    return _is_same_kind(reference, bare) or (bare in q and len(bare) > 1) or _offers(q, bare)


def _offers(q: str, text: str) -> bool:
    """Whether the clause begins with another option that the question offers."""
    return any(len(option) > 1 and text.startswith(option) for option in offered_options(q))


@lru_cache(maxsize=1_000)
def offered_options(q: str) -> tuple[str, ...]:
    """The options in a question of the form A还是B: (药物治疗, 手术治疗)."""
    match = re.search(r"([^,。?]{1,12})还是([^,。?]{1,12})", q)
    if match is None:
        return ()
    second = match[2].rstrip("?吗")
    first = match[1]
    return (first[-len(second) :] if first.endswith(second[-2:]) else first, second)


def _replaces(q: str, reference: str, clause: Clause) -> bool:
    """Whether a later clause corrects the answer, or goes on listing: 心脏,肝脏,脾脏."""
    bare = bare_answer(clause.text, q)
    is_name = concept_of(bare) is not None or (ABNORMAL.search(bare[-2:]) and not _EXTRA_VERB.search(clause.text))
    is_bare = len(bare) >= len(clause.text) - 6 and bool(is_name)
    if clause.role == "addition" and re.match(r"伴|并见|同时", clause.text):
        return False
    if _INSIDE.match(clause.text):  # 环形强化,中心坏死 describes one lesion
        return False
    if _STATES_LOCATION.match(clause.text) and not ASKS_WHERE.search(q):
        return False
    if _CORRECTS.match(clause.text):
        return _is_same_kind(reference, bare)
    return is_bare and _is_same_kind(reference, bare) and not clause.text.startswith(("伴", "可见", "含", "包括"))


def _is_same_kind(reference: str, text: str) -> bool:
    """Whether a text names something that could stand in place of the reference."""
    _, _, concept = core_of(reference)
    if isinstance(parse_meaning(reference), Location) and isinstance(parse_meaning(text), Location):
        return True
    is_finding = ABNORMAL.search(reference[-2:])
    if is_finding and ABNORMAL.search(text[-2:]):
        return True
    if concept is None:
        stated = concept_of(text)
        return bool(stated and is_finding and stated.category in FINDING_CATEGORIES)
    kinds = FINDING_CATEGORIES if concept.category in FINDING_CATEGORIES else (concept.category,)
    return any(match.start == 0 or match.end == len(text) for match in find_terms(text, *kinds))
