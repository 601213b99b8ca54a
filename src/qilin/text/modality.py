"""Whether a question speaks of another kind of image than the one that it is asked about: 这张MRI图像 about a CT.

In: a question and the modalities of its images, by the names of datasets (X-Ray) or DICOM's codes (DX). Out: the kind
that the question takes for granted, or None. Questions about the kind itself (这是CT吗), about several kinds (CT还是
MRI), and about other examinations (需要做CT吗, 与上次CT相比) take nothing for granted.
"""

import re
from collections.abc import Iterable

from qilin.text.normalize import normalize_text
from qilin.text.vocabulary import find_terms, is_a

FAMILIES = ("CT", "MRI", "X光", "超声")
# concepts that the vocabulary does not list as kinds of a family
MEMBERS = {
    "CT": ("CTA", "CTP", "CTU", "ct值"),
    "MRI": ("MRA", "MRV", "MRCP", "MRU", "MRS", "T1", "T2", "FLAIR", "DWI", "ADC"),
    "X光": ("钼靶", "数字乳腺断层合成"),
    "超声": ("超声心动图",),
}
# the kinds of images by the names of datasets and DICOM's codes; PET, fluoroscopy and others are shown with several
KINDS = {
    **dict.fromkeys(("ct",), "CT"),
    **dict.fromkeys(("mri", "mr"), "MRI"),
    **dict.fromkeys(
        ("xray", "cr", "dx", "rg", "mg", "io", "px", "mammography", "dentalxray", "radiograph", "x光"), "X光"
    ),
    **dict.fromkeys(("ultrasound", "us", "超声"), "超声"),
    **dict.fromkeys(("pathology", "microscopy", "histology", "sm", "gm", "病理", "显微镜"), "病理"),
    **dict.fromkeys(("endoscopy", "es", "内镜"), "内镜"),
    **dict.fromkeys(("fundus", "ophthalmicphotography", "op", "眼底照相"), "眼底照相"),
    **dict.fromkeys(("dermoscopy", "dermatoscopy", "皮肤镜"), "皮肤镜"),
}
NOUNS = r"(?:的|图像|图片|影像|照片|图|片|扫描|成像|检查|拍摄|拍|做|scans?|images?|pictures?)*"
# what makes the kind itself the question, after it and before it
ASKED_AFTER = re.compile(rf"^\s*{NOUNS}\s*(?:吗|么|嘛|吧|呢|\?|$)")
ASKED_BEFORE = re.compile(r"(?:是|属于|通过|采用|使用|^\s*(?:is|was|are)\b)[^,。;?]*$")
IS_QUESTION = re.compile(r"(?:吗|么|嘛|吧|呢)[?。]*\s*$")
# other examinations than the one that is shown
OTHER = re.compile(
    r"做|行|查|建议|需要|应该|应当|推荐|进一步|选择|首选|还可以|曾|外院|之前|以前|此前|上次|前次|前一次|既往|原来|对比|相比|比较|"
    r"结合|哪些|哪种|区别|优势|优于|\b(?:should|would|need|recommend\w*|next|further|previous|prior|compared?|follow)\b"
)
ABOUT_METHOD = re.compile(r"^[^,。;?]{0,4}(?:优势|优点|缺点|局限|原理|适应证|适应症|禁忌|区别|敏感性|特异性|辐射|费用)")
# the kind names the image that is shown
SHOWN_BEFORE = re.compile(
    r"(?:这|此|该|本|张|幅|份|以上|上述|下列|以下|下面|如下|所示|附|根据|基于|从|在|请看|阅读|分析|描述|解读|图|是|为|\b(?:this|"
    r"these|the|following|an?|on|in|of)\b)[^,。;?]{0,12}$"
)
SHOWN_AFTER = re.compile(
    rf"^\s*{NOUNS}\s*(?:中|上|里|内|显示|提示|示|所见|表现|可见|见|描述|\b(?:shows?|image|scan)\b)"
)


def named_kind(question: str) -> str | None:
    """The kind of image that a question takes for granted: CT, MRI, X光 or 超声. None for none or several."""
    text = normalize_text(question)
    matches = [(match, family) for match in find_terms(text) if (family := family_of(match.concept.name))]
    if len({family for _, family in matches}) != 1:
        return None
    for match, family in matches:
        clause_start = max(text.rfind(sign, 0, match.start) for sign in ",。;?!\n") + 1
        before, after = text[clause_start : match.start], text[match.end :]
        is_asked = IS_QUESTION.search(text) and ASKED_AFTER.match(after) and not SHOWN_AFTER.match(after)
        if is_asked or (ASKED_BEFORE.search(before) and ASKED_AFTER.match(after)):
            continue
        if OTHER.search(before) or ABOUT_METHOD.match(after):
            continue
        is_value = match.concept.name == "ct值"
        if is_value or SHOWN_BEFORE.search(before) or SHOWN_AFTER.match(after) or not before.strip():
            return family
    return None


def family_of(concept: str) -> str | None:
    """CT for CT, 平扫CT, CTA; None for concepts of no family."""
    for family in FAMILIES:
        if any(is_a(concept, member) for member in (family, *MEMBERS[family])):
            return family
    return None


def image_kind(modality: str | None) -> str | None:
    """The kind of image that a dataset's name or DICOM's code stands for: MRI for "MR", X光 for "X-Ray" or "X光"."""
    return KINDS.get(re.sub(r"[^a-z\u4e00-\u9fff]", "", (modality or "").lower()))


def other_modality(question: str, modalities: Iterable[str | None]) -> str | None:
    """The kind that a question takes for granted where all of its images are of other kinds, else None.

    Images of an unknown kind say nothing.
    """
    kinds = set(map(image_kind, modalities))
    if not kinds or None in kinds:
        return None
    kind = named_kind(question)
    return kind if kind is not None and kind not in kinds else None
