"""Statements of a Chinese caption or report: each finding with its own side, location, site and measurements.

In: a text and a vocabulary as in facts.py. Out: Statements: findings affirmed or denied, structures that are stated to
be normal, and plain facts (modality=CT). A finding takes the side, location and site before it in its clause, else
those after it, else those of the clause before (左侧胸腔,可见积液); both sides become two statements. A change of a
structure is a finding at a site: 脾脏增大 and 脾大 are 增大 of 脾脏; 心影不大, 心脏大小正常 and 心脏未见增大 all state
that 心脏 is normal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

from qilin.text.facts import (
    ATTRIBUTES,
    COUNTED,
    DEFAULT_VOCABULARY,
    REST,
    Mention,
    Vocabulary,
    find_mentions,
    split_sentences,
)
from qilin.text.negation import is_negated
from qilin.text.numbers import find_measurements
from qilin.text.vocabulary import concept_of, concepts, is_a, structures_of

NORMAL = "正常"
UNCERTAIN = "certainty=uncertain"
LEFT, RIGHT = "左侧", "右侧"
SITE_CATEGORIES = ("organ", "region")
MAX_CLAUSE_CHARACTERS = 400  # a longer run without punctuation is cut: the time must not grow with its square

# Findings that combine with a site: 肝囊肿 is 囊肿 of 肝脏. Others (肺炎, 脑膜瘤) are more than their parts.
_COMBINING = frozenset((
    "结节", "肿块", "囊肿", "囊性病变", "钙化", "水肿", "出血", "血肿", "积液", "积气",
    "脓肿", "梗死", "结石", "骨折", "脱位", "息肉", "溃疡", "狭窄", "闭塞", "扩张",
    "增厚", "萎缩", "移位", "转移", "血栓", "撕裂", "浸润", "实变", "纤维化", "充血",
    "渗出", "憩室", "斑块", "肥厚", "增生", "恶性肿瘤", "肿瘤", "血管瘤", "穿孔", "不透光影",
    "粘连", "静脉曲张", "退行性改变", "癌栓", "动脉瘤", "淋巴结肿大",
))  # fmt: skip
# Changes that are findings only together with the structure that changed; a denied one states that it is normal.
CHANGES: dict[str, tuple[str, ...]] = {
    "增大": ("增大", "肿大", "扩大", "大"),
    "缩小": ("缩小", "变小", "减小"),
    "增宽": ("增宽", "变宽", "加宽"),
    "受压": ("受压", "压迫"),
    "变钝": ("变钝", "钝化", "圆钝", "变浅", "模糊"),
    "抬高": ("抬高", "升高", "上抬"),
    "增多": ("增多", "增粗", "紊乱", "增强"),
    "异常": ("异常",),
}
_CHANGE_TERMS = {term: name for name, terms in CHANGES.items() for term in terms if len(term) > 1}
_NORMAL_WHEN_DENIED = frozenset((*CHANGES, "移位", "扩张", "增厚", "萎缩", "水肿"))
_CHANGE = re.compile("|".join(sorted(_CHANGE_TERMS, key=len, reverse=True)))
_STATES_NORMAL = re.compile(
    r"正常|清晰|清楚|光整|光滑|锐利|居中|完整|通畅|自然|良好|(?<!不)规则|无殊|无明显变化|不大|不宽|不厚|(?<!不)透亮"
    r"|(?:未见|没有|无|未发现|没有发现|没有看到)(?:任何|明显|明确|急性|活动性|其他|的)*(?:异常|病变|疾病|问题)"
)
_BORDER = re.compile(r"(?:边缘|边界|境界|界限|界|缘)[^,]{0,2}$")
_SIDE = re.compile(
    r"左右两?[侧边]?|双[侧边]|[两二][侧边]|双(?=[肺肾眼耳乳下上膝髋足手肩膈输卵颞额顶枕])|[两](?=[肺肾眼耳下上])|左侧?|右侧?|bilateral|left|right"
)
# 右侧更为突出: the sides of a finding are compared, none is added.
_COMPARES_SIDES = re.compile(r"为著|为主|为甚|更|较重|较明显|明显|显著|较轻|较多|较大|较小|多于|大于|严重|突出")
_UNCERTAIN = re.compile(
    r"待排|待除外|待查|不能排除|无法排除|不除外|不能除外|不排除|未除外|未排除|可疑|疑似|可能|或许|[?]"
)
_PREPARATIONS = (
    (re.compile(r"(?<=[\dm米分升克%])左右(?![侧肺肾])"), ""),  # 3cm左右: about
    (re.compile(r"待排除"), "待排"),
    (re.compile(r"[双雙两兩二](?=[肺肾腎眼耳乳])"), "双侧"),  # 双肺气肿 is 肺气肿 on both sides
    # 没有证据表明有肺炎, 没有提示肺炎 and 无可见的肺炎 deny 肺炎
    (re.compile(r"(?:没有|无|未见)(?:任何|明显|明确|确切)?的?证据(?:表明|显示|提示|支持)(?:有|存在)?"), "未见"),
    (
        re.compile(r"(没有|未|无)(明显|明确|任何)?(?:提示|显示出?|表明|考虑|可见)(?:有|的)?"),
        r"\1见\2",
    ),
    # 没有急性疾病的迹象，如气胸，或积液: the list is denied too
    (re.compile(r"[，,](?=(?:比如|例如|诸如|如|包括|也没有|也无|或))"), "、"),
    (re.compile(r"[:：](?:无|未见|没有|否|阴性|未发现|不存在)(?=[。,，;；.]|$)"), ":无"),  # 胸腔积液：无
    (re.compile(r"([左右])(?:移|偏)(?![位移植斜])"), r"\1移位"),  # 纵隔右移
    (re.compile(r"(?<![^。;；\n])([左右][^。;；,，:：]{0,5})[:：](?!无)"), "\\1\x02。"),  # 右眼底：
)
_HEADING = "\x02"  # ends a heading that names a side: what follows is on that side


@cache
def _combines(name: str) -> bool:
    """Whether a finding, or one that it is a kind of, combines with a site."""
    return any(name == other or is_a(name, other) for other in _COMBINING)


@dataclass(frozen=True)
class Statement:
    """One finding at one location. `name`: as the vocabulary names it; `base`: without its site (囊肿 of 肝囊肿)."""

    name: str
    base: str
    negated: bool
    site: str = ""
    side: str = ""
    details: frozenset[str] = frozenset()  # place=上, size=大, number=2, mm=12, certainty=uncertain

    @property
    def weight(self) -> int:
        """The number of facts that it states: the finding, its side, its site and each detail."""
        return 1 + bool(self.side) + (0 if self.negated else self.counts_site + len(self.details))

    @property
    def counts_site(self) -> bool:
        """Whether the site is a fact: that 结节 is one of 肺, not that 肺炎 is."""
        return bool(self.site) and _combines(self.base)


@dataclass(frozen=True)
class Statements:
    """All statements of one text; `plain`: facts that belong to no finding (modality=CT, organ=肺, normal)."""

    findings: tuple[Statement, ...]
    plain: frozenset[str]


@dataclass
class _Location:
    side: str = ""
    level: str = ""


@dataclass
class _Clause:
    """The tokens of a clause, sorted by position: (start, end, kind, value)."""

    text: str
    tokens: list[tuple[int, int, str, Mention | str]] = field(default_factory=list)


@lru_cache(maxsize=20_000)
def _cached(text: str) -> Statements:
    return _read(text, DEFAULT_VOCABULARY)


def read_statements(text: str, vocabulary: Vocabulary = DEFAULT_VOCABULARY) -> Statements:
    """Every statement of a text."""
    return _cached(text) if vocabulary is DEFAULT_VOCABULARY else _read(text, vocabulary)


def _read(text: str, vocabulary: Vocabulary) -> Statements:
    findings: list[Statement] = []
    plain: set[str] = set()
    is_normal, heading_side = False, ""
    for pattern, replacement in _PREPARATIONS:
        text = pattern.sub(replacement, text)
    for sentence in split_sentences(text):
        is_heading, sentence = sentence.endswith(_HEADING), sentence.rstrip(_HEADING)
        if is_heading and not any(m.category == "finding" for m in find_mentions(sentence, vocabulary)):
            heading_side = LEFT if sentence[0] == "左" else RIGHT
            continue
        for part in _cut(sentence):
            part_findings, part_plain = _read_sentence(part, vocabulary)
            if any(f.side for f in part_findings):
                heading_side = ""
            if heading_side:
                part_findings = [replace(f, side=heading_side) if is_abnormal(f) else f for f in part_findings]
            is_normal |= NORMAL in part_plain
            findings += part_findings
            plain |= part_plain - {NORMAL}
    findings = list(dict.fromkeys(findings))
    if is_normal and all(f.negated or f.base == NORMAL for f in findings):
        plain.add("normal")
    return Statements(tuple(findings), frozenset(plain))


def _cut(sentence: str) -> Iterable[str]:
    """The sentence in parts of bounded length, at commas where there are any."""
    while len(sentence) > MAX_CLAUSE_CHARACTERS:
        comma = sentence.rfind(",", 0, MAX_CLAUSE_CHARACTERS)
        end = comma + 1 if comma > 0 else MAX_CLAUSE_CHARACTERS
        yield sentence[:end]
        sentence = sentence[end:]
    yield sentence


def _read_sentence(sentence: str, vocabulary: Vocabulary) -> tuple[list[Statement], set[str]]:
    mentions = find_mentions(sentence, vocabulary)
    plain = {
        f"{m.category}={m.name}"
        for m in mentions
        if m.category not in (*ATTRIBUTES, "finding", "appearance", "thing") and not m.negated
    }
    findings: list[Statement] = []
    context_site, context_locations = "", [_Location()]
    start = 0
    last: list[int] = []  # indices of the findings of the last clause that had any
    for clause_text in sentence.split(","):
        end = start + len(clause_text)
        clause = _tokenize(sentence, start, end, mentions)
        read, site, locations, normal_sites = _read_clause(sentence, clause, context_site, context_locations)
        kinds = {kind for _, _, kind, _ in clause}
        compares_sides = "side" in kinds and _COMPARES_SIDES.search(clause_text) is not None
        if not read and not normal_sites and kinds & {"side", "place", "size", "number", "mm"} and last:
            _add_to_last(findings, last, clause, [] if compares_sides else locations, compares_sides)
        if read:
            last = list(range(len(findings), len(findings) + len(read)))
            findings += read
        findings += [Statement(NORMAL, NORMAL, False, name) for name in normal_sites if name]
        if "" in normal_sites:
            plain.add(NORMAL)
        affirms = any(is_abnormal(statement) for statement in read)
        if site or normal_sites:
            context_site = site if affirms or not normal_sites else ""
        if locations and not compares_sides:
            context_locations = locations
        elif site:
            context_locations = [_Location()]
        start = end + 1
    return findings, plain


def _tokenize(
    sentence: str, start: int, end: int, mentions: Sequence[Mention]
) -> list[tuple[int, int, str, Mention | str]]:
    """The tokens of sentence[start:end] by position: finding, site, side, place, size, number, mm, change, normal."""
    tokens: list[tuple[int, int, str, Mention | str]] = []
    covered: list[tuple[int, int]] = []
    finding_spans = {(m.start, m.end) for m in mentions if m.category == "finding"}
    for m in mentions:
        if not start <= m.start < end:
            continue
        if m.category == "side":
            organ = concept_of(sentence[m.start + 1 : m.end])  # 双肺
            if organ is not None and organ.category == "organ":
                tokens.append((m.start + 1, m.end, "site", replace(m, category="organ", name=organ.name)))
            continue
        kind = "site" if m.category in SITE_CATEGORIES else "finding" if m.category == "appearance" else m.category
        if kind == "site" and (m.start, m.end) in finding_spans:
            kind = "own site"  # 脑出血 is 出血 of 大脑
        tokens.append((m.start, m.end, kind, m))
        if kind in ("site", "finding"):
            covered.append((m.start, m.end))
        if kind == "place" and sentence[m.end - 1] in "叶肺" and m.name in "上中下":
            tokens.append((m.start, m.end, "site", replace(m, category="organ", name="肺")))
    text = sentence[start:end]

    def is_free(match: re.Match[str]) -> bool:
        return not any(a < start + match.end() and start + match.start() < b for a, b in covered)

    for match in _SIDE.finditer(text):
        if is_free(match):
            word = match.group()
            side = LEFT if word in ("左", "左侧", "left") else RIGHT if word in ("右", "右侧", "right") else "both"
            tokens.append((start + match.start(), start + match.end(), "side", side))
    for match in _CHANGE.finditer(text):
        if is_free(match):
            tokens.append((start + match.start(), start + match.end(), "change", _CHANGE_TERMS[match.group()]))
    for match in _STATES_NORMAL.finditer(text):
        states_nothing = match.group()[0] in "未没无不"  # 未见异常, 不大
        is_border = _BORDER.search(text[: match.start()]) is not None
        end_of_word = start + match.end()
        if states_nothing or not (is_border or is_negated(sentence, end_of_word - 2, end_of_word)):
            tokens.append((start + match.start(), end_of_word, "normal", ""))
    for match in COUNTED.finditer(text):
        number = match.group(1) or ("many" if match.group(2) else "1")
        tokens.append((start + match.start(), start + match.end(), "number", f"number={number}"))
    for measurement in find_measurements(text):
        if measurement.quantity == "length":
            tokens.append((end, end, "mm", f"mm={float(measurement.value):g}"))
    return sorted(tokens, key=lambda token: (token[0], token[1], token[2] != "own site"))


def _read_clause(
    sentence: str,
    tokens: Sequence[tuple[int, int, str, Mention | str]],
    context_site: str,
    context_locations: Sequence[_Location],
) -> tuple[list[Statement], str, list[_Location], list[str]]:
    """(statements, the last site, the last locations, the sites that are stated to be normal) of one clause."""
    group: list[_Location] = []
    group_is_used = False
    site, named_site = "", ""
    heads: list[tuple[int, int, Statement, list[_Location]]] = []
    normal_sites: list[str] = []
    sites_since: list[str] = []  # sites since the last finding or normal word
    for start, end, kind, value in tokens:
        if kind in ("side", "place"):
            if group_is_used:
                group, group_is_used = [], False
            if kind == "side":
                group.append(_Location(side=str(value)))
            elif isinstance(value, Mention):
                if not group or group[-1].level:
                    group.append(_Location(side=group[-1].side if group else ""))
                group[-1].level = value.name
        elif kind == "site" and isinstance(value, Mention):
            site = value.name
            sites_since.append(site)
        elif kind == "own site" and isinstance(value, Mention):
            named_site = value.name
        elif kind == "normal":
            sites = list(dict.fromkeys(sites_since))
            normal_sites += sites or ([""] if not (heads or normal_sites or REST.search(sentence)) else [])
            sites_since = []
        elif kind in ("finding", "change"):
            if kind == "finding" and isinstance(value, Mention):
                base, own_site = split_site(value.name)
                own_site = _more_precise(own_site or named_site, site)
                name, negated, named_site = value.name, value.negated, ""
            else:
                name = base = str(value)
                own_site, negated = "", is_negated(sentence, start, end)
                if not site:
                    continue  # 较前增大: of what is not known
            if negated and base in _NORMAL_WHEN_DENIED and (own_site or site):
                normal_sites.append(own_site or site)
                continue
            if name == "异常" and negated:
                continue
            details = (
                frozenset((UNCERTAIN,))
                if not negated and _UNCERTAIN.search(_around(sentence, start, end))
                else frozenset()
            )
            heads.append((start, end, Statement(name, base, negated, own_site or site, "", details), list(group)))
            group_is_used = True
            sites_since = []
    statements: list[Statement] = []
    trailing = [] if group_is_used else group
    for index, (_, _, statement, locations) in enumerate(heads):
        is_last = index == len(heads) - 1
        if not locations and is_last and trailing:
            locations = trailing
        if not statement.site and context_site and not statement.negated:
            statement = replace(statement, site=context_site)
        if not locations and not statement.negated and _describes(statement.site, context_site) and not site:
            locations = list(context_locations)
        details = statement.details | {
            detail for detail, owner in _details(tokens, heads) if owner == index and not statement.negated
        }
        statements += _expand(replace(statement, details=details), locations)
    sided = group or [location for *_, locations in heads for location in locations]
    return statements, site, sided, normal_sites


def _around(sentence: str, start: int, end: int) -> str:
    """The text around a finding in its clause, other clauses excluded."""
    clause_start = max(sentence.rfind(mark, 0, start) for mark in ",、") + 1
    clause_end = min((p for p in (sentence.find(mark, end) for mark in ",、") if p >= 0), default=len(sentence))
    return sentence[max(clause_start, start - 12) : min(clause_end, end + 8)]


def _details(
    tokens: Sequence[tuple[int, int, str, Mention | str]], heads: Sequence[tuple[int, int, Statement, list[_Location]]]
) -> list[tuple[str, int]]:
    """(detail, index of the nearest finding) for each size, number and length of a clause."""
    pairs = []
    for start, end, kind, value in tokens:
        if kind in ("size", "number", "mm"):
            detail = f"{value.category}={value.name}" if isinstance(value, Mention) else str(value)
            pairs.append((detail, min(range(len(heads)), key=lambda i: max(heads[i][0] - end, start - heads[i][1]))))
    return pairs


def _expand(statement: Statement, locations: Sequence[_Location]) -> list[Statement]:
    """One statement per side; a denial on both sides names none."""
    expanded = []
    for location in locations or [_Location()]:
        sides = (LEFT, RIGHT) if location.side == "both" else (location.side,)
        if statement.negated:
            sides = ("",) if location.side == "both" else sides
        level = {f"place={location.level}"} if location.level and not statement.negated else set()
        expanded += [replace(statement, side=side, details=statement.details | level) for side in sides]
    return expanded


def _add_to_last(
    findings: list[Statement],
    last: list[int],
    tokens: Sequence[tuple[int, int, str, Mention | str]],
    locations: Sequence[_Location],
    compares_sides: bool,
) -> None:
    """结节,位于右肺,直径12mm: a clause without a finding describes the last affirmed finding."""
    affirmed = [index for index in last if is_abnormal(findings[index])]
    if not affirmed:
        return
    if compares_sides:  # 双侧胸腔积液,右侧为著
        side = next(str(value) for _, _, kind, value in tokens if kind == "side")
        for index in affirmed:
            if findings[index].base == findings[affirmed[-1]].base:
                findings[index] = replace(findings[index], details=findings[index].details | {f"mainly={side}"})
        return
    index = affirmed[-1]
    statement = findings[index]
    details = {str(value) if not isinstance(value, Mention) else f"{value.category}={value.name}"
               for _, _, kind, value in tokens if kind in ("size", "number", "mm")}  # fmt: skip
    statement = replace(statement, details=statement.details | details)
    if locations and not statement.side:
        expanded = _expand(statement, locations)
        findings[index] = expanded[0]
        findings += expanded[1:]
    else:
        findings[index] = statement


@cache
def split_site(name: str) -> tuple[str, str]:
    """(finding without its site, site) of a finding: 肝囊肿 -> (囊肿, 肝脏), 脾肿大 -> (增大, 脾脏)."""
    concept = concepts().get(name)
    if concept is None:
        return name, ""
    for term in concept.terms:
        for cut in range(1, len(term)):
            site = concept_of(term[:cut])
            if site is None or site.category not in SITE_CATEGORIES:
                continue
            rest = term[cut:]
            if rest == "瘤":  # 血管瘤 is more than a 肿瘤 of 血管
                continue
            base = concept_of(rest)
            if (
                base is not None
                and base.name in _COMBINING
                and base.name != name
                and (term == name or is_a(name, base.name))
            ):
                return base.name, site.name
            change = next((change for change, terms in CHANGES.items() if rest in terms), None)
            if change:
                return change, site.name
    return name, ""


@lru_cache(maxsize=20_000)
def same_site(a: str, b: str) -> bool:
    """Whether two sites may be the same one: equal, or one contains the other, or one is not stated."""
    if not a or not b or a == b:
        return True
    if a not in concepts() or b not in concepts():
        return False
    if "region" in (concepts()[a].category, concepts()[b].category):
        return True  # 胸部 and 肺
    return a in structures_of(b) or b in structures_of(a)


def _more_precise(own_site: str, site: str) -> str:
    """右膝见关节积液: the site named in the clause, where it is a kind or part of the finding's own one."""
    return site if site in concepts() and own_site in structures_of(site) else own_site


def is_abnormal(statement: Statement) -> bool:
    """Whether a statement affirms a finding, rather than denying one or stating that a structure is normal."""
    return not statement.negated and statement.base != NORMAL


def _describes(site: str, context: str) -> bool:
    """Whether a finding of a site continues the clause before, about another one: 胸部 and 心包 do not."""
    if not site or site == context:
        return True
    nested = site in concepts() and context in concepts()
    return nested and (site in structures_of(context) or context in structures_of(site))
