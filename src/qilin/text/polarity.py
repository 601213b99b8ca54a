"""What an answer says to a yes-no question: yes, no, or neither.

In: a normalized answer and question. Out: True, False, or None where the answer gives neither or both (never a guess).
A leading word decides (是的,…). A sentence is read clause by clause: clauses about another side, level or organ are set
aside, and the rest are read by the first rule of `_RULES` that applies to what the question asks.
"""

from __future__ import annotations

import re
from functools import lru_cache

from qilin.text.abnormality import ABNORMAL, abnormality
from qilin.text.alternatives import (
    IS_STATEMENT,
    says_comparison,
    says_identity,
    says_opposite,
    says_side,
    says_what_it_is,
)
from qilin.text.claims import answers_count, answers_modality, answers_quantifier, answers_statement
from qilin.text.negation import is_negated, negated_spans
from qilin.text.vocabulary import FINDING_CATEGORIES, find_terms, is_a
from qilin.text.yes_no import normality, question_normality, word_polarity
from qilin.text.yes_no_question import YesNoQuestion, find_all, relevant_clauses, take_apart

_LEADING_WORD = re.compile(r"^([^,.。;:!?(‖]{1,60}?)(?:[,.。;:!?(‖]|\s(?=[^a-z])|$)(.*)$", re.DOTALL)
# "no abnormality" denies, and is no answer "no" with a remark
_ENGLISH_LEADING_WORD = re.compile(
    r"^(yes|no)(?:\s*[,.;:!]\s*|\s+(?=yes|no\b|there\b|it\b|the\b|this\b)|$)(.*)$", re.DOTALL
)


@lru_cache(maxsize=2_000)
def polarity(text: str, question: str = "") -> bool | None:
    """Whether a normalized answer says yes (True) or no (False) to a normalized question; None for neither or both."""
    leading_words: list[bool] = []
    rest: bool | None = None  # what follows the leading words says
    while text:
        rest = word_polarity(text)
        if rest is not None:
            break
        leading = _ENGLISH_LEADING_WORD.match(text) or _LEADING_WORD.match(text)
        first = word_polarity(leading.group(1)) if leading else None
        if leading is None or first is None:
            rest = _sentence_polarity(text, question) if question else None
            break
        leading_words.append(first)
        text = leading.group(2).strip()
    for word in reversed(leading_words):
        rest = word if rest is None or rest is word else None
    return rest


def _sentence_polarity(text: str, question: str) -> bool | None:
    """What a sentence answers: the result of the first rule that applies, turned round for a negative question."""
    parts = take_apart(question)
    for rule in _RULES:
        says = rule(text, parts)
        if says is not None:
            return says is not parts.is_negative if rule in _TURNED else says
    return None


def _normality(text: str, question: YesNoQuestion) -> bool | None:
    """Normal, healthy or abnormal: stated, or implied by findings that the text affirms or denies."""
    asked_state = question_normality(question.text)
    what = IS_STATEMENT.match(question.statement)
    if asked_state is None or (what and normality(what.group(1)) is None):  # 图中的异常是肺炎吗
        return None
    clauses = relevant_clauses(text, question)
    states = {state for clause in clauses if (state := _clause_normality(clause)) is not None}
    if states == {True, False}:  # 大小正常, 可见结节: one finding makes it abnormal
        states = {False}
    return states.pop() is asked_state if states else None


_NOT_CHANGED = re.compile(r"(?<![均等齐])不(?:肿大|大|小|宽|厚|肿|高|低)(?![一等])")  # 脾脏不大; not 大小不等


def _clause_normality(clause: str) -> bool | None:
    """True for normal, False for abnormal."""
    stated = normality(clause)
    if stated is not None:
        return stated
    if _NOT_CHANGED.search(clause):
        return True
    abnormal = abnormality(clause)
    return None if abnormal is None else not abnormal


# --- presence --------------------------------------------------------------------------------------------------------

_SUFFIX = re.compile(r"(?:的)?(?:征象|征|形成|影像?|灶|线|病史|史|表现|迹象|现象|改变|区域?|者|证据|情况)$")
_GENERIC = frozenset(
    ("病变", "异常", "器官", "组织", "结构", "情况", "问题", "改变", "征象", "现象", "疾病", "部位", "图像", "区域")
)
_DENIES_ALL = re.compile(
    r"(?:未见|无|没有|未发现|未见到)(?:明显|明确|确切|任何|其他|其它)?(?:异常|病变|占位|阳性)|(?<!不)(?:正常|体健|无殊"
    r"|阴性)$|清晰$"
)
_WIDER = {
    "积液": ("游离液体", "液性暗区"),
    "腹水": ("游离液体", "腹腔积液"),
    "囊肿": ("囊性病变", "囊性灶"),
    "扩大": ("扩张", "增大"),
    "饮酒": ("白酒", "嗜酒"),
}
_INVASION = r"侵犯|受侵|侵及|累及|受累|浸润"
# Any lump answers yes to 占位性病变吗 and 肿物吗.
_LUMP = re.compile(r"低密度灶|高密度灶|结节|肿块|包块|团块|肿物|肿瘤|瘤|癌|囊肿|脓肿|转移|占位|新生物|病灶")
_ASKS_LUMP = re.compile(r"(?:占位|肿物|新生物|占位性病变)$")


def _keys(question: YesNoQuestion) -> tuple[str, ...]:
    """Texts that name what the question asks about, the longest first: 肋骨骨折, 骨折."""
    target = question.target
    for name in ("的", "存在", "过"):
        target = target.removesuffix(name)
    core = _SUFFIX.sub("", target) or target
    last = core.rsplit("的", 1)[-1]
    keys = [target, core, last]
    terms = find_terms(core, *FINDING_CATEGORIES, "organ", "region")
    if not question.asks_presence:  # the organ of 心脏形态正常 says nothing about its form
        terms = [match for match in terms if match.concept.category in FINDING_CATEGORIES]
    keys += [term for match in terms[-1:] for term in match.concept.terms]
    if (
        len(last) > 2
        and not last.isascii()
        and (question.asks_presence or not find_terms(last[-2:], "organ", "region"))
    ):
        keys.append(last[-2:])
    if re.search(_INVASION, question.statement):
        keys += _INVASION.split("|")
    for key, wider in _WIDER.items():
        if core.endswith(key):
            keys += wider
    return tuple(dict.fromkeys(sorted((k for k in keys if len(k) > 1 and k not in _GENERIC), key=len, reverse=True)))


def _presence(text: str, question: YesNoQuestion) -> bool | None:
    """Whether the text affirms or denies what the question asks for, where it asks for it."""
    keys = _keys(question)
    is_organ = bool(find_terms(question.target, "organ", "region")) and not ABNORMAL.search(question.target)
    signs: list[bool] = []
    implied: list[bool] = []
    for clause in relevant_clauses(text, question):
        sign = _key_sign(clause, keys, question)
        if not question.asks_presence and _denies_part(clause, question):
            sign = False
        if sign is None and _ASKS_LUMP.search(question.target):
            spans = [match.span() for match in _LUMP.finditer(clause)]
            sign = not all(is_negated(clause, *span) for span in spans) if spans else None
        if sign is not None:
            signs.append(sign)
        elif _is_apart(clause, question) or (not is_organ and _DENIES_ALL.search(clause)):
            implied.append(False)
        elif (bare := _bare_clause(clause, question)) is not None:
            signs.append(bare)
        elif (is_organ and re.search(r"仅|只", clause) and find_terms(clause, "organ")) or (
            not is_organ and not signs and _normal_only(clause, question)
        ):
            implied.append(False)
    if len(set(signs)) == 1 or (is_organ and False in signs):  # 膀胱未充盈,未能显示
        return all(signs)
    if signs:
        return None
    return implied[0] if implied else None


def _is_apart(clause: str, question: YesNoQuestion) -> bool:
    """与血管分界清楚 answers no to 侵犯血管吗."""
    asks_invasion = re.search(rf"{_INVASION}|粘连", question.statement)
    return bool(asks_invasion and re.search(r"(?:分界|界限|间隙)(?:尚|较|仍)?(?:清|存在|完整)", clause))


def _denies_part(clause: str, question: YesNoQuestion) -> bool:
    """Whether a clause denies any part of the statement: 血管未受侵犯 and 无侵犯 to 肿瘤侵犯血管."""
    return bool(negated_spans(clause)) and any(
        is_negated(clause, *span)
        for bigram in _content_bigrams(question.statement)
        for span in find_all(clause, bigram)
    )


def _normal_only(clause: str, question: YesNoQuestion) -> bool:
    """形态正常, 密度均匀, 骨质完整 answers no to a question about a finding."""
    return bool(ABNORMAL.search(question.target)) and abnormality(clause) is False and not negated_spans(clause)


def _key_sign(clause: str, keys: tuple[str, ...], question: YesNoQuestion) -> bool | None:
    for key in keys:
        spans = find_all(clause, key)
        if spans:
            signs = {not is_negated(clause, *span) for span in spans}
            return signs.pop() if len(signs) == 1 else None
    kinds: tuple[str, ...] = FINDING_CATEGORIES
    asked_names = [match.concept.name for match in find_terms(question.target, *kinds)]
    if question.asks_presence and not asked_names:  # 左肾 for 肾脏
        kinds = ("organ", "region")
        asked_names = [match.concept.name for match in find_terms(question.target, *kinds)]
    signs = {
        not is_negated(clause, match.start, match.end)
        for match in find_terms(clause, *kinds)
        if any(is_a(match.concept.name, name) for name in asked_names)
    }
    return signs.pop() if len(signs) == 1 else None


_FILLER = re.compile(
    r"[图中这张该本此内里上的,在为呈于]|图像|影像|所见|目前|隐约|明确|清楚|清晰地?|确实|明显|可以|患者|肯定|有点"
    r"|轻微|轻度|少量|部分|多处|基本|完全"
)


def _bare_clause(clause: str, question: YesNoQuestion) -> bool | None:
    """A clause of nothing but the question's place and a yes or no word: 右下肺不能, 隐约可见, 未显示."""
    rest = _FILLER.sub("", clause)
    for start in range(min(len(rest), 8)):
        word = word_polarity(rest[start:])
        if word is not None and (
            start == 0
            or set(rest[:start])
            <= set(question.statement) | set("左右上下双侧两有也则" + ("都均" if len(question.sides) == 2 else ""))
        ):
            return word
    return False if re.fullmatch(r"(?:已|均)?(?:未能?显示|未能?显影|缺如|切除|消失|阴性|不在[^,]{0,8})", rest) else None


def _echo(text: str, question: YesNoQuestion) -> bool | None:
    """A bare part of the question repeated (对称), or repeated and negated (不对称)."""
    negation = re.match(r"(?:并不|不是|没有|未见|未|不|非|无)", text)
    for part, affirms in ((text, True), (text[negation.end() :] if negation else "", False)):
        position = question.statement.find(part) if len(part) > 1 else -1
        if position >= 0:
            is_negated_in_question = position > 0 and question.statement[position - 1] in "不未没无非"
            return affirms is not is_negated_in_question
    return None


_FUNCTION_WORDS = re.compile(
    r"这张|这幅|这个|该|此|本|医学|图像|图片|影像|照片|图|中|里|上|内|的|了|是|有|存在|包含|包括|含有|含|可以|能"
    r"|看起来|看到|观察到"
    r"|显示|出现|属于|一个|一张|任何|病人|患者|关于|器官|被|用于|通过|拍摄"
)


def _content_bigrams(text: str) -> set[str]:
    """Character bigrams of the text without its function words."""
    pieces = _FUNCTION_WORDS.split(text)
    return {piece[i : i + 2] for piece in pieces for i in range(max(len(piece) - 1, min(len(piece), 1)))}


def _predicate(text: str, question: YesNoQuestion) -> bool | None:
    """The first clause that shares the end of the question's statement, by its negation: 心影不大, 肾功能受影响."""
    if question.asks_presence:
        return None
    bigrams = _content_bigrams(question.statement)
    end = {question.statement[-2:]}
    for clause in relevant_clauses(text, question):
        shared = _content_bigrams(clause)
        if not shared & bigrams:
            continue
        if negated_spans(clause) or is_negated(clause, 0, 0):
            return False
        if shared & end:
            return True
    return None


_RULES = (answers_statement, answers_modality, answers_count, answers_quantifier,
          _normality, says_what_it_is, says_side, says_comparison,
          says_opposite, says_identity, _echo, _presence, _predicate)  # fmt: skip
_TURNED = (says_opposite, _presence, _predicate)  # rules that read the positive statement
