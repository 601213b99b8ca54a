"""Patterns of protected health information (PHI) in Chinese and English: names, numbers, dates, addresses.

In: a text. Out: the types of PHI in it. The patterns match the usual notations only; they do not replace human review
or de-identification at the source of the data.
"""

from __future__ import annotations

import re

_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾萧田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范石廖贾"
    "夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤"
)
_TITLE = r"(?:先生|女士|小姐|医生|医师|大夫|主任|教授|护士|某某?)"
# words that start with the character of a surname: 谢谢, 任何, 向医生
_NOT_A_NAME = r"(?!谢谢|许多|任何|高级|高年资|马上|向(?:医|大夫|主任|教授|护士))"
_DATE_ZH = r"(?:19|20)\d{2}\s*年\s*\d{1,2}\s*月\s*\d{1,2}\s*[日号]"
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
PATTERNS: dict[str, re.Pattern[str]] = {
    "name": re.compile(
        rf"(?:姓名|患者姓名|病人姓名|联系人)\s*[:：]\s*[\u4e00-\u9fff·]{{2,}}"
        rf"|(?:患者|病人|患儿|病员)\s*[{_SURNAMES}]某"
        rf"|(?<![\u4e00-\u9fff]){_NOT_A_NAME}[{_SURNAMES}](?:(?!的)[\u4e00-\u9fff]){{0,2}}{_TITLE}"
        r"|\b(?i:patient(?:'s)? name|name of patient)\s*:\s*\w+|\b(?:Mr|Mrs|Ms|Miss)\.?\s+[A-Z][a-z]+"
        r"|\bDr\.?\s+[A-Z][a-z]+"
    ),
    "identity number": re.compile(r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])\d{3}[\dXx](?!\d)"
                                  r"|\b(?:SSN|social security)\D{0,12}\d{3}-\d{2}-\d{4}"),
    "phone": re.compile(r"(?<!\d)(?:\+?86[- ]?)?1[3-9]\d{9}(?!\d)|(?<!\d)0\d{2,3}-\d{7,8}(?!\d)"
                        r"|(?<!\d)\(?\d{3}\)?[- ]\d{3}-\d{4}(?!\d)|(?:电话|手机|tel)\s*[:：]\s*\d{7,}", re.IGNORECASE),
    "date": re.compile(
        rf"{_DATE_ZH}|(?<![\d.])(?:19|20)\d{{2}}[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12]\d|3[01])(?![\d.])"
        rf"|(?<![\d.])\d{{1,2}}/\d{{1,2}}/(?:19|20)\d{{2}}(?!\d)|\b{_MONTH}\s+\d{{1,2}},?\s+(?:19|20)\d{{2}}\b"
        rf"|\b\d{{1,2}}\s+{_MONTH}\s+(?:19|20)\d{{2}}\b",
        re.IGNORECASE,
    ),
    "hospital number": re.compile(
        r"(?:住院号|门诊号|病案号|病历号|检查号|影像号|登记号|床号|X线号|CT号|MRI?号)\s*[:：]?\s*[A-Za-z]?\d{2,}"
        r"|\b(?:MRN|medical record (?:number|no\.?)|accession (?:number|no\.?)"
        r"|hospital (?:number|no\.?))\s*[:#]?\s*\w*\d+",
        re.IGNORECASE,
    ),
    # anchored at the start of a word: otherwise a run of Chinese characters is retried from each of them
    "address": re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.]+|(?:家庭住址|住址|地址)\s*[:：]\s*\S{4,}"),
}  # fmt: skip


def find_personal_data(text: str) -> list[str]:
    """The types of PHI that a text seems to contain, in the order of PATTERNS."""
    return [name for name, pattern in PATTERNS.items() if pattern.search(text)]
