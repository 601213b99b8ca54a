"""How an answer is written, taken off before it is compared: width, script, case, spaces, frames, list marks.

In: an answer as a person or a model wrote it. Out: `normalise`d text, its list items, and whether it answers at all.
"""

from __future__ import annotations

import re
from functools import lru_cache

from qilin.text.chinese import simplified
from qilin.text.width import narrow

_SPACE = re.compile(r"\s+")
# A space says nothing beside a Han character or a mark; between two Latin words it parts them.
_IDLE_SPACE = re.compile(r"(?<![a-z0-9]) | (?![a-z0-9])")
_TAIL = re.compile(r"[。.!?;,:~…\s]+$")
_HEAD = re.compile(r"^[。,;:\s]+")
_WRAPPED = re.compile(r"^(?:\"(.+)\"|'(.+)'|\((.+)\)|\[(.+)\]|\*\*(.+)\*\*|《(.+)》)$")
_PICTURE = r"(?:这张|该张|该|此|本|这幅|上|以上|给出的|所示)?(?:医学)?(?:图像|图片|影像|照片|图)"
_FRAME = re.compile(
    r"^(?:"
    r"(?:正确)?(?:的)?答案(?:应该|应)?(?:是|为|:)+"
    r"|(?:答|回答|结论|诊断)(?:是|为)?:"
    r"|(?:因此|所以|综上所述|综上|总之|由此可见),?"
    rf"|(?:根据|从|由|依据){_PICTURE}(?:中的信息|的信息|所示|来看|看|可知|可见|显示)?(?:中|上|里)?,"
    rf"|{_PICTURE}(?:中|上|里)?(?:所)?(?:显示|展示|呈现|表明|提示)(?:的)?(?:了|是|为|:)*"
    rf"|{_PICTURE}(?:中|上|里)(?:的)?(?:是|为)(?!否|不是)"
    r"|(?:这|它|此)(?:是|为)(?!否|不是|的$)(?:一张|一幅|一个)?"
    r"|the (?:correct )?answer is:?|answer:|it is|this is"
    r")\s*"
)  # fmt: skip
_COURTESY_TAIL = re.compile(r"(?:,?(?:谢谢|希望(?:这|对).*|仅供参考.*|请(?:咨询|以)医生.*))$")
_LIST_MARK = re.compile(r"[,;/\n]|以及|还有|并且|\band\b|[和与及](?![^,]*(?:相等|一样|相同|无关))")

_NO_ANSWER = re.compile(
    r"无法(?:判断|确定|回答|识别|看出|得知|从|确认|辨认|提供)|不能(?:判断|确定|回答|确认|提供)|难以(?:判断|确定|辨认)"
    r"|可能.*也可能|不一定|不知道|不确定|不清楚|抱歉|对不起|作为(?:一个|一名)?(?:ai|人工智能|语言模型)|看不清"
    r"|cannot (?:determine|answer|tell|see)|can't (?:determine|answer|tell|see)"
    r"|i'm sorry|unable to|i don't know|not sure"
)  # fmt: skip


def plain(text: str) -> str:
    """One script, one width, lower case, no idle spaces, no marks at the ends; the words are all still there."""
    text = _SPACE.sub(" ", simplified(narrow(text)).lower()).strip()
    text = _IDLE_SPACE.sub("", text).replace("、", ",")
    return _HEAD.sub("", _TAIL.sub("", text))


@lru_cache(maxsize=20_000)
def normalise(text: str) -> str:
    """The answer without what carries no meaning: script, width, case, idle spaces, quotes, courtesy frames, 。！

    Idempotent. 10⁻³ and ① survive; digits, units, sides and negations are never touched. May end empty. Questions
    go through `plain` instead: their frames say what is asked.
    """
    text = plain(text)
    while True:
        shorter = text
        wrapped = _WRAPPED.match(shorter)
        if wrapped:
            inner = next(group for group in wrapped.groups() if group is not None)
            # (a) and (b): the outer marks belong to two different words
            shorter = shorter if re.search(r"[()\[\]\"']", inner) else inner
        for strip in (_FRAME, _COURTESY_TAIL):
            rest = strip.sub("", shorter, count=1)
            shorter = rest if _TAIL.sub("", rest) else shorter
        shorter = plain(shorter)
        if shorter == text:
            return text
        text = shorter


@lru_cache(maxsize=20_000)
def items(text: str) -> tuple[str, ...]:
    """A normalised answer as its list items: 左肺,右肺 and 左肺和右肺 both give (左肺, 右肺)."""
    return tuple(item for item in (part.strip() for part in _LIST_MARK.split(text)) if item)


def declines(text: str, question: str = "") -> bool:
    """Whether a normalised answer says that it cannot answer. 不清楚 does not where the question asks what is 清楚."""
    found = _NO_ANSWER.search(text)
    return found is not None and not (question and found.group().lstrip("不无没") in question)
