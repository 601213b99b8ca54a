"""Answers to a yes-no question that name something else: another modality, side, size, the opposite of what is asked.

In: a normalized answer and a question taken apart. Out: True, False, or None where the rule does not apply.
"""

from __future__ import annotations

import re
from functools import lru_cache

from qilin.text.abnormality import ABNORMAL
from qilin.text.laterality import find_sides
from qilin.text.negation import is_negated, negated_spans
from qilin.text.vocabulary import FINDING_CATEGORIES, concept_of, is_a, structures_of
from qilin.text.yes_no import named_terms, normality
from qilin.text.yes_no_question import CLAUSE_BREAK, YesNoQuestion, relevant_clauses

# --- what it is -----------------------------------------------------------------------------------------------------

_EXCLUSIVE = ("modality", "sequence", "plane", "region")
_STATES_IDENTITY = re.compile(r"是|为|属于|关于|位于|部位|在|来自|显示的|展示的|拍摄的")
_WORD_SETS = (
    {"plain": re.compile(r"平扫|非增强(?!型)|未增强|未(?:使用|注射|注入|用)(?:造影剂|对比剂)|无(?:造影剂|对比剂)"
        r"|不增强|non-?contrast|unenhanced"),
     "contrast": re.compile(r"增强(?!型)|强化后|强化(?=扫描|图像|ct|mri)|(?:造影剂|对比剂)(?:后)?|动脉期"
         r"|静脉期|门脉期|门静脉期|延迟期"
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


@lru_cache(maxsize=5_000)
def _named_words(text: str, word_set: int) -> frozenset[str]:
    """Names of the words of one of _WORD_SETS that a text uses without negating them."""
    names: set[str] = set()
    for name, pattern in _WORD_SETS[word_set].items():
        spans = [m.span() for m in pattern.finditer(text)]
        if any(not is_negated(text, *span) or name == "plain" for span in spans):
            names.add(name)
        text = pattern.sub(lambda m: "\x01" * len(m.group()), text)
    return frozenset(names)


def says_what_it_is(text: str, question: YesNoQuestion) -> bool | None:
    """这是腹部CT吗 answered by 胸部CT, 增强扫描吗 by 平扫: one of several that exclude each other."""
    signs: set[bool] = set()
    for category in _EXCLUSIVE:
        in_text = named_terms(text, category)
        if not in_text or (category == "region" and not _STATES_IDENTITY.search(question.statement)):
            continue
        in_question = named_terms(question.statement, category)
        if len(in_question) == 1:
            around = frozenset().union(*(structures_of(name) for name in in_text))
            signs.add(bool(in_question & (in_text | around)) and (len(in_text) == 1 or category == "region"))
    for word_set in range(len(_WORD_SETS)):
        in_text = _named_words(text, word_set)
        in_question = _named_words(question.statement, word_set) if in_text else in_text
        if len(in_question) == 1:
            signs.add(in_question == in_text)
    joints = set(_JOINT.findall(text))
    asked_joints = set(_JOINT.findall(question.statement)) if joints else joints
    if asked_joints:
        signs.add(asked_joints == joints)
    if False in signs:
        return False
    if signs and negated_spans(text) and not re.search(r"[,;。]", text):
        return None
    return True if signs else None


_ASKS_SIDE = re.compile(r"(?:在|位于|是)(?:图像?|身体)?的?(?:左|右|双|两)侧?[^,]{0,3}$")


def says_side(text: str, question: YesNoQuestion) -> bool | None:
    """病变在左侧吗 answered by 右侧."""
    sides = find_sides(text)
    if not (_ASKS_SIDE.search(question.statement) and question.sides and sides):
        return None
    return (sides == question.sides) is not bool(negated_spans(text))


MAX_COMPARISON_CHARACTERS = 400  # question and answer: the time grows with the cube of the length

_COMPARES = re.compile(r"(?:.*[,中])?(.+?)比(.+?)(?:更|要|还)?([大小高低多少长短亮暗粗细])")


def says_comparison(text: str, question: YesNoQuestion) -> bool | None:
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
    (r"(?<![不欠])对称", r"不对称|欠对称|较[大小]|大小不[等一]|[大小]于|一侧(?:增大|缩小)"),
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
_OPPOSITES = re.compile("|".join(words for pair in (*COMPLEMENTS, *CONTRARIES) for words in pair))
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


def says_opposite(text: str, question: YesNoQuestion) -> bool | None:
    """The word that the question asks about, its synonym or its opposite; normal answers no to a change."""
    word_pairs = [  # those that the question asks about
        (words, opposite, pair in COMPLEMENTS)
        for pair in ((*COMPLEMENTS, *CONTRARIES) if _OPPOSITES.search(question.statement) else ())
        for words, opposite in (pair, pair[::-1])
        if re.search(words, question.statement) and not re.search(opposite, question.statement)
    ]
    for clause in relevant_clauses(text, question) if word_pairs else ():
        for words, opposite, is_complement in word_pairs:
            negated = {is_negated(clause, *m.span()) for m in re.finditer(opposite, clause)}
            if negated == {False} or _denies_change(words, clause):
                return False
            if negated == {True} and is_complement:
                return True
            negated = {is_negated(clause, *m.span()) for m in re.finditer(words, clause)}
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


_ENDS_ABNORMAL = re.compile(rf"(?:{ABNORMAL.pattern})(?:影|灶|病变)?$")
IS_STATEMENT = re.compile(r"(?:.*[^不])?(?:是|为|属于|患有)([^,是为]+)$")
_LEADS = re.compile(
    r"^(?:这|那|它|此|该|所指|箭头所指|考虑|诊断|提示|应该?)*(?:的)?(?:是|为|属于|考虑为?|提示为?)?(?:一个|一种|一幅"
    r"|一张)?"
)


def says_identity(text: str, question: YesNoQuestion) -> bool | None:
    """…是肝脏吗 answered by 是脾脏 or 脾脏: the same organ or finding, a kind of it, or another."""
    in_question = IS_STATEMENT.match(question.statement)
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
    if ABNORMAL.search(asked_word[-2:]) and _ENDS_ABNORMAL.search(stated_word):
        if _is_subsequence(asked_word, stated_word):
            return True
        if not negated_spans(stated_word):
            return False
    return None


def _is_subsequence(short: str, long: str) -> bool:
    """Whether a name holds another one with words between: 急性期出血 and 急性出血."""
    characters = iter(long)
    return all(character in characters for character in short)
