"""Negation in Chinese medical text: 未见结节, 无明显积液, 并非肺炎, 气胸已排除.

In: a text and the span of a word in it. Out: whether that word is negated. The scope of a cue extends to the end of its
clause, along a list (未见积液、气胸及结节), and ends at a word that affirms again (未见骨折，可见积液).
"""

from __future__ import annotations

import re
from functools import lru_cache

# Words that contain a cue but negate nothing; mask_false_cues blanks them out.
_FALSE_CUES = (
    "不能排除", "无法排除", "不可排除", "不排除", "不除外", "未能排除", "不能除外", "未除外", "未排除", "肺不张",
    "膨胀不全", "关闭不全", "发育不全", "不全", "不张", "不规则", "不均匀", "不均", "不清", "不齐", "不典型",
    "不稳定", "不对称", "不良", "不适", "不光滑", "不同", "不仅", "不但", "不断", "不整", "不透明", "不透光", "不足",
    "不孕", "不一", "不明原因", "无名", "无创", "无症状", "无菌", "无力", "无痛", "无机", "无脑", "无影", "非常",
    "非增强", "非小细胞", "非特异", "非霍奇金", "非典型", "非酒精", "非对称", "非洲", "未来", "未分化", "未成年",
    "未破裂", "未定", "没药", "无功能", "无性细胞", "无移位性", "无移位骨", "无一例外", "无一幸免", "非移位性",
    "非骨化", "非结核", "非角化", "非浸润", "非免疫", "非甾体", "未成熟", "未闭", "未降", "不完全", "不成熟",
    "不随意", "不耐", "不育", "不振", "不宁", "不少", "有没有", "是不是", "有无", "是否", "能不能", "可不可以",
    "能否", "可否", "会不会", "对不对", "否则", "不久", "差不多", "不好", "不明确", "不明显的",
)  # fmt: skip
# 非增殖期, 非增强型 name a kind; 非恶性 denies.
_FALSE = re.compile("|".join([*sorted(_FALSE_CUES, key=len, reverse=True), r"非[^,，。;；、‖]{1,4}[期型](?!肿)"]))

_BEFORE_CUES = (
    "未见明显", "未见明确", "未见确切", "未见到", "未见", "未发现", "未看到", "未观察到", "未检出", "未探及", "未显示",
    "未提示", "未及", "未出现", "未累及", "未触及", "未闻及", "未有", "并未", "没有发现", "没有看到", "没有见到",
    "没有显示", "没有明显", "没有任何", "没有", "并没有", "没见", "没", "无明显", "无明确", "无任何", "无", "不存在",
    "不包含", "不包括", "不含", "不伴", "不显示", "不支持", "不考虑", "不符合", "不是", "并不是", "并非", "不属于",
    "不具有", "不可见", "看不到", "看不见", "见不到", "排除了", "已排除", "排除", "除外", "否认", "缺乏", "并不",
    "看不出", "观察不到", "找不到", "不能说", "谈不上", "算不上", "称不上", "不太可能", "从未", "从不",
    "不再", "不能看到", "不", "未", "非", "without", "negative for", "absence of", "no evidence of", "rather than",
    "free of", "not", "no",
)  # fmt: skip
_BEFORE = re.compile(
    "|".join(rf"\b{cue}\b" if cue.isascii() else cue for cue in sorted(_BEFORE_CUES, key=len, reverse=True)),
    re.IGNORECASE,
)
# Cues after the negated word, within its clause.
_AFTER = re.compile(
    r"^(?:征象|征|表现|影像?|灶|线|病灶|病变|改变|结构|组织|形成|的?迹象|的?证据|的?依据|情况|本身)*(?:的?诊断)?"
    r"(?:均|都|也|已经?|被|可|可以|基本|暂|目前|尚|并|完全|明显|在(?:本|该|此|这)[^,。;]{0,6}?[中内上面里])*"
    r"(?:不存在|不可见|未见|未(?:被|能|在[^,。;]{1,8}?)?(?:明确|清楚)?(?:显示|发现|检出|见到|看到|出现|观察到|显影"
    r"|包括|包含|扫及|累及)"
    r"|没有(?!错|误|问题)|没(?:见|看)到|看不(?:到|见|出)|观察不到|见不到|无(?:显示|显影)|不显(?:示|影)"
    r"|不在[^,。;]{0,10}?(?:内|中|里|上|范围|视野|层面|图像|图片|片子)|不包(?:括|含)在"
    r"|(?<=[已被均])(?:切除|摘除|拔除|撤除)|(?:切|摘|拔)除术?后|缺如|缺失|阙如|缺损如|排出|取出|排除(?!可能)|阴性|除外|消失|消退"
    r"|吸收|治愈|愈合"
    r"|(?:的)?可能性?(?:很|较|极|非常|比较|相对)?(?:小|低|不大|不高|微小)|可能不(?:大|高)|(?:的)?(?:依据|证据|把握"
    r"|理由)不(?:足|充分|够)"
    r"|不(?:明显|显著|成立|支持|符合|考虑|太?可能)|难以成立|(?:的)?概率(?:很|较|极)?(?:小|低)|\(-\)|[:为]\s*(?:无|否"
    r"|阴性)"
    r"|\s*(?:is|are|was|were|has been|have been|can be)?\s*"
    r"(?:not (?:seen|visible|present|identified|shown|found|detected|enlarged)"
    r"|absent|excluded|ruled out|unlikely|negative|resolved))"
)
_CLAUSE_END = re.compile(
    r"[。;；!?！？\n]|[,，]|但是|但|然而|不过|而是|而(?!言|且)|(?<!不)可见|却|提示|显示|伴有?|考虑|仍有|仅有|仅见"
    r"|只有|只见|另有|另见"
)
_SENTENCE_END = re.compile(r"[。;；!?！？\n,，]")


def mask_false_cues(text: str) -> str:
    """The text at the same length, words that only look like negations (肺不张, 不规则, 非增强) blanked out."""
    return _FALSE.sub(lambda match: "\x01" * len(match.group()), text)


# 没有一个肺叶不受累, 没有什么不正常: both cues together affirm.
_DOUBLE = re.compile(
    r"(?:没有|无)(?:一[个处例块根条叶片]?|什么|任何|哪[个处]?)[^,、。;不无没未]{0,8}?(?:不|未|没有?)|无不|无非"
)


def _mask_double_negations(masked: str) -> str:
    return _DOUBLE.sub(lambda match: "\x01" * len(match.group()), masked)


@lru_cache(maxsize=20_000)
def negated_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Spans (start, end) negated by a cue before them. Two adjacent cues cancel each other: 并非没有积液."""
    masked = _mask_double_negations(mask_false_cues(text))
    spans: list[tuple[int, int]] = []
    cues = list(_BEFORE.finditer(masked))
    scope_start = 0
    for index, cue in enumerate(cues):
        if cue.start() < scope_start:
            continue
        clause_end = _CLAUSE_END.search(masked, cue.end())
        end = clause_end.start() if clause_end else len(masked)
        double = index + 1 < len(cues) and cues[index + 1].start() - cue.end() <= 1
        if double and cues[index + 1].start() < end:
            scope_start = end
            continue
        spans.append((cue.start(), end))
        scope_start = cue.end()
    return tuple(spans)


def is_negated(text: str, start: int, end: int) -> bool:
    """Whether the word at text[start:end] is negated by a cue before it, or right after it in its clause."""
    if any(low <= start and end <= high for low, high in negated_spans(text)):
        return True
    stop = _SENTENCE_END.search(text, end)
    return _AFTER.match(text[end : stop.start() if stop else len(text)]) is not None


@lru_cache(maxsize=20_000)
def count_negations(text: str) -> int:
    """The number of negation cues in the text, false cues excluded."""
    return len(_BEFORE.findall(_mask_double_negations(mask_false_cues(text))))
