"""What surrounds the text of a chat model's reply: turns, special tokens, reasoning, JSON, tags, LaTeX, Markdown.

In: a reply as written. Out: the same text without one kind of markup, or the content of the marked-up answer; None
where there is no such markup. Every function takes time linear in the length of the text.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

# --- turns and special tokens ---------------------------------------------------------------------------------------

_TURN = re.compile(
    r"(?P<end></s>|<eos>|<end_of_turn>|<end_of_utterance>|<eo[ad]>|\[EOS\]"
    r"|<[|｜](?!(?:end|eo)[^|｜<>\n]{0,12}(?:thought|solution|header))(?:end|eo|return)[^|｜<>\n]{0,30}[|｜]>)"
    r"|(?P<other><\|im_start\|>\s*(?:user|system)|<\|start_header_id\|>\s*(?:user|system)\s*<\|end_header_id\|>"
    r"|<\|user\|>|<start_of_turn>\s*user|(?:^|\n)[ \t]*(?:#+[ \t]*)?(?:USER|User|Human|HUMAN|用户)\s*[:：])"
    r"|(?P<own><\|im_start\|>\s*assistant|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>"
    r"|<[|｜]assistant[|｜]>|<start_of_turn>\s*model|\[/INST\]"
    r"|(?:^|\n|(?<=\s))[ \t]*(?:#+[ \t]*)?(?:ASSISTANT|Assistant|assistant|GPT|gpt|Bot|助手|助理|医生|AI)\s*[:：])"
)
_SPECIAL = re.compile(
    r"<[|｜][^|｜<>\n]{1,40}[|｜]>|</?(?:s|pad|unk|bos|eos|image|img|ImageHere|start_of_turn|end_of_turn)>"
    r"|\[(?:EOS|BOS|SEP|CLS|PAD|UNK)\]|\[/?INST\]|<0x[0-9A-Fa-f]{2}>"
)
_BOXES = re.compile(  # coordinates of an image region after its name
    r"<box>[^<>]*</box>|<\|box_start\|>[^<>|]*<\|box_end\|>|</?ref>|<\|object_ref_(?:start|end)\|>"
    r"|(?<=\w)\s*\[\s*\d[\d.]*(?:\s*,\s*\d[\d.]*){3}\s*\]"
)
_FINAL_CHANNEL = re.compile(r"<\|channel\|>\s*final\s*<\|message\|>")


def own_turn(text: str) -> str | None:
    """The first turn of the model, without a user's turn before it and without anything after its end.

    None if its final channel is missing: <|channel|>analysis<|message|>…<|end|><|channel|>final<|message|>…
    """
    if "<|channel|>" in text:
        parts = _FINAL_CHANNEL.split(text)
        if len(parts) == 1:
            return None
        text = parts[-1]
    turn, start, is_own = "", 0, True
    for mark in _TURN.finditer(text):
        turn += text[start : mark.start()] if is_own else ""
        start = mark.end()
        if turn.strip() and not mark["own"]:
            return turn
        is_own = not mark["other"]
    return turn + (text[start:] if is_own else "")


def without_special_tokens(text: str) -> str:
    """The text without <s>, <pad>, <|…|> and the like, and without coordinates of image regions."""
    return _SPECIAL.sub("", _BOXES.sub("", text)) if "<" in text or "[" in text else text


# --- reasoning ------------------------------------------------------------------------------------------------------

_TAGS = r"(?:think|thinking|thoughts?|reason|reasoning|rationale|reflection|analysis|scratchpad|seed:think)"
_OPEN = re.compile(rf"<{_TAGS}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<unused94>", re.IGNORECASE)
_CLOSE = re.compile(rf"</{_TAGS}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<unused95>", re.IGNORECASE)
_REASONING_MARK = re.compile(r"[<\[◁#*]")
_THINKING_HEAD = re.compile(r"^\s*(?:#+\s*|\*\*)(?:Thinking|思考过程?|推理过程)(?:\*\*)?\s*[:：]?\s*\n", re.IGNORECASE)
_FINAL_HEAD = re.compile(
    r"^(?:#+[ \t]*|\*\*)(?:Final (?:Response|Answer)|最终(?:回答|答案|回复))(?:\*\*)?[ \t]*[:：]?", re.I | re.M
)


def without_reasoning(text: str) -> str | None:
    """The text after the last closing tag, else before the first opening one; None if reasoning was not finished.

    The opening tag may stand in the prompt. Reasoning under the heading "## Thinking" ends at "## Final Response".
    """
    if not _REASONING_MARK.search(text):
        return text
    head = _THINKING_HEAD.match(text)
    if head:
        parts = _FINAL_HEAD.split(text)
        return parts[-1] if len(parts) > 1 else None
    closings = list(_CLOSE.finditer(text))
    opening = _OPEN.search(text)
    if not closings:
        return None if opening else text
    rest = text[closings[-1].end() :]
    if _OPEN.search(rest):
        return None
    return rest if rest.strip() or not opening else text[: opening.start()]


# --- an answer marked by a format -----------------------------------------------------------------------------------

# In order of preference, in lower case without spaces and underscores.
_ANSWER_KEYS = (
    *("finalanswer", "最终答案", "answer", "答案", "correctanswer", "正确答案", "回答", "结论", "conclusion"),
    *("诊断", "诊断结果", "diagnosis", "结果", "result", "prediction", "response", "output", "content", "text"),
    *("选项", "option", "choice", "判断", "label", "value"),
)
_KEY_AND_TEXT = re.compile(
    r"""["'](final_?answer|answer|最终答案|正确答案|答案|回答|结论|诊断|diagnosis|result)["']\s*[:：]\s*"""
    r"""(?:"([^"]*)(?:"|$)|'([^']*)(?:'|$)|([^\s,"'{}\[\]]+))""",
    re.IGNORECASE,
)
_MAX_OBJECTS = 20  # objects of a text that are tried


def json_answer(text: str, question: str = "") -> str | None:
    """The answer field of the first JSON object that has one: nested, in a fence, cut off, or with single quotes.

    Without one, the only field whose name the question contains ({"病变": …} for 什么病变). true and false become 是
    and 否, a list its items, null no text.
    """
    if "{" not in text or not re.search("[\"']", text):
        return None
    decoder = json.JSONDecoder()
    start = text.find("{")
    for _ in range(_MAX_OBJECTS):
        if start < 0:
            break
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            answer = _answer_field(value, question)
            if answer is not None:
                return answer
        start = text.find("{", end)
    match = _KEY_AND_TEXT.search(text)
    return next(group for group in match.groups()[1:] if group is not None) if match else None


def _answer_field(value: Any, question: str) -> str | None:
    """The field that answers, searched level by level; else the one that the question names, or the only one."""
    level = [value]
    for _ in range(6):
        objects = [v for v in level if isinstance(v, dict)]
        for key in _ANSWER_KEYS:
            for fields in objects:
                for name, content in fields.items():
                    if re.sub(r"[\s_-]", "", name).lower() == key and not isinstance(content, dict):
                        return _as_text(content)
        level = [
            child for v in level for child in (v.values() if isinstance(v, dict) else v if isinstance(v, list) else ())
        ]
    if isinstance(value, dict):
        fields = {name: content for name, content in value.items() if isinstance(content, str)}
        named = [content for name, content in fields.items() if name and name in question]
        if len(named) == 1 or len(value) == len(fields) == 1:
            return (named or list(fields.values()))[0]
    return None


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "是" if value else "否"
    if isinstance(value, list):
        return "、".join(_as_text(item) for item in value if not isinstance(item, dict | list))
    return "" if value is None or isinstance(value, dict) else str(value)


_ANSWER_TAG = re.compile(
    r"<(answer|final_?answer|final|conclusion|solution|response|output|result|答案|最终答案|回答|结论)>", re.IGNORECASE
)
_FINAL_BRACKETS = re.compile(r"\[BEGIN FINAL RESPONSE\]")


def tagged_answer(text: str) -> str | None:
    """The content of the last <answer>…</answer> or similar; an unclosed one extends to the end."""
    openings = list(_ANSWER_TAG.finditer(text))
    if not openings:
        parts = _FINAL_BRACKETS.split(text)
        return parts[-1].split("[END FINAL RESPONSE]")[0] if len(parts) > 1 else None
    content = text[openings[-1].end() :]
    closing = re.search(rf"</{openings[-1].group(1)}>", content, re.IGNORECASE)
    return content[: closing.start()] if closing else content


def boxed_answer(text: str) -> tuple[int, int, str] | None:
    r"""(start, end, content) of the last \boxed{…} with balanced braces; boxes next to each other are a list."""
    boxes: list[tuple[int, int, str]] = []  # start, end, content
    for match in re.finditer(r"\\f?boxed\s*\{", text):
        if boxes and match.start() < boxes[-1][1]:
            continue  # nested
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        boxes.append((match.start(), end, text[match.end() : end - (depth == 0)]))
    if not boxes:
        return None
    last = len(boxes) - 1
    while last and len(text[boxes[last - 1][1] : boxes[last][0]].strip(" $,、，和与及and\n")) == 0:
        last -= 1
    return boxes[last][0], boxes[-1][1], "、".join(content for _, _, content in boxes[last:])


# --- plain text -----------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*[\w+-]*[ \t]*$", re.M)
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|emph)\s*\{([^{}]*)\}")
_LATEX_MARKS = re.compile(r"\\[()\[\]]|\$|\\(?:displaystyle|quad|,|;|!)")
_LINE_TAG = re.compile(r"<(?:br|/p|/li|/div|/tr|/h\d)\s*/?>", re.I)
_HTML = re.compile(
    r"</?(?:p|br|b|i|u|em|strong|span|div|ul|ol|li|table|tbody|thead|tr|td|th|h\d|code|pre)(?:\s[^<>]*)?/?>", re.I
)
_EMPHASIS = re.compile(r"\*\*+|__+|`+")
_ITALIC = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]{1,200})(?<=\S)\*(?![\w*])")
_LINE_START = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]*(?![\d. \t])|>[ \t]+(?=\d+$))+", re.M)  # >3cm is no quote
_RULE_LINE = re.compile(r"^[ \t]*(?:[-*_=][ \t]*){3,}$", re.M)
_SEPARATOR_ROW = re.compile(r"[ \t]*\|?[ \t]*:?-{2,}[-:| \t]*")


def to_plain_text(text: str) -> str:
    """The text without fences, emphasis, headings, quotes, HTML tags and LaTeX marks; table rows as "name：value"."""
    if "```" in text or "~~~" in text:
        text = _FENCE.sub("", text)
    if "\\" in text or "$" in text:
        for _ in range(3):  # nested commands
            text = _LATEX_TEXT.sub(r"\1", text)
        text = _LATEX_MARKS.sub("", text)
    text = html.unescape(text) if "&" in text else text
    if "<" in text:
        text = _HTML.sub("", _LINE_TAG.sub("\n", text))
    if "|" in text and "\n" in text:
        text = _without_table(text)
    if "\n" in text:
        text = _RULE_LINE.sub("", text)
    if "*" in text or "_" in text or "`" in text:
        text = _ITALIC.sub(r"\1", _EMPHASIS.sub("", text))
    return _LINE_START.sub("", text) if "#" in text or ">" in text else text


_ANSWER_COLUMN = re.compile(r"\W*(?:最终|正确)?(?:答案|回答|结果|结论|诊断|answer|result|diagnosis)\W*", re.IGNORECASE)


def _without_table(text: str) -> str:
    """Table rows as "name：value"; where a column is headed 答案, its cells only."""
    lines: list[str] = []
    answer_column: int | None = None
    for line in text.split("\n"):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.strip().startswith("|") else []
        if _SEPARATOR_ROW.fullmatch(line) and "|" in line and lines:
            header = lines.pop().split("：")
            columns = [i for i, name in enumerate(header) if len(header) > 1 and _ANSWER_COLUMN.fullmatch(name)]
            answer_column = columns[-1] if columns else None
        elif cells and answer_column is not None and answer_column < len(cells):
            lines.append(f"答案：{cells[answer_column]}")
        else:
            lines.append("：".join(cells) if cells else line)
    return "\n".join(lines)
