"""The protocol of each test set: the instruction under each type of question, and the maximum answer length.

In: the name of a benchmark (qilin.dataset.benchmarks lists their sources) and items. Out: items with the instruction
in their last turn. Decoding is greedy in all protocols. The instructions are Qilin's own: published numbers of other
systems used other prompts, so compare scores only under the same protocol, which the manifest records.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qilin.core.errors import UserError, suggest
from qilin.evaluate.items import Item, append_text


@dataclass(frozen=True)
class Protocol:
    """Instructions for open, closed and choice questions ("" for none), and the maximum answer length in tokens."""

    open: str = ""
    closed: str = ""
    choice: str = ""
    max_new_tokens: int = 64


SHORT_ZH = Protocol("请用一个词或短语回答。", "请用一个词或短语回答。", "请只回答选项的字母。", 32)
SHORT_EN = Protocol(
    "Answer in one word or a short phrase.", "Answer in one word or a short phrase.",
    "Answer with the letter of the option only.", 32,
)  # fmt: skip
# CMMMU's own answer parser expects 对 or 错 for statements.
CMMMU = replace(SHORT_ZH, closed="请只回答对或错。")
# Questions as in the dataset: a model trained on such questions needs no instruction.
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


def get_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises UserError with the closest known name."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}; {suggest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def apply_prompt(item: Item, protocol: Protocol) -> Item:
    """The item with the protocol's instruction in its last turn; captions, and `question` (which is scored), stay."""
    if item.is_caption:
        return item
    instruction = {"closed": protocol.closed, "choice": protocol.choice}.get(item.answer_type or "", protocol.open)
    return replace(item, messages=append_text(item.messages, f"\n{instruction}")) if instruction else item
