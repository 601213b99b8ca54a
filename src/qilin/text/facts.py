"""The facts a Chinese caption or report states, read by plain rules from a vocabulary that is data.

In: a text and a vocabulary: kind -> name -> the words for it. Out: a set of short strings:
`modality=CT`, `organ=肺` (any kind but the four below), `结节` (a finding affirmed), `no 结节` (denied),
`结节|side=左侧`, `结节|place=上`, `结节|size=大` (what is said of it), `结节|number=2`, `结节|mm=12`, and `normal`.

Kinds with a meaning of their own: `finding`; `thing` (白细胞: no fact itself, but it can be counted); `side`, `place`,
`size` (said of the finding nearest in the sentence). The longest word wins across
all kinds: 皮肤镜 hides 皮肤, 左眼 hides 左.
The rules see what is written, not what is meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qilin.core.errors import UserError
from qilin.text.negation import is_denied
from qilin.text.normalize import narrow, simplified
from qilin.text.numbers import counts_as_digits, measures
from qilin.text.synonyms import FINDINGS, MODALITIES, ORGANS, REGIONS

Vocabulary = Mapping[str, Mapping[str, tuple[str, ...]]]

ATTRIBUTES = ("side", "place", "size")
OWNERS = ("finding", "thing")

_MORE_FINDINGS: dict[str, tuple[str, ...]] = {
    "实变": ("实变", "实变影", "consolidation"),
    "浸润": ("浸润", "浸润影", "渗出", "渗出影"),
    "钙化": ("钙化", "钙化灶", "钙化影", "calcification"),
    "积液": ("积液", "effusion"),
    "水肿": ("水肿", "edema"),
    "肺水肿": ("肺水肿", "肺部水肿"),
    "出血": ("出血", "血肿", "出血灶", "hemorrhage"),
    "囊肿": ("囊肿", "囊性灶", "cyst"),
    "结石": ("结石", "结石影", "stone"),
    "肿瘤": ("肿瘤", "占位", "占位性病变", "tumor"),
    "肺气肿": ("肺气肿", "emphysema"),
    "纤维化": ("纤维化", "纤维灶", "fibrosis"),
    "空洞": ("空洞", "cavity"),
    "梗死": ("梗死", "梗塞", "infarction"),
    "萎缩": ("萎缩", "atrophy"),
    "渗出": ("硬性渗出",),
    "微动脉瘤": ("微动脉瘤", "微血管瘤"),
    "脱位": ("脱位", "dislocation"),
    "不透光影": ("不透光影", "阴影", "斑片影", "斑片状影", "opacity"),
    "膈下游离气体": ("膈下游离气体", "游离气体"),
    "侧弯": ("侧弯", "脊柱侧弯", "scoliosis"),
}

# Names that are an organ and a finding in one word: 肺结节 states 结节 and organ=肺, as 肺内见结节 does.
_TWO_IN_ONE: dict[str, tuple[str, str]] = {
    "肺结节": ("肺", "结节"),
    "肺肿块": ("肺", "肿块"),
    "肺浸润": ("肺", "浸润"),
    "肺水肿": ("肺", "水肿"),
    "脑水肿": ("大脑", "水肿"),
    "脑肿瘤": ("大脑", "肿瘤"),
    "脑出血": ("大脑", "出血"),
}


def _taken_apart(
    organs: Mapping[str, tuple[str, ...]], findings: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Both tables with each name of _TWO_IN_ONE as a word of its organ and of its finding."""
    made = {"organ": dict(organs), "finding": {n: words for n, words in findings.items() if n not in _TWO_IN_ONE}}
    for name, (organ, finding) in _TWO_IN_ONE.items():
        for kind, part in (("organ", organ), ("finding", finding)):
            made[kind][part] = (*made[kind][part], *findings[name])
    return made


DEFAULT_VOCABULARY: Vocabulary = {
    "modality": MODALITIES,
    "region": REGIONS,
    **_taken_apart(ORGANS, {**FINDINGS, **_MORE_FINDINGS}),
    "side": {
        "双侧": ("双侧", "两侧", "双边", "双肺", "两肺", "双肾", "两肾", "双眼", "左右两", "bilateral"),
        "左侧": ("左", "left"),
        "右侧": ("右", "right"),
    },
    "place": {
        "上": ("上叶", "上肺", "上部", "上方", "上野", "上段", "上极", "上象限", "顶部", "肺尖"),
        "下": ("下叶", "下肺", "下部", "下方", "下野", "下段", "下极", "下象限", "底部", "肺底"),
        "中": ("中叶", "中部", "中野", "中央", "中心", "中间", "中段"),
        "前": ("前部", "前方", "前段", "前叶"),
        "后": ("后部", "后方", "后段", "后叶"),
    },
    "size": {
        "大": ("较大", "巨大", "体积大", "大片", "大量", "大型"),
        "中": ("大小中等", "中等大小", "中等大", "中量"),
        "小": ("较小", "微小", "体积小", "少量", "小片", "小型", "细小"),
    },
}

_SENTENCE = re.compile(r"[。;:!?\n]+|\.(?!\d)")
_COUNTED = re.compile(
    r"(?<![\d.a-z])(\d+)\s*(?:个|枚|处|颗|块|条|片|根|粒|团|簇|灶)|(多发|多个|多枚|多处|数枚|数个|若干)|(单发|单个|孤立)"
)
_NORMAL = re.compile(r"正常|健康|\bnormal\b")
_ABNORMAL = re.compile(r"(?:明显|显著|任何)?(?:异常|病变|病灶)|\babnormalit\w+")
# 余未见异常 and 其他部位正常 speak of the rest, not of the whole image.
_REST = re.compile(r"余|其他|其它|另")


@dataclass(frozen=True)
class Mention:
    """A word of the vocabulary in a text: text[start:end], and whether it is denied there."""

    kind: str
    name: str
    start: int
    end: int
    denied: bool


def read_vocabulary(path: Path) -> Vocabulary:
    """A vocabulary from JSON: {"finding": {"结节": ["结节", "结节影"]}, …}. Raises UserError if it is not one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    try:
        return {kind: {name: tuple(words) for name, words in table.items()} for kind, table in found.items()}
    except (AttributeError, TypeError):
        raise UserError(f"{path}: expected kind -> name -> list of words, found something else") from None


def facts_of_text(text: str, vocabulary: Vocabulary = DEFAULT_VOCABULARY) -> frozenset[str]:
    """Every fact that the text states, denials included; see the head of this file for how they are written."""
    plain = counts_as_digits(simplified(narrow(text)).lower())
    facts: set[str] = set()
    says_normal = False
    for sentence in _SENTENCE.split(plain):
        if sentence:
            facts |= facts_of_sentence(sentence, vocabulary)
            says_normal = says_normal or _says_normal(sentence)
    if says_normal and not any(is_finding(fact) for fact in facts):
        facts.add("normal")
    return frozenset(facts)


def contradictions(text: str, vocabulary: Vocabulary = DEFAULT_VOCABULARY) -> frozenset[str]:
    """Findings that a text both affirms and denies of the same spot: 左肺结节。左肺未见结节。

    左肺结节,右肺未见结节 is none: the clauses name different sides (or places, or organs). Nor is 余未见结节.
    """
    plain = counts_as_digits(simplified(narrow(text)).lower())
    said: list[tuple[str, bool, Mapping[str, frozenset[str]]]] = []
    for sentence in filter(None, _SENTENCE.split(plain)):
        mentions = mentions_in(sentence, vocabulary)
        for m in (m for m in mentions if m.kind == "finding"):
            low, high = sentence.rfind(",", 0, m.start) + 1, sentence.find(",", m.end)
            high = len(sentence) if high < 0 else high
            if not (m.denied and _REST.search(sentence[low:high])):
                near = [other for other in mentions if low <= other.start < high]
                spot = {kind: {o.name for o in near if o.kind == kind} for kind in ("side", "place", "organ")}
                # 肺结节 names its organ too
                organs = vocabulary.get("organ", {}).items()
                spot["organ"] |= {o for o, words in organs if m.name.startswith(tuple(words)) and o != m.name}
                said.append((m.name, m.denied, {kind: frozenset(names) for kind, names in spot.items()}))

    def apart(a: Mapping[str, frozenset[str]], b: Mapping[str, frozenset[str]]) -> bool:
        return any(a[kind] and b[kind] and not a[kind] & b[kind] for kind in a)

    return frozenset(
        name
        for name, denied, spot in said
        for other, other_denied, there in said
        if not denied and other_denied and (name.endswith(other) or other.endswith(name)) and not apart(spot, there)
    )


def is_finding(fact: str) -> bool:
    """Whether a fact affirms a finding, rather than denying one, describing one, or naming organ or modality."""
    return not fact.startswith("no ") and "|" not in fact and "=" not in fact and fact != "normal"


def facts_of_sentence(sentence: str, vocabulary: Vocabulary) -> set[str]:
    """The facts of one narrow, simplified, lower-case sentence."""
    facts: set[str] = set()
    mentions = mentions_in(sentence, vocabulary)
    owners = [m for m in mentions if m.kind in OWNERS]
    for m in mentions:
        if m.kind == "finding":
            facts.add(f"no {m.name}" if m.denied else m.name)
        elif m.kind in ATTRIBUTES:
            facts |= _said_of(f"{m.kind}={m.name}", m.start, m.end, owners, sentence)
        elif m.kind not in OWNERS and not m.denied:
            facts.add(f"{m.kind}={m.name}")
    for match in _COUNTED.finditer(sentence):
        number = match.group(1) or ("many" if match.group(2) else "1")
        facts |= _said_of(f"number={number}", *match.span(), owners, sentence, counted=True)
    at = 0
    for clause in sentence.split(","):
        for measure in measures(clause):
            if measure.kind == "length":
                facts |= _said_of(f"mm={float(measure.value):g}", at, at + len(clause), owners, sentence)
        at += len(clause) + 1
    return facts


def _said_of(
    attribute: str, start: int, end: int, owners: list[Mention], sentence: str, counted: bool = False
) -> set[str]:
    """The attribute with the finding it belongs to: the nearest in its clause, else in the sentence; {} for none."""
    low, high = sentence.rfind(",", 0, start) + 1, sentence.find(",", end)
    high = len(sentence) if high < 0 else high
    here = [m for m in owners if low <= m.start < high]
    if not here and _says_normal(sentence[low:high]):
        return set()
    gaps = [(max(m.start - end, start - m.end), m.start, m) for m in here or owners]
    if not gaps:
        return set()
    owner = min(gaps, key=lambda gap: gap[:2])[2]
    if owner.denied or (owner.kind == "thing" and not counted):
        return set()
    return {f"{owner.name}|{attribute}"}


def _says_normal(sentence: str) -> bool:
    if _REST.search(sentence):
        return False
    normal = any(not is_denied(sentence, *m.span()) for m in _NORMAL.finditer(sentence))
    return normal or any(is_denied(sentence, *m.span()) for m in _ABNORMAL.finditer(sentence))


def mentions_in(sentence: str, vocabulary: Vocabulary) -> list[Mention]:
    """Every word of the vocabulary in a sentence, in order; at each place the longest word of any kind."""
    pattern, meanings = _compiled(_frozen(vocabulary))
    return [
        Mention(kind, name, *match.span(), is_denied(sentence, *match.span()))
        for match in pattern.finditer(sentence)
        for kind, name in meanings[match.group()]
    ]


_Table = tuple[tuple[str, str, tuple[str, ...]], ...]


def _frozen(vocabulary: Vocabulary) -> _Table:
    # Kept by identity: turning the vocabulary into a hashable table for every sentence cost more than matching it.
    kept = _FROZEN.get(id(vocabulary))
    if kept is None or kept[0] is not vocabulary:
        rows = tuple((kind, name, tuple(words)) for kind, table in vocabulary.items() for name, words in table.items())
        if len(_FROZEN) >= 16:  # somebody makes a new vocabulary for each call: slow, but it must not fill the memory
            _FROZEN.clear()
        kept = _FROZEN[id(vocabulary)] = (vocabulary, rows)
    return kept[1]


_FROZEN: dict[int, tuple[Vocabulary, _Table]] = {}


@lru_cache(maxsize=16)
def _compiled(table: _Table) -> tuple[re.Pattern[str], dict[str, list[tuple[str, str]]]]:
    meanings: dict[str, list[tuple[str, str]]] = {}
    for kind, name, words in table:
        for word in words:
            meanings.setdefault(word.lower(), []).append((kind, name))
    longest_first = sorted(meanings, key=len, reverse=True)
    parts = [rf"(?<![a-z]){re.escape(w)}(?![a-z])" if w.isascii() else re.escape(w) for w in longest_first]
    return re.compile("|".join(parts) or r"(?!)"), meanings
