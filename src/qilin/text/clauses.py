"""The clauses of an answer and the part that each plays: the statement itself, a denial, a reason, a remark.

In: a normalized text. Out: Clause rows in the order of the text. Which of them answers a question is decided by who
asks: an answer is usually in the first clause that states something, or in the one that draws the conclusion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# Put in place of 、 before normalization, which makes it a comma: 可见肝、脾 lists, 肝大，脾大 are two clauses.
LIST_MARK = "‖"

_BREAK = re.compile(
    r"[,;。!?\n]+|(?<!\d)\.|\.(?!\d)|:(?!\d)"
    r"|(?=而非|而不是|而是|但是|(?<!不)但(?!凡)|然而|不过|其次|因此|所以|因为|rather than|because| but )"
)
_GLOSS = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]")

_ROLES = (
    ("denial", re.compile(r"(?:并|而|也|又|既|则)?(?:不是|非(?!常|[^,;。]{1,4}[性型化])|不像|不属于|不考虑|不支持"
        r"|不太|不符合|不可能|排除|除外|否认|未|无(?!性|功|症)|没|看不|见不"
     r"|难以|缺乏|(?:not|no|rather than|without|neither)\b)|除了?(?=.*外)")),
    ("reason", re.compile(r"因为|由于|因(?!此|而)|鉴于|根据|依据|基于|理由|原因|从.{1,12}(?:来看|看|可知)|because"
        r"|since|due to|based on|given")),
    ("second", re.compile(r"其次|再次|次之|第二|再者|而后|接下来|最后|再做|再行|followed by|then ")),
    ("rest", re.compile(r"其余|其他|其它|余(?!量)|另外|此外|别处|the (?:rest|other|remaining)")),
    ("alternative", re.compile(r"或|要么|也(?:可能|许|可|有可能)|亦可|可能也|还可能|不排除|不能排除|也不(?:能"
        r"|可)?排除|or |possibly |maybe ")),
    ("advice", re.compile(r"建议|请|需(?:要)?(?:进一步|与|和|结合|注意|警惕)|应(?:结合|与|进一步|注意)|结合临床"
        r"|必要时|注意|鉴别|随访|希望")),
    ("conclusion", re.compile(r"而是|因此|所以|故|因而|综上|总之|应(?:该)?(?:为|是|诊断|考虑)|实际|考虑|提示|符合"
        r"|诊断|倾向|最可能|更可能|首先考虑|即(?!可|将|使)|也就是"
     r"|属于|说明|表明|支持|为(?!主)|是|therefore|so |thus|suggest|this is|it is|consistent with")),
    ("addition", re.compile(r"和|与|以及|及|还有|并且|并|同时|另有|伴|也(?:有|见|可见)|and ")),
    ("contrast", re.compile(r"但|然而|不过|而|however|but |while ")),
)  # fmt: skip
_UNSURE = re.compile(
    r"待排|待除外|不能(?:完全)?排除|无法排除|不除外|鉴别|可能性?(?:很|较|极|比较)?(?:小|低|不大)|次之|其次|依据不足"
    r"|证据不足|不支持|不符合$"
)
_CONCLUDES = re.compile(
    r"可能性(?:较|最|很|比较)?(?:大|高)|可能大|考虑(?:为)?|提示|符合|诊断为?|首先|倾向于?|consistent with|suggest"
)


@dataclass(frozen=True)
class Clause:
    """One clause; `role` is statement, denial, reason, second, rest, alternative, advice, conclusion or addition."""

    text: str
    role: str
    glosses: tuple[str, ...] = ()


@lru_cache(maxsize=20_000)
def split_clauses(text: str) -> tuple[Clause, ...]:
    """The clauses of a normalized text; what stands in brackets is a gloss of its clause."""
    glosses: list[str] = []

    def take(match: re.Match[str]) -> str:
        glosses.append(match[1] if match[1] is not None else match[2])
        return f"\x02{len(glosses) - 1}\x03"

    clauses: list[Clause] = []
    for part in _BREAK.split(_GLOSS.sub(take, text)):
        clause_glosses = tuple(glosses[int(number)] for number in re.findall(r"\x02(\d+)\x03", part))
        stripped = re.sub(r"\x02\d+\x03", "", part).strip()
        if stripped:
            clauses.append(Clause(stripped, clause_role(stripped), clause_glosses))
    return tuple(clauses)


def clause_role(text: str) -> str:
    """What a clause does; a clause that doubts its own statement (肺结核待排) is an alternative."""
    if _UNSURE.search(text):
        return "alternative"
    role = next((name for name, pattern in _ROLES if pattern.match(text)), "statement")
    if role in ("statement", "addition", "contrast") and _CONCLUDES.search(text):
        return "conclusion"
    return role
