"""The result file of a comparison: one row per run, medians, and the check that all systems train on equal samples.

Input: rows from peers.py. Output: JSON, written after each run, and a printed table.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

KEY = ("setting", "system", "way", "round", "off")  # identifies a run
SAMPLE_COUNTS = ("samples", "answer_tokens", "checksum")  # per run; equal for all systems in a setting


class Results:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []
        if file.is_file():
            self.rows = json.loads(file.read_text(encoding="utf-8"))["rows"]

    def contains(self, row: dict[str, Any]) -> bool:
        """Whether the file has a run with the same key."""
        return any(all(old[key] == row[key] for key in KEY) for old in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        outcome = row.get("failed") or f"{row['samples_per_cpu_second']:.2f} samples per CPU second"
        print(*(row[key] or "" for key in KEY), outcome, sep=", ", file=sys.stderr, flush=True)
        self.write({})

    def fastest_variant(self, system: str, setting: str) -> str:
        """The fastest variant of round 0 in this setting, or in another setting of the same stage; else `default`."""
        stage = setting.split("-")[0]
        rows = [r for r in self.rows if r["system"] == system and r["round"] == 0 and succeeded(r)]
        rows = [r for r in rows if r["setting"] == setting] or [r for r in rows if r["setting"].startswith(stage)]
        return str(max(rows, key=lambda r: r["samples_per_cpu_second"])["way"]) if rows else "default"

    def medians(self) -> list[dict[str, Any]]:
        """One row per setting, system, variant and disabled optimizations, over rounds from 1."""
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in self.rows:
            if row["round"] >= 1 and succeeded(row):
                groups[row["setting"], row["system"], row["way"], tuple(row["off"])].append(row)
        medians = []
        for (setting, system, variant, off), rows in groups.items():
            speeds = sorted(r["samples_per_cpu_second"] for r in rows)
            medians.append({
                "setting": setting, "system": system, "way": variant, "off": list(off), "rounds": len(rows),
                "samples_per_cpu_second": median(speeds), "lowest": speeds[0], "highest": speeds[-1],
                "samples_per_second": median(r["samples_per_second"] for r in rows),
                "memory_peak_mb": median(r["memory_peak_mb"] for r in rows),
                "memory_of_training_mb": median(r["memory_peak_mb"] - r["memory_before_mb"] for r in rows),
                "padding": median(r["padding"] for r in rows),
                "before_training_seconds": median(r["before_training_seconds"] for r in rows),
            })  # fmt: skip
        return sorted(medians, key=lambda m: (m["setting"], m["off"], -m["samples_per_cpu_second"]))

    def check_equal_samples(self) -> list[dict[str, Any]]:
        """Per setting: runs whose samples or labels differ from Qilin's, and the mean losses of the untrained model."""
        checks = []
        for setting in sorted({row["setting"] for row in self.rows}):
            rows = [row for row in self.rows if row["setting"] == setting and succeeded(row)]
            losses = {row["system"]: row["mean_loss"] for row in rows if row["round"] < 0}
            spread = max(losses.values()) / min(losses.values()) - 1 if losses else None
            expected = next((sample_counts(row) for row in rows if row["system"] == "qilin"), None)
            different = sorted({f"{row['system']} [{row['way']}]" for row in rows if sample_counts(row) != expected})
            checks.append({
                "setting": setting, "runs": len(rows), "seen": expected, "runs_that_saw_something_else": different,
                "mean_loss_at_rest": losses, "largest_relative_difference": spread,
            })  # fmt: skip
        return checks

    def write(self, header: dict[str, Any]) -> None:
        """Replaces the header keys that are passed, and rewrites rows and summaries."""
        previous = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        result = {
            **{key: previous[key] for key in previous if key not in ("rows", "medians", "equal", "failures")},
            **header,
            "medians": self.medians(),
            "equal": self.check_equal_samples(),
            "failures": [r for r in self.rows if not succeeded(r)],
            "rows": self.rows,
        }
        temporary = self.file.with_name(f".{self.file.name}.unfinished")
        temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(self.file)

    def table(self) -> str:
        lines = []
        for row in self.medians():
            variant = row["way"] if not row["off"] else "without " + ", ".join(row["off"])
            lines.append(
                f"{row['setting']:18} {row['system']:8} {variant:34} n={row['rounds']} "
                f"{row['samples_per_cpu_second']:7.2f}/CPU s {row['samples_per_second']:7.2f}/s  "
                f"{row['memory_of_training_mb']:6.0f} MB  padding {row['padding']:.2f}"
            )
        return "\n".join(lines)


def sample_counts(row: dict[str, Any]) -> dict[str, int]:
    return {key: row[key] for key in SAMPLE_COUNTS}


def succeeded(row: dict[str, Any]) -> bool:
    return "failed" not in row
