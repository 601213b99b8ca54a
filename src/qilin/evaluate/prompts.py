"""How a test set's questions are put: the words after each kind of question, and how long an answer may be.

In: a benchmark's name (qilin.dataset.benchmarks says where to get it) and items. Out: items whose last turn carries the
words. Decoding is greedy in all of them. The words are ours: published numbers of other systems were made with other
prompts, and a score is comparable only with scores of the same protocol, which the manifest holds.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qilin.core.errors import UserError
from qilin.evaluate.items import Item, is_caption


@dataclass(frozen=True)
class Protocol:
    """Words put under an open, a closed and a choice question ("" for none), and the longest answer in tokens."""

    open: str = ""
    closed: str = ""
    choice: str = ""
    max_new_tokens: int = 64


SHORT_ZH = Protocol("请用一个词或短语回答。", "请用一个词或短语回答。", "请只回答选项的字母。", 32)
SHORT_EN = Protocol(
    "Answer in one word or a short phrase.", "Answer in one word or a short phrase.",
    "Answer with the letter of the option only.", 32,
)  # fmt: skip
# The exams' readers write 对 and 错 for statements.
CMMMU = replace(SHORT_ZH, closed="请只回答对或错。")
# Questions as the dataset has them: a model trained on such questions needs no more.
PLAIN = Protocol()
PROTOCOLS: dict[str, Protocol] = {
    "plain": PLAIN,
    "slake-zh": SHORT_ZH,
    "slake-en": SHORT_EN,
    "vqa-rad": SHORT_EN,
    "vqa-rad-hf": SHORT_EN,
    "pathvqa": SHORT_EN,
    "pmc-vqa": SHORT_EN,
    "omnimedvqa": SHORT_EN,
    "cmmmu-health": CMMMU,
    "mmmu-medical": SHORT_EN,
    "gmai-mmbench": SHORT_EN,
    "chimed-vl": PLAIN,  # its answers are sentences
}


def protocol_of(name: str) -> Protocol:
    """The protocol of that name. Raises UserError with the nearest known name."""
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"protocol {name!r} is not known{meant} There are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def put(item: Item, protocol: Protocol) -> Item:
    """The item with the protocol's words under its last turn; captions, and `question` (which is scored), stay."""
    if is_caption({"kind": item.kind}):
        return item
    words = {"closed": protocol.closed, "choice": protocol.choice}.get(item.answer_type or "", protocol.open)
    if not words:
        return item
    last: Mapping[str, Any] = item.messages[-1]
    asked = {**last, "content": [*last["content"], {"type": "text", "text": f"\n{words}"}]}
    return replace(item, messages=(*item.messages[:-1], asked))
