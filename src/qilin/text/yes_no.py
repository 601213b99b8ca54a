"""Yes or no: what a question of that kind asks, and which of the two an answer says.

In: normalised question and answer. Out: True, False, or None where the answer says neither or both; never a guess.
"""

from __future__ import annotations

import re
from functools import lru_cache

from qilin.text.laterality import sides, sides_conflict
from qilin.text.negation import denied_spans, is_denied
from qilin.text.synonyms import kind_and_name, words_of

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

_ASKS = re.compile(
    r"(?:吗|么|嘛|吧|不)\??$|(?:吗|么|嘛)\?|是否|有没有|有无|是不是|能否|可否|能不能|可不可以|会不会|对不对|属不属于|存不存在|包不包含"
    r"|^(?:is|are|was|were|does|do|did|can|has|have|could)\b"
)
_WH = re.compile(
    r"什么|哪|多少|几(?!乎)|多大|多长|如何|怎么|怎样|为何|谁|还是|\bor\b|^(?:what|which|where|how|why|who|when)\b"
)
_A_NOT_A = re.compile(r"有没有|有无|是不是|是否|能不能|可不可以|能否|可否|会不会|对不对|属不属于|存不存在|包不包含")
_STRIP = re.compile(r"^(?:嗯|确实|的确|当然|肯定|应该|似乎|好像|我认为|可能)?(.*?)(?:的|了|啊|呢|哦|哈)?$")
_DENIED_WORD = re.compile(r"^(?:并非|并不是|不是)(.+)$")
_LEAD = re.compile(r"^(.+?)(?:[,.。;:!?(]|\s(?=[^a-z])|$)(.*)$", re.DOTALL)
_ENGLISH_LEAD = re.compile(r"^(yes|no)\b[,.\s]*(.*)$", re.DOTALL)
_CLAUSE = re.compile(r"[,。;!?\n]")
_AFFIRMS = re.compile(
    r"是|有|存在|包含|包括|含|可见|见|显示|可以|能|属于|出现|看到|观察到|发现|\bis\b|\bare\b|\bthere\b|为"
)

_NORMAL = re.compile(r"正常|健康|\bnormal\b|\bhealthy\b")
_ABNORMAL = re.compile(r"异常|病变|病灶|\babnormal\w*|\bunhealthy\b|问题")
_STATE = re.compile(r"正常|健康|异常|\b(?:ab)?normal|\b(?:un)?healthy")
_OF_A_LESION = re.compile(r"(?<![有在见现何])(?:病变|病灶|问题)")
_STOP = re.compile(
    r"这张|这幅|这个|该|此|本|医学|图像|图片|影像|照片|图|中|里|上|内|的|了|是|有|存在|包含|包括|含有|含|可以|能|看起来|看到|观察到"
    r"|显示|出现|属于|一个|一张|任何|病人|患者|关于|器官|吗|么|嘛|\?|被|用于|通过|拍摄"
)
# Kinds of which one image has one: naming another one answers no.
_EXCLUSIVE = ("modality", "plane", "region")


@lru_cache(maxsize=20_000)
def asks_yes_no(question: str) -> bool:
    """Whether a normalised question can be answered by yes or no: …吗, 是否…, 有没有…; not 哪个…, A还是B."""
    return _ASKS.search(question) is not None and _WH.search(_A_NOT_A.sub("", question)) is None


def asks_openly(question: str) -> bool:
    """Whether it asks what, which, where, how many."""
    return _WH.search(_A_NOT_A.sub("", question)) is not None


def word_polarity(text: str) -> bool | None:
    """The polarity of a bare yes or no word; None for any other text."""
    for word in (text, _STRIP.sub(r"\1", text)):
        if word in YES:
            return True
        if word in NO:
            return False
    double = _DENIED_WORD.match(text)
    inner = word_polarity(double.group(1)) if double else None
    return None if inner is None else not inner


@lru_cache(maxsize=20_000)
def normality(text: str) -> bool | None:
    """True where a text says normal (正常, 未见异常), False where abnormal (异常, 不正常), None for neither or both."""
    said: set[bool] = set()
    for pattern, meaning in ((_NORMAL, True), (_ABNORMAL, False)):
        for match in pattern.finditer(text):
            denied = is_denied(text, match.start(), match.end())
            said.add(meaning is not denied)
    return said.pop() if len(said) == 1 else None


@lru_cache(maxsize=20_000)
def asked_normality(question: str) -> bool | None:
    """True if a question asks whether something is normal, False if whether it is abnormal, None if it asks neither."""
    stated = _A_NOT_A.sub("", question)
    if _OF_A_LESION.search(stated) and not _STATE.search(_OF_A_LESION.sub("", stated)):
        return None  # 该病灶边界清楚吗 takes the lesion for granted and asks for something else
    return normality(stated)


@lru_cache(maxsize=20_000)
def named(text: str, kind: str) -> frozenset[str]:
    """The names of one kind that a text uses and does not deny: named("胸部ct图像", "modality") = {CT}."""
    found: set[str] = set()
    for match in _names_of(kind).finditer(text):
        if not is_denied(text, match.start(), match.end()):
            found.add(words_of(kind)[match.group()])
    return frozenset(found)


@lru_cache(maxsize=16)
def _names_of(kind: str) -> re.Pattern[str]:
    words = sorted(words_of(kind), key=len, reverse=True)
    return re.compile("|".join(rf"(?<![a-z]){re.escape(w)}(?![a-z])" if w.isascii() else re.escape(w) for w in words))


def _content(text: str) -> set[str]:
    """Two-letter pieces of what a text is about, its frame words left out."""
    return {piece[i : i + 2] for piece in _STOP.split(text) for i in range(max(len(piece) - 1, min(len(piece), 1)))}


def _sentence_polarity(text: str, question: str) -> bool | None:
    """What a sentence says about the question's statement: the first way of reading it that reads anything."""
    stated = _A_NOT_A.sub("", question)
    asked, said = asked_normality(question), normality(text)
    if asked is not None and said is not None and not sides_conflict(text, stated):
        return said is asked
    for kind in _EXCLUSIVE:
        of_question, of_text = named(stated, kind), named(text, kind)
        asks_which = kind != "region" or re.search(r"关于|属于|位于|部位|在", question)
        if len(of_question) == 1 and len(of_text) == 1 and asks_which:
            return of_question == of_text
    looks = named(stated, "look"), named(text, "look")
    if any(len(pair & looks[0]) == len(pair & looks[1]) == 1 for pair in _OPPOSITES):
        return bool(looks[0] & looks[1])
    if _ASKS_SIDE.search(stated) and sides(stated) and sides(text):
        return (sides(text) == sides(stated)) is not bool(denied_spans(text))
    compared = _comparison(text, stated)
    if compared is not None:
        return compared
    if sides_conflict(text, stated):
        return None  # speaks of another side than was asked about
    for reading in (_opposite, _what_it_is):
        read = reading(text, stated)
        if read is not None:
            return read
    if asked is None:
        echoed = _echo(text, stated)
        if echoed is not None:
            return echoed
        if _ASKS_PRESENCE.search(stated):
            present = _presence(text, stated)
            if present is not None:
                return present is not bool(denied_spans(stated.rstrip("吗么嘛?")))
    return _first_clause(text, stated)


# Of these one excludes the other: 良性 answers no to 恶性的吗.
_OPPOSITES = ({"良性", "恶性"}, {"男性", "女性"}, {"T1", "T2"}, {"高密度", "低密度"})
_ASKS_SIDE = re.compile(r"(?:在|位于|是)(?:图像?|身体)?的?(?:左|右|双|两)侧?[^,]{0,3}(?:吗|么|嘛)?\??$")
_ASKS_PRESENCE = re.compile(r"有|存在|包含|包括|含|见|看到|观察|出现|显示|发现|\bthere\b")
_DENIAL = re.compile(r"^(?:并不|不是|没有|未见|未|不|非|无)")


# Words that exclude one another: 锐利 answers no to 变钝吗. Of complements one must be so: 不模糊 is 清楚.
_COMPLEMENTS = ((r"变钝|圆钝", r"锐利"), (r"清楚|清晰", r"模糊|不清"))
_CONTRARIES = (
    (r"增大|扩大|肿大", r"缩小|变小|萎缩"),
    (r"增宽|扩张", r"变窄|狭窄"),
    (r"增高|升高", r"减低|降低"),
)
# What a normal thing is not: 心影大小正常 answers no to 增大吗.
_CHANGED = re.compile(r"增大|扩大|肿大|增宽|扩张|变钝|移位|狭窄|增厚|增粗|增高|减低")


def _opposite(text: str, stated: str) -> bool | None:
    """No where the text affirms the opposite of the word that the question asks about, or calls the thing normal."""
    no = bool(denied_spans(stated.rstrip("吗么嘛?")))
    for pair in (*_COMPLEMENTS, *_CONTRARIES):
        for asked, said in (pair, pair[::-1]):
            if re.search(asked, stated) and not re.search(said, stated) and not re.search(asked, text):
                denied = {is_denied(text, *m.span()) for m in re.finditer(said, text)}
                if denied == {False}:
                    return no
                if denied == {True} and pair in _COMPLEMENTS:
                    return not no
    return no if _CHANGED.search(stated) and not _CHANGED.search(text) and normality(text) else None


_COMPARES = re.compile(r"(?:.*[,中])?(.+?)比(.+?)(?:更|要|还)?([大小高低多少长短亮暗粗细])")


def _comparison(text: str, stated: str) -> bool | None:
    """A比B大吗 answered A更大 or B更大, B比A大, 一样大."""
    asked = _COMPARES.match(stated)
    if asked is None:
        return None
    first, second, how = asked.groups()
    if re.search(rf"(?:一样|同样|同等){how}", text):
        return False
    said = _COMPARES.match(text)
    more = re.fullmatch(rf"(?:.*[,中])?(.+?)(?:更|最|较){how}", text)
    winner = said.group(1) if said and said.group(3) == how else more.group(1) if more else None
    return {first: True, second: False}.get(winner) if winner and not denied_spans(text) else None


_IS = re.compile(r"(?:.*[^不])?(?:是|为)([^,是为]+?)(?:吗|么|嘛)?\??$")


def _what_it_is(text: str, stated: str) -> bool | None:
    """…是肝脏吗 answered 是脾脏 or 脾脏: an organ or finding, the one asked about or another."""
    asked, said = _IS.match(stated), _IS.fullmatch(text)
    one = kind_and_name(asked.group(1)) if asked else None
    other = kind_and_name(said.group(1) if said else text)
    same_kind = one and other and one[0] == other[0] and one[0] in ("organ", "finding")
    return one == other if same_kind else None


def _echo(text: str, stated: str) -> bool | None:
    """A bare piece of the question said back (对称), or said back denied (不对称)."""
    denial = _DENIAL.match(text)
    for piece, affirms in ((text, True), (text[denial.end() :] if denial else "", False)):
        at = stated.find(piece) if len(piece) > 1 else -1
        if at >= 0:
            asked_denied = at > 0 and stated[at - 1] in "不未没无非"
            return affirms is not asked_denied
    return None


def _presence(text: str, stated: str) -> bool | None:
    """Whether the text affirms or denies the finding, organ or region that the question names; else None."""
    said: set[bool] = set()
    for kind in ("finding", "organ", "region"):
        asked = {words_of(kind)[m.group()] for m in _names_of(kind).finditer(stated)}
        for m in _names_of(kind).finditer(text):
            if words_of(kind)[m.group()] in asked:
                said.add(not is_denied(text, *m.span()))
    return said.pop() if len(said) == 1 else None


def _first_clause(text: str, stated: str) -> bool | None:
    """The first clause that shares content with the question, by its negation."""
    about = _content(stated)
    clause = next((clause for clause in _CLAUSE.split(text) if clause and _content(clause) & about), None)
    if clause is None:
        return None
    says_no = bool(denied_spans(clause)) or clause.endswith(("不存在", "没有", "未见"))
    if not says_no and not _AFFIRMS.search(clause):
        return None
    return says_no is bool(denied_spans(stated.rstrip("吗么嘛?")))


@lru_cache(maxsize=20_000)
def polarity(text: str, question: str = "") -> bool | None:
    """Whether a normalised answer says yes (True) or no (False) to a normalised question.

    A leading word decides (是的,…); a sentence is read by its negation and by what it shares with the question. An
    answer that says both, or neither, is None.
    """
    word = word_polarity(text)
    if word is not None:
        return word
    lead = _ENGLISH_LEAD.match(text) or _LEAD.match(text)
    first = word_polarity(lead.group(1)) if lead else None
    if first is None:
        return _sentence_polarity(text, question) if question else None
    rest = lead.group(2).strip() if lead else ""
    then = polarity(rest, question) if rest else None
    return first if then is None or then is first else None
