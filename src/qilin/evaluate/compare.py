"""`qilin compare A B`: two systems on the same questions, by a paired test that flips and draws images.

In: two evaluation folders or prediction files with the same ids. Out: differences with intervals and p-values, on
screen, as JSON, and with `--report` a page with both answers beside each image.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qilin.core.errors import UserError
from qilin.dataset.reader import open_dataset
from qilin.evaluate.config import CompareConfig
from qilin.evaluate.items import is_caption, is_closed, read_rows
from qilin.evaluate.manifest import scoring_manifest
from qilin.evaluate.score import CONTROLS_FILE, read_controls
from qilin.evaluate.scoring.aggregate import exact, verdict_of
from qilin.evaluate.scoring.bootstrap import clusters, compare
from qilin.evaluate.scoring.captions import read_fact_source
from qilin.text.facts import DEFAULT_VOCABULARY

Row = Mapping[str, Any]


def compare_command(config: CompareConfig) -> dict[str, Any]:
    """Print (or write as JSON) how two systems differ; returns the result."""
    from qilin.evaluate.controls.training_set import phashes

    files = [path / "predictions.jsonl" if path.is_dir() else path for path in (config.a, config.b)]
    rows_a = read_rows(files[0])
    rows_b = matched(rows_a, read_rows(files[1]), files)
    data = open_dataset(config.dataset) if config.dataset else None
    kept = read_controls(files[0].parent / CONTROLS_FILE, rows_a)
    phash = phashes(data) if data else kept["phash"]
    cluster = clusters(
        [row.get("image_ids") or () for row in rows_a], [row.get("group") or "" for row in rows_a], phash
    )
    facts = kept["facts"] if data is None and kept["facts"] else read_fact_source(data.path if data else None)
    found, marks = compare_rows(rows_a, rows_b, cluster, facts, config.resamples, config.seed)
    if config.judge is not None and config.endpoint is not None:
        from qilin.core.llm_client import Endpoint
        from qilin.evaluate.scoring.llm_judge import judge_pairs

        cache = (config.a if config.a.is_dir() else config.a.parent) / "judge.sqlite"
        judge = Endpoint(config.endpoint, config.judge, cache=cache, budget=config.budget, seed=config.seed)
        found["judge"] = judge_pairs(rows_a, rows_b, cluster, judge, config.resamples, config.seed)
    found["names"] = {"a": name_of(config.a), "b": name_of(config.b)}
    judge_manifest = found["judge"]["judge"] if "judge" in found else None
    found["manifest"] = {"a": str(files[0]), "b": str(files[1]), "seed": config.seed, "judge": judge_manifest}
    found["manifest"] |= scoring_manifest()
    if config.report is not None and data is not None:
        from qilin.evaluate.report.comparison import write_comparison

        write_comparison(config.report, found, rows_a, rows_b, marks, data)
    if config.json:
        json.dump(found, sys.stdout, ensure_ascii=False, indent=2)
        print()
    else:
        show(found)
        if config.report:
            print(f"report: {config.report}")
    return found


def name_of(path: Path) -> str:
    """What a person calls a system: its folder, or the folder of its file."""
    if path.is_dir():
        return path.name
    return path.stem if path.stem != "predictions" else path.resolve().parent.name


def matched(rows_a: Sequence[Row], rows_b: Sequence[Row], files: Sequence[Path]) -> list[Row]:
    """B's rows in A's order. Raises UserError where the two are not about the same questions."""
    by_id = {row["id"]: row for row in rows_b}
    ids_a = {row["id"] for row in rows_a}
    for own, other, there in ((ids_a, by_id.keys(), files[1]), (by_id.keys(), ids_a, files[0])):
        missing = [row_id for row_id in own if row_id not in other]
        if missing:
            raise UserError(
                f"{there}: {len(missing)} ids of the other file are missing, such as {missing[0]}; a paired test needs "
                "both systems' answers to every question"
            )
    for row in rows_a:
        for field in ("question", "reference"):
            if row[field] != by_id[row["id"]][field]:
                raise UserError(
                    f"{files[1]}: {field} of {row['id']} is {by_id[row['id']][field]!r}, in {files[0]} it is "
                    f"{row[field]!r}; expected the same questions"
                )
    return [by_id[row["id"]] for row in rows_a]


def compare_rows(
    rows_a: Sequence[Row], rows_b: Sequence[Row], cluster: NDArray[np.int64], facts: Any, resamples: int, seed: int
) -> tuple[dict[str, Any], list[tuple[str, str, float, float]]]:
    """{part: {"n", "a", "b", "difference", "interval", "p_value", …}}, and each row's (rule, rule, mark, mark)."""
    caption = np.array([is_caption(row) for row in rows_a], dtype=bool)
    marks: list[tuple[str, str, float, float]] = []
    strict: list[tuple[float, float]] = []
    for row, other, one in zip(rows_a, rows_b, caption, strict=True):
        if one:
            scores = [
                facts.compare(row.get("image_ids") or (), row["reference"], r["prediction"]) for r in (row, other)
            ]
            marks.append(("caption", "caption", scores[0].f1, scores[1].f1))
            strict.append((0.0, 0.0))
        else:
            said = [verdict_of(row, r["prediction"]) for r in (row, other)]
            marks.append((said[0].rule, said[1].rule, float(said[0].correct is True), float(said[1].correct is True)))
            strict.append(
                (float(exact(row["prediction"], row["reference"])), float(exact(other["prediction"], row["reference"])))
            )
    a, b = np.array([m[2] for m in marks]), np.array([m[3] for m in marks])

    def part(
        chosen: NDArray[np.bool_], first: NDArray[np.float64] = a, second: NDArray[np.float64] = b
    ) -> dict[str, Any]:
        if not chosen.any():
            return {"n": 0, "reason": "no such rows"}
        result = compare(first[chosen], second[chosen], cluster[chosen], resamples, seed)
        return {
            "n": int(chosen.sum()),
            "a": float(first[chosen].mean()),
            "b": float(second[chosen].mean()),
            "difference": result.difference,
            "interval": list(result.interval) if result.interval else None,
            "p_value": result.p_value,
            "clusters": result.clusters,
            "only_a": int((first[chosen] > second[chosen]).sum()),
            "only_b": int((first[chosen] < second[chosen]).sum()),
        }

    closed = np.array([not one and is_closed(row) for row, one in zip(rows_a, caption, strict=True)], dtype=bool)
    types = [None if one else row.get("question_type") for row, one in zip(rows_a, caption, strict=True)]
    found: dict[str, Any] = {
        "all": part(~caption),
        "exact": part(~caption, np.array([s[0] for s in strict]), np.array([s[1] for s in strict])),
        "closed": part(closed),
        "open": part(~caption & ~closed),
        "captions": part(caption),
        "by_question_type": {
            str(name): part(np.array([other == name for other in types], dtype=bool))
            for name in sorted({name for name in types if name})
        },
    }
    found["vocabulary"] = "default" if facts.vocabulary is DEFAULT_VOCABULARY else "of the dataset"
    return found, marks


def show(found: Mapping[str, Any]) -> None:
    """The differences as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    names = found["names"]
    table = Table(title=f"A {names['a']}  B {names['b']}", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("", "n", "A", "B", "A - B", "interval", "p", "A:B"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    parts = [(name, found[name]) for name in ("all", "exact", "closed", "open", "captions")]
    for name, part in [*parts, *found["by_question_type"].items()]:
        if part["n"]:
            span = part["interval"]
            table.add_row(
                {"captions": "captions (facts)"}.get(name, name), str(part["n"]), f"{part['a']:.3f}",
                f"{part['b']:.3f}", f"{part['difference']:+.3f}",
                f"{span[0]:+.3f} {span[1]:+.3f}" if span else "–", f"{part['p_value']:.4f}",
                f"{part['only_a']}:{part['only_b']}",
            )  # fmt: skip
    console.print(table)
    if "judge" in found:
        j = found["judge"]
        console.print(
            f"judge {j['judge']['model']}, both orders: A wins {j['a']}, B wins {j['b']}, ties {j['tie']}, "
            f"contradicted itself {j['contradicted']}, unreadable {j['unreadable']}, alike {j['alike']}; A - B "
            f"{j['difference']:+.3f}, p {j['p_value']:.4f}"
        )
    independent = max(found[name].get("clusters", 0) for name in ("all", "captions"))
    console.print(
        f"paired; 95 % interval by bootstrap, p by sign flips, both over {independent} independent images or groups; "
        "A:B rows that only one has right. "
        "The rows by question type are many looks at one thing: read their p with care.",
        style="dim",
    )
