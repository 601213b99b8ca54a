"""Which layout the rows of a file have, by their fields: the forms in which other programs keep conversations.

In: the first rows of a file, and what a description such as LLaMA-Factory's dataset_info.json says. Out: a RowLayout,
or None for a table of columns. `dialogs.py` reads rows by it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qilin.core.errors import UserError

LayoutName = Literal["messages", "sharegpt", "pairs", "prompt-completion", "alpaca", "query-response"]
# who speaks, in the spellings of ShareGPT, OpenAI, LLaVA, FastChat, Gemini and Chinese files
ROLES = dict.fromkeys(("user", "human", "用户", "患者", "病人", "问"), "user")
ROLES |= dict.fromkeys(
    ("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "model", "ai", "chatbot", "助手", "医生", "答"), "assistant"
)
ROLES |= dict.fromkeys(("system", "developer", "系统"), "system")
TOOL_ROLES = frozenset(
    ("function", "function_call", "function_response", "observation", "tool", "tool_call", "tool_response", "ipython")
)
MESSAGE_FIELDS = ("messages", "conversations", "conversation", "conversatons", "dialog", "dialogue", "texts", "chat")
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
PAIR_KEYS = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("human", "gpt"),
    ("question", "answer"),
    ("query", "response"),
)
IMAGE_FIELDS = (
    "images", "image", "image_path", "image_paths", "img", "imgs", "img_path", "image_file", "image_list", "image_url",
    "picture", "pictures", "图片", "图像", "图片路径", "图像路径",
)  # fmt: skip
# what a file of pairs of better and worse answers has, or labels of good and bad ones: not for supervised training
PREFERENCE_FIELDS = ({"chosen", "rejected"}, {"rejected_response"}, {"rejected_messages"}, {"kto_tag"})
OTHER_MEDIA = ("videos", "video", "audios", "audio")
ROWS_TO_LOOK_AT = 50


@dataclass(frozen=True)
class RowLayout:
    """Where a row keeps its parts; "" for none. Which of the fields are used depends on `name`."""

    name: LayoutName
    messages: str = ""  # the list of turns
    role_key: str = ""
    content_key: str = ""
    roles: Mapping[str, str] = field(default_factory=lambda: ROLES)
    prompt: str = ""
    query: str = ""  # alpaca: the input after the instruction
    response: str = ""
    history: str = ""
    system: str = ""
    images: str = ""

    def describe(self) -> str:
        """The layout and the fields that it is read from."""
        names = (self.messages, self.prompt, self.query, self.response, self.history, self.system, self.images)
        return f"{self.name} ({', '.join(filter(None, names))})"


def detect_layout(rows: Sequence[Mapping[str, Any]], where: str) -> RowLayout | None:
    """The layout of rows of conversations or instructions; None where they are a table.

    Raises UserError for rows of preferences, which have no single answer.
    """
    fields = list(dict.fromkeys(name for row in rows for name in row))
    if preference := next((names for names in PREFERENCE_FIELDS if names <= set(fields)), None):
        raise UserError(
            f"{where}: its rows have {' and '.join(sorted(preference))}: pairs of better and worse answers, or labels "
            "of them, which supervised training does not use; keep the good answer alone, as messages or output"
        )
    images = next((name for name in (*IMAGE_FIELDS, *fields) if name in fields and holds_image(rows, name)), "")
    system = "system" if "system" in fields else "system_prompt" if "system_prompt" in fields else ""
    if {"prompt", "completion"} <= set(fields):
        return RowLayout("prompt-completion", prompt="prompt", response="completion", system=system, images=images)
    for name in (*MESSAGE_FIELDS, *fields):
        if name in fields and (layout := layout_of_turns(rows, name, system, images)):
            return layout

    def first(*names: str) -> str:
        return next((name for name in names if name in fields), "")

    history = first("history")
    if "instruction" in fields and (response := first("output", "response", "answer")):
        query = first("input", "context")
        return RowLayout(
            "alpaca",
            prompt="instruction",
            query=query,
            response=response,
            history=history,
            system=system,
            images=images,
        )
    if "query" in fields and (response := first("response", "answer")):
        return RowLayout(
            "query-response", prompt="query", response=response, history=history, system=system, images=images
        )
    return None


def layout_of_turns(
    rows: Iterable[Mapping[str, Any]], name: str, system: str, images: str
) -> RowLayout | None:  # fmt: skip
    """The layout of a field that holds lists of turns; None for another field."""
    for row in rows:
        turns = parse_list(row.get(name))
        turn = next((turn for turn in turns if isinstance(turn, Mapping)), None) if turns else None
        if turn is None:
            continue
        role_key = next((key for key in ROLE_KEYS if key in turn), "")
        content_key = next((key for key in CONTENT_KEYS if key in turn), "")
        if role_key and (content_key or "tool_calls" in turn):
            layout: LayoutName = "sharegpt" if role_key == "from" else "messages"
            return RowLayout(
                layout, messages=name, role_key=role_key, content_key=content_key or "content", system=system,
                images=images,
            )  # fmt: skip
        for keys in PAIR_KEYS:
            if set(keys) <= set(turn):
                return RowLayout(
                    "pairs", messages=name, role_key=keys[0], content_key=keys[1], system=system, images=images
                )
        return None
    return None


def parse_list(value: Any) -> list[Any] | None:
    """A list, also one that a table keeps as JSON text; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def holds_image(rows: Iterable[Mapping[str, Any]], name: str) -> bool:
    """Whether a field names images by its own name, or holds their bytes."""
    from qilin.pipeline.importers.embedded_images import is_image_cell

    values = [value for row in rows if (value := row.get(name)) not in (None, "", [])]
    if name in IMAGE_FIELDS:
        return True
    return bool(values) and all(is_image_cell(value) and not isinstance(value, str) for value in values)
