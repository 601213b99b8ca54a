# ruff: noqa: E501 - cue tables are easier to read with one entry a line
"""What an English text and its Chinese translation deny, read alike, so that both can be compared.

In: an English or a Chinese text in half-width characters. Out: the text reworded so that `find_mentions` gives a negation
the scope that it has, and finding -> whether it is negated.

Changes over time are neither present nor absent here, in both languages: 骨折已愈合 denies the fracture for the answer
scorer, but "a healing fracture" denies nothing, and 没有变化 is "unchanged".
"""

import re

from qilin.text.facts import DEFAULT_VOCABULARY, find_mentions

FINDINGS = {"finding": DEFAULT_VOCABULARY["finding"]}  # a constant, because its compiled form is cached by identity

NEGATION_CUE = re.compile(
    r"\b(?:no|not|without|none|never|neither|nor|cannot|absence|absent|negative for|free of|free from|denie[sd]|lack(?:s|ing)?|ruled out|excluded|excludes)\b|n't\b",
    re.IGNORECASE,
)  # fmt: skip

# --- English --------------------------------------------------------------------------------------------------------

# an English negation reaches to the end of its sentence or to one of these
_SCOPE_END = re.compile(
    r"\b(?:but|however|there (?:is|are|was|were)|(?:al)?though|which|while|with(?! no\b)|that|only|hence|because|since"
    r"|as it|along with|as well as|except\w*|exceptions?|other than|apart from|aside from|rather|instead"
    r"|and (?:the|there|an?|this|only|mild|minimal|moderate|severe|stable|unchanged|chronic|normal|is|are|was|has|have))\b"
    r"|,\s*(?:the|this|these|it|there)\b|;|\.(?!\d)",
    re.IGNORECASE,
)
_EXAMPLE = r",?\s*\b(?:such as|including|like|e\.g\.)\s*"
_IS = r"(?:is|are|was|were|has been|have been)"
_VERB = r"\b(?:is|are|was|were|has|have|had|shows?|with|but|no|not|without)\b"
_ENGLISH_REWORDINGS = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"\balso ", ""),
        (r"\b(?:clear|free) (?:of|from)\b", "no"),
        (r"\b(?:no|not|without)(?: any)?(?: \w+)? change[ds]?\b(?: (?:in|of|to|from))?", "stable"),
        (r"\b(?:may|might|could|can|would) not be\b", "are not"),
        (r"\b(?:cannot|can't|can not|could not|couldn't)(?: be)?(?: \w+ly)? (?:exclud|rul|determin|assess)\w*", "may"),
        (r"\bresolved\b", "changed"),
        (r"\bno longer\b", "not"),
        # a sentence that is nothing but a list and what becomes of it: effusion, edema, and mass are all absent
        (rf"(?<![^.;])((?:(?!{_VERB})[^.;])+)\b{_IS}(?: all)? (?:absent|ruled out|excluded)\b", r" no \1"),
        (r"\b(?=rule|excl)(?<!be )(?<!been )(?<!is )(?<!are )(?<!was )(?<!were )(?:rule[sd] out|exclude[sd])\b", "no"),
        (r"\b(?:neither|nor|never|lack of|lack(?:s|ing)|denie[sd])\b|\b(?:do|does|did)n't\b", "no"),
    )
)  # fmt: skip


def extend_negation_scope(english: str) -> str:
    """Make a negation cover its list: "free of effusion, edema, or mass" negates all three. The list's commas become
    、, which a negation reaches across in `find_mentions`; a comma ends it before "but", "except" and the like."""
    for pattern, replacement in _ENGLISH_REWORDINGS:
        english = pattern.sub(replacement, english)
    parts, position = [], 0
    for cue in NEGATION_CUE.finditer(english):
        if cue.start() >= position:
            stop = _SCOPE_END.search(english, cue.end())
            end = stop.start() if stop else len(english)
            items = re.sub(rf"{_EXAMPLE}|,\s*(?:or|and|nor)?\s*", "、", english[cue.end() : end])
            items = re.sub(r"suggest(?:ive of|ing)|indicat(?:ive of|ing)|to suggest", "、", items)
            # "no mass that suggests cancer" denies the cancer too
            parts += [english[position : cue.end()], items, "," if stop and stop.group().lower() != "that" else ""]
            position = end
    return "".join(parts) + english[position:]


# --- Chinese --------------------------------------------------------------------------------------------------------


def extend_chinese_negation_scope(chinese: str) -> str:
    """The same for Chinese: 没有提示肺炎的阴影 negates 肺炎, and 未见异常,如气胸 negates 气胸."""
    text = re.sub(r"(没有|未|无)(明显|明确|任何)?(?:提示|显示|表明|考虑|可见)", r"\1见\2", chinese)
    return re.sub(r",(?=(?:比如|例如|诸如|如|包括|也没有|或))", "、", text)


_CHANGE = r"(?:愈合|治愈|痊愈|消退|消失|消散|吸收|缓解|解决|拔除|切除|摘除|撤除|移除|取出)"
_ITEM = r"[^,。;、有见可是为示在无未没不]{1,12}"
_CHINESE_REWORDINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?:没有|未见|未有|无)(?:任何|明显|显著|进一步|明确)*的?(?:变化|改变)(?!性)|未(?:改变|变化)|不变", "稳定"),
        (r"无气症?(?=[或、/和与及,]|的|$)", "肺不张"),  # atelectasis, word by word
        (r"(?:不能|无法|难以|不可|未能|不足以)(?:被|够|完全|彻底|明确|准确)*(?:排除|除外|确定|评估|判断)", "可能有"),
        (r"(?:以|应当?|需要?|须|要|来|便|为了|待|进一步|助于)(?:完全|彻底)?排除", "评估"),
        (rf"(?<!无)(?:未见?|没有|不)?(?:已经?|被|正在|完全|基本)*{_CHANGE}", ""),
        # kinds of findings, as "non-calcified": 非钙化的结节, 未钙化的肿块, 意义不明的肿块
        (r"(?<![并绝而除是])非(?=[^,。;、]{1,4}[性的])", ""),
        (r"未(?=[^,。;、见有]{2}的)(?!发现|检出|显示|看到|观察|探及|触及)", ""),
        (r"不(?:明(?![显确])|确定|[大小定]的)", ""),
        (r"(?:可见|见|可观察到|可以看到)的|(?<=[、或])可见", ""),  # "visible" before a finding states nothing
        (r"(?:提示|暗示)(?=[^,。;、有]{1,10}的)", ""),  # 没有提示肺炎的阴影
        (r"在(没有[^,。;]{1,16}?)的情况下", r"\1,"),
        (r"(?<![切摘拔排清解消去])除(?!颤)了?([^,。;]{1,24}?)(?:以外|之外|外(?![侧部伤周缘]))的?", r",\1,"),
        # a list with commas: 没有实变,胸腔积液或气胸
        (rf",(?=(?:{_ITEM}、)*{_ITEM}、?或{_ITEM}(?:[,。;]|$))", "、"),
        (r"[是呈]阴性", "阴性"),
    )
)  # fmt: skip


def reword_chinese(chinese: str) -> str:
    """A translation with `extend_chinese_negation_scope` applied, and without the negations that have no English
    counterpart: changes over time, kinds (非钙化), and what is still to be ruled out (以排除肿瘤)."""
    for pattern, replacement in _CHINESE_REWORDINGS:
        chinese = pattern.sub(replacement, chinese)
    return extend_chinese_negation_scope(chinese)


def negation_by_finding(text: str) -> dict[str, set[bool]]:
    """Finding -> whether it is negated, over all its mentions; {True, False} if the mentions differ."""
    negated: dict[str, set[bool]] = {}
    for sentence in re.split(r"[。;:!?\n]+|\.(?!\d)", text.lower()):
        for mention in find_mentions(sentence, FINDINGS):
            negated.setdefault(mention.name, set()).add(mention.negated)
    return negated
