"""Decisions of reviewers about samples (accept, fix, reject): a JSONL file that is only appended to.

In: decisions made on the review page, in one file for all reviewers of a dataset. Out: the current decisions (the last
one per reviewer and sample, unless undone), the final decision about a sample, and the agreement of reviewers. A
decision names its sample by a hash of all fields, so it is never applied to another text than the reviewer saw.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from qilin.core.errors import UserError
from qilin.core.files import check_regular_file
from qilin.dataset.schema import Sample, sample_row

DECISIONS = ("accept", "fix", "reject")


@dataclass(frozen=True)
class Decision:
    """One line of the file. `undo` withdraws the reviewer's last decision about this sample."""

    sample_id: str
    row: str  # sample_hash of the sample that the reviewer saw
    decision: Literal["accept", "fix", "reject", "undo"]
    reviewer: str
    when: str  # UTC, ISO 8601
    reason: str = ""
    texts: Mapping[str, str] | None = None  # of a fix: text field -> new text


# (sample_id, sample_hash) -> reviewer -> decision
CurrentDecisions = dict[tuple[str, str], dict[str, Decision]]


def sample_hash(sample: Sample) -> str:
    """24 hexadecimal digits that identify a sample with all its fields."""
    return hashlib.sha256(json.dumps(sample_row(sample), sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]


def decisions_path(dataset: Path) -> Path:
    """The default file of a dataset's decisions: next to the folder, which is immutable."""
    return dataset.with_name(f"{dataset.name}.decisions.jsonl")


# --- the file --------------------------------------------------------------------------------------------------------


def add_decision(path: Path, decision: Decision) -> None:
    """Append one complete line and sync it to disk. Several processes may append to the same file.

    Raises OSError if the disk is full, and leaves the file as it was.
    """
    line = (json.dumps(asdict(decision), ensure_ascii=False) + "\n").encode()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":  # a crash truncated the last line: start a new one
            line = b"\n" + line
        try:
            written = os.write(file, line)
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)
            raise
        if written < len(line):
            os.ftruncate(file, size)
            raise OSError(28, "the decision could not be written completely", str(path))  # ENOSPC
    finally:
        os.close(file)


def read_decisions(path: Path) -> list[Decision]:
    """Every complete decision in order, without lines that a crash truncated. [] if the file does not exist.

    Raises UserError with the line number for a complete line that is not a decision.
    """
    if not path.exists():
        return []
    check_regular_file(path, "a file of decisions")
    decisions = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            decisions.append(parse_decision(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            if line.endswith(("}", "]")):  # complete, so not truncated
                problem = f"{path}:{number}: not a decision of a review ({error})"
                raise UserError(f"{problem}; correct or remove the line") from None
    return decisions


def parse_decision(row: Any) -> Decision:
    """A JSON row as a Decision. Raises ValueError or TypeError if it is none."""
    decision = Decision(**row)
    if decision.decision not in (*DECISIONS, "undo"):
        raise ValueError(f"decision is {decision.decision!r}")
    texts = decision.texts or {}
    if decision.decision == "fix" and not (
        texts and all(isinstance(text, str) and text.strip() for text in texts.values())
    ):
        raise ValueError("a fix without its texts")
    return decision


# --- what the decisions mean -----------------------------------------------------------------------------------------


def current_decisions(decisions: Iterable[Decision]) -> CurrentDecisions:
    """Each reviewer's last decision about each sample, without those that were undone."""
    current: CurrentDecisions = {}
    for decision in decisions:
        by_reviewer = current.setdefault((decision.sample_id, decision.row), {})
        by_reviewer.pop(decision.reviewer, None)
        if decision.decision != "undo":
            by_reviewer[decision.reviewer] = decision
    return {key: by_reviewer for key, by_reviewer in current.items() if by_reviewer}


def final_decision(by_reviewer: Mapping[str, Decision]) -> Decision:
    """The decision of several reviewers about a sample: the last rejection, else the last fix, else the last one."""
    ordered = sorted(by_reviewer.values(), key=lambda decision: decision.when)
    for name in ("reject", "fix"):
        if matching := [decision for decision in ordered if decision.decision == name]:
            return matching[-1]
    return ordered[-1]


def reviewer_agreement(current: CurrentDecisions) -> list[dict[str, Any]]:
    """{reviewers, rows, same, kappa} of each two reviewers with common samples.

    `rows`: number of samples that both decided; `same`: share of equal decisions; `kappa`: Cohen's kappa.
    """
    names = sorted({name for by_reviewer in current.values() for name in by_reviewer})
    agreements = []
    for a, b in combinations(names, 2):
        pairs = [(row[a].decision, row[b].decision) for row in current.values() if a in row and b in row]
        if pairs:
            agreements.append({"reviewers": [a, b], "rows": len(pairs), **agreement_of_pairs(pairs)})
    return agreements


def agreement_of_pairs(pairs: Sequence[tuple[str, str]]) -> dict[str, float | None]:
    """Observed agreement and Cohen's kappa, which is None if the agreement expected by chance is 1."""
    same = sum(a == b for a, b in pairs) / len(pairs)
    expected = sum(
        sum(a == name for a, _ in pairs) * sum(b == name for _, b in pairs) / len(pairs) ** 2 for name in DECISIONS
    )
    return {"same": same, "kappa": None if expected == 1 else (same - expected) / (1 - expected)}


def format_agreement(agreements: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each two reviewers."""
    return [
        f"{' and '.join(pair['reviewers'])}: {pair['same']:.0%} agreement on {pair['rows']:,} samples"
        + (f", kappa {pair['kappa']:.2f}" if pair["kappa"] is not None else "")
        for pair in agreements
    ]
