"""What an answer says to a yes-no question: yes, no, or neither.

In: a normalized answer and question. Out: True, False, or None where the answer gives neither or both (never a guess).
A leading word decides (是的,…). A sentence is read clause by clause: clauses about another side, level or organ are set
aside, and the rest are read by the first rule of `_RULES` that applies to what the question asks.
"""

from __future__ import annotations

import re
from functools import lru_cache

from qilin.text.abnormality import ABNORMAL, abnormality
from qilin.text.claims import answers_count, answers_modality, answers_quantifier, answers_statement
from qilin.text.laterality import find_sides
from qilin.text.negation import is_negated, negated_spans
from qilin.text.vocabulary import FINDING_CATEGORIES, concept_of, find_terms, is_a, structures_of
from qilin.text.yes_no import named_terms, normality, question_normality, word_polarity
from qilin.text.yes_no_question import CLAUSE_BREAK, YesNoQuestion, relevant_clauses, take_apart

_LEADING_WORD = re.compile(r"^([^,.。;:!?(‖]{1,60}?)(?:[,.。;:!?(‖]|\s(?=[^a-z])|$)(.*)$", re.DOTALL)
# "no abnormality" denies, and is no answer "no" with a remark
_ENGLISH_LEADING_WORD = re.compile(
    r"^(yes|no)(?:\s*[,.;:!]\s*|\s+(?=yes|no\b|there\b|it\b|the\b|this\b)|$)(.*)$", re.DOTALL
)


@lru_cache(maxsize=20_000)
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
    what = _IS.match(question.statement)
    if asked_state is None or (what and normality(what.group(1)) is None):  # 图中的异常是肺炎吗
        return None
    clauses = relevant_clauses(text, question)
    states = {state for clause in clauses if (state := _clause_normality(clause)) is not None}
    if states == {True, False}:  # 大小正常, 可见结节: one finding makes it abnormal
        states = {False}
    return states.pop() is asked_state if states else None


def _clause_normality(clause: str) -> bool | None:
    """True for normal, False for abnormal."""
    stated = normality(clause)
    if stated is not None:
        return stated
    abnormal = abnormality(clause)
    return None if abnormal is None else not abnormal


# --- what it is -----------------------------------------------------------------------------------------------------

_EXCLUSIVE = ("modality", "sequence", "plane", "region")
_STATES_IDENTITY = re.compile(r"是|为|属于|关于|位于|部位|在|来自|显示的|展示的|拍摄的")
_WORD_SETS = (
    {"plain": re.compile(r"平扫|非增强(?!型)|未增强|未(?:使用|注射|注入|用)(?:造影剂|对比剂)|无(?:造影剂|对比剂)"
        r"|不增强|non-?contrast|unenhanced"),
     "contrast": re.compile(r"增强(?!型)|强化后|(?:造影剂|对比剂)(?:后)?|动脉期|静脉期|门脉期|门静脉期|延迟期"
         r"|contrast-?enhanced")},
    {"frontal": re.compile(r"正位|后前位|前后位|\b(?:pa|ap)\b|frontal"), "lateral": re.compile(r"侧位"
        r"|lateral view"), "oblique": re.compile(r"斜位|oblique")},
    {"benign": re.compile(r"良性|benign"), "malignant": re.compile(r"恶性|癌|malignant")},
    {"male": re.compile(r"男|\bmale\b"), "female": re.compile(r"女|\bfemale\b")},
    {"high": re.compile(r"高密度|密度(?:增|升)高|高信号|信号(?:增|升)高|高回声"
        r"|回声增强"), "low": re.compile(r"低密度|密度(?:减|降)低|低信号|信号(?:减|降)低|低回声|无回声"),
     "same": re.compile(r"等密度|等信号|等回声")},
)  # fmt: skip
_JOINT = re.compile(r"[髋膝踝肩肘腕]关节|指间关节|颞颌关节|骶髂关节")


def _named_words(text: str, words: dict[str, re.Pattern[str]]) -> frozenset[str]:
    names: set[str] = set()
    for name, pattern in words.items():
        spans = [m.span() for m in pattern.finditer(text)]
        if any(not is_negated(text, *span) or name == "plain" for span in spans):
            names.add(name)
        text = pattern.sub(lambda m: "\x01" * len(m.group()), text)
    return frozenset(names)


def _what_it_is(text: str, question: YesNoQuestion) -> bool | None:
    """这是腹部CT吗 answered by 胸部CT, 增强扫描吗 by 平扫: one of several that exclude each other."""
    signs: set[bool] = set()
    for category in _EXCLUSIVE:
        in_question, in_text = named_terms(question.statement, category), named_terms(text, category)
        if category == "region" and not _STATES_IDENTITY.search(question.statement):
            continue
        if len(in_question) == 1 and in_text:
            around = frozenset().union(*(structures_of(name) for name in in_text))
            signs.add(bool(in_question & (in_text | around)) and (len(in_text) == 1 or category == "region"))
    for words in _WORD_SETS:
        in_question, in_text = _named_words(question.statement, words), _named_words(text, words)
        if len(in_question) == 1 and in_text:
            signs.add(in_question == in_text)
    joints = set(_JOINT.findall(question.statement)), set(_JOINT.findall(text))
    if joints[0] and joints[1]:
        signs.add(joints[0] == joints[1])
    if False in signs:
        return False
    if signs and negated_spans(text) and not re.search(r"[,;。]", text):
        return None
    return True if signs else None


_ASKS_SIDE = re.compile(r"(?:在|位于|是)(?:图像?|身体)?的?(?:左|右|双|两)侧?[^,]{0,3}$")


def _side(text: str, question: YesNoQuestion) -> bool | None:
    """病变在左侧吗 answered by 右侧."""
    sides = find_sides(text)
    if not (_ASKS_SIDE.search(question.statement) and question.sides and sides):
        return None
    return (sides == question.sides) is not bool(negated_spans(text))


MAX_COMPARISON_CHARACTERS = 400  # question and answer: the time grows with the cube of the length

_COMPARES = re.compile(r"(?:.*[,中])?(.+?)比(.+?)(?:更|要|还)?([大小高低多少长短亮暗粗细])")


def _comparison(text: str, question: YesNoQuestion) -> bool | None:
    """A比B大吗 answered by A更大 or B更大, B比A大, 一样大."""
    is_short = len(question.statement) + len(text) <= MAX_COMPARISON_CHARACTERS
    comparison = _COMPARES.match(question.statement) if is_short else None
    if comparison is None:
        return None
    first, second, quality = comparison.groups()
    if re.search(rf"(?:一样|同样|同等){quality}|相等|相同|等大|相仿|差不多", text):
        return False
    stated = _COMPARES.match(text)
    superlative = re.fullmatch(rf"(?:.*[,中])?(.+?)(?:更|最|较){quality}", text)
    winner = stated.group(1) if stated and stated.group(3) == quality else superlative.group(1) if superlative else None
    return {first: True, second: False}.get(winner) if winner and not negated_spans(text) else None


# --- opposites -------------------------------------------------------------------------------------------------------

# Words that exclude each other: 锐利 answers no to 变钝吗. One of two complements is always true: 不模糊 means 清楚.
COMPLEMENTS = (
    (r"变钝|圆钝", r"锐利"),
    (r"(?<!不)(?:清楚|清晰)|界清(?![楚晰])|分明|锐利", r"模糊|不清|欠清"),
    (r"(?<!不)光滑|光整", r"毛糙|毛刺|不规则|分叶|粗糙|不光滑"),
    (r"居中", r"偏[左右移斜]|[左右]偏|移位|[左右]移|偏移"),
    (r"(?<![不欠])对称", r"不对称|欠对称|较[大小]|一侧(?:增大|缩小)"),
    (r"(?<![不欠])均匀", r"不均匀?|欠均匀|混杂"),
    (r"等大", r"散大|较[大小]|大小不[等一]"),
    (r"完整|连续", r"中断|破裂|缺损|破坏"),
    (r"(?<!不)齐", r"不齐|紊乱"),
    (r"通畅", r"狭窄|闭塞|阻塞|梗阻|栓塞|堵塞"),
    (r"(?<!不)规则", r"不规则"),
    (r"阳性", r"阴性"),
    (r"正常", r"异常"),
)
CONTRARIES = (
    (r"增大|扩大|肿大|扩张|增宽|膨大|变大", r"缩小|变小|萎缩|变窄|狭窄"),
    (r"增高|升高|上升|增多|增强", r"减低|降低|下降|减少|减弱"),
    (r"增厚|肥厚", r"变薄"),
)
# What a normal structure is not: 心影大小正常 answers no to 增大吗.
_CHANGED = re.compile(
    r"增大|扩大|肿大|增宽|扩张|变钝|移位|狭窄|增厚|增粗|增高|减低|缩小|萎缩|肥大|肥厚|变薄|偏移|enlarged|widened"
    r"|dilated"
)


def complement_sign(text: str, words: str, opposite: str) -> bool | None:
    """True if a text affirms the words or denies their opposite, False for the reverse, None for neither or both."""
    signs = {not is_negated(text, *match.span()) for match in re.finditer(words, text)}
    signs |= {is_negated(text, *match.span()) for match in re.finditer(opposite, text)}
    return signs.pop() if len(signs) == 1 else None


def _opposite(text: str, question: YesNoQuestion) -> bool | None:
    """The word that the question asks about, its synonym or its opposite; normal answers no to a change."""
    for clause in relevant_clauses(text, question):
        for pair in (*COMPLEMENTS, *CONTRARIES):
            for asked_words, opposite in (pair, pair[::-1]):
                asks = re.search(asked_words, question.statement) and not re.search(opposite, question.statement)
                if not asks:
                    continue
                negated = {is_negated(clause, *m.span()) for m in re.finditer(opposite, clause)}
                if negated == {False} or _denies_change(asked_words, clause):
                    return False
                if negated == {True} and pair in COMPLEMENTS:
                    return True
                negated = {is_negated(clause, *m.span()) for m in re.finditer(asked_words, clause)}
                if len(negated) == 1 and not re.search(opposite, clause):
                    return not negated.pop()
    if _CHANGED.search(question.statement) and not _CHANGED.search(text):
        return False if any(normality(clause) for clause in relevant_clauses(text, question)) else None
    return None


_UNCHANGED = re.compile(r"(?:无|没有|未见)(?:明显|显著|任何)?(?:变化|改变)|相仿|同前|稳定|大致相同|unchanged")


def _denies_change(words: str, clause: str) -> bool:
    """纵隔不宽 answers no to 增宽吗, 大小无明显变化 to 增大吗."""
    if not re.search("增|升|缩|减|降", words):
        return False
    return _UNCHANGED.search(clause) is not None or any(f"不{word[-1]}" in clause for word in words.split("|"))


_IS = re.compile(r"(?:.*[^不])?(?:是|为|属于|患有)([^,是为]+)$")
_LEADS = re.compile(
    r"^(?:这|那|它|此|该|所指|箭头所指|考虑|诊断|提示|应该?)*(?:的)?(?:是|为|属于|考虑为?|提示为?)?(?:一个|一种|一幅"
    r"|一张)?"
)


def _identity(text: str, question: YesNoQuestion) -> bool | None:
    """…是肝脏吗 answered by 是脾脏 or 脾脏: the same organ or finding, a kind of it, or another."""
    in_question = _IS.match(question.statement)
    if in_question is None:
        return None
    asked_word = in_question.group(1)
    clause = next((c for c in CLAUSE_BREAK.split(text) if c and not negated_spans(c)), "")
    stated_word = _LEADS.sub("", clause)
    if not stated_word:
        return None
    concept, stated = concept_of(asked_word), concept_of(stated_word)
    if concept and stated:
        if is_a(stated_word, asked_word):
            return True
        for kinds in (("organ", "region"), FINDING_CATEGORIES, ("modality",)):
            if concept.category in kinds and stated.category in kinds:
                return False
    if ABNORMAL.search(asked_word[-2:]) and re.search(rf"(?:{ABNORMAL.pattern})(?:影|灶|病变)?$", stated_word):
        if _is_subsequence(asked_word, stated_word):
            return True
        if not negated_spans(stated_word):
            return False
    return None


def _is_subsequence(short: str, long: str) -> bool:
    """Whether a name holds another one with words between: 急性期出血 and 急性出血."""
    characters = iter(long)
    return all(character in characters for character in short)


# --- presence --------------------------------------------------------------------------------------------------------

_SUFFIX = re.compile(r"(?:的)?(?:征象|征|形成|影像?|灶|线|病史|史|表现|迹象|现象|改变|区域?|者|证据|情况)$")
_GENERIC = frozenset(
    ("病变", "异常", "器官", "组织", "结构", "情况", "问题", "改变", "征象", "现象", "疾病", "部位", "图像", "区域")
)
_DENIES_ALL = re.compile(
    r"(?:未见|无|没有|未发现|未见到)(?:明显|明确|确切|任何|其他|其它)?(?:异常|病变|占位|阳性)|(?:正常|体健|无殊"
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
    if len(set(signs)) == 1:
        return signs[0]
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
        is_negated(clause, match.start(), match.end())
        for bigram in _content_bigrams(question.statement)
        for match in re.finditer(re.escape(bigram), clause)
    )


def _normal_only(clause: str, question: YesNoQuestion) -> bool:
    """形态正常, 密度均匀, 骨质完整 answers no to a question about a finding."""
    return bool(ABNORMAL.search(question.target)) and abnormality(clause) is False and not negated_spans(clause)


def _key_sign(clause: str, keys: tuple[str, ...], question: YesNoQuestion) -> bool | None:
    for key in keys:
        spans = [(m.start(), m.end()) for m in re.finditer(re.escape(key), clause)]
        if spans:
            signs = {not is_negated(clause, *span) for span in spans}
            return signs.pop() if len(signs) == 1 else None
    asked_names = [match.concept.name for match in find_terms(question.target, *FINDING_CATEGORIES)]
    signs = {
        not is_negated(clause, match.start, match.end)
        for match in find_terms(clause, *FINDING_CATEGORIES)
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
            start == 0 or set(rest[:start]) <= set(question.statement) | set("左右上下双侧两有都均也则")
        ):
            return word
    return False if re.fullmatch(r"(?:已|均)?(?:未显示|缺如|切除|消失|阴性|不在[^,]{0,8})", rest) else None


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
          _normality, _what_it_is, _side, _comparison,
          _opposite, _identity, _echo, _presence, _predicate)  # fmt: skip
_TURNED = (_opposite, _presence, _predicate)  # rules that read the positive statement
