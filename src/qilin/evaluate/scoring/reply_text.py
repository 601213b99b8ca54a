"""What the plain text of a reply holds beside its answer: courtesy, advice, reasons, leads, loops, list marks.

In: the text of a reply without markup, and the question where it matters. Out: the text without one of them; what would
leave nothing stays, except courtesy and advice, which are no answer. Every function takes linear time.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\w")

# --- courtesy and advice --------------------------------------------------------------------------------------------

_GREETING = re.compile(
    r"^\s*(?:(?:您好|你好|好的|嗯+|哦|呃|那么|其实|当然(?:可以)?|没问题|[感谢]谢您的(?:提问|咨询|信任)|很高兴(?:为您|能).{0,12}"
    r"|(?:让)?我(?:们)?(?:来|将|会).{0,12}(?:回答|解答|分析|问题)|下面.{0,12}(?:回答|解答|分析)"
    r"|sure|certainly|of course|hello|hi)"
    r"\s*[,，。!！:：~.]\s*)+",
    re.I,
)
_COURTESY = re.compile(
    r"^\s*(?:希望|祝(?:您|你|早)|谢谢|感谢|多谢|如(?:果|有|您|需|仍|出现).{0,20}(?:疑问|问题|需要|不适|症状|帮助|变化|需求)"
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
# 有积液吗 and 是否有积液 ask; 没什么 does not.
_QUESTION = re.compile(
    r"(?:吗|嘛|(?<![什怎那这])么)\s*[?？。]*\s*$|^[^,，。;；]{0,12}(?:是否|有没有|有无|是不是|能否|可否)[^,，。;；]*[?？。]*\s*$"
)
SENTENCE = re.compile(r"[^。！!？?\n]*[。！!？?\n]+|[^。！!？?\n]+$")
_ENGLISH_COURTESY = re.compile(
    r"(?<=[.!?。！？\n])\s*(?:I hope|Hope this|Let me know|Please (?:note|consult)|Feel free|If you have)\b.*", re.S
)


def without_courtesy(text: str, question: str) -> str:
    """The text without greetings, wishes, questions, disclaimers and, unless it is asked for, advice."""
    shorter = _GREETING.sub("", _ENGLISH_COURTESY.sub("", text))
    text = shorter if _WORD.search(shorter) else text
    asks_advice = _ASKS_ADVICE.search(question) is not None
    sentences = SENTENCE.findall(text)
    remaining = [
        sentence
        for sentence in sentences
        if not _COURTESY.match(sentence)
        and not _QUESTION.search(sentence)
        and (asks_advice or not _ADVICE.match(sentence))
    ]
    text = "".join(remaining)
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
    r"|^\s*(?:in (?:this|the) (?:image|picture|figure|scan)\s*,?\s*)?(?:we|one) can see\s+"
    r"|^\s*(?:the )?(?:most likely |final |probable )*diagnosis (?:is|would be)\s+"
    r"|^\s*(?:很|非常)?(?:明显|显然|显而易见|毫无疑问|不难看出|事实上|实际上)(?:地)?\s*[,，:：]\s*",
    re.I,
)
ITEM = re.compile(
    r"^\s*(?:[-*•·▪●](?:\s+|(?!\d))|\(?\d{1,2}\s*[.、)）](?:\s+|(?!\d))|[（(]\d{1,2}[)）]\s*|[①-⑳]\s*)(?=\S)", re.M
)
_INLINE_LIST = re.compile(r"\s*[(（]?1[.、)）]")  # 1、肝脏 2、胃
_INLINE_NUMBER = re.compile(r"(?<=[^\s\d])[\s;；,，。]+(?=[(（]?[2-9][.、)）]\s*\D)")
_GLOSSED_ITEM = re.compile(r"([^:：(（]{1,20}?)\s*[:：(（].*", re.S)
_QUOTES = {"『": "』", "〈": "〉", "“": "”", '"': '"', "'": "'", "「": "」", "【": "】", "《": "》", "[": "]", "‘": "’"}


_NAME = re.compile(r"\s*([^\n:：,，。;；]{2,14})[:：]\s*(?=\S)")
_NAME_WORDS = set("的是为名称类型部位结果所示图中该此这个")


def without_name(text: str, question: str) -> str:
    """The text without a name before a colon that only repeats words of the question: 病变名称：囊肿."""
    name = _NAME.match(text)
    if name is None or not set(name[1].strip()) <= set(question) | _NAME_WORDS:
        return text
    return text[name.end() :]


def without_role(text: str) -> str:
    return _ROLE.sub("", text)


_ASKS_LIST = re.compile(r"哪些|哪几|哪两|哪三")
_ENUMERATES = re.compile(r"^[^。；;、:：\n]*[,，](?:其中)?(?:主要)?(?:包括|包含|分别(?:是|为))[:：]?")


def without_lead(text: str, question: str) -> str:
    """The text without 根据图像表现， and the like before it; a list without 显示了多个器官，包括."""
    if _ASKS_LIST.search(question):
        text = _ENUMERATES.sub("", text)
    for _ in range(3):  # 根据图像，我认为
        rest = _LEAD.sub("", text)
        if rest == text or not _WORD.search(rest):
            break
        text = rest
    return text


def without_loop(text: str) -> str:
    """A text that repeats one unit at least three times, once; and every sentence once."""
    period = _period(text) if text[:2] in text[2:] else len(text)
    if period >= 2 and 3 * period <= len(text) and re.search(r"[^\W\d_]", text[:period]):
        text = text[:period]
    sentences = SENTENCE.findall(text)
    if len(sentences) < 2:
        return text
    unique: dict[str, str] = {}
    for sentence in sentences:
        unique.setdefault(sentence.strip("。！!？? \n"), sentence)
    remaining = list(unique.items())
    is_cut_off = (
        len(remaining) > 1
        and len(remaining) < len(sentences)
        and any(key.startswith(remaining[-1][0]) for key, _ in remaining[:-1])
    )
    return "".join(sentence for _, sentence in (remaining[:-1] if is_cut_off else remaining)).strip()


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


def list_in_one_line(text: str) -> str:
    """List lines as one line (胃、结肠), an introduction that ends with a colon dropped; other line breaks become 。"""
    text = re.sub(r"(?<=\S)\s*(?=[①-⑳])", "\n", text)
    if _INLINE_LIST.match(text):
        text = _INLINE_NUMBER.sub("\n", text)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    body = lines[1:] if len(lines) > 2 and lines[0].endswith((":", "：")) else lines
    if body and all(ITEM.match(line) for line in body):
        items = [ITEM.sub("", line, count=1).strip("。；;，, ") for line in body]
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


def unwrapped(text: str) -> str:
    """The text without quotes or brackets around all of it, without a remark (置信度：95%) or emoji at its end."""
    text = _REMARK.sub("", text.strip())
    text = _EMOJI.sub("", text) if _WORD.search(text) and "❌" not in text else text
    bare = text.rstrip("。.")
    if len(bare) > 2 and _QUOTES.get(bare[0]) == bare[-1] and not set(bare[1:-1]) & {bare[0], bare[-1]}:
        return bare[1:-1].strip()
    return text


# --- reasons ---------------------------------------------------------------------------------------------------------

_REASON = re.compile(
    r"[,，。；;\n]\s*(?:这(?:主要)?是)?(?:主要)?(?:因为|由于)|[,，。；;\n]\s*(?:其|主要)?(?:理由|原因|依据)(?:是|为|在于|如下|主要)"
    r"|[,.;]?\s+(?:this is )?because\b",
    re.I,
)
_REASON_END = re.compile(r"[。；;!！\n]|[,，]\s*(?=所以|因此|故|选)")
_ASKS_REASON = re.compile(r"为什么|为何|原因|理由|依据|病因|机制|\bwhy\b|\bcause", re.I)


def without_reason(text: str, question: str) -> str:
    """The text without the clause that gives the first reason (，因为…), unless the question asks why."""
    if _ASKS_REASON.search(question):
        return text
    match = next((m for m in _REASON.finditer(text) if _WORD.search(text[: m.start()])), None)
    if match is None:
        return text
    sentence_end = _REASON_END.search(text, match.end()) if "如下" not in match.group() else None
    return text[: match.start()] + (text[sentence_end.start() :] if sentence_end else "")
