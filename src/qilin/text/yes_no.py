"""Yes-no questions: whether a question asks for yes or no, and which of the two an answer gives.

In: a normalized question and answer. Out: True, False, or None where the answer gives neither or both (never a guess).
"""

from __future__ import annotations

import re
from functools import lru_cache

from qilin.text.laterality import find_sides, sides_conflict
from qilin.text.negation import is_negated, negated_spans
from qilin.text.vocabulary import FINDING_CATEGORIES, concept_of, find_terms

YES = frozenset((
    "是", "是的", "有", "有的", "存在", "存在的", "包含", "包括", "含有", "包含有", "可以", "可以的", "能",
    "能够", "会", "会的", "对", "对的", "正确", "正确的", "没错", "属于", "可见", "能看到", "可以看到",
    "可以观察到", "看得到", "看得见", "能看见", "出现", "出现了", "出现过", "是这样", "的确", "确实", "确实是",
    "当然", "肯定", "肯定的", "阳性", "成立", "yes", "true", "y", "yeah", "correct", "right", "√", "✓", "嗯",
    "符合", "支持", "涉及",
))  # fmt: skip
NO = frozenset((
    "不是", "不是的", "否", "没有", "没有的", "没", "无", "不存在", "不包含", "不包括", "不含", "不含有",
    "未包含", "不可以", "不可以的", "不能", "不能够", "不会", "不对", "不对的", "错", "错误", "错误的", "错的",
    "不正确", "不正确的", "不准确", "不属于", "并非", "并非如此", "并不是", "不", "不可见", "看不到", "看不见",
    "未见", "未见到", "未出现", "没有出现", "没出现", "没有看到", "没有包含", "不符合", "不支持", "不涉及",
    "未观察到", "没有观察到", "未发现", "没有发现", "否定", "否定的", "阴性", "非", "不成立", "no", "false",
    "观察不到", "看不出", "找不到", "n", "nope", "incorrect", "wrong", "×", "✗",
))  # fmt: skip

MAX_WORD_CHARACTERS = 60  # of a bare yes or no with its hedges and negations

_YES_NO_MARKERS = re.compile(
    r"(?:吗|么|嘛|吧|不)\??$|(?:吗|么|嘛)\?|是否|有没有|有无|是不是|能否|可否|能不能|可不可以|会不会|对不对|属不属于|存不存在|包不包含"
    r"|^(?:is|are|was|were|does|do|did|can|has|have|could)\b"
)
_OPEN_MARKERS = re.compile(
    r"什么|哪|多少|几(?!乎)|多大|多长|如何|怎么|怎样|为何|谁|还是|\bor\b|^(?:what|which|where|how|why|who|when)\b"
)
_A_NOT_A = re.compile(r"有没有|有无|是不是|是否|能不能|可不可以|能否|可否|会不会|对不对|属不属于|存不存在|包不包含")
_HEDGES = re.compile(r"^(?:嗯|确实|的确|当然|肯定|应该|似乎|好像|我认为|可能)?(.*?)(?:的|了|啊|呢|哦|哈)?$")
_NEGATED_WORD = re.compile(r"^(?:并非|并不是|不是)(.+)$")
_LEADING_WORD = re.compile(r"^(.+?)(?:[,.。;:!?(]|\s(?=[^a-z])|$)(.*)$", re.DOTALL)
_ENGLISH_LEADING_WORD = re.compile(r"^(yes|no)\b[,.\s]*(.*)$", re.DOTALL)
_CLAUSE = re.compile(r"[,。;!?\n]")
_AFFIRMS = re.compile(
    r"是|有|存在|包含|包括|含|可见|见|显示|可以|能|属于|出现|看到|观察到|发现|\bis\b|\bare\b|\bthere\b|为"
)

_NORMAL = re.compile(r"正常|健康|\bnormal\b|\bhealthy\b")
_ABNORMAL = re.compile(r"异常|病变|病灶|\babnormal\w*|\bunhealthy\b|问题")
_NORMALITY = re.compile(r"正常|健康|异常|\b(?:ab)?normal|\b(?:un)?healthy")
_LESION = re.compile(r"(?<![有在见现何])(?:病变|病灶|问题)")
_FUNCTION_WORDS = re.compile(
    r"这张|这幅|这个|该|此|本|医学|图像|图片|影像|照片|图|中|里|上|内|的|了|是|有|存在|包含|包括|含有|含|可以|能|看起来|看到|观察到"
    r"|显示|出现|属于|一个|一张|任何|病人|患者|关于|器官|吗|么|嘛|\?|被|用于|通过|拍摄"
)
# Categories of which an image has exactly one: naming another one answers no.
_EXCLUSIVE = ("modality", "plane", "region")


@lru_cache(maxsize=20_000)
def is_yes_no_question(question: str) -> bool:
    """Whether yes or no answers a normalized question: …吗, 是否…, 有没有…; not 哪个…, A还是B."""
    return _YES_NO_MARKERS.search(question) is not None and not is_open_question(question)


def is_open_question(question: str) -> bool:
    """Whether a question asks what, which, where or how many."""
    return _OPEN_MARKERS.search(_A_NOT_A.sub("", question)) is not None


def word_polarity(text: str) -> bool | None:
    """The polarity of a bare yes or no word; None for any other text."""
    if len(text) > MAX_WORD_CHARACTERS:
        return None
    affirms = True
    while True:
        for word in (text, _HEDGES.sub(r"\1", text)):
            if word in YES:
                return affirms
            if word in NO:
                return not affirms
        negated = _NEGATED_WORD.match(text)
        if negated is None:
            return None
        text, affirms = negated.group(1), not affirms


@lru_cache(maxsize=20_000)
def normality(text: str) -> bool | None:
    """True if a text states normal (正常, 未见异常), False if abnormal (异常, 不正常), None for neither or both."""
    states = {
        is_normal is not is_negated(text, *match.span())
        for pattern, is_normal in ((_NORMAL, True), (_ABNORMAL, False))
        for match in pattern.finditer(text)
    }
    return states.pop() if len(states) == 1 else None


@lru_cache(maxsize=20_000)
def question_normality(question: str) -> bool | None:
    """True if a question asks whether something is normal, False if whether it is abnormal, None if it asks neither."""
    statement = _A_NOT_A.sub("", question)
    if _LESION.search(statement) and not _NORMALITY.search(_LESION.sub("", statement)):
        return None  # 该病灶边界清楚吗 presupposes the lesion and asks for something else
    return normality(statement)


@lru_cache(maxsize=20_000)
def named_terms(text: str, category: str) -> frozenset[str]:
    """Canonical names of one category that a text uses without negating: ("胸部ct图像", "modality") -> {CT}."""
    return frozenset(
        match.concept.name for match in find_terms(text, category) if not is_negated(text, match.start, match.end)
    )


def _content_bigrams(text: str) -> set[str]:
    """Character bigrams of the text without its function words."""
    pieces = _FUNCTION_WORDS.split(text)
    return {piece[i : i + 2] for piece in pieces for i in range(max(len(piece) - 1, min(len(piece), 1)))}


def _is_negative_statement(statement: str) -> bool:
    """Whether the statement in a question is negated: 没有结节吗."""
    return bool(negated_spans(statement.rstrip("吗么嘛?")))


def _sentence_polarity(text: str, question: str) -> bool | None:
    """What a sentence answers to the statement in a question: the result of the first rule that applies."""
    statement = _A_NOT_A.sub("", question)
    asked_state, stated = question_normality(question), normality(text)
    if asked_state is not None and stated is not None and not sides_conflict(text, statement):
        return stated is asked_state
    for category in _EXCLUSIVE:
        in_question, in_text = named_terms(statement, category), named_terms(text, category)
        is_asked = category != "region" or re.search(r"关于|属于|位于|部位|在", question)
        if len(in_question) == 1 and len(in_text) == 1 and is_asked:
            return in_question == in_text
    for category in ("appearance", "sequence"):
        names = named_terms(statement, category), named_terms(text, category)
        if any(len(pair & names[0]) == len(pair & names[1]) == 1 for pair in _OPPOSITES):
            return bool(names[0] & names[1])
    if _ASKS_SIDE.search(statement) and find_sides(statement) and find_sides(text):
        return (find_sides(text) == find_sides(statement)) is not bool(negated_spans(text))
    compared = _comparison(text, statement)
    if compared is not None:
        return compared
    if sides_conflict(text, statement):
        return None  # about another side than the question
    for rule in (_opposite, _identity):
        polarity_by_rule = rule(text, statement)
        if polarity_by_rule is not None:
            return polarity_by_rule
    if asked_state is None:
        echoed = _echo(text, statement)
        if echoed is not None:
            return echoed
        if _ASKS_PRESENCE.search(statement):
            present = _presence(text, statement)
            if present is not None:
                return present is not _is_negative_statement(statement)
    return _first_clause(text, statement)


# Pairs that exclude each other: 良性 answers no to 恶性的吗.
_OPPOSITES = ({"良性", "恶性"}, {"男性", "女性"}, {"T1", "T2"}, {"高密度", "低密度"})
_ASKS_SIDE = re.compile(r"(?:在|位于|是)(?:图像?|身体)?的?(?:左|右|双|两)侧?[^,]{0,3}(?:吗|么|嘛)?\??$")
_ASKS_PRESENCE = re.compile(r"有|存在|包含|包括|含|见|看到|观察|出现|显示|发现|\bthere\b")
_NEGATION = re.compile(r"^(?:并不|不是|没有|未见|未|不|非|无)")

# Words that exclude each other: 锐利 answers no to 变钝吗. One of two complements is always true: 不模糊 means 清楚.
_COMPLEMENTS = ((r"变钝|圆钝", r"锐利"), (r"清楚|清晰", r"模糊|不清"))
_CONTRARIES = (
    (r"增大|扩大|肿大", r"缩小|变小|萎缩"),
    (r"增宽|扩张", r"变窄|狭窄"),
    (r"增高|升高", r"减低|降低"),
)
# What a normal structure is not: 心影大小正常 answers no to 增大吗.
_CHANGED = re.compile(r"增大|扩大|肿大|增宽|扩张|变钝|移位|狭窄|增厚|增粗|增高|减低")


def _opposite(text: str, statement: str) -> bool | None:
    """No if the text affirms the opposite of the word that the question asks about, or states normal."""
    no = _is_negative_statement(statement)
    for pair in (*_COMPLEMENTS, *_CONTRARIES):
        for asked_word, opposite in (pair, pair[::-1]):
            if (
                re.search(asked_word, statement)
                and not re.search(opposite, statement)
                and not re.search(asked_word, text)
            ):
                negated = {is_negated(text, *match.span()) for match in re.finditer(opposite, text)}
                if negated == {False}:
                    return no
                if negated == {True} and pair in _COMPLEMENTS:
                    return not no
    return no if _CHANGED.search(statement) and not _CHANGED.search(text) and normality(text) else None


MAX_COMPARISON_CHARACTERS = 400  # question and answer: the time grows with the cube of the length

_COMPARES = re.compile(r"(?:.*[,中])?(.+?)比(.+?)(?:更|要|还)?([大小高低多少长短亮暗粗细])")


def _comparison(text: str, statement: str) -> bool | None:
    """A比B大吗 answered by A更大 or B更大, B比A大, 一样大."""
    comparison = _COMPARES.match(statement) if len(statement) + len(text) <= MAX_COMPARISON_CHARACTERS else None
    if comparison is None:
        return None
    first, second, quality = comparison.groups()
    if re.search(rf"(?:一样|同样|同等){quality}", text):
        return False
    stated = _COMPARES.match(text)
    superlative = re.fullmatch(rf"(?:.*[,中])?(.+?)(?:更|最|较){quality}", text)
    winner = stated.group(1) if stated and stated.group(3) == quality else superlative.group(1) if superlative else None
    return {first: True, second: False}.get(winner) if winner and not negated_spans(text) else None


_IS = re.compile(r"(?:.*[^不])?(?:是|为)([^,是为]+?)(?:吗|么|嘛)?\??$")


def _identity(text: str, statement: str) -> bool | None:
    """…是肝脏吗 answered by 是脾脏 or 脾脏: an organ or finding, the same one or another."""
    in_question, in_text = _IS.match(statement), _IS.fullmatch(text)
    asked = concept_of(in_question.group(1)) if in_question else None
    stated = concept_of(in_text.group(1) if in_text else text)
    for kinds in (("organ",), FINDING_CATEGORIES):
        if asked and stated and asked.category in kinds and stated.category in kinds:
            return asked == stated
    return None


def _echo(text: str, statement: str) -> bool | None:
    """A bare part of the question repeated (对称), or repeated and negated (不对称)."""
    negation = _NEGATION.match(text)
    for part, affirms in ((text, True), (text[negation.end() :] if negation else "", False)):
        position = statement.find(part) if len(part) > 1 else -1
        if position >= 0:
            is_negated_in_question = position > 0 and statement[position - 1] in "不未没无非"
            return affirms is not is_negated_in_question
    return None


def _presence(text: str, statement: str) -> bool | None:
    """Whether the text affirms or negates the finding, organ or region that the question names; else None."""
    states: set[bool] = set()
    for kinds in (FINDING_CATEGORIES, ("organ",), ("region",)):
        asked_names = {match.concept.name for match in find_terms(statement, *kinds)}
        states |= {
            not is_negated(text, match.start, match.end)
            for match in find_terms(text, *kinds)
            if match.concept.name in asked_names
        }
    return states.pop() if len(states) == 1 else None


def _first_clause(text: str, statement: str) -> bool | None:
    """The first clause that shares content with the question, by its negation."""
    bigrams = _content_bigrams(statement)
    clause = next((clause for clause in _CLAUSE.split(text) if clause and _content_bigrams(clause) & bigrams), None)
    if clause is None:
        return None
    negates = bool(negated_spans(clause)) or clause.endswith(("不存在", "没有", "未见"))
    if not negates and not _AFFIRMS.search(clause):
        return None
    return negates is _is_negative_statement(statement)


@lru_cache(maxsize=20_000)
def polarity(text: str, question: str = "") -> bool | None:
    """Whether a normalized answer says yes (True) or no (False) to a normalized question.

    A leading word decides (是的,…); a sentence is read by its negation and by what it shares with the question. An
    answer that says both, or neither, is None.
    """
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
