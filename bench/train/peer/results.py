"""The result file of a comparison: a row a run, written as each ends; medians, ratios and the proof of equal samples.

In: rows as peers.py makes them. Out: JSON, and a table for people.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

KEY = ("setting", "system", "way", "round", "off")  # what a run is known by
SAME = ("samples", "answer_tokens", "checksum")  # of a whole run: equal for everyone in a setting


class Results:
    """The rows so far."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []
        if file.is_file():
            self.rows = json.loads(file.read_text(encoding="utf-8"))["rows"]

    def holds(self, row: dict[str, Any]) -> bool:
        """Whether such a run was made before."""
        return any(all(old[key] == row[key] for key in KEY) for old in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        said = row.get("failed") or f"{row['samples_per_cpu_second']:.2f} samples a CPU second"
        print(*(row[key] or "" for key in KEY), said, sep=", ", file=sys.stderr, flush=True)
        self.write({})

    def best(self, system: str, setting: str) -> str:
        """The way that was fastest when each was tried once, in this setting or else in one of the same stage."""
        stage = setting.split("-")[0]
        tried = [r for r in self.rows if r["system"] == system and r["round"] == 0 and works(r)]
        here = [r for r in tried if r["setting"] == setting] or [r for r in tried if r["setting"].startswith(stage)]
        return str(max(here, key=lambda r: r["samples_per_cpu_second"])["way"]) if here else "default"

    def medians(self) -> list[dict[str, Any]]:
        """A row a setting, system, way and what is off, of the rounds from 1 on."""
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in self.rows:
            if row["round"] >= 1 and works(row):
                groups[row["setting"], row["system"], row["way"], tuple(row["off"])].append(row)
        found = []
        for (setting, system, way, off), rows in groups.items():
            speeds = sorted(r["samples_per_cpu_second"] for r in rows)
            found.append({
                "setting": setting, "system": system, "way": way, "off": list(off), "rounds": len(rows),
                "samples_per_cpu_second": median(speeds), "lowest": speeds[0], "highest": speeds[-1],
                "samples_per_second": median(r["samples_per_second"] for r in rows),
                "memory_peak_mb": median(r["memory_peak_mb"] for r in rows),
                "memory_of_training_mb": median(r["memory_peak_mb"] - r["memory_before_mb"] for r in rows),
                "padding": median(r["padding"] for r in rows),
                "before_training_seconds": median(r["before_training_seconds"] for r in rows),
            })  # fmt: skip
        return sorted(found, key=lambda m: (m["setting"], m["off"], -m["samples_per_cpu_second"]))

    def equal(self) -> list[dict[str, Any]]:
        """By setting: does every run count the same samples and labels, and does the mean loss at rest agree?"""
        found = []
        for setting in sorted({row["setting"] for row in self.rows}):
            rows = [row for row in self.rows if row["setting"] == setting and works(row)]
            losses = {row["system"]: row["mean_loss"] for row in rows if row["round"] < 0}
            spread = max(losses.values()) / min(losses.values()) - 1 if losses else None
            ours = next((seen(row) for row in rows if row["system"] == "qilin"), None)
            unlike = sorted({f"{row['system']} [{row['way']}]" for row in rows if seen(row) != ours})
            found.append({
                "setting": setting, "runs": len(rows), "seen": ours, "runs_that_saw_something_else": unlike,
                "mean_loss_at_rest": losses, "largest_relative_difference": spread,
            })  # fmt: skip
        return found

    def write(self, about: dict[str, Any]) -> None:
        before = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        result = {
            **{key: before[key] for key in before if key not in ("rows", "medians", "equal", "failures")},
            **about,
            "medians": self.medians(),
            "equal": self.equal(),
            "failures": [r for r in self.rows if not works(r)],
            "rows": self.rows,
        }
        unfinished = self.file.with_name(f".{self.file.name}.unfinished")
        unfinished.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(self.file)

    def table(self) -> str:
        lines = []
        for row in self.medians():
            what = row["way"] if not row["off"] else "without " + ", ".join(row["off"])
            lines.append(
                f"{row['setting']:18} {row['system']:8} {what:34} n={row['rounds']} "
                f"{row['samples_per_cpu_second']:7.2f}/CPU s {row['samples_per_second']:7.2f}/s  "
                f"{row['memory_of_training_mb']:6.0f} MB  padding {row['padding']:.2f}"
            )
        return "\n".join(lines)


def seen(row: dict[str, Any]) -> dict[str, int]:
    return {key: row[key] for key in SAME}


def works(row: dict[str, Any]) -> bool:
    return "failed" not in row
