"""Words that describe something abnormal or normal in an image, whichever disease it is.

In: a normalized text. Out: whether it affirms or denies an abnormality, or whether it describes a normal appearance.
The vocabulary names diseases; these words are their heads (结节, 癌, 增厚), so that 肝右叶低密度灶 is read too.
"""

from __future__ import annotations

import re
from functools import lru_cache

from qilin.text.negation import is_negated
from qilin.text.vocabulary import FINDING_CATEGORIES, find_terms

ABNORMAL = re.compile(
    r"增大|扩大|肿大|缩小|变小|萎缩|增厚|增粗|变薄|变窄|狭窄|闭塞|栓塞|血栓|梗阻|扩张|增宽|肥厚|肥大|增生|积水|积液"
    r"|积气|积血"
    r"|结石|钙化|结节|肿块|包块|团块|占位|囊肿|脓肿|肿瘤|癌|瘤|息肉|炎(?!性假瘤)|结核|出血|血肿|梗死|梗塞|缺血|骨折"
    r"|脱位|破裂|撕裂|坏死|水肿"
    r"|溃疡|糜烂|穿孔|气胸|不张|实变|浸润|渗出|空洞|转移|变性|退变|突出|膨出|阴影|斑片|磨玻璃|毛刺|毛糙|模糊|不均匀"
    r"|不规则|欠清|失常|失调|紊乱|变形|破坏|粘连|侵犯|受侵|偏[大小高低]|过[大小深浅高低]|错位|误入|打折|扭曲|成角"
    r"|断裂|脱落|早搏|颤动|阻滞|心动过速|心动过缓|移位|偏移"
    r"|缺损|受压|受累|塌陷|畸形|硬化|纤维化|气肿|气泡|病灶|病变|异常(?!排列)|问题|损伤|挫伤|损害|反流|杂音|下降|减低"
    r"|升高|增高|降低|过敏|感染|中毒"
    r"|(?:低|高|混杂|异常)(?:密度|信号|回声)(?:影|灶|区|结节|肿块)?|充血|红肿|肿胀|不连续|中断|不齐|功能不全|衰竭"
    r"|贫血|黄疸|腹水|胸水|斑块"
    r"|\b(?:lesion|mass|nodule|tumou?r|cancer|fracture|effusion|opacit\w+|consolidation|enlarge\w*|cyst|edema|stone"
    r"|hemorrhage|infarct\w*"
    r"|pneumo\w+|cardiomegaly|abnormal\w*)"
)
NORMAL = re.compile(
    r"(?<!不)(?<!异)(?:正常|健康|清晰|清楚|光滑|光整|均匀|完整|自然|通畅|锐利|居中|对称|连续|良好|体健|规则)"
    r"|\b(?:normal|clear|healthy|unremarkable)\b"
)
# Where a thing is compared with normal tissue, or what was done about it: no finding of its own.
_NOT_A_FINDING = re.compile(r"增强(?:后|扫描)|无明显诱因")


@lru_cache(maxsize=5_000)
def abnormality(text: str) -> bool | None:
    """True if a text affirms something abnormal, False if it only denies it or describes what is normal, else None."""
    text = _NOT_A_FINDING.sub(lambda m: "\x01" * len(m.group()), text)
    spans = [match.span() for match in ABNORMAL.finditer(text)]
    spans += [(match.start, match.end) for match in find_terms(text, *FINDING_CATEGORIES)]
    signs = {not is_negated(text, *span) for span in spans}
    if True in signs:
        return True
    if False in signs:
        return False
    normal = {not is_negated(text, *match.span()) for match in NORMAL.finditer(text)}
    return None if len(normal) != 1 else not normal.pop()
