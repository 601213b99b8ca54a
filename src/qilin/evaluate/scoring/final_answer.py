"""The final answer of a chat model's reply: without reasoning, markup, repeated question, explanation and courtesy.

Input: a reply as the model wrote it, and the question. Output: a FinalAnswer: the text that answers, in the model's own
words (normalization comes later), or why there is none. It is called once, before any comparison. A bare answer is
returned unchanged, and nothing decides here whether an answer is right. The steps are in `extract_final_answer`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from qilin.evaluate.scoring.reply_markup import (
    boxed_answer,
    json_answer,
    own_turn,
    tagged_answer,
    to_plain_text,
    without_reasoning,
    without_special_tokens,
)
from qilin.evaluate.scoring.reply_text import (
    ITEM,
    SENTENCE,
    list_in_one_line,
    unwrapped,
    without_courtesy,
    without_lead,
    without_loop,
    without_name,
    without_reason,
    without_role,
)
from qilin.text.normalize import normalize_text
from qilin.text.yes_no import is_yes_no_question

MAX_REPLY_CHARACTERS = 200_000  # 50,000 tokens of reasoning; a longer reply is read as it is
NO_ANSWER_RULES = ("empty", "unfinished")


@dataclass(frozen=True)
class FinalAnswer:
    """The text that answers, or "" and which of NO_ANSWER_RULES applies in `missing`."""

    text: str
    missing: str = ""


def extract_final_answer(reply: str, question: str = "") -> FinalAnswer:
    """The part of a reply that answers the question.

    Reasoning that is not closed is no answer ("unfinished"); a reply of nothing but reasoning, the question, courtesy
    or advice is none either ("empty"). In order: the model's own first turn; the text after its reasoning; without
    the repeated question; a JSON field or answer tag; loops once; the last box or declaration (答案：, the answer is)
    without the explanation after it, else the text without explanation and role; without courtesy and advice; a list
    in one line.
    """
    if len(reply) > MAX_REPLY_CHARACTERS or _PLAIN.fullmatch(reply):
        return FinalAnswer(reply)
    finished = _finished_text(reply)
    if finished is None:
        return FinalAnswer("", "unfinished")
    text = _without_question(finished, question)
    if _MARKUP.search(text):
        text = _without_markup(text, question)
    text, declared = _text_and_declared_answer(text)
    if declared is None:
        text = without_courtesy(text, question)
        declared = _concluded_answer(text, question)
    else:
        declared = without_courtesy(declared, question)
        declared = _first_sentence(declared, question)
    text = without_reason(text if declared is None else declared, question)
    text = unwrapped(without_lead(without_name(list_in_one_line(text), question), question))
    return FinalAnswer(text) if _CONTENT.search(text) else FinalAnswer("", "empty")


# The steps that do not depend on the question are cached: controls and small models give many rows the same reply.
@lru_cache(maxsize=2_000)
def _finished_text(reply: str) -> str | None:
    """The model's own turn without reasoning and special tokens; None if the reasoning was not finished."""
    turn = own_turn(reply) if _MARKUP.search(reply) else reply
    text = None if turn is None else without_reasoning(turn)
    return None if text is None else without_special_tokens(text)


@lru_cache(maxsize=2_000)
def _text_and_declared_answer(text: str) -> tuple[str, str | None]:
    """A plain text without loops, role and explanation, and the answer that it declares, if any."""
    text = without_loop(_DASH.sub("。", text.replace("\r", "\n")).strip())
    declared = _declared_answer(text)
    return (text, declared) if declared is not None else (_without_explanation(without_role(text)), None)


def _without_markup(text: str, question: str) -> str:
    """The plain text of the marked answer, or of the whole text; the last box is enclosed in _BOX and _BOX_END."""
    for marked in (json_answer(text, question), tagged_answer(text)):
        text = text if marked is None else marked
    box = boxed_answer(text)
    return to_plain_text(text[: box[0]] + _BOX + box[2] + _BOX_END + text[box[1] :] if box else text)


_WORD = re.compile(r"\w")
_CONTENT = re.compile(r"\w|[√✓×✗✔✘+-]")
_DASH = re.compile(r"(?<=[\u4e00-\u9fff）)])\s*——\s*")
_MARKUP = re.compile(r"[<>{\[\]*_`#|\\$&◁:：\n]")
# A few words without marks need no reading; a loop is longer.
_PLAIN = re.compile(
    r"(?!.*(?:答案|因为|因此|所以|综上|建议|我|吗|么|否|有没有|有无|是不是))[\u4e00-\u9fffA-Za-z0-9]{1,9}"
)
_BOX, _BOX_END = "\x02", "\x03"  # the last box, while the text is searched for declarations

# --- the repeated question ------------------------------------------------------------------------------------------

_ASKS = re.compile(
    r"吗|么|什么|哪|几|多少|是否|有无|有没有|是不是|能否|何|谁|怎|还是|如何|\?|？|判断|\b(?:is|are|what|which|where|how|does|do)\b",
    re.I,
)
_QUESTION_FRAME = r"(?:您(?:的问题|问的)(?:是)?|关于|针对|对于|问题|题目|原题|问|question|q)?\s*\d*\s*[:：]?\s*"
_MAX_QUESTION_CHARACTERS = 1_000
_SPACES, _TAG = re.compile(r"\s"), re.compile(r"<[^<>]{1,20}>")


def _without_question(text: str, question: str) -> str:
    """The text without the question at its beginning; an affirmed statement (图中有肝脏 for 图中有肝脏吗) stays."""
    bare_question = _bare_question(question)
    too_long = len(bare_question) > _MAX_QUESTION_CHARACTERS
    if not bare_question or too_long or not _starts_alike(text, bare_question):
        return text
    pattern = r"\s*".join(map(re.escape, bare_question))
    echo = re.match(
        rf"[\s*#>]*({_QUESTION_FRAME})[“\"'「*]*{pattern}\s*([?？。.:：]*)[”\"'」*]*(?:这个问题|一题)?\s*[,，]?\s*",
        text,
        re.I,
    )
    if echo is None or not (echo[1].strip() or echo[2] or _ASKS.search(bare_question)):
        return text
    rest = text[echo.end() :]
    return re.sub(r"^\s*A\s*[:：]\s*", "", rest) if re.match(r"\s*q", echo[1], re.I) else rest


@lru_cache(maxsize=1_000)
def _bare_question(question: str) -> str:
    """A question without spaces, tags and its last marks."""
    return _SPACES.sub("", _TAG.sub("", question)).rstrip("?？。.:：")


def _starts_alike(text: str, bare_question: str) -> bool:
    """Whether the question's first characters occur near the beginning: the full pattern costs a compilation."""
    start = bare_question[:4]
    return start.lower() in _SPACES.sub("", text[: len(start) * 3 + 60]).lower()


# --- declared answers -----------------------------------------------------------------------------------------------

_HEAD = (
    r"(?:\d{1,2}[.、]\s*)?(?![^\n:：]{0,6}鉴别)[^\n:：,，。;；]{0,8}"
    r"(?:诊断|结论|回答|答案|判断)(?:结果|意见)?(?:如下|是|为)?"
)
_DECLARED = re.compile(
    r"【(?!鉴别)[^】\n]{0,6}(?:答案|诊断|诊断意见|结论)】\s*[:：]?"
    r"|(?:最可能|首要|主要|首先考虑)的?诊断(?:应该?)?(?:为|是|考虑)\s*[:：]?|(?<!\w)诊断(?:为|是)\s*[:：]"
    r"|(?:最终|正确|标准|参考|我的|本题|该题|此题)?的?(?:答案|最终(?:诊断|结论|结果|判断))"
    r"[ \t]*(?:应该|应当|应|就)?[ \t]*(?:(?:是|为|选)[ \t]*[:：]?|[:：]|[ \t](?=[ \t]*[A-H]\b))"
    r"|(?:^|(?<=[\s。；;,，.!！(（]))(?:the\s+)?(?:(?:final|correct|right|best|my)\s+)*(?:answer|choice)\s*(?:is\s*:?|[:：])(?!\s*not\b)"
    rf"|^[ \t]*(?:{_HEAD}|答复?)[ \t]*[:：]"
    r"|^[ \t]*(?:diagnosis|conclusion|impression|response)\s*:"
    rf"|^[ \t]*(?:{_HEAD}|(?:final )?answer|final response|conclusion|diagnosis)[ \t]*[:：]?[ \t]*\n",
    re.I | re.M,
)
_MAY_DECLARE = re.compile(r"答案|诊断|结论|最终|[:：\n]|answer|choice|response|conclusion|diagnosis", re.I)
# Heads of what follows an answer.
_EXPLAINS = (
    r"(?:(?:答案|具体|详细)?(?:解析|分析|解释|说明|理由|原因|依据|诊断依据|判断依据|推理(?:过程)?|详解|备注|鉴别诊断|鉴别|附注)(?:如下)?"
    r"|具体(?:来说|如下|表现(?:为|如下)?)|参考文献|explanation|reason(?:ing)?|rationale|analysis|justification|note)"
)
_EXPLANATION = re.compile(
    rf"【\s*{_EXPLAINS}\s*】|[（(]\s*{_EXPLAINS}\s*[:：]"
    rf"|(?:^|[\n。；;.!！?？】)）\s])\s*(?:{_EXPLAINS}\s*[:：]|{_EXPLAINS}[ \t]*\n)",
    re.I,
)


def _declared_answer(text: str) -> str | None:
    """What follows the last declaration or box that is not empty; the explanation after it is cut off."""
    starts = [match.end() for match in _DECLARED.finditer(text)] if _MAY_DECLARE.search(text) else []
    if _BOX in text:
        starts.append(text.rindex(_BOX) + 1)
    for start in sorted(starts, reverse=True):
        tail = _without_explanation(text[start:].split(_BOX_END)[0].replace(_BOX, ""))
        tail = _first_paragraph(tail)
        if re.search(r"\w|[√✓×✗✔✘]", tail):
            return tail
    return None


def _first_paragraph(text: str) -> str:
    """The text up to the first empty line, unless a list goes on after it; English up to the first sentence's end."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    selected = paragraphs[:1]
    for part in paragraphs[1:]:
        if not (ITEM.match(part) and (ITEM.match(selected[-1]) or selected[-1].rstrip().endswith((":", "：")))):
            break
        selected.append(part)
    text = "\n".join(selected)
    sentence_end = re.search(r"(?<=[a-z]{3})[.!]\s+(?=[A-Z])|(?<=\b[A-H])\.\s+(?=[A-Z][a-z]+\s+[a-z])", text)
    return text[: sentence_end.start()] if sentence_end else text


_CONTINUES = re.compile(r"\s*(?:另外|此外|还有|同时|以及|其次|其二|并且|不|[②-⑳]|[2-9]\s*[.、])")


def _first_sentence(text: str, question: str) -> str:
    """The first sentence of a declared answer, unless the next one goes on with a list or takes it back.

    Yes and no need the rest too: 是的。图中没有肝脏 contradicts itself.
    """
    sentences = SENTENCE.findall(text)
    is_complete = len(sentences) > 1 and _WORD.search(sentences[0]) and "。" in sentences[0]
    if not is_complete or _CONTINUES.match(sentences[1]) or _asks_yes_or_no(question):
        return text
    return sentences[0]


def _asks_yes_or_no(question: str) -> bool:
    return is_yes_no_question(normalize_text(question))


def _without_explanation(text: str) -> str:
    """The text before 解析：, Explanation: and similar heads, if anything is before them."""
    for match in _EXPLANATION.finditer(text):
        if _WORD.search(text[: match.start()]):
            return re.sub(r"\n\s*\d{1,2}\s*$", "", text[: match.start()]).rstrip("（( ")
    return text


_CONCLUSION = re.compile(
    r"(?:综上(?:所述|可知)?|总之|总的来说|综合(?:以上|上述)?(?:分析|来看|信息|表现|所见)?(?=[,，])|总结"
    r"|in (?:conclusion|summary))[,，:：]?\s*",
    re.I,
)
_THEREFORE = re.compile(
    r"(?:(?<=[。；;，,.\n])|^)\s*(?:因此|所以|由此可见|故而?|therefore|thus|hence)\s*[,，:：]?\s*", re.I
)
_STATES = re.compile(r"是|为|属于|考虑|诊断|提示|选|\bis\b|\bare\b")
_CONSEQUENCE = re.compile(r"^.{0,6}(?:建议|需要|应当?(?:进行|及时|尽快|给予)|可以(?:采用|考虑|使用)|治疗|预后|无需)")


def _concluded_answer(text: str, question: str) -> str | None:
    """What follows 综上所述, or 因此 with a statement of what it is; in a yes/no question 因此 gives only a reason."""
    matches = list(_CONCLUSION.finditer(text))
    if matches and _WORD.search(text[matches[-1].end() :]):
        return text[matches[-1].end() :]
    matches = list(_THEREFORE.finditer(text))
    tail = text[matches[-1].end() :] if matches and not _asks_yes_or_no(question) else ""
    return tail if _STATES.search(tail) and not _CONSEQUENCE.match(tail) else None
