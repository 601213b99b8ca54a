"""Replies as chat models write them, with a clinician's verdict: hand-written pairs, and answers in everyday frames.

In: tests/evaluate/chat_pairs.jsonl (one reply per line, with its reason) and chat_frames.json (frames such as
"<think>…</think>{x}", and questions with right and wrong answers to put in). Out: rows with `expected`. A fixed hash
splits the rows: the rules were written while looking at one half only.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "evaluate"
Row = dict[str, Any]


def is_development(row: Row) -> bool:
    """Whether the row is in the half that rules may be written for; rows written for that say so."""
    return row.get("development", False) or _number(row["question"], row["reference"], row["prediction"]) % 2 == 0


def pair_rows() -> list[Row]:
    """The hand-written pairs."""
    return [json.loads(line) for line in (FOLDER / "chat_pairs.jsonl").read_text(encoding="utf-8").splitlines()]


def framed_rows() -> Iterator[Row]:
    """Every frame around a right and a wrong answer to every question that it fits.

    {x} is the answer, {y} another answer that reasoning mentions (the reference, where {x} is wrong), {q} the question.
    """
    table = json.loads((FOLDER / "chat_frames.json").read_text(encoding="utf-8"))
    for frame in table["frames"]:
        for item in table["items"]:
            if item["answer_type"] not in frame["types"]:
                continue
            for expected, name in ((True, "right"), (False, "wrong")):
                answers = item[name]
                answer = answers[_number(frame["name"], item["question"]) % len(answers)]
                yield {
                    "kind": frame["name"],
                    **{key: item.get(key) for key in ("question", "reference", "answer_type", "choices")},
                    "prediction": frame["template"].format(
                        x=answer,
                        y=item["wrong"][0] if expected else item["reference"],
                        q=item["question"],
                        options="\n".join(item.get("choices") or ()),
                    ),
                    "expected": expected,
                }


def _number(*texts: str) -> int:
    return int(hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8], 16)
