"""What people decided about samples: accepted, fixed, rejected; a line of JSON a decision, only ever added to.

In: decisions made on the review page, one file for all reviewers of a dataset. Out: what holds of them (a reviewer's
last word on a row, unless taken back), how far two reviewers agree, and what it all means for a sample. A decision
names the row by its hash, so that none is ever applied to other words than were seen.
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
from qilin.dataset.schema import Sample, sample_row

KINDS = ("accept", "fix", "reject")


@dataclass(frozen=True)
class Decision:
    """One decision. `undo` takes the reviewer's last one on this row back; `texts` are a fix's, by their place."""

    sample_id: str
    row: str  # hash_of the sample as it was seen
    decision: Literal["accept", "fix", "reject", "undo"]
    reviewer: str
    when: str  # UTC, ISO 8601
    reason: str = ""
    texts: Mapping[str, str] | None = None


def sample_hash(sample: Sample) -> str:
    """The identity of a row: of all its fields."""
    return hashlib.sha256(json.dumps(sample_row(sample), sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]


def decisions_path(dataset: Path) -> Path:
    """Where a dataset's decisions are kept: not in the folder, which never changes."""
    return dataset.with_name(f"{dataset.name}.decisions.jsonl")


def add_decision(path: Path, made: Decision) -> None:
    """Add a line, whole or not at all, and see it on the disk; others may add to the same file meanwhile."""
    line = (json.dumps(asdict(made), ensure_ascii=False) + "\n").encode()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":  # a line that a crash cut off: the new one stands for itself
            line = b"\n" + line
        try:
            written = os.write(file, line)
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)
            raise
        if written < len(line):
            os.ftruncate(file, size)
            raise OSError(28, "the decision could not be written whole", str(path))  # ENOSPC
    finally:
        os.close(file)


def read_decisions(path: Path) -> list[Decision]:
    """Every whole decision in order; a last line that was cut off is passed over. [] where there is no file yet."""
    if not path.exists():
        return []
    found = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(decision_of(json.loads(line)))
        except (ValueError, TypeError) as error:
            if line.endswith("}"):  # whole, so no crash cut it off
                what = f"{path}:{number}: no decision of a review ({error})"
                raise UserError(f"{what}; mend or remove the line") from None
    return found


def decision_of(row: Any) -> Decision:
    """A row of JSON as a Decision. Raises ValueError, TypeError where it is none."""
    made = Decision(**row)
    if made.decision not in (*KINDS, "undo"):
        raise ValueError(f"decision is {made.decision!r}")
    if made.decision == "fix" and not (
        made.texts and all(isinstance(text, str) and text.strip() for text in made.texts.values())
    ):
        raise ValueError("a fix without its texts")
    return made


Latest = dict[tuple[str, str], dict[str, Decision]]  # (sample_id, row hash) -> reviewer -> decision


def latest(decisions: Iterable[Decision]) -> Latest:
    """What holds: each reviewer's last decision on each row that was not taken back."""
    found: Latest = {}
    for made in decisions:
        own = found.setdefault((made.sample_id, made.row), {})
        own.pop(made.reviewer, None)
        if made.decision != "undo":
            own[made.reviewer] = made
    return {key: own for key, own in found.items() if own}


def verdict(decisions: Mapping[str, Decision]) -> Decision:
    """Several reviewers' word on a row: one who rejects decides, then the last who fixed, then those who accept."""
    ordered = sorted(decisions.values(), key=lambda made: made.when)
    for kind in ("reject", "fix"):
        if of_kind := [made for made in ordered if made.decision == kind]:
            return of_kind[-1]
    return ordered[-1]


def agreement(held: Latest) -> list[dict[str, Any]]:
    """For each two reviewers: the rows both decided, the share they decided alike, and Cohen's kappa (null where
    chance alone would make them agree)."""
    names = sorted({name for own in held.values() for name in own})
    found = []
    for a, b in combinations(names, 2):
        pairs = [(own[a].decision, own[b].decision) for own in held.values() if a in own and b in own]
        if pairs:
            found.append({"reviewers": [a, b], "rows": len(pairs), **alike(pairs)})
    return found


def alike(pairs: Sequence[tuple[str, str]]) -> dict[str, float | None]:
    same = sum(a == b for a, b in pairs) / len(pairs)
    chance = sum(
        sum(a == kind for a, _ in pairs) * sum(b == kind for _, b in pairs) / len(pairs) ** 2 for kind in KINDS
    )
    return {"same": same, "kappa": None if chance == 1 else (same - chance) / (1 - chance)}
