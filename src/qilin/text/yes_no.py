"""Yes-no questions and words: whether a question asks for yes or no, what a bare word says, normal and abnormal.

In: a normalized question or answer. Out: True, False or None. What a whole answer says is read by polarity.py.
"""

from __future__ import annotations

import re
from functools import lru_cache

from qilin.text.negation import is_negated
from qilin.text.vocabulary import find_terms

YES = frozenset((
    "是", "是的", "有", "有的", "存在", "存在的", "包含", "包括", "含有", "包含有", "可以", "可以的", "能", "能够",
    "会", "会的", "对", "对的", "正确", "正确的", "没错", "属于", "可见", "能看到", "可以看到", "可以观察到",
    "看得到", "看得见", "能看见", "出现", "出现了", "出现过", "是这样", "的确", "确实", "确实是", "当然", "肯定",
    "肯定的", "阳性", "成立", "yes", "true", "y", "yeah", "correct", "right", "√", "✓", "嗯", "符合", "支持", "涉及",
    "确实如此", "是这样的", "需要", "需", "必须", "有必要", "应该", "没问题", "无误", "准确", "会有", "能见到",
    "能看得到", "可以见到", "可用", "有可能", "显示", 
))  # fmt: skip
NO = frozenset((
    "不是", "不是的", "否", "没有", "没有的", "没", "无", "不存在", "不包含", "不包括", "不含", "不含有", "未包含",
    "不可以", "不可以的", "不能", "不能够", "不会", "不对", "不对的", "错", "错误", "错误的", "错的", "不正确",
    "不正确的", "不准确", "不属于", "并非", "并非如此", "并不是", "不", "不可见", "看不到", "看不见", "未见",
    "未见到", "未出现", "没有出现", "没出现", "没有看到", "没有包含", "不符合", "不支持", "不涉及", "未观察到",
    "没有观察到", "未发现", "没有发现", "否定", "否定的", "阴性", "非", "不成立", "no", "false", "观察不到", "看不出",
    "找不到", "非也", "不需要", "不需", "无需", "无须", "不必", "不用", "没必要", "没有必要", "不宜", "不应", "禁用",
    "应避免", "不建议", "不推荐", "从不", "从未", "有误", "并没有", "不太可能", "不可能", "未显示", "不显示", "未必",
    "不尽然", "见不到", "不能见到", "不能看到", "都没有", "均无", "没见到", "n", "nope", "incorrect",
    "wrong", "×", "✗",
))  # fmt: skip

MAX_WORD_CHARACTERS = 60  # of a bare yes or no with its hedges and negations

_YES_NO_MARKERS = re.compile(
    r"(?:吗|么|嘛|吧|不)\??$|(?:吗|么|嘛)\?|是否|有没有|有无|是不是|能否|可否|能不能|可不可以|会不会|对不对|属不属于"
    r"|存不存在|包不包含"
    r"|^(?:is|are|was|were|does|do|did|can|has|have|could)\b"
)
_OPEN_MARKERS = re.compile(
    r"什么|哪|多少|几(?!乎)|多大|多长|如何|怎么|怎样|为何|谁|还是|\bor\b|^(?:what|which|where|how|why|who|when)\b"
)
A_NOT_A = re.compile(r"有没有|有无|是不是|是否|能不能|可不可以|能否|可否|会不会|对不对|属不属于|存不存在|包不包含")
_HEDGES = re.compile(r"^(?:嗯|确实|的确|当然|肯定|应该|似乎|好像|我认为|可能)?(.*?)(?:的|了|啊|呢|哦|哈)?$")
_NEGATED_WORD = re.compile(r"^(?:并非|并不是|不是)(.+)$")
_NORMAL = re.compile(r"正常|健康|\bnormal\b|\bhealthy\b")
_ABNORMAL = re.compile(r"异常|病变|病灶|\babnormal\w*|\bunhealthy\b|问题")
_NORMALITY = re.compile(r"正常|健康|异常|\b(?:ab)?normal|\b(?:un)?healthy")
_LESION = re.compile(r"(?<![有在见现何])(?:病变|病灶|问题)")


@lru_cache(maxsize=2_000)
def is_yes_no_question(question: str) -> bool:
    """Whether yes or no answers a normalized question: …吗, 是否…, 有没有…; not 哪个…, A还是B."""
    return _YES_NO_MARKERS.search(question) is not None and not is_open_question(question)


def is_open_question(question: str) -> bool:
    """Whether a question asks what, which, where or how many."""
    return _OPEN_MARKERS.search(A_NOT_A.sub("", question)) is not None


_WHETHER_ANY = re.compile(r"(?:什么|哪些|哪种|何种)[^,。?]*(?:吗|么|嘛)\??$")


def asks_whether_any(question: str) -> bool:
    """图中有什么异常吗: both yes and the finding itself answer it."""
    return _WHETHER_ANY.search(question) is not None


@lru_cache(maxsize=5_000)
def word_polarity(text: str) -> bool | None:
    """The polarity of a bare yes or no word; None for any other text."""
    if len(text) > MAX_WORD_CHARACTERS:
        return None
    affirms = True
    while True:
        word = text if text in YES or text in NO else _HEDGES.sub(r"\1", text)
        if word in YES:
            return affirms
        if word in NO:
            return not affirms
        negated = _NEGATED_WORD.match(text)
        if negated is None:
            return None
        text, affirms = negated.group(1), not affirms


@lru_cache(maxsize=5_000)
def normality(text: str) -> bool | None:
    """True if a text states normal (正常, 未见异常), False if abnormal (异常, 不正常), None for neither or both."""
    states = {
        is_normal is not is_negated(text, *match.span())
        for pattern, is_normal in ((_NORMAL, True), (_ABNORMAL, False))
        for match in pattern.finditer(text)
    }
    return states.pop() if len(states) == 1 else None


@lru_cache(maxsize=2_000)
def question_normality(question: str) -> bool | None:
    """True if a question asks whether something is normal, False if whether it is abnormal, None if it asks neither."""
    statement = A_NOT_A.sub("", question)
    if _LESION.search(statement) and not _NORMALITY.search(_LESION.sub("", statement)):
        return None  # 该病灶边界清楚吗 presupposes the lesion and asks for something else
    return normality(statement)


@lru_cache(maxsize=5_000)
def named_terms(text: str, category: str) -> frozenset[str]:
    """Canonical names of one category that a text uses without negating: ("胸部ct图像", "modality") -> {CT}."""
    return frozenset(
        match.concept.name for match in find_terms(text, category) if not is_negated(text, match.start, match.end)
    )
