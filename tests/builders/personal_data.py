"""Precision and recall of `deidentify` on labeled sentences, by kind.

In: tests/text/personal_data_sentences.jsonl, a sentence per line with its topic and the spans to be removed. Out:
counts of spans that were removed, missed, and removed without need. A hash of the sentence assigns it to one of two
halves: the rules were improved with the development half only, to which the sentences of later rounds belong too.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qilin.text.deidentify import personal_spans

SENTENCES = Path(__file__).parents[1] / "text" / "personal_data_sentences.jsonl"
KINDS = {
    "姓名": "name",
    "编号": "id",
    "证件号": "id",
    "电话": "phone",
    "日期": "date",
    "时间": "time",
    "医院": "hospital",
    "地址": "address",
}
# what may be removed together with personal data: it identifies nobody and states no finding
HARMLESS = re.compile(
    r"(?:[\s\W]|患者|病人|家属|姓名|联系人|先生|女士|主任|教授|院长|副|医师|医生|大夫|护士|技师|报告|审核|复核|检查|记录|诊断|书写|"
    r"签名|签字|签发|主治|经治|申请|送检|会诊|阅片|初诊|病理|超声|者|人|员|老|号码?|编号|ID|床|电话|手机|联系方式|家庭|通讯|单位|户籍|籍贯|工作|"
    r"现|家|居|住|于|址|地|邮编|号|Dr|Tel|T)*"
)
Half = Literal["development", "unseen"]


@dataclass
class Scores:
    """`expected`, `missed` and `removed`, `needless`: spans by kind; `changed`: negative sentences by topic."""

    expected: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    needless: Counter[str] = field(default_factory=Counter)
    negatives: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    errors: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def table(self) -> dict[str, dict[str, float]]:
        """Precision and recall of every kind and of all; a doctor's signature counts as a name for precision."""
        kinds = sorted(self.expected | self.removed)
        rows = {kind: self._row(Counter({kind: 1})) for kind in kinds}
        return {**rows, "all": self._row(Counter(kinds))}

    def _row(self, kinds: Counter[str]) -> dict[str, float]:
        expected, missed, removed, needless = (
            sum(counter[kind] for kind in kinds)
            for counter in (self.expected, self.missed, self.removed, self.needless)
        )
        row: dict[str, float] = {"labeled": expected, "removed": removed}
        if expected:
            row["recall"] = round(1 - missed / expected, 3)
        if removed:
            row["precision"] = round(1 - needless / removed, 3)
        return row


def half_of(row: dict[str, Any]) -> Half:
    """Rows of later rounds were looked at after their first score."""
    number = int(hashlib.sha256(row["text"].encode()).hexdigest(), 16)
    return "unseen" if row["round"] == 1 and number % 2 else "development"


def read_sentences(half: Half) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if half_of(row) == half]


def score(rows: Iterable[dict[str, Any]]) -> Scores:
    """A labeled span is missed if one of its characters stays; a removal is needless if it takes more than labels."""
    scores = Scores()
    for row in rows:
        text = row["text"]
        removals = [(start, end, KINDS[label]) for start, end, label in personal_spans(text)]
        removed = {index for start, end, _ in removals for index in range(start, end)}
        personal: set[int] = set()
        for span in row["spans"]:
            characters = set(range(span["start"], span["start"] + len(span["text"])))
            personal |= characters
            scores.expected[span["kind"]] += 1
            if any(text[index].isalnum() for index in characters - removed):
                scores.missed[span["kind"]] += 1
                scores.errors[f"missed {span['kind']}"].append(f"{span['text']} in {text}")
        for start, end, kind in removals:
            rest = "".join(text[index] for index in range(start, end) if index not in personal)
            scores.removed[kind] += 1
            if not HARMLESS.fullmatch(rest) or len(rest) == end - start:
                scores.needless[kind] += 1
                scores.errors[f"needless {kind}"].append(f"{text[start:end]} in {text}")
        if not row["spans"]:
            scores.negatives[row["topic"]] += 1
            scores.changed[row["topic"]] += bool(removals)
    return scores
