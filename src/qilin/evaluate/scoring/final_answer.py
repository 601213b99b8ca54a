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
from qilin.text.normalize import normalize_text
from qilin.text.yes_no import is_yes_no_question

MAX_REPLY_CHARACTERS = 200_000  # 50,000 tokens of reasoning; a longer reply is read as it is
NO_ANSWER_RULES = ("empty", "unfinished")


@dataclass(frozen=True)
class FinalAnswer:
    """The text that answers, or "" and which of NO_ANSWER_RULES applies in `missing`."""

    text: str
    missing: str = ""


@lru_cache(maxsize=20_000)
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
    turn = own_turn(reply)
    text = None if turn is None else without_reasoning(turn)
    if text is None:
        return FinalAnswer("", "unfinished")
    text = _without_question(without_special_tokens(text), question)
    for marked in (json_answer(text), tagged_answer(text)):
        text = text if marked is None else marked
    box = boxed_answer(text)
    text = to_plain_text(text[: box[0]] + _BOX + box[2] + _BOX_END + text[box[1] :] if box else text)
    text = _without_loop(re.sub(r"(?<=[\u4e00-\u9fff）)])\s*——\s*", "。", text.replace("\r", "\n")).strip())
    declared = _declared_answer(text)
    if declared is None:
        text = _without_courtesy(_without_explanation(_without_role(text)), question)
        declared = _concluded_answer(text, question)
    else:
        declared = _without_courtesy(declared, question)
        declared = _first_sentence(declared, question)
    text = _without_reason(text if declared is None else declared, question)
    text = _unwrapped(_without_lead(_list_in_one_line(text)))
    return FinalAnswer(text) if re.search(r"\w|[√✓×✗✔✘+-]", text) else FinalAnswer("", "empty")


# A few words without marks need no reading; a loop is longer.
_PLAIN = re.compile(r"(?!.*(?:答案|因为|因此|所以|综上|建议|我))[\u4e00-\u9fffA-Za-z0-9]{1,9}")
_BOX, _BOX_END = "\x02", "\x03"  # the last box, while the text is searched for declarations

# --- the repeated question ------------------------------------------------------------------------------------------

_ASKS = re.compile(
    r"吗|么|什么|哪|几|多少|是否|有无|有没有|是不是|能否|何|谁|怎|还是|如何|\?|？|判断|\b(?:is|are|what|which|where|how|does|do)\b",
    re.I,
)
_QUESTION_FRAME = r"(?:您(?:的问题|问的)(?:是)?|关于|针对|对于|问题|题目|原题|问|question|q)?\s*\d*\s*[:：]?\s*"
_MAX_QUESTION_CHARACTERS = 1_000


def _without_question(text: str, question: str) -> str:
    """The text without the question at its beginning; an affirmed statement (图中有肝脏 for 图中有肝脏吗) stays."""
    words = re.sub(r"\s", "", re.sub(r"<[^<>]{1,20}>", "", question)).rstrip("?？。.:：")
    if not words or len(words) > _MAX_QUESTION_CHARACTERS or not _starts_alike(text, words):
        return text
    pattern = r"\s*".join(map(re.escape, words))
    echo = re.match(
        rf"[\s*#>]*({_QUESTION_FRAME})[“\"'「*]*{pattern}\s*([?？。.:：]*)[”\"'」*]*(?:这个问题|一题)?\s*[,，]?\s*",
        text,
        re.I,
    )
    if echo is None or not (echo[1].strip() or echo[2] or _ASKS.search(words)):
        return text
    rest = text[echo.end() :]
    return re.sub(r"^\s*A\s*[:：]\s*", "", rest) if re.match(r"\s*q", echo[1], re.I) else rest


def _starts_alike(text: str, words: str) -> bool:
    """Whether the question's first characters occur near the beginning: the full pattern costs a compilation."""
    return words[:4].lower() in re.sub(r"\s", "", text[: len(words[:4]) * 3 + 60]).lower()


# --- declared answers -----------------------------------------------------------------------------------------------

_DECLARED = re.compile(
    r"【(?:最终|正确|参考|标准)?答案】\s*[:：]?"
    r"|(?:最终|正确|标准|参考|我的|本题|该题|此题)?的?(?:答案|最终(?:诊断|结论|结果|判断))"
    r"[ \t]*(?:应该|应当|应|就)?[ \t]*(?:(?:是|为|选)[ \t]*[:：]?|[:：]|[ \t](?=[ \t]*[A-H]\b))"
    r"|(?:^|(?<=[\s。；;,，.!！(（]))(?:the\s+)?(?:(?:final|correct|right|best|my)\s+)*(?:answer|choice)\s*(?:is\s*:?|[:：])(?!\s*not\b)"
    r"|^[ \t]*(?:[^\n:：,，。;；]{0,8}(?:诊断|结论|回答|答案|判断)(?:结果|意见)?(?:如下|是|为)?|答复?)[ \t]*[:：]"
    r"|^[ \t]*(?:diagnosis|conclusion|impression|response)\s*:"
    r"|^[ \t]*(?:(?:最终|正确)?(?:答案|回答)|诊断|结论|(?:final )?answer|final response)[ \t]*[:：]?[ \t]*\n",
    re.I | re.M,
)
# Heads of what follows an answer.
_EXPLAINS = (
    r"(?:(?:答案|具体|详细)?(?:解析|分析|解释|说明|理由|原因|依据|诊断依据|判断依据|推理(?:过程)?|详解|备注|鉴别诊断|鉴别|附注)(?:如下)?"
    r"|参考文献|explanation|reason(?:ing)?|rationale|analysis|justification|note)"
)
_EXPLANATION = re.compile(
    rf"【\s*{_EXPLAINS}\s*】|[（(]\s*{_EXPLAINS}\s*[:：]"
    rf"|(?:^|[\n。；;.!！?？】)）\s])\s*(?:{_EXPLAINS}\s*[:：]|{_EXPLAINS}[ \t]*\n)",
    re.I,
)


def _declared_answer(text: str) -> str | None:
    """What follows the last declaration or box that is not empty; the explanation after it is cut off."""
    starts = [match.end() for match in _DECLARED.finditer(text)]
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
    kept = paragraphs[:1]
    for part in paragraphs[1:]:
        if not (_ITEM.match(part) and (_ITEM.match(kept[-1]) or kept[-1].rstrip().endswith((":", "：")))):
            break
        kept.append(part)
    text = "\n".join(kept)
    sentence_end = re.search(r"(?<=[a-z]{3})[.!]\s+(?=[A-Z])|(?<=\b[A-H])\.\s+(?=[A-Z][a-z]+\s+[a-z])", text)
    return text[: sentence_end.start()] if sentence_end else text


_REASON = re.compile(
    r"[,，。；;\n]\s*(?:这(?:主要)?是)?(?:主要)?(?:因为|由于)|[,，。；;\n]\s*(?:其|主要)?(?:理由|原因|依据)(?:是|为|在于|如下|主要)"
    r"|[,.;]?\s+(?:this is )?because\b",
    re.I,
)
_REASON_END = re.compile(r"[。；;!！\n]|[,，]\s*(?=所以|因此|故|选)")
_ASKS_REASON = re.compile(r"为什么|为何|原因|理由|依据|病因|机制|\bwhy\b|\bcause", re.I)


_CONTINUES = re.compile(r"\s*(?:另外|此外|还有|同时|以及|其次|其二|并且|不|[②-⑳]|[2-9]\s*[.、])")


def _first_sentence(text: str, question: str) -> str:
    """The first sentence of a declared answer, unless the next one goes on with a list or takes it back.

    Yes and no need the rest too: 是的。图中没有肝脏 contradicts itself.
    """
    sentences = _SENTENCE.findall(text)
    is_complete = len(sentences) > 1 and re.search(r"\w", sentences[0]) and "。" in sentences[0]
    if not is_complete or _CONTINUES.match(sentences[1]) or _asks_yes_or_no(question):
        return text
    return sentences[0]


def _asks_yes_or_no(question: str) -> bool:
    return is_yes_no_question(normalize_text(question))


def _without_explanation(text: str) -> str:
    """The text before 解析：, Explanation: and similar heads, if anything is before them."""
    return _before(_EXPLANATION, text)


def _without_reason(text: str, question: str) -> str:
    """The text without the clause that gives the first reason (，因为…), unless the question asks why."""
    if _ASKS_REASON.search(question):
        return text
    match = next((m for m in _REASON.finditer(text) if re.search(r"\w", text[: m.start()])), None)
    if match is None:
        return text
    sentence_end = _REASON_END.search(text, match.end())
    return text[: match.start()] + (text[sentence_end.start() :] if sentence_end else "")


def _before(pattern: re.Pattern[str], text: str) -> str:
    """The text before the first match that has a word before it."""
    for match in pattern.finditer(text):
        if re.search(r"\w", text[: match.start()]):
            return text[: match.start()].rstrip("（( ")
    return text


_CONCLUSION = re.compile(
    r"(?:综上(?:所述|可知)?|总之|总的来说|综合(?:以上)?(?:分析|来看)|总结|in (?:conclusion|summary))[,，:：]?\s*", re.I
)
_THEREFORE = re.compile(
    r"(?:(?<=[。；;，,.\n])|^)\s*(?:因此|所以|由此可见|故而?|therefore|thus|hence)\s*[,，:：]?\s*", re.I
)
_STATES = re.compile(r"是|为|属于|考虑|诊断|提示|选|\bis\b|\bare\b")
_CONSEQUENCE = re.compile(r"^.{0,6}(?:建议|需要|应当?(?:进行|及时|尽快|给予)|可以(?:采用|考虑|使用)|治疗|预后|无需)")


def _concluded_answer(text: str, question: str) -> str | None:
    """What follows 综上所述, or 因此 with a statement of what it is; in a yes/no question 因此 gives only a reason."""
    matches = list(_CONCLUSION.finditer(text))
    if matches and re.search(r"\w", text[matches[-1].end() :]):
        return text[matches[-1].end() :]
    matches = list(_THEREFORE.finditer(text))
    tail = text[matches[-1].end() :] if matches and not _asks_yes_or_no(question) else ""
    return tail if _STATES.search(tail) and not _CONSEQUENCE.match(tail) else None


# --- courtesy and advice --------------------------------------------------------------------------------------------

_GREETING = re.compile(
    r"^\s*(?:(?:您好|你好|好的|嗯+|哦|呃|那么|其实|当然(?:可以)?|没问题|[感谢]谢您的(?:提问|咨询|信任)|很高兴(?:为您|能).{0,12}"
    r"|(?:让)?我(?:们)?(?:来|将|会).{0,12}(?:回答|解答|分析|问题)|下面.{0,12}(?:回答|解答|分析)"
    r"|sure|certainly|of course|hello|hi)"
    r"\s*[,，。!！:：~.]\s*)+",
    re.I,
)
_COURTESY = re.compile(
    r"^\s*(?:希望|祝(?:您|你|早)|谢谢|感谢|多谢|如(?:果|有|您)?.{0,20}(?:疑问|问题|需要|不适|症状|帮助|变化|需求)"
    r"|(?:以上|本|此|该)(?:内容|信息|回答|分析|解答|结果|建议)?.{0,8}(?:仅供|供您|供)参考|仅供参考"
    r"|请(?:注意|您|随时|及时|咨询|以|结合|尽快|遵|务必|提供|问|在)|具体.{0,12}(?:请|需|应|咨询|以).{0,20}(?:医生|临床|医师|专业|为准)"
    r"|最终(?:的)?(?:诊断|结果|判断).{0,6}(?:应|需|请|以)|(?:仍|还|但)?(?:需要|需|应)(?:要)?(?:进一步)?(?:结合|综合|咨询)"
    r"|建议(?:您|患者)?(?:进一步|及时|尽快)?(?:结合|咨询|就医|就诊|以医)"
    r"|(?:但)?需要?(?:特别)?(?:注意|说明|指出|强调)(?:的是)?|(?:以上|这)(?:就|便)?是(?:我|根据|基于|由).{0,20}(?:回答|结论|判断|答案|得出)"
    r"|(?:重要)?(?:提示|提醒|免责声明)[:：]|注(?:意)?[:：]|我(?:只)?是(?:一个|一名)?(?:ai|人工智能|语言模型)|早日康复|随时(?:告诉|联系|咨询)"
    r"|i hope|hope this|let me know|please (?:note|consult|see|let)|feel free|if you have (?:any|more))",
    re.I,
)
_ADVICE = re.compile(r"^\s*(?:因此|所以|同时|另外|此外|但|故)?[,，]?\s*(?:建议|推荐|必要时|请)", re.I)
_ADVICE_CLAUSE = re.compile(
    r"[,，;；]\s*(?:但|仍|还|并|同时)?(?:建议|请|仅供|希望|具体|最终|需要?|应)(?:您|进一步|及时|定期|尽快|密切)?"
    r"(?:您|结合|综合|参考|咨询|以医|随访|复查|就医|就诊|帮|能|诊断|情况|遵医|观察)[^,，;；。\n]*(?=[。.!！\s]*$)"
)
_CAUTION_CLAUSE = re.compile(  # is no answer, whatever the question asks
    r"[,，;；]\s*(?:但|仍|还)?(?:建议|请|需要?|应)(?:您|进一步)?(?:结合(?:临床|病史|其他)|咨询|遵医|以医)[^,，;；。\n]*(?=[。.!！\s]*$)"
)
_ASKS_ADVICE = re.compile(
    r"建议|治疗|处理|措施|怎么(?:办|治)|(?:如何|怎样)(?:治|预防|护理)|随访|下一步|进一步|检查|手术|应该|需要|需不需|护理"
    r"|注意|用药|复查|要紧"
)
_SENTENCE = re.compile(r"[^。！!？?\n]*[。！!？?\n]+|[^。！!？?\n]+$")
_ENGLISH_COURTESY = re.compile(
    r"(?<=[.!?。！？\n])\s*(?:I hope|Hope this|Let me know|Please (?:note|consult)|Feel free|If you have)\b.*", re.S
)


def _without_courtesy(text: str, question: str) -> str:
    """The text without greetings, wishes, disclaimers and, unless the question asks for it, advice."""
    shorter = _GREETING.sub("", _ENGLISH_COURTESY.sub("", text))
    text = shorter if re.search(r"\w", shorter) else text
    asks_advice = _ASKS_ADVICE.search(question) is not None
    sentences = _SENTENCE.findall(text)
    kept = [s for s in sentences if not _COURTESY.match(s) and (asks_advice or not _ADVICE.match(s))]
    text = "".join(kept)
    return (_CAUTION_CLAUSE if asks_advice else _ADVICE_CLAUSE).sub("", text)


# --- the rest -------------------------------------------------------------------------------------------------------

_ROLE = re.compile(
    r"^\s*(?:(?:助手|助理|医生|模型|回答|答复?|回复|输出|ai|assistant|gpt|bot|output|response|reply)\s*[:：]\s*)+", re.I
)
_LEAD = re.compile(
    r"^\s*(?:根据|从|由|依据|结合|基于|通过)[^,，。:：;；\n]{0,24}"
    r"(?:图像?|图中|影像|照片|图片|表现|特征|信息|征象|所见|描述|分析|观察|显示|检查|结果|来看|可知|可见)[^,，。:：;；\n]{0,6}[,，:：]\s*"
    r"|^\s*(?:经过|经)(?:仔细)?(?:分析|观察|判断|思考)\s*[,，:：]\s*"
    r"|^\s*(?:我(?:个人)?|本人)(?:认为|觉得|判断|推测)\s*[,，:：]?\s*"
    r"|^\s*(?:由此|从图[中上])?(?:可以|可|能)(?:清楚地?|明显)?(?:看出|看到|得知|知道|判断)\s*[,，:：]\s*"
    r"|^\s*(?:很|非常)?(?:明显|显然|显而易见|毫无疑问|不难看出|事实上|实际上)(?:地)?\s*[,，:：]\s*"
)
_ITEM = re.compile(
    r"^\s*(?:[-*•·▪●](?:\s+|(?!\d))|\(?\d{1,2}\s*[.、)）](?:\s+|(?!\d))|[（(]\d{1,2}[)）]\s*|[①-⑳]\s*)(?=\S)", re.M
)
_GLOSSED_ITEM = re.compile(r"([^:：(（]{1,20}?)\s*[:：(（].*", re.S)
_QUOTES = {"『": "』", "〈": "〉", "“": "”", '"': '"', "'": "'", "「": "」", "【": "】", "《": "》", "[": "]", "‘": "’"}


def _without_role(text: str) -> str:
    return _ROLE.sub("", text)


def _without_lead(text: str) -> str:
    """The text without 根据图像表现， and the like before it."""
    rest = _LEAD.sub("", text)
    return rest if re.search(r"\w", rest) else text


def _without_loop(text: str) -> str:
    """A text that repeats one unit at least three times, once; and every sentence once."""
    period = _period(text) if text[:2] in text[2:] else len(text)
    if period >= 2 and 3 * period <= len(text) and re.search(r"[^\W\d_]", text[:period]):
        text = text[:period]
    sentences = _SENTENCE.findall(text)
    if len(sentences) < 2:
        return text
    unique: dict[str, str] = {}
    for sentence in sentences:
        unique.setdefault(sentence.strip("。！!？? \n"), sentence)
    kept = list(unique.items())
    is_cut_off = (
        len(kept) > 1 and len(kept) < len(sentences) and any(key.startswith(kept[-1][0]) for key, _ in kept[:-1])
    )
    return "".join(sentence for _, sentence in (kept[:-1] if is_cut_off else kept)).strip()


def _period(text: str) -> int:
    """The length of the shortest unit that the text repeats, the last time perhaps cut off; Knuth-Morris-Pratt."""
    borders = [0] * (len(text) + 1)
    length = 0
    for index in range(1, len(text)):
        while length and text[index] != text[length]:
            length = borders[length]
        length += text[index] == text[length]
        borders[index + 1] = length
    return len(text) - borders[len(text)]


def _list_in_one_line(text: str) -> str:
    """List lines as one line (胃、结肠), an introduction that ends with a colon dropped; other line breaks become 。"""
    lines = [line.strip() for line in re.sub(r"(?<=\S)\s*(?=[①-⑳])", "\n", text).split("\n") if line.strip()]
    body = lines[1:] if len(lines) > 2 and lines[0].endswith((":", "：")) else lines
    if body and all(_ITEM.match(line) for line in body):
        items = [_ITEM.sub("", line, count=1).strip("。；;，, ") for line in body]
        glossed = [_GLOSSED_ITEM.fullmatch(item) for item in items]
        if len(items) > 1 and all(glossed):
            items = [match.group(1) for match in glossed if match]
        return "、".join(items)
    return "".join(line if line[-1] in "。！!？?；;，,：:、" else line + "。" for line in lines[:-1]) + "".join(
        lines[-1:]
    )


_REMARK = re.compile(
    r"\s*[(（][^()（）]{0,8}(?:置信度|可信度|confidence|概率|仅供参考|score|probability)[^()（）]{0,20}[)）]\s*[。.]?\s*$",
    re.I,
)
_EMOJI = re.compile(r"[\s\u2600-\u26ff\u2705\u2728\u2b50\ufe0f\U0001f300-\U0001faff]+$")


def _unwrapped(text: str) -> str:
    """The text without quotes or brackets around all of it, without a remark (置信度：95%) or emoji at its end."""
    text = _REMARK.sub("", text.strip())
    text = _EMOJI.sub("", text) if re.search(r"\w", text) and "❌" not in text else text
    bare = text.rstrip("。.")
    if len(bare) > 2 and _QUOTES.get(bare[0]) == bare[-1] and not set(bare[1:-1]) & {bare[0], bare[-1]}:
        return bare[1:-1].strip()
    return text
