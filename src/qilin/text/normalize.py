"""Text normalization before comparison: script, character width, spaces, answer frames, list items; language detection.

In: Chinese or English text as a person or a model wrote it. Out: the same text in one script, width and case; a
normalized answer, its list items, whether it abstains; the language of a text.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources
from string import ascii_letters, digits
from typing import Any

# --- script: traditional to simplified -----------------------------------------------------------------------------

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


@lru_cache(maxsize=1)
def _converter() -> Any:
    # reading the opencc tables takes about 50 ms, so they are loaded on first use
    from opencc import OpenCC

    return OpenCC("t2s")


@lru_cache(maxsize=1)
def _convertible() -> re.Pattern[str]:
    """The characters that t2s may change, from opencc's tables.

    Checking for them first takes a text without any from 80 to 1 microsecond: opencc searches phrases at every
    character. Of a phrase (么麼) one character is enough, so that 什么 does not count as traditional.
    """
    tables = resources.files("opencc") / "dictionary"
    characters: set[str] = set()
    for name in ("TSCharacters.txt", "TSPhrases.txt"):
        for line in (tables / name).read_text(encoding="utf-8").splitlines():
            before, _, after = line.partition("\t")
            after = after.split(" ")[0]
            if before == after or (len(before) > 1 and not characters.isdisjoint(before)):
                continue
            pairs = zip(before, after, strict=True) if len(before) == len(after) else ((c, "") for c in before)
            characters.update(a for a, b in pairs if a != b)
    return re.compile(f"[{re.escape(''.join(sorted(characters)))}]")


def to_simplified(text: str) -> str:
    """Convert traditional characters to simplified ones (opencc t2s); everything else stays."""
    return _convert(text) if _convertible().search(text) else text


@lru_cache(maxsize=5_000)
def _convert(text: str) -> str:
    # cached apart from to_simplified: 20,000 cached long texts that need no conversion take 20 MB
    return str(_converter().convert(text))


def has_chinese(text: str) -> bool:
    """Whether the text contains a Han character."""
    return _HAN.search(text) is not None


def chinese_share(text: str) -> float:
    """Han characters as a share of all non-space characters; 0.0 for an empty text."""
    visible = [c for c in text if not c.isspace()]
    return len(_HAN.findall(text)) / len(visible) if visible else 0.0


# --- width: full-width to half-width --------------------------------------------------------------------------------

_LETTERS: dict[int, str | int | None] = {ord("！") - ord("!") + ord(c): c for c in digits + ascii_letters}
# Signs inside numbers, units and names: minus and hyphens, spaces, other signs; zero-width characters are removed.
_LETTERS |= str.maketrans("\uff0d\u2212\u2010\u2011\u2013", "-" * 5)
_LETTERS |= str.maketrans("\u3000\u00a0\u2009\u202f", " " * 4, "\u200b\u200c\u200d\ufeff\u00ad")
_LETTERS |= str.maketrans("％＋＝＜＞／＊．～〜\u00b5ΩK", "%+=<>/*.~~μΩK")

_PUNCTUATION = str.maketrans(
    "，﹐､；：？！（）［］【】｛｝“”「」＂‘’＇｡＆＃＠｜＿",
    ',,、;:?!()[][]{}"""""\'\'\'。&#@|_',
)


def to_halfwidth_letters(text: str) -> str:
    """Convert full-width letters, digits and number signs to ASCII; Chinese punctuation stays."""
    return text.translate(_LETTERS)


def to_halfwidth(text: str) -> str:
    """Like to_halfwidth_letters, punctuation included; 。 and 、 have no ASCII equivalent and stay."""
    return text.translate(_LETTERS).translate(_PUNCTUATION)


# --- answers: frames, list items, abstentions -----------------------------------------------------------------------

MAX_ANSWER_CHARACTERS = 4_000  # of an answer or reference that rules read; a longer one is no answer to a question

_SPACE = re.compile(r"\s+")
# Spaces next to a Han character or a mark carry no meaning; between two Latin words they do.
_MEANINGLESS_SPACE = re.compile(r"(?<![a-z0-9]) | (?![a-z0-9])")
# Stripped as characters: a search for [。.!?…]+$ takes time with the square of a run of such marks.
_TAIL_MARKS, _HEAD_MARKS = "。.!?;,:~… ", "。,;: "
_WRAPPED = re.compile(r"^(?:\"(.+)\"|'(.+)'|\((.+)\)|\[(.+)\]|\*\*(.+)\*\*|《(.+)》)$")
_IMAGE = r"(?:这张|该张|该|此|本|这幅|上|以上|给出的|所示)?(?:医学)?(?:图像|图片|影像|照片|图)"
_FRAME = re.compile(
    r"^(?:"
    r"(?:正确)?(?:的)?答案(?:应该|应)?(?:是|为|:)+"
    r"|(?:答|回答|结论|诊断)(?:是|为)?:"
    r"|(?:因此|所以|综上所述|综上|总之|由此可见),?"
    rf"|(?:根据|从|由|依据){_IMAGE}(?:中的信息|的信息|所示|来看|看|可知|可见|显示)?(?:中|上|里)?,"
    rf"|{_IMAGE}(?:中|上|里)?(?:所)?(?:显示|展示|呈现|表明|提示)(?:的)?(?:了|是|为|:)*"
    rf"|{_IMAGE}(?:中|上|里)(?:的)?(?:是|为)(?!否|不是)"
    r"|(?:这|它|此)(?:是|为)(?!否|不是|的$)(?:一张|一幅|一个)?"
    r"|the (?:correct )?answer is:?|answer:|it is|this is"
    r")\s*"
)  # fmt: skip
_COURTESY_TAIL = re.compile(r"(?:,?(?:谢谢|希望(?:这|对).*|仅供参考.*|请(?:咨询|以)医生.*))$")
_LIST_MARK = re.compile(r"[,;/\n]|以及|还有|并且|联合(?!征|用药)|\band\b|[和与及](?![^,]*(?:相等|一样|相同|无关))")

_NO_ANSWER = re.compile(
    r"无法(?:判断|确定|回答|识别|看出|得知|从|确认|辨认|提供)|不能(?:判断|确定|回答|确认|提供)|难以(?:判断|确定|辨认)"
    r"|可能.*也可能|不一定|不知道|不确定|不清楚|抱歉|对不起|作为(?:一个|一名)?(?:ai|人工智能|语言模型)|看不清"
    r"|cannot (?:determine|answer|tell|see)|can't (?:determine|answer|tell|see)"
    r"|i'm sorry|unable to|i don't know|not sure"
)  # fmt: skip


def normalize_text(text: str) -> str:
    """Simplified, half-width, lower case, no meaningless spaces, no punctuation at the ends; every word stays."""
    text = _SPACE.sub(" ", to_simplified(to_halfwidth(text)).lower()).strip()
    text = _MEANINGLESS_SPACE.sub("", text).replace("、", ",")
    return text.rstrip(_TAIL_MARKS).lstrip(_HEAD_MARKS)


@lru_cache(maxsize=20_000)
def normalize_answer(text: str) -> str:
    """normalize_text without quotes, brackets, answer frames (答案是, 图中显示) and courtesies around the answer.

    Idempotent; may return an empty string. 10⁻³ and ① survive; digits, units, sides and negations never change. A text
    of more than MAX_ANSWER_CHARACTERS keeps its frames. For questions use normalize_text: there the frame is part of
    what is asked.
    """
    text = normalize_text(text)
    while len(text) <= MAX_ANSWER_CHARACTERS:
        shorter = text
        wrapped = _WRAPPED.match(shorter)
        if wrapped:
            inner = next(group for group in wrapped.groups() if group is not None)
            # (a) and (b): the outer brackets belong to two different words
            shorter = shorter if re.search(r"[()\[\]\"']", inner) else inner
        for strip in (_FRAME, _COURTESY_TAIL):
            rest = strip.sub("", shorter, count=1)
            shorter = rest if rest.rstrip(_TAIL_MARKS) else shorter
        # the rest is normalized already, but for its new ends: to normalize it again after every frame is quadratic
        shorter = shorter.rstrip(_TAIL_MARKS).lstrip(_HEAD_MARKS)
        if shorter == text:
            shorter = normalize_text(text)
        if shorter == text:
            break
        text = shorter
    return text


@lru_cache(maxsize=20_000)
def split_list_items(text: str) -> tuple[str, ...]:
    """The list items of a normalized answer: 左肺,右肺 and 左肺和右肺 both give (左肺, 右肺)."""
    return tuple(item for item in (part.strip() for part in _LIST_MARK.split(text)) if item)


def is_abstention(text: str, question: str = "") -> bool:
    """Whether a normalized answer declines to answer. 不清楚 does not if the question asks what is 清楚."""
    match = _NO_ANSWER.search(text)
    return match is not None and not (question and match.group().lstrip("不无没") in question)


# --- language -------------------------------------------------------------------------------------------------------

# Japanese kana, Hangul, Cyrillic, Arabic, Hebrew, Thai, Devanagari; Greek letters are symbols in medicine
_OTHER_SCRIPTS = re.compile(r"[\u3041-\u30ff\uac00-\ud7af\u0400-\u04ff\u0590-\u06ff\u0900-\u097f\u0e00-\u0e7f]")
_FUNCTION_WORDS = {
    "en": "the of and in is are with to a for was were on by no at from this that an it as be has shows seen not",
    "de": "der die das und ist mit ein eine des dem den von im zu auf nicht sich bei wurde einer",
    "fr": "le la les des et est une un du dans avec pour au aux sur par qui ne pas cette",
    "es": "el la los las de del y en un una con por para es se que al lo su como",
    "it": "il lo gli della di e un una con per che nel del sono alla dei delle",
    "pt": "o os as do da dos das e em um uma com por para que no na ao",
}  # fmt: skip
_STOP_WORDS = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}


def detect_language(text: str) -> str:
    """ "zh" for a text with Chinese (English words among it allowed), "en", or "other"."""
    letters = sum(c.isalpha() for c in text)
    if letters and len(_OTHER_SCRIPTS.findall(text)) > 0.1 * letters:
        return "other"
    if has_chinese(text):
        return "zh" if chinese_share(text) > 0.1 else "other"
    words = re.findall(r"[^\W\d_]+", text.lower())
    counts = {name: sum(word in stop_words for word in words) for name, stop_words in _STOP_WORDS.items()}
    best = max(counts, key=lambda language: counts[language])
    return "other" if len(words) >= 6 and best != "en" and counts[best] > counts["en"] else "en"
