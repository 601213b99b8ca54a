"""Multiple choice: which option an answer picks, by letter or by text, and None where it picks none or several.

In: an answer and the choices. Out: indices. CT, MRI, B超 and "A lesion" hold letters that pick nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qilin.text.negation import is_denied
from qilin.text.normalize import narrow, normalise

_LETTER = r"[A-Ha-h]"
_STEMS = "甲乙丙丁戊己庚辛"
_PREFIX = re.compile(rf"^\s*\(?({_LETTER})\)?\s*[.、:)，,]\s*(?=\S)")
_BARE = re.compile(rf"^[(\[]?({_LETTER}|[{_STEMS}])[)\]]?\s*[.、:。]?$")
_MANY = re.compile(rf"^(?:{_LETTER}\s*[,、和与]?\s*)+$")
_CHOSEN = re.compile(
    rf"(?:答案|选项|选择|应选|故选|选|answer(?: is)?|option|choose)\s*(?:应该|应)?(?:是|为|:)?\s*"
    rf"(?:选项|option)?\s*[(\[]?((?:[A-H][、,和与]?)+|[{_STEMS}])(?![A-Za-z0-9-])",
    re.IGNORECASE,
)
_RIGHT = re.compile(rf"([A-H]|[{_STEMS}])\s*(?:选项|项)?\s*(?:是)?(?:正确|对的|符合)")
_LONE = re.compile(r"(?<![A-Za-z0-9/+-])([A-H])(?![A-Za-z0-9/+-]|超|型|级|类|线|族|区|期|\s+[a-z])")
_IN_QUESTION = re.compile(
    rf"(?<![A-Za-z0-9])({_LETTER})\s*[.、:)]\s*(.+?)(?=(?:[\s,;]*(?<![A-Za-z0-9]){_LETTER}\s*[.、:)])|$)"
)


def choices_in(question: str) -> tuple[str, ...]:
    """The choices in a question's own text: "…? A.肺炎 B.气胸" -> (肺炎, 气胸); () if they do not run A, B, …"""
    found = _IN_QUESTION.findall(narrow(question).replace("\n", " "))
    letters = "".join(letter.upper() for letter, _ in found)
    if len(found) < 2 or not "ABCDEFGH".startswith(letters):
        return ()
    return tuple(text.strip(" ,;。") for _, text in found)


def bare_choice(choice: str) -> str:
    """A choice without the letter that may lead it: "A. 肺炎" -> 肺炎."""
    return _PREFIX.sub("", narrow(choice)).strip()


def picked(answer: str, choices: Sequence[str]) -> frozenset[int] | None:
    """The indices of the options that an answer picks; None if it picks none, or more than it can mean.

    A declared letter wins (答案是B, 选乙), then a leading one (B. 气胸), then the text of exactly one choice, then the
    only letter that stands alone.
    """
    text = narrow(answer).strip().strip("。!*")
    count = len(choices)
    bare = _BARE.match(text)
    if bare:
        return _indices(bare.group(1), count)
    if _MANY.match(text) and 1 < len(re.findall(_LETTER, text)) <= count:
        return _indices(text, count)
    plain = [normalise(bare_choice(choice)) for choice in choices]
    whole = normalise(text)
    if plain.count(whole) == 1:
        return frozenset((plain.index(whole),))
    declared = [m.group(1) for m in (*_CHOSEN.finditer(text), *_RIGHT.finditer(text)) if not _denied(text, m)]
    if declared:
        sets = {_indices(letters, count) for letters in declared}
        return sets.pop() if len(sets) == 1 else None
    lead = _PREFIX.match(text)
    if lead and not re.match(r"[Aa]\s+[a-z]", text):
        return _indices(lead.group(1), count)
    mentioned = _mentioned(whole, plain)
    if len(mentioned) == 1:
        return frozenset(mentioned)
    letters = {m.group(1) for m in _LONE.finditer(text) if not _denied(text, m)}
    if len(letters) == 1 and not mentioned:
        return _indices(letters.pop(), count)
    return None


def _indices(letters: str, count: int) -> frozenset[int] | None:
    found = {
        _STEMS.index(c) if c in _STEMS else "ABCDEFGH".index(c.upper())
        for c in re.findall(rf"{_LETTER}|[{_STEMS}]", letters)
    }
    return frozenset(found) if found and max(found) < count else None


def _denied(text: str, match: re.Match[str]) -> bool:
    start = match.start()
    return text[max(0, start - 1) : start] in ("不", "非") or is_denied(text, *match.span(1))


def _mentioned(text: str, plain: Sequence[str]) -> set[int]:
    """Choices whose text stands, not denied, in the answer; a longer choice hides a shorter one inside it."""
    found: set[int] = set()
    for index in sorted(range(len(plain)), key=lambda i: -len(plain[i])):
        at = text.find(plain[index]) if plain[index] else -1
        if at >= 0:
            if not is_denied(text, at, at + len(plain[index])):
                found.add(index)
            text = text.replace(plain[index], "\x00" * len(plain[index]))
    return found
