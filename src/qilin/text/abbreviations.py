"""Abbreviations that stand for several terms: RA is 类风湿关节炎 or 右心房.

In: an answer and the term that it should name. Out: whether the abbreviation can stand for that term. The vocabulary
leaves these out, because in running text nothing tells which of them is meant; as a whole answer the question does.
"""

from __future__ import annotations

from qilin.text.vocabulary import concept_of

# In lower case, with the preferred terms of the vocabulary. Sources: usage in Chinese and English clinical texts.
MEANINGS = {
    "aa": ("再生障碍性贫血",),
    "ad": ("阿尔茨海默病", "特应性皮炎", "主动脉夹层"),
    "ai": ("主动脉瓣关闭不全",),
    "all": ("急性淋巴细胞白血病",),
    "aml": ("急性髓系白血病", "肾血管平滑肌脂肪瘤"),
    "ap": ("急性胰腺炎", "心绞痛"),
    "ar": ("主动脉瓣关闭不全", "过敏性鼻炎"),
    "as": ("强直性脊柱炎", "主动脉瓣狭窄", "动脉粥样硬化"),
    "asd": ("房间隔缺损",),
    "ba": ("支气管哮喘",),
    "bc": ("乳腺癌", "膀胱癌"),
    "cad": ("冠状动脉粥样硬化性心脏病",),
    "cc": ("宫颈癌", "胆管癌"),
    "cd": ("克罗恩病",),
    "chd": ("冠状动脉粥样硬化性心脏病", "先天性心脏病"),
    "ci": ("脑梗死",),
    "cp": ("慢性胰腺炎", "脑性瘫痪"),
    "dm": ("糖尿病", "皮肌炎"),
    "dr": ("糖尿病视网膜病变",),
    "ec": ("食管癌", "子宫内膜癌"),
    "gc": ("胃癌",),
    "hbp": ("高血压",),
    "he": ("HE染色",),
    "hf": ("心力衰竭",),
    "hl": ("霍奇金淋巴瘤", "高脂血症"),
    "ihd": ("冠状动脉粥样硬化性心脏病",),
    "lc": ("肺癌", "肝硬化"),
    "ldh": ("腰椎间盘突出症",),
    "mg": ("重症肌无力",),
    "mi": ("心肌梗死", "二尖瓣关闭不全"),
    "mm": ("黑色素瘤", "多发性骨髓瘤"),
    "mr": ("二尖瓣关闭不全",),
    "ms": ("多发性硬化", "二尖瓣狭窄"),
    "oa": ("骨关节炎",),
    "op": ("骨质疏松",),
    "pac": ("房性早搏",),
    "pah": ("肺动脉高压",),
    "pc": ("胰腺癌", "前列腺癌"),
    "pd": ("帕金森病",),
    "pe": ("肺栓塞", "胸腔积液", "肺气肿"),
    "ph": ("肺动脉高压",),
    "ptx": ("气胸",),
    "ra": ("类风湿关节炎", "右心房"),
    "rd": ("视网膜脱离",),
    "rp": ("视网膜色素变性",),
    "tb": ("肺结核",),
    "tcc": ("尿路上皮癌",),
    "vf": ("心室颤动",),
}


def stands_for(abbreviation: str, term: str) -> bool:
    """Whether an abbreviation (in lower case) is one of a term, by any of the term's names."""
    meanings = MEANINGS.get(abbreviation)
    concept = concept_of(term) if meanings else None
    return concept is not None and meanings is not None and concept.name in meanings
