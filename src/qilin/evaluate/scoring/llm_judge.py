"""An LLM as judge between two systems: which answer is closer to the reference, asked in both orders.

Input: the predictions of both systems. Output: wins, ties, and how often the judge contradicted itself when the order
changed (counts as a tie). A chat is judged as one unit. The judge sees question, reference and both answers, but
neither the systems' names nor the image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qilin.core.llm_client import ChatRequest, Endpoint, complete_all
from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.intervals import compare_paired

PROMPT = """你是一名放射科医生，正在比较两个系统对同一张医学图片所作的回答。请只根据参考答案判断哪一个回答更准确。
否定、左右侧、部位、大小或数量与参考答案相反的，一律算错；措辞不同而意思相同的，算一样；更长不等于更好。
{talk}
最后一行只写一个结论，三者之一：[[甲]]、[[乙]] 或 [[平]]。"""
_VERDICT = re.compile(r"\[\[(甲|乙|平)\]\]")
MAX_REPLY_TOKENS = 512


@dataclass(frozen=True)
class JudgedPair:
    """One unit to judge: one row, or the turns of a chat in order, with the answers of both systems."""

    row_indices: Sequence[int]
    turns: Sequence[tuple[str, str, str, str]]  # question, reference, A's answer, B's answer


def build_pairs(predictions_a: Sequence[Prediction], predictions_b: Sequence[Prediction]) -> list[JudgedPair]:
    """One pair per row or chat; pairs of identical answers need no judge and are left out."""
    indices_by_unit: dict[str, list[int]] = {}
    for i, a in enumerate(predictions_a):
        unit = sample_id(a) if a.kind == "chat" else f"{i} {a.id}"
        indices_by_unit.setdefault(unit, []).append(i)
    pairs = []
    for indices in indices_by_unit.values():
        turns = [
            (predictions_a[i].question, predictions_a[i].reference, predictions_a[i].prediction,
             predictions_b[i].prediction)
            for i in indices
        ]  # fmt: skip
        if any(a.strip() != b.strip() for _, _, a, b in turns):
            pairs.append(JudgedPair(indices, turns))
    return pairs


def sample_id(p: Prediction) -> str:
    """The id of the sample that a row belongs to: turn k of a chat has the id "sample#k"."""
    return p.id.split("#")[0]


def build_request(pair: JudgedPair, swapped: bool) -> ChatRequest:
    """The judge's prompt for a pair, with A as 甲 or, if swapped, as 乙."""
    blocks = []
    for question, reference, a, b in pair.turns:
        first, second = (b, a) if swapped else (a, b)
        blocks.append(f"问题：{question}\n参考答案：{reference}\n甲的回答：{first}\n乙的回答：{second}")
    return ChatRequest([{"role": "user", "content": PROMPT.format(talk="\n\n".join(blocks))}], MAX_REPLY_TOKENS)


def parse_verdict(reply: str) -> str | None:
    """甲, 乙 or 平: the last verdict in the reply; None without one."""
    verdicts = _VERDICT.findall(reply)
    return verdicts[-1] if verdicts else None


def judge_pairs(
    predictions_a: Sequence[Prediction],
    predictions_b: Sequence[Prediction],
    cluster: NDArray[np.int64],
    judge: Endpoint,
) -> dict[str, Any]:
    """{"n", "alike", "a", "b", "tie", "contradicted", "unreadable", "difference", "interval", "p_value", …}.

    A system wins a pair if both orders name it. The difference is the share of wins of A minus that of B, over all
    samples; identical answers count as ties. `cluster`: (N,) of the rows.
    """
    pairs = build_pairs(predictions_a, predictions_b)
    replies = complete_all(judge, [build_request(pair, swapped) for pair in pairs for swapped in (False, True)])
    wins = np.zeros(len(predictions_a))  # +1 for A, -1 for B
    counts = dict.fromkeys(("a", "b", "tie", "contradicted", "unreadable"), 0)
    for number, pair in enumerate(pairs):
        first, second = (parse_verdict(replies[2 * number + i].text) for i in (0, 1))
        outcome = combine_verdicts(first, second)
        counts[outcome] += 1
        wins[list(pair.row_indices)] = {"a": 1.0, "b": -1.0}.get(outcome, 0.0)
    first_rows: dict[str, int] = {}  # of each sample
    for i, a in enumerate(predictions_a):
        first_rows.setdefault(sample_id(a), i)
    rows = np.array(list(first_rows.values()))
    result = compare_paired(wins[rows] > 0, wins[rows] < 0, cluster[rows])
    return {
        "n": len(rows),
        "alike": len(rows) - len(pairs),
        **counts,
        "difference": result.difference,
        "interval": list(result.interval) if result.interval else None,
        "p_value": result.p_value,
        "judge": {"model": judge.model, "endpoint": judge.address, "prompt": PROMPT, "orders": "both"},
    }


def combine_verdicts(original_order: str | None, swapped_order: str | None) -> str:
    """a, b or tie if both orders agree, else contradicted; unreadable if a verdict is missing."""
    if original_order is None or swapped_order is None:
        return "unreadable"
    original = {"甲": "a", "乙": "b", "平": "tie"}[original_order]
    swapped = {"甲": "b", "乙": "a", "平": "tie"}[swapped_order]
    return original if original == swapped else "contradicted"
