"""Whether a clause of an answer entails the reference: it means the same, or something more precise.

In: a normalized question, reference and clause. More precise are a kind of the same disease (急性阑尾炎 for 阑尾炎), a
side, place, number or degree that the reference leaves open (右肺结节 for 肺结节), and a part of an organ, unless the
question asks for its size. Not entailed are the reverse, the whole for its part, and names in which the reference is
another thing (宫颈 for 颈部, 类风湿 for 风湿, 肺炎性假瘤 for 肺炎).
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from qilin.evaluate.scoring.anatomy import Location, Term, parse_meaning, same_meaning
from qilin.text.abnormality import ABNORMAL
from qilin.text.clauses import LIST_MARK, Clause
from qilin.text.laterality import find_sides
from qilin.text.negation import is_negated
from qilin.text.vocabulary import FINDING_CATEGORIES, Concept, TermMatch, concept_of, find_terms, is_a, structures_of
from qilin.text.yes_no import normality
from qilin.text.yes_no_question import find_all

_LEAD = re.compile(
    r"^(?:(?:这|该|此|本|其|它|那)(?:张|幅|个|些|种|例)?|(?:图像|图片|图示|图)(?:所示|中(?![间央部心])|里|内(?![侧部])|上(?![方部叶]))?"
    r"|影像(?:中|上|里)?|片中|片子|[女男]性|成人|儿童|了|人体|身体|展示|拍摄|扫描|检查|取自|截取|所见|所指|箭头|画面(?:中|里)?|所示?|答案"
    r"|结论|的|主要|最|首先|应该?|可以?|大?概率|可能|很可能|考虑|提示|符合"
    r"|诊断|倾向于?|属于|位于|来自|显示|显示出|呈现?|表现|为|是|有|见|可见|看到|存在|患者?|患有|患|采用|使用|用|通过"
    r"|包括|包含|而是|因此|所以|故|即|应为|一[张幅个种例名位]|在|于|处于|出现|发现|主要|用于|进行|给予|以"
    r"|(?:the|an?|is|are|this|it|image|shows?|of|in|on|at)\b|,|:|\s)+"
)
_TRAIL = re.compile(
    r"(?:的)?(?:部位?|区域?|内|里|处|侧|病变|病灶|疾病|征象?|表现|改变|影|灶|组织|图像|影像|图|片|扫描|成像|检查|像"
    r"|为主|可能性(?:最|较|很)?大|可能|性大|器官|结构|脏器|方位?|面|位|功能|作用|症状|相结合|结合|联合|方式|方法"
    r"|的|了|等|两个|三个|受累|发生|最大|更大|最小|更小|side|organ|\s)+$"
)
# What may follow the reference in its clause: a verb, a place, a suffix that adds no other thing.
_AFTER = re.compile(
    r"(?:的)?(?:$|部(?!癌)|区|内|里|处|侧|中|靠近|紧邻|病变|病灶|疾病|征|表现|改变|影|灶|组织"
    r"|器官|结构|脏器|图|片|平片|扫描|成像|检查|像|加权|为主|为著|可能|较|最|更|比"
    r"|可见|见|呈|有|是|为|属于|位于|占|在|发生|受|多发|单发|含气|充气|类|药物|过敏|存在|形成|伴|合并|导致|引起|所致|以(?!外)|负责"
    r"|具有|正常|异常|明显"
    r"|症(?!状)|综合征|[0-9一两三(]|等|功能|作用|方|法|状态|时|后|前|外|尖|底|头|体|尾|段|远端|近端|下段|上段|中段"
    r"|皮层|皮质|深部"
    r"|[性型样](?=病变|病灶|改变|疾病|表现|$|,)|状|形|线|横断|冠状|矢状|轴位|正位|侧位|平扫|增强|ct|mri|x线|x光|超声"
    r"|增|减|缩|扩|密度|信号|回声|大(?!肠|脑)|小(?!肠|脑)|壁|并|但|而|,|。|;|\s|is\b|are\b|was\b|has\b|with\b"
    r"|which\b|seen|in\b|due\b|because|side|-sided)"
)
_PLACE_AFTER = re.compile(
    r"(?:的)?(?:[左右]叶|[上下](?=部|段|叶|极|缘|方|份|端|\d|,|$)|前|后|内|外|中|尖|底|头|体|尾|段|远|近|皮|深|浅|基|舌|背"
    r"|侧|缘|旁|邻|靠|胸膜|膈)"
)
# Before the reference these make another thing of it: 非小细胞, 类风湿, 亚急性, 假性动脉瘤.
_PRIVATIVE = re.compile(r"(?:非|类|亚|假性?|伪|副|抗|拟|无|不|未|隐性|排除|除外?|疑似|继发于|所致的?)$")
_OR = re.compile(r"或者?|还是|要么|抑或|\bor\b|/")
_AND = re.compile(rf"{LIST_MARK}|和|与(?!.{{0,8}}(?:有关|相关|之间|相比|鉴别))|以及|及(?!其)|联合(?!征)|\band\b|\+|,")
_ASKS_LOCATION = re.compile(r"哪[里儿侧边只个块叶段条根]|何处|位置|部位|位于|在哪|病变|异常|骨折|where|which")
_ASKS_FUNCTION = re.compile(r"功能|作用|用途|用来|机制|治疗")
_ASKS_EXTENT = re.compile(r"最|主要|成对|左右|体积|面积|占|多大|largest|biggest|smallest")
ASKS_WHERE = re.compile(r"哪[里儿]|何处|位置|部位|位于|where")
_ASKS_STATE = re.compile(r"病变|异常|不正常|受累|受损|病灶|问题|affected|abnormal|involved")


def bare_answer(text: str, q: str) -> str:
    """A clause without the words that only lead to its answer or repeat the question."""
    for _ in range(3):
        shorter = _TRAIL.sub("", _LEAD.sub("", text))
        if shorter == text or not shorter:
            break
        text = shorter
    return text


# --- one clause -------------------------------------------------------------------------------------------------------


def clause_entails(q: str, reference: str, clause: Clause) -> bool:
    text = clause.text
    asks_state = _ASKS_STATE.search(q) or ABNORMAL.search(q)
    if asks_state and not ABNORMAL.search(reference) and normality(text) is True:
        return False  # 肾脏正常 in answer to which organ is abnormal
    concept = core_of(reference)[2]
    if concept is not None and concept.category == "appearance" and is_about_another_organ(text, q):
        return False
    bare = bare_answer(text, q)
    for candidate in dict.fromkeys((text, bare, *_heads(text), *_tails(text))):
        if candidate and item_entails(q, reference, candidate) and not _is_denied(text, candidate):
            return True
    if any(_mention_holds(q, reference, text, *span) for span in _mentions(q, reference, text)):
        return True
    return _names_site_and_finding(q, reference, text)


@lru_cache(maxsize=5_000)
def _site_and_finding(reference: str) -> tuple[str, str] | None:
    """(肝脏, 血管瘤) for 肝血管瘤; None for a reference that is not the two joined."""
    core = core_of(reference)[0]
    for match in find_terms(core[:4], "organ", "region") or find_terms(core[:1], "organ", "region"):
        rest = core[match.end :].lstrip("部脏内的")
        if match.start == 0 and (len(rest) > 1 or rest == "癌") and (concept_of(rest) or ABNORMAL.fullmatch(rest)):
            return match.concept.name, rest
    return None


def _names_site_and_finding(q: str, reference: str, text: str) -> bool:
    """肝右叶血管瘤 and 肝内见血管瘤 for 肝血管瘤: the finding, with its organ or a part of it before it."""
    parts = _site_and_finding(reference)
    if parts is None:
        return False
    site, finding = parts
    for start, end in _mentions(q, finding, text):
        organs = find_terms(text[:start], "organ", "region")
        is_there = bool(organs) and site in structures_of(organs[-1].concept.name)
        sides = core_of(reference)[1]
        if (
            is_there
            and (not sides or find_sides(text[:start]) == sides)
            and _mention_holds(q, finding, text, start, end)
        ):
            return True
    return False


def _is_denied(text: str, candidate: str) -> bool:
    start = text.find(candidate)
    return start >= 0 and is_negated(text, start, start + len(candidate))


_HEAD_VERB = re.compile(
    r"(?:可见|显示|呈|占|位于|最|更|较|负责|属于|有|存在|见|受|发生|出现|是|为|的体积|的面积|的功能|具有|比|,|\()"
)
_TAIL_VERB = re.compile(r"(?:是|为|属于|位于|在|考虑|提示|符合|诊断|可见|见|呈|有|显示|采用|通过|患有|而是|即|表现为)")


def _heads(text: str) -> list[str]:
    """What stands before the first verb: 小肠 in 小肠的体积最大."""
    match = _HEAD_VERB.search(text, 1)
    return [_LEAD.sub("", text[: match.start()]).rstrip("的")] if match else []


def _tails(text: str) -> list[str]:
    """What stands after the last linking verb: 肝 in 图中体积最大的脏器是肝."""
    matches = list(_TAIL_VERB.finditer(text))
    return [bare_answer(text[matches[-1].end() :], "")] if matches else []


@lru_cache(maxsize=2_000)
def item_entails(q: str, reference: str, item: str) -> bool:
    """Whether a bare term means the reference or something more precise."""
    expected, stated = parse_meaning(reference), parse_meaning(item)
    if same_meaning(expected, stated, q):
        return True
    if isinstance(expected, Location) and isinstance(stated, Location):
        return _is_inside(stated, expected, q)
    if isinstance(expected, Term) and isinstance(stated, Location) and expected.category == "organ":
        # 双肺 is 肺; 左肺 is a part of it, which tells where something is
        if stated == Location("both", "", expected.name):
            return True
        return _is_inside(stated, Location(organ=expected.name), q)
    if _ASKS_FUNCTION.search(q) and len(reference) >= 4 and sorted(reference) == sorted(item):
        return True  # 血液过滤 is 过滤血液
    if isinstance(expected, Term) and isinstance(stated, Term) and stated.category and expected.category:
        return is_a(stated.name, expected.name) and stated.category not in ("organ", "region")
    return False


def _is_inside(stated: Location, expected: Location, q: str) -> bool:
    """Whether a location lies inside another one: 右额叶前部 in 右额叶. The whole is not in its part.

    左上肺 is not entailed by 左肺: where the lobes of the lung are asked for, the lung's name alone means all of it.
    """
    if _ASKS_EXTENT.search(q) or not expected.organ or not stated.organ or not _ASKS_LOCATION.search(q):
        return False
    if expected.organ == "肺" and (stated.level, stated.part) != (expected.level, expected.part):
        return False
    if not expected.side and expected.organ in ("肺", "肾脏") and not ASKS_WHERE.search(q):
        return False  # the left lung is not the lungs
    if find_sides(q) and stated.side in ("left", "right") and stated.side not in find_sides(q):
        return False
    filled = replace(
        expected,
        side=expected.side or stated.side,
        level=expected.level or stated.level,
        part=expected.part or stated.part,
    )
    return same_meaning(filled, stated, q)


# --- mentions inside a clause -----------------------------------------------------------------------------------------


_WRITTEN_ALIKE = (
    (re.compile(rf"左侧?([^和与,。左右]{{1,3}})[{LIST_MARK}和与,]右侧?\1(?![\u4e00-\u9fff])"), r"双\1"),
    (re.compile(r"(?<![一-鿿])量(?:较|很)?(少|多|大|中)(?![一-鿿])"), r"\1量"),
    (re.compile(r"(?<![a-z])[cpy]{1,2}(?=t[0-4x])"), ""),  # clinical and pathological stages
    (re.compile(rf"左[{LIST_MARK}和与,]?右(?=[肺肾眼耳乳侧])"), "双"),
    (re.compile(r"(?<![a-z])pa(?:位|$| view)"), "后前位"),
    (re.compile(r"(?<![a-z])ap(?:位|$| view)"), "前后位"),
    (re.compile(r"([左右])(?:侧|边)的?(?=[\u4e00-\u9fff])"), r"\1"),  # 左侧的肾, 左肾
    (
        re.compile(r"(密度|信号|回声)(?:较|偏|稍|略|明显|相对|轻度|呈)*(?:增|升|减|降)?(高|低)"),
        r"\2\1",
    ),  # 密度较低, 低密度
    (re.compile(r"(?:稍|略|较|偏)(高|低)(密度|信号|回声)"), r"\1\2"),
    (re.compile(r"(非)?(?:增强|强化)[型性](?=[\u4e00-\u9fff])"), r"\1强化"),
    (re.compile(r"(非)增强(?=脑|肿|病)"), r"\1强化"),
)


@lru_cache(maxsize=5_000)
def written_alike(text: str) -> str:
    """What is written in several ways, written alike: 左侧的肾 and 左肾, 密度较低 and 低密度."""
    for pattern, replacement in _WRITTEN_ALIKE:
        text = pattern.sub(replacement, text)
    return text.replace("两肺", "双肺").replace("两肾", "双肾")


_ONLY_SUFFIX = frozenset(("", *"侧边方叶部区上下前后中"))


@lru_cache(maxsize=5_000)
def core_of(reference: str) -> tuple[str, frozenset[str], Concept | None]:
    """The reference without its side, the sides, and the concept that the rest names."""
    plain = written_alike(reference)
    core = re.sub(r"^(?:双侧?|两侧|[左右])(?!心|束|室|房|冠|前降|回旋|主干)", "", plain)
    if core in _ONLY_SUFFIX:  # 左叶 is a name of its own
        return plain, frozenset(), concept_of(plain)
    return core, find_sides(reference), concept_of(core)


def _mentions(q: str, reference: str, text: str) -> list[tuple[int, int]]:
    """Spans of a clause that name the reference or a kind of it, sides aside."""
    core, _, concept = core_of(reference)
    spans = _find_word(text, core)
    for match in find_terms(text):
        inside = [span for span in spans if match.start <= span[0] and span[1] <= match.end]
        is_kind = concept is not None and _is_kind(match.concept, concept, q)
        if is_kind:
            spans.append((match.start, match.end))
        elif inside and (match.start, match.end) not in inside and not _is_suffix_of(core, match, text, *inside[-1]):
            spans = [span for span in spans if span not in inside]
    return list(dict.fromkeys(spans))


def _is_kind(stated: Concept, expected: Concept, q: str) -> bool:
    """Whether a concept is the expected one or narrower; a narrower organ only tells where something is."""
    if stated == expected:
        return True
    if expected.category == "organ":  # a part of an organ tells where a lesion is, and not what the largest organ is
        if _ASKS_EXTENT.search(q):
            return False
        asks_part = _ASKS_LOCATION.search(q) or _ASKS_STATE.search(q)
        return is_a(stated.name, expected.name) or (
            asks_part is not None and expected.name in structures_of(stated.name)
        )
    return is_a(stated.name, expected.name)


def _is_suffix_of(core: str, match: TermMatch, text: str, start: int, end: int) -> bool:
    """支气管肺炎 ends with 肺炎 and is one; 肺腺癌 is 腺癌 of an organ; 宫颈 is no neck, 液气胸 no simple 气胸."""
    core_concept = concept_of(core)
    is_disease = match.concept.category in FINDING_CATEGORIES and (
        core_concept is None or core_concept.category in FINDING_CATEGORIES
    )
    if not is_disease or len(core) < 2 or end != match.end or _PRIVATIVE.search(text[:start]):
        return False
    prefix = text[match.start : start]
    sites = find_terms(prefix, "organ", "region")
    is_sited = bool(sites) and sites[0].start == 0 and sites[-1].end == len(prefix)
    return core_concept is None or is_a(match.concept.name, core_concept.name) or is_sited


def _find_word(text: str, word: str) -> list[tuple[int, int]]:
    """Spans of a word in a text; an English word only between letters of other scripts."""
    spans = find_all(text, word)
    if not word.isascii():
        return spans
    return [(a, b) for a, b in spans if not (_is_letter(text[:a][-1:]) or _is_letter(text[b : b + 1]))]


def _is_letter(character: str) -> bool:
    return character.isascii() and character.isalpha()


def _mention_holds(q: str, reference: str, text: str, start: int, end: int) -> bool:
    """Whether the reference, named at text[start:end], is affirmed there, by itself, and on the right side."""
    core, sides, concept = core_of(reference)
    before, after = text[:start], text[end:]
    is_shade = (
        concept is not None and concept.category == "appearance" and before[-1:] in tuple("灰黄红白黑褐粉蓝暗浅深淡椭")
    )
    is_mixed = is_shade or (before.endswith("囊") and core.startswith("实"))
    if is_negated(text, start, end) or _PRIVATIVE.search(before) or is_mixed:
        return False
    if _HEAD_IS_NEXT.match(after) or _has_another_role(q, text):
        return False
    if len(find_sides(q)) == 1 and find_sides(before) and not find_sides(before) & find_sides(q):
        return False
    is_place = concept is not None and concept.category in ("organ", "region", "view")
    if is_place and not _leads_to(before, q, concept is not None and concept.category == "organ"):
        return False
    if not _AFTER.match(after) and not (is_place and _PLACE_AFTER.match(after)):
        return False
    if re.match(r"无关|与此无关|正常|未见", after) and _ASKS_STATE.search(q):
        return False
    local_text = before[-12:] + text[start:end] + (after[:4] if sides else "")
    stated_sides = find_sides(local_text) if sides or is_place else frozenset()
    if core in ("肺", "肺部") and _LOBE.search(before[-3:] + after[:3]) and not _LOBE.search(reference):
        return False  # 左上肺 for 左肺: see _is_inside
    if sides and stated_sides != sides and not (not stated_sides and find_sides(q) == sides):
        return False
    if is_place and not sides and len(stated_sides) == 1 and not _may_add_side(q, stated_sides, concept):
        return False
    return not _is_joined(q, reference, before, after)


_LOBE = re.compile(r"[上中下](?:叶|野|部|$|肺)")


# 淋巴结旁的脂肪 names the fat.
_HEAD_IS_NEXT = re.compile(
    r"(?:旁边?|周围|附近|内部?|外侧?|上方|下方|表面|深部|前方|后方)的(?!病变|病灶|部分|区域|位置)[\u4e00-\u9fff]{2,}"
)
_ROLES = ("原发", "转移", "起源", "侵犯", "累及", "压迫")


def _has_another_role(q: str, text: str) -> bool:
    """原发于肝脏 in answer to 转移到哪里: the verb of the question is missing and another of its kind is there."""
    asked_roles = [role for role in _ROLES if role in q]
    return bool(asked_roles) and not any(role in text for role in asked_roles) and any(role in text for role in _ROLES)


def _may_add_side(q: str, sides: frozenset[str], concept: Concept | None) -> bool:
    if (find_sides(q) and not sides <= find_sides(q)) or _ASKS_EXTENT.search(q):
        return False
    is_whole = concept is not None and concept.name in ("肺", "肾脏")
    return _ASKS_LOCATION.search(q) is not None and (not is_whole or ASKS_WHERE.search(q) is not None)


def _leads_to(before: str, q: str, may_be_in_region: bool) -> bool:
    """Whether the words before an organ only lead to it: 病变位于, 左侧, the words of the question."""
    regions = find_terms(before, "region") if may_be_in_region else []
    if regions and regions[-1].end == len(before):  # 腋窝淋巴结
        before = before[: regions[-1].start]
    rest = _LEADING_PLACE.sub("", before)
    rest = re.sub(r"[a-z]+ (?=of|in)", "", rest)
    return set(rest) <= set(q) | set("的了是为在,:‖和与及或这那") or before.endswith(
        ("是", "为", "于", "在", "至", "到", "向", "的", "示", "见", "指", "人体", "身体", "of ", "the ")
    )


def is_about_another_organ(before: str, q: str) -> bool:
    """心脏呈黑色 in answer to the color of the lung."""
    question_organs = {match.concept.name for match in find_terms(q, "organ")}
    stated = {match.concept.name for match in find_terms(before, "organ")}
    around = frozenset().union(*map(structures_of, stated)) if stated else frozenset()
    return bool(question_organs and stated and not (question_organs & (stated | around)))


_JOINED_AFTER = re.compile(rf"(?:的|区|部|侧|性|治疗|病变|影)*(?:\([^)]*\))?\s*({_OR.pattern}|{_AND.pattern})\s*(.+)")
_JOINED_BEFORE = re.compile(rf"(.*?)({_OR.pattern}|{_AND.pattern})[^,和与及或{LIST_MARK}]{{0,10}}$")
_LEADING_PLACE = re.compile(r"[左右双两][侧边]?的?|[上下前后中]部?$|" + _LEAD.pattern[1:])


def _is_joined(q: str, reference: str, before: str, after: str) -> bool:
    """Whether something else is named beside the reference: 肺和心脏, CT或MRI."""
    right = _JOINED_AFTER.match(after)
    if right and _is_something_else(q, reference, right.group(right.lastindex or 1)):
        return True
    left = _JOINED_BEFORE.search(before)
    return bool(left and _is_something_else(q, reference, left.group(1)))


def _is_something_else(q: str, reference: str, text: str) -> bool:
    rest = bare_answer(text, q)
    if not rest or set(rest) <= set("的等为有其"):
        return False
    return not any(item_entails(q, reference, item) for item in (rest, *_heads(text)))
