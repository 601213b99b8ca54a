"""A language model as judge between two systems: which answer is nearer the reference, asked in both orders.

In: both systems' rows. Out: wins, ties and how often the judge contradicted itself when the order changed (a tie).
A chat is judged whole. The judge sees question, reference and both answers, never who gave them; no image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qilin.core.llm_client import ChatRequest, Endpoint, complete_all
from qilin.evaluate.scoring.bootstrap import compare

Row = Mapping[str, Any]

PROMPT = """你是一名放射科医生，正在比较两个系统对同一张医学图片所作的回答。请只根据参考答案判断哪一个回答更准确。
否定、左右侧、部位、大小或数量与参考答案相反的，一律算错；措辞不同而意思相同的，算一样；更长不等于更好。
{talk}
最后一行只写一个结论，三者之一：[[甲]]、[[乙]] 或 [[平]]。"""
_VERDICT = re.compile(r"\[\[(甲|乙|平)\]\]")
LONGEST_REPLY = 512


@dataclass(frozen=True)
class Match:
    """One thing to judge: the rows (one, or a chat's turns in order) and both systems' answers to each."""

    rows: Sequence[int]
    turns: Sequence[tuple[str, str, str, str]]  # question, reference, A's answer, B's answer


def matches_of(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> list[Match]:
    """A match a row, a chat's turns together; what both answered alike needs no judge and is left out."""
    by_talk: dict[str, list[int]] = {}
    for number, row in enumerate(rows_a):
        chat = row.get("kind") == "chat"
        by_talk.setdefault(row["id"].split("#")[0] if chat else f"{number} {row['id']}", []).append(number)
    found = []
    for numbers in by_talk.values():
        turns = [
            (rows_a[i]["question"], rows_a[i]["reference"], rows_a[i]["prediction"], rows_b[i]["prediction"])
            for i in numbers
        ]
        if any(a.strip() != b.strip() for _, _, a, b in turns):
            found.append(Match(numbers, turns))
    return found


def ask_of(match: Match, swapped: bool) -> ChatRequest:
    """The judge's prompt for a match, A as 甲 or, swapped, as 乙."""
    lines = []
    for question, reference, a, b in match.turns:
        first, second = (b, a) if swapped else (a, b)
        lines.append(f"问题：{question}\n参考答案：{reference}\n甲的回答：{first}\n乙的回答：{second}")
    return ChatRequest([{"role": "user", "content": PROMPT.format(talk="\n\n".join(lines))}], LONGEST_REPLY)


def read_verdict(text: str) -> str | None:
    """甲, 乙 or 平: the last verdict in the reply; None where there is none."""
    found = _VERDICT.findall(text)
    return found[-1] if found else None


def judge_pairs(
    rows_a: Sequence[Row], rows_b: Sequence[Row], cluster: NDArray[np.int64], judge: Endpoint, resamples: int, seed: int
) -> dict[str, Any]:
    """{"n", "alike", "a", "b", "tie", "contradicted", "unreadable", "difference", "interval", "p_value", …}.

    A match is won where both orders name the same system. The difference is the share won by A less that won by B, over
    all matches, answers alike included as ties.
    """
    found = matches_of(rows_a, rows_b)
    replies = complete_all(judge, [ask_of(match, swapped) for match in found for swapped in (False, True)])
    value = np.zeros(len(rows_a))
    counts = dict.fromkeys(("a", "b", "tie", "contradicted", "unreadable"), 0)
    for number, match in enumerate(found):
        straight, swapped = (read_verdict(replies[2 * number + i].text) for i in (0, 1))
        outcome = combined(straight, swapped)
        counts[outcome] += 1
        value[list(match.rows)] = {"a": 1.0, "b": -1.0}.get(outcome, 0.0)
    heads = np.array(sorted({row["id"].split("#")[0]: i for i, row in reversed(list(enumerate(rows_a)))}.values()))
    result = compare(value[heads], np.zeros(len(heads)), cluster[heads], resamples, seed)
    return {
        "n": len(heads),
        "alike": len(heads) - len(found),
        **counts,
        "difference": result.difference,
        "interval": list(result.interval) if result.interval else None,
        "p_value": result.p_value,
        "judge": {"model": judge.model, "endpoint": judge.url, "prompt": PROMPT, "orders": "both"},
    }


def combined(straight: str | None, swapped: str | None) -> str:
    """What two orders say together: a or b only where both name the same system."""
    if straight is None or swapped is None:
        return "unreadable"
    first = {"甲": "a", "乙": "b", "平": "tie"}[straight]
    second = {"甲": "b", "乙": "a", "平": "tie"}[swapped]
    return first if first == second else "contradicted"
