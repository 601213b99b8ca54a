"""Multiple choice: which options an answer selects, by letter or by text; None where that is unclear.

Input: an answer and the choices. Output: indices. The letters in CT, MRI, B超 and "A lesion" select nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qilin.text.negation import is_negated
from qilin.text.normalize import normalize_answer, to_halfwidth

_LETTER = r"[A-Ha-h]"
_STEMS = "甲乙丙丁戊己庚辛"
_PREFIX = re.compile(rf"^\s*\(?({_LETTER})\)?\s*[.、:)，,]\s*(?=\S)")
_BARE = re.compile(rf"^[(\[]?({_LETTER}|[{_STEMS}])[)\]]?\s*[.、:。]?$")
_MANY = re.compile(rf"^(?:{_LETTER}\s*+(?:[,、和与]\s*+)?)+$")  # one way to match: two took exponential time
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
    pairs = _IN_QUESTION.findall(to_halfwidth(question).replace("\n", " "))
    letters = "".join(letter.upper() for letter, _ in pairs)
    if len(pairs) < 2 or not "ABCDEFGH".startswith(letters):
        return ()
    return tuple(text.strip(" ,;。") for _, text in pairs)


def strip_choice_letter(choice: str) -> str:
    """A choice without its leading letter: "A. 肺炎" -> 肺炎."""
    return _PREFIX.sub("", to_halfwidth(choice)).strip()


def selected_options(answer: str, choices: Sequence[str]) -> frozenset[int] | None:
    """The indices of the options that an answer selects; None if it selects none, or contradicts itself.

    In this order: a declared letter (答案是B, 选乙), a leading one (B. 气胸), the text of exactly one choice, the only
    letter that stands alone.
    """
    text = re.sub(r"\s+", " ", to_halfwidth(answer)).strip().strip("。!*")
    count = len(choices)
    bare = _BARE.match(text)
    if bare:
        return _indices(bare.group(1), count)
    if _MANY.match(text) and 1 < len(re.findall(_LETTER, text)) <= count:
        return _indices(text, count)
    choice_texts = [normalize_answer(strip_choice_letter(choice)) for choice in choices]
    normalized = normalize_answer(text)
    if choice_texts.count(normalized) == 1:
        return frozenset((choice_texts.index(normalized),))
    declared = [m.group(1) for m in (*_CHOSEN.finditer(text), *_RIGHT.finditer(text)) if not _is_denied(text, m)]
    if declared:
        selections = {_indices(letters, count) for letters in declared}
        return selections.pop() if len(selections) == 1 else None
    lead = _PREFIX.match(text)
    if lead and not re.match(r"[Aa]\s+[a-z]", text):
        return _indices(lead.group(1), count)
    mentioned = _mentioned_choices(normalized, choice_texts)
    if len(mentioned) == 1:
        return frozenset(mentioned)
    letters = {m.group(1) for m in _LONE.finditer(text) if not _is_denied(text, m)}
    if len(letters) == 1 and not mentioned:
        return _indices(letters.pop(), count)
    return None


def _indices(letters: str, count: int) -> frozenset[int] | None:
    indices = {
        _STEMS.index(c) if c in _STEMS else "ABCDEFGH".index(c.upper())
        for c in re.findall(rf"{_LETTER}|[{_STEMS}]", letters)
    }
    return frozenset(indices) if indices and max(indices) < count else None


def _is_denied(text: str, match: re.Match[str]) -> bool:
    start = match.start()
    return text[max(0, start - 1) : start] in ("不", "非") or is_negated(text, *match.span(1))


def _mentioned_choices(text: str, choice_texts: Sequence[str]) -> set[int]:
    """Choices whose text occurs in the answer without being denied; a longer choice hides a shorter one inside it."""
    mentioned: set[int] = set()
    for index in sorted(range(len(choice_texts)), key=lambda i: -len(choice_texts[i])):
        choice = choice_texts[index]
        start = text.find(choice) if choice else -1
        if start >= 0:
            if not is_negated(text, start, start + len(choice)):
                mentioned.add(index)
            text = text.replace(choice, "\x00" * len(choice))
    return mentioned
