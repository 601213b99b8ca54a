"""The final answer of a chat model's reply: what is left without reasoning, special tokens and role names.

Input: a reply as the model wrote it, and the question. Output: a FinalAnswer: the text that answers, still as written
(normalization comes later), or why there is none. It is called once, before any comparison; a reply that is a bare
answer is returned unchanged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class FinalAnswer:
    """The text that answers; "" with the rule's name in `missing` where the reply gives no answer."""

    text: str
    missing: str = ""  # "empty" or "unfinished"


_TAGS = r"(?:think|thinking|thought|thoughts|reason|reasoning|reflection|analysis|scratchpad|seed:think)"
_OPEN = re.compile(rf"<{_TAGS}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<unused94>(?:thought)?", re.IGNORECASE)
_CLOSE = re.compile(rf"</{_TAGS}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<unused95>", re.IGNORECASE)


@lru_cache(maxsize=20_000)
def extract_final_answer(reply: str, question: str = "") -> FinalAnswer:
    """The part of a reply that answers the question.

    Reasoning that is not closed is no answer ("unfinished"), and neither is a reply of nothing but reasoning ("empty").
    """
    text = _without_reasoning(reply)
    if text is None:
        return FinalAnswer("", "unfinished")
    return FinalAnswer(text) if text.strip() else FinalAnswer("", "empty")


def _without_reasoning(text: str) -> str | None:
    """What follows the last closing tag; None if a tag is opened after it. The opening tag may be in the prompt."""
    closings = list(_CLOSE.finditer(text))
    if closings:
        text = text[closings[-1].end() :]
    return None if _OPEN.search(text) else text
