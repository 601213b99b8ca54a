"""Multiple choice: which options an answer selects, by letter, position or text; None where that is unclear.

Input: an answer, the choices, and the question. Output: indices. The letters in CT, MRI, B超 and "A lesion" select
nothing. An answer that judges several options (A：错误；C：正确) selects those that it calls right, or, where the
question asks for the exception (哪项不正确), those that it calls wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qilin.text.negation import is_negated
from qilin.text.normalize import normalize_answer, to_halfwidth

_LETTERS = "ABCDEFGH"
_LETTER = r"[A-Ha-h]"
_STEMS = "甲乙丙丁戊己庚辛"
_PREFIX = re.compile(rf"^\s*\(?({_LETTER})\)?\s*[.、:)，,]\s*(?=\S)")
_BARE = re.compile(rf"^[(\[【]?({_LETTER}|[{_STEMS}])[)\]】]?\s*[.、:。)]?$")
_SEPARATOR = r"(?:[,、和与及&/]|and\b)"
# one way to match: two took exponential time
_MANY = re.compile(rf"^(?:{_LETTER}(?![b-zB-Z]{{0,3}}[i-zI-Z])\s*+(?:{_SEPARATOR}\s*+)*+)+$")
_IN_QUESTION = re.compile(
    rf"(?<![A-Za-z0-9])({_LETTER})\s*[.、:)]\s*(.+?)(?=(?:[\s,;]*(?<![A-Za-z0-9]){_LETTER}\s*[.、:)])|$)"
)


def choices_in(question: str) -> tuple[str, ...]:
    """The choices in a question's own text: "…? A.肺炎 B.气胸" -> (肺炎, 气胸); () if they do not run A, B, …"""
    pairs = _IN_QUESTION.findall(to_halfwidth(question).replace("\n", " "))
    letters = "".join(letter.upper() for letter, _ in pairs)
    if len(pairs) < 2 or not _LETTERS.startswith(letters):
        return ()
    return tuple(text.strip(" ,;。") for _, text in pairs)


def strip_choice_letter(choice: str) -> str:
    """A choice without its leading letter: "A. 肺炎" -> 肺炎."""
    return _PREFIX.sub("", to_halfwidth(choice)).strip()


def selected_options(answer: str, choices: Sequence[str], question: str = "") -> frozenset[int] | None:
    """The indices of the options that an answer selects; None if it selects none, or contradicts itself.

    In this order: letters alone; the text of exactly one choice; declared letters (答案是B, 选乙, 第二项); letters that
    the answer calls right, or the only one that it leaves; a leading letter (B. 气胸) or the only one; the texts of
    choices that the answer names.
    """
    count = len(choices)
    text = re.sub(r"\s+", " ", to_halfwidth(answer).replace("\n", "。")).strip().strip("。!*")
    bare = _BARE.match(text)
    if bare:
        return _indices(bare.group(1), count)
    if _MANY.match(text) and 1 < len(re.findall(_LETTER, re.sub("and", "", text))) <= count:
        return _indices(re.sub("and", "", text), count)
    choice_texts = [normalize_answer(strip_choice_letter(choice)) for choice in choices]
    normalized = normalize_answer(text)
    if choice_texts.count(normalized) == 1:
        return frozenset((choice_texts.index(normalized),))
    if _ALL.match(normalized):
        return frozenset(range(count))
    text = _positions_to_letters(_stems_to_letters(text), count)
    stem = _OPTIONS.split(question, maxsplit=1)[0]
    excepted = _all_except(text, count, stem)
    if excepted is not None:
        return excepted
    mentions = _find_mentions(text, count)
    letters = _by_letters(text, mentions, count, stem)
    if letters is not None:
        return letters
    denied = {index for mention in mentions if mention.stance < 0 for index in mention.indices}
    return _by_texts(normalized, choice_texts, denied) if not _is_list_repeated(mentions, count) else None


def _indices(letters: str, count: int) -> frozenset[int] | None:
    indices = {
        _STEMS.index(c) if c in _STEMS else _LETTERS.index(c.upper())
        for c in re.findall(rf"{_LETTER}|[{_STEMS}]", letters)
    }
    return frozenset(indices) if indices and max(indices) < count else None


# --- positions and exceptions ---------------------------------------------------------------------------------------

_ALL = re.compile(r"(?:以上|上述|全部|所有)(?:选项|各项|答案)?(?:全部|全|都|均|皆)?(?:是|对|正确|符合|属于|可以)?$")
_ORDINALS = "一二三四五六七八"
_ORDINAL = rf"(?:[{_ORDINALS}1-8])"
_POSITION = re.compile(
    rf"第({_ORDINAL}(?:[、,和与及]\s*(?:第?{_ORDINAL}))*)\s*(?:(?:个|条|种)?(?:选项|答案|项(?!目))|(?:个|项)$)"
)
_FROM_END = re.compile(rf"(?:倒数第({_ORDINAL})|最后一)\s*(?:个|条|种)?(?:选项|答案|项(?!目))")
_CHOSEN_STEM = re.compile(
    rf"(?:(?<=选)|(?<=选项)|(?<=答案是)|(?<=答案为)|(?<=答案:))\s*([{_STEMS}])(?![\u4e00-\u9fff])|^([{_STEMS}])(?=[.、:。)])"
)


def _stems_to_letters(text: str) -> str:
    """选乙 as 选B. 乙型肝炎 stays."""
    return _CHOSEN_STEM.sub(lambda m: _LETTERS[_STEMS.index(m.group(1) or m.group(2))], text)


def _positions_to_letters(text: str, count: int) -> str:
    """第二个选项 as B, 第一、三项 as A、C, 最后一项 as the last letter."""

    def to_letter(ordinal: str) -> int:
        return _ORDINALS.index(ordinal) if ordinal in _ORDINALS else int(ordinal) - 1

    def from_start(match: re.Match[str]) -> str:
        indices = [to_letter(ordinal) for ordinal in re.findall(_ORDINAL, match.group(1))]
        return "、".join(_LETTERS[i] for i in indices) if max(indices) < count else match.group()

    def from_end(match: re.Match[str]) -> str:
        index = count - 1 - (to_letter(match.group(1)) if match.group(1) else 0)
        return _LETTERS[index] if 0 <= index < len(_LETTERS) else match.group()

    return _POSITION.sub(from_start, _FROM_END.sub(from_end, text)) if "第" in text or "最后" in text else text


_EXCEPT = re.compile(
    rf"(?:除(?:了)?|只有|仅有?)\s*(?:选项)?\s*([A-H](?:\s*{_SEPARATOR}?\s*[A-H])*)\s*(?:选?项)?"
    r"(?:(?:之|以)?外|[^,。;]{0,30}?[,。;]?\s*(?=其余|其他|其它))[,。;]?\s*(?:其余|其他|其它)?(?:的)?(?:各|几)?(?:个)?(?:选?项|答案)?(?:均|都|皆|全)(.*)"
)  # fmt: skip
_OPTIONS = re.compile(r"(?<![A-Za-z0-9])A\s*[.、:：)）．]")
_ASKS_EXCEPTION = re.compile(
    r"不是|不属于|不正确|不准确|不恰当|错误|不对|除外|不包括|不符合|不支持|例外|不会|不能|不应|不宜|不需|有误|哪.{0,4}不|\bnot\b|\bexcept\b|incorrect|false",
    re.I,
)


def _all_except(text: str, count: int, question: str) -> frozenset[int] | None:
    """除B外均正确 (all but B) and 除B外均不符合 (B); the other way round if the question asks for the exception."""
    match = _EXCEPT.search(text)
    if match is None:
        return None
    exceptions = _indices(match.group(1), count)
    if exceptions is None:
        return None
    are_denied = _WRONG.search(match.group(2)) is not None
    others = frozenset(range(count)) - exceptions
    return exceptions if are_denied is not bool(_ASKS_EXCEPTION.search(question)) else others


# --- letters --------------------------------------------------------------------------------------------------------

# Letters in units, groups and words (C反应蛋白, B超, 维生素D, 图A, A lesion) are no options.
_TOKEN = (
    r"(?<![A-Za-z0-9/+\-])(?<![图素])[A-H]"
    r"(?![A-Za-z0-9/+\-'°]|超|型|级|类|线|族|区|期|组|段|波|肽|图|二聚体|反应|细胞|淋巴"
    r"|\s+(?!(?:is|are|was|and|or|because|since|not|instead|rather|but|as)\b)[a-z])"
)
_WRAPPED_TOKEN = rf"[(\[【]?{_TOKEN}[)\]】]?"
_GROUP = re.compile(rf"{_WRAPPED_TOKEN}(?:\s*(?:{_SEPARATOR}\s*)+{_WRAPPED_TOKEN}|\s+{_WRAPPED_TOKEN}(?=\s*$))*")
_JOINED = re.compile(
    r"(?:(?<=选)|(?<=答案)|(?<=选项)|(?<=[是为:])|^)\s*([A-H]{2,8})(?![A-Za-z0-9])(?=\s*(?:项|[,。;:.!)]|正确|均|都|$))"
)
_DECLARED_LOWER = re.compile(
    r"((?:答案|选项|选择|选|answer|option|choice|choose)\s*(?:应该|应)?(?:is|是|为|:)*\s*[(\[]?)([a-h])(?![A-Za-z]|\s+[a-z])",
    re.I,
)
_WRONG = re.compile(
    r"不正确|不对|不符合?|不成立|不支持|不选|不考虑|不是|不属于|不准确|错误|错(?=[的了]?(?:[,。;!) ]|$))|排除|除外|有误"
    r"|可能性(?:很|较)?小|否(?=[,。;!) ]|$)|[×✗✘❌]|\b(?:incorrect|wrong|false|excluded|ruled out|unlikely|not)\b",
    re.I,
)
_RIGHT = re.compile(
    r"正确|符合|成立|支持|对(?=[的了]?(?:[,。;!) ]|$))|[√✓✔✅]|\b(?:correct|right|true|best|better)\b", re.I
)
_BEFORE_DENIED = re.compile(
    r"(?:不选|不是|并非|[^是]非|排除了?|除了?|不考虑|误选|而不是|而非|相比于?|不同于|以为是?|误认为是?"
    r"|(?:首先|一开始|起初|最初)(?:想到|考虑|认为|选择?)(?:的?是)?"
    r"|\bnot|\brule out|\bexclud\w*|\bexcept|\bunlike|\brather than|\binstead of|\bconsidered|\bthan|\bbetween)"
    r"\s*(?:the\s+)?(?:选项|option|choice)?\s*$",
    re.I,
)
_BEFORE_DECLARED = re.compile(
    r"(?:[更最](?:可能|倾向于?|像|符合)的?|答案|选项|选择|应选|故选|选|\banswer|\boption|\bchoice|\bchoose|\bpick|\bselect)\s*(?:应该|应|就)?(?:是|为|:|\bis)?\s*:?\s*"
    r"(?:选项|选|option)?\s*$",
    re.I,
)
_BEFORE_RIGHT = re.compile(
    r"(?:正确(?:的)?(?:选?项)?(?:是|为)|是|应为|即|为|考虑|诊断为?|支持|符合的?是?|\bso)\s*:?\s*(?:选?项)?\s*$", re.I
)
_ALTERNATIVE = re.compile(r"(?:或者?|还是|\bor)\s*$", re.I)


@dataclass(frozen=True)
class _Mention:
    """Letters named together, what the answer says of them (2 declared, 1 right, 0 nothing, -1 wrong), and where."""

    indices: frozenset[int]
    stance: int
    start: int
    end: int
    is_alternative: bool


def _find_mentions(text: str, count: int) -> list[_Mention]:
    """Every group of letters with what is said of it before (选, 不是) and after (错误, 符合) within its clauses."""
    text = _DECLARED_LOWER.sub(lambda m: m.group(1) + m.group(2).upper(), text)
    spans = {(m.start(1), m.end(1)) for m in _JOINED.finditer(text)}
    joined = set(spans)
    spans |= {m.span() for m in _GROUP.finditer(text) if not any(low <= m.start() < high for low, high in joined)}
    ordered = sorted(spans)
    mentions: list[_Mention] = []
    before = text[: ordered[0][0]] if ordered else ""
    for number, (start, end) in enumerate(ordered):
        next_start = ordered[number + 1][0] if number + 1 < len(ordered) else len(text)
        between = text[end:next_start]
        after, next_before = _split_between(between) if number + 1 < len(ordered) else (between, "")
        indices = _indices(text[start:end], count)
        if indices is not None:
            is_alternative = _ALTERNATIVE.search(before) is not None and number > 0
            mentions.append(_Mention(indices, _stance(before, after), start, end, is_alternative))
        before = next_before
    return mentions


def _split_between(between: str) -> tuple[str, str]:
    """The text between two letters as (said of the first, said before the second)."""
    boundary = max(between.rfind(mark) for mark in ",。;!") + 1
    lead = between[boundary:]
    patterns = (_BEFORE_DENIED, _BEFORE_DECLARED, _BEFORE_RIGHT, _ALTERNATIVE)
    if boundary or any(pattern.search(lead) for pattern in patterns):
        return between[:boundary], lead
    return between, ""


def _stance(before: str, after: str) -> int:
    verdicts = [(m.start(), -1) for m in _WRONG.finditer(after)]
    covered = [m.span() for m in _WRONG.finditer(after)]
    verdicts += [
        (m.start(), 1) for m in _RIGHT.finditer(after) if not any(low <= m.start() < high for low, high in covered)
    ]
    last = max(verdicts)[1] if verdicts else 0
    if _BEFORE_DENIED.search(before):
        return -1
    if last < 0:
        return -1
    if _BEFORE_DECLARED.search(before):
        return 2
    return 1 if last > 0 or _BEFORE_RIGHT.search(before) else 0


def _by_letters(text: str, mentions: Sequence[_Mention], count: int, question: str) -> frozenset[int] | None:
    """What the letters select: declared ones, those called right, the only one left or the only one named."""
    if not mentions or any(m.is_alternative for m in mentions if m.stance >= 0):
        return None
    declared = {m.indices for m in mentions if m.stance == 2}
    if declared:
        return declared.pop() if len(declared) == 1 else None
    right = frozenset().union(*(m.indices for m in mentions if m.stance > 0))
    wrong = frozenset().union(*(m.indices for m in mentions if m.stance < 0))
    if right and wrong and _ASKS_EXCEPTION.search(question):
        return wrong - right or None
    if right & wrong:
        return None
    if right:
        return right
    if len(wrong) == count - 1:
        return frozenset(range(count)) - wrong
    neutral = [m.indices for m in mentions if m.stance == 0]
    is_leading = mentions[0].stance == 0 and _is_item(text, mentions[0]) and mentions[0].start < 2
    if is_leading and sum(_is_item(text, m) for m in mentions) == 1:
        return neutral[0]
    return neutral[0] if len(set(neutral)) == 1 else None


def _is_item(text: str, mention: _Mention) -> bool:
    """Whether a letter stands before its choice: "B. 气胸" at the beginning of a clause."""
    before, after = text[: mention.start].rstrip(" ([【"), text[mention.end :].lstrip()
    return before[-1:] in ("", *",。;!") and after[:1] in ("", *".、:)，,。")


def _is_list_repeated(mentions: Sequence[_Mention], count: int) -> bool:
    """Whether the answer names every option and says nothing about any of them."""
    named = {index for m in mentions for index in m.indices}
    return len(mentions) > 1 and len(named) == count and not any(m.stance for m in mentions)


# --- texts ----------------------------------------------------------------------------------------------------------

_PREFERRED = re.compile(r"首选|最佳|最可能|最符合|应为|应是|考虑|诊断为|诊断是|更像|更符合|更可能")
_PREFERRED_AFTER = re.compile(r"^[^,。;]{0,6}[更最](?:符合|可能|支持|典型|像|合适|佳)")
# The choice named after such a word is compared with, or comes second.
_SECOND = re.compile(
    r"(?:优于|好于|胜于|其次(?:是|为)?|必要时(?:可?加?做?|行)?|不同于|区别于|鉴别于?|而非|而不是|不如|不像|相比于?|比|与"
    r"|(?:首先|最初|起初|一开始)(?:考虑|想到|认为)(?:是|为)?|unlike|than)\s*$"
)
_SECOND_AFTER = re.compile(
    r"^,?(?:但|已|可|均|予以|被|后)*(?:排除|除外)|^\s*(?:作为补充|作为辅助|不如|次之|可作为补充|不支持|不符合?|不典型|依据不足|可能性(?:很|较)?小)"
)


def _by_texts(text: str, choice_texts: Sequence[str], denied: set[int]) -> frozenset[int] | None:
    """The choice whose text the answer names without denial; several only as a list of nothing else."""
    mentioned = _mentioned_choices(text, choice_texts)
    rest = text
    for index in sorted(mentioned, key=lambda i: -len(choice_texts[i])):
        rest = rest.replace(choice_texts[index], "")
    affirmed = {i for i, preferred in mentioned.items() if preferred is not None} - denied
    if len(affirmed) == 1:
        return frozenset(affirmed)
    if len(affirmed) > 1 and not re.sub(r"[,、;和与及以还有包括\s.a-h()]|and", "", rest):
        return frozenset(affirmed)
    preferred = {i for i, is_preferred in mentioned.items() if is_preferred} - denied
    return frozenset(preferred) if len(preferred) == 1 else None


def _mentioned_choices(text: str, choice_texts: Sequence[str]) -> dict[int, bool | None]:
    """Choices whose text occurs in the answer: True if preferred (首选, 考虑), None if denied or compared with.

    A longer choice hides a shorter one inside it.
    """
    mentioned: dict[int, bool | None] = {}
    for index in sorted(range(len(choice_texts)), key=lambda i: -len(choice_texts[i])):
        choice = choice_texts[index]
        start = text.find(choice) if choice else -1
        if start >= 0:
            end = start + len(choice)
            clause_start = max(text.rfind(mark, 0, start) for mark in ",。;!") + 1
            before, after = text[clause_start:start], text[end : end + 12]
            if is_negated(text, start, end) or _SECOND.search(before) or _SECOND_AFTER.match(after):
                mentioned[index] = None
            else:
                mentioned[index] = bool(_PREFERRED.search(before) or _PREFERRED_AFTER.match(after))
            text = text.replace(choice, "\x00" * len(choice))
    return mentioned
