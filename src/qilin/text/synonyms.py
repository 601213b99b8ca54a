# ruff: noqa: E501 - one term per line is easier to review
"""Reviewed synonyms of medical terms: modality, plane, organ, region, finding and appearance.

In: a term. Out: its canonical name, or None. Each row maps a canonical name to its synonyms in half-width, simplified,
lower-case form. A row holds only terms that a radiologist accepts as interchangeable: CTA and PET-CT are not CT, 结肠
is not 大肠, 积液 alone is not 胸腔积液.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

MODALITIES: dict[str, tuple[str, ...]] = {
    "CT": ("ct", "计算机断层", "计算机断层扫描", "计算机断层成像", "电子计算机断层扫描", "x射线计算机断层扫描", "ct扫描",
           "ct成像", "ct检查", "ct图像", "ct图", "ct片", "ct影像", "computed tomography"),
    "MRI": ("mri", "mr", "nmr", "核磁共振", "磁共振", "核磁", "核磁共振成像", "磁共振成像", "核磁共振图像", "磁共振图像",
            "核磁共振扫描", "核磁共振检查", "磁共振扫描", "磁共振检查", "mri图像", "mri扫描", "mri成像", "mri检查", "mr成像",
            "mr图像", "核磁图像", "磁共振影像", "magnetic resonance imaging"),
    "X光": ("x光", "x线", "x-ray", "xray", "x ray", "x-光", "x-线", "x射线", "x光片", "x线片", "x光平片", "x线平片", "平片",
           "x光图像", "x线图像", "x光检查", "x线检查", "x光成像", "x线成像", "x射线图像", "x射线成像", "x-ray图像", "dr", "dr片",
           "dr图像", "x光摄影", "x线摄影", "radiograph", "胸片", "胸部x光片", "胸部x线片", "胸部平片"),
    "超声": ("超声", "b超", "超声波", "超声图像", "超声检查", "超声成像", "超声扫描", "us", "ultrasound", "b型超声", "彩超", "多普勒超声",
           "彩色多普勒超声"),
    "眼底照相": ("眼底照相", "眼底照片", "眼底彩照", "眼底图像", "眼底摄影", "眼底图", "fundus photography", "fundus photograph"),
    "PET-CT": ("pet-ct", "pet/ct", "petct", "正电子发射计算机断层扫描"),
    "PET": ("pet", "正电子发射断层扫描"),
    "CTA": ("cta", "ct血管造影", "ct血管成像"),
    "MRA": ("mra", "磁共振血管成像", "磁共振血管造影"),
    "内镜": ("内镜", "内窥镜", "内镜检查", "endoscopy"),
    "皮肤镜": ("皮肤镜", "皮肤镜图像", "皮肤镜检查", "dermoscopy"),
    "显微镜": ("显微镜", "显微镜图像", "显微图像", "光学显微镜", "光镜", "显微镜检查", "显微照片", "microscopy"),
}  # fmt: skip

PLANES: dict[str, tuple[str, ...]] = {
    "横断面": ("横断面", "横断位", "横断", "横截面", "轴位", "轴位面", "轴面", "轴状面", "横轴位", "横轴面", "水平面", "横切面",
            "axial", "transverse", "transverse plane", "axial plane"),
    "冠状面": ("冠状面", "冠状位", "冠状", "冠状切面", "冠状断面", "coronal", "coronal plane", "额状面"),
    "矢状面": ("矢状面", "矢状位", "矢状", "矢状切面", "矢状断面", "sagittal", "sagittal plane"),
}  # fmt: skip

ORGANS: dict[str, tuple[str, ...]] = {
    "肺": ("肺", "肺部", "肺脏", "肺脏部", "lung", "lungs"),
    "心脏": ("心脏", "心", "心脏部", "heart"),
    "肝脏": ("肝脏", "肝", "肝部", "liver"),
    "脾脏": ("脾脏", "脾", "脾部", "spleen"),
    "肾脏": ("肾脏", "肾", "肾部", "kidney", "kidneys"),
    "大脑": ("大脑", "脑", "脑部", "brain"),
    "胃": ("胃", "胃部", "stomach"),
    "胰腺": ("胰腺", "胰", "胰脏", "pancreas"),
    "胆囊": ("胆囊", "胆", "gallbladder"),
    "膀胱": ("膀胱", "bladder", "urinary bladder"),
    "小肠": ("小肠", "small bowel", "small intestine"),
    "大肠": ("大肠", "large bowel", "large intestine"),
    "结肠": ("结肠", "colon"),
    "直肠": ("直肠", "rectum"),
    "十二指肠": ("十二指肠", "duodenum"),
    "食管": ("食管", "食道", "esophagus"),
    "气管": ("气管", "trachea"),
    "喉": ("喉", "喉部", "喉咙", "larynx"),
    "脊髓": ("脊髓", "spinal cord"),
    "脊柱": ("脊柱", "脊椎", "spine"),
    "眼睛": ("眼睛", "眼", "眼部", "eye", "eyes"),
    "耳朵": ("耳朵", "耳", "ear", "ears"),
    "牙齿": ("牙齿", "牙", "teeth"),
    "甲状腺": ("甲状腺", "thyroid"),
    "前列腺": ("前列腺", "prostate"),
    "子宫": ("子宫", "uterus"),
    "颞叶": ("颞叶", "temporal lobe"),
    "皮肤": ("皮肤", "skin"),
    "视网膜": ("视网膜", "retina"),
    "视盘": ("视盘", "视乳头", "optic disc"),
}  # fmt: skip

REGIONS: dict[str, tuple[str, ...]] = {
    "头部": ("头部", "头", "头颅", "head"),
    "颈部": ("颈部", "颈", "脖子", "neck"),
    "胸部": ("胸部", "胸腔", "胸", "chest", "thorax"),
    "腹部": ("腹部", "腹腔", "腹", "abdomen"),
    "盆腔": ("盆腔", "盆部", "骨盆腔", "pelvis"),
}

FINDINGS: dict[str, tuple[str, ...]] = {
    "心脏肥大": ("心脏肥大", "心脏增大", "心脏扩大", "心影增大", "心影扩大", "心肥大", "cardiomegaly"),
    "胸腔积液": ("胸腔积液", "胸水", "胸膜腔积液", "pleural effusion"),
    "肺不张": ("肺不张", "肺膨胀不全", "atelectasis"),
    "肺炎": ("肺炎", "pneumonia"),
    "气胸": ("气胸", "pneumothorax"),
    "肺结节": ("肺结节", "肺部结节", "lung nodule", "pulmonary nodule"),
    "肺肿块": ("肺肿块", "肺部肿块", "肺包块", "lung mass"),
    "肺浸润": ("肺浸润", "肺部浸润"),
    "肺癌": ("肺癌", "肺部癌症", "lung cancer"),
    "肝癌": ("肝癌", "肝脏癌症", "liver cancer"),
    "肾癌": ("肾癌", "肾脏癌症"),
    "脑肿瘤": ("脑肿瘤", "脑瘤", "大脑肿瘤", "颅内肿瘤", "brain tumor"),
    "增强型脑肿瘤": ("增强型脑肿瘤", "增强型脑瘤", "强化型脑肿瘤"),
    "非增强型脑肿瘤": ("非增强型脑肿瘤", "非增强型脑瘤", "非强化型脑肿瘤"),
    "脑水肿": ("脑水肿", "大脑水肿", "brain edema", "cerebral edema"),
    "脑出血": ("脑出血", "脑内出血", "大脑出血"),
    "骨折": ("骨折", "fracture"),
    "肿块": ("肿块", "包块", "mass"),
    "结节": ("结节", "结节影", "nodule"),
}  # fmt: skip

APPEARANCES: dict[str, tuple[str, ...]] = {
    "黑色": ("黑色", "黑", "black"),
    "白色": ("白色", "白", "white"),
    "灰色": ("灰色", "灰", "gray", "grey"),
    "深灰色": ("深灰色", "深灰", "暗灰色"),
    "浅灰色": ("浅灰色", "浅灰", "淡灰色"),
    "圆形": ("圆形", "圆", "圆的", "round"),
    "椭圆形": ("椭圆形", "椭圆", "卵圆形", "oval"),
    "不规则": ("不规则", "不规则形", "不规则形状", "不规则的", "不规则状", "irregular"),
    "U形": ("u形", "u型", "u字形"),
    "高密度": ("高密度", "密度增高", "密度升高", "高密度影"),
    "低密度": ("低密度", "密度减低", "密度降低", "低密度影"),
    "较少": ("较少", "比较少", "较小", "很少"),
    "较多": ("较多", "比较多"),
    "T1": ("t1", "t1加权", "t1wi", "t1加权像", "t1加权成像", "t1加权图像", "t1加权的核磁共振图像"),
    "T2": ("t2", "t2加权", "t2wi", "t2加权像", "t2加权成像", "t2加权图像", "t2加权的核磁共振图像"),
    "良性": ("良性", "良性的", "benign"),
    "恶性": ("恶性", "恶性的", "malignant"),
    "男性": ("男性", "男", "男的", "male"),
    "女性": ("女性", "女", "女的", "female"),
    "大": ("大", "较大", "大的", "large"),
    "小": ("小", "较小的", "小的", "small"),
}  # fmt: skip

CATEGORIES: dict[str, dict[str, tuple[str, ...]]] = {
    "modality": MODALITIES,
    "plane": PLANES,
    "organ": ORGANS,
    "region": REGIONS,
    "finding": FINDINGS,
    "appearance": APPEARANCES,
}

_NAMES: dict[str, tuple[str, str]] = {
    term: (category, name) for category, table in CATEGORIES.items() for name, terms in table.items() for term in terms
}


def lookup_term(term: str) -> tuple[str, str] | None:
    """(category, canonical name) of a half-width, simplified, lower-case term: "胸腔" -> ("region", "胸部"); or None."""
    return _NAMES.get(term)


@lru_cache(maxsize=16)
def synonyms_of(category: str) -> dict[str, str]:
    """Every term of one category -> its canonical name."""
    return {term: name for term, (term_category, name) in _NAMES.items() if term_category == category}


def term_pattern(terms: Iterable[str]) -> str:
    """A regular expression that matches any of the terms, the longest first; ASCII terms only at letter boundaries."""
    longest_first = sorted(terms, key=len, reverse=True)
    parts = [rf"(?<![a-z]){re.escape(term)}(?![a-z])" if term.isascii() else re.escape(term) for term in longest_first]
    return "|".join(parts) or r"(?!)"
