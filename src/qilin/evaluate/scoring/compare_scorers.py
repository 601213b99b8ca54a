"""`qilin score --scorer KIT` and `--compare`: the same answers as Qilin and as four kits would score them.

In: a file of predictions. Out: the scores on screen or as JSON, and with `--rows` each row's verdict. Captions are left
out, and counted: the kits' readings here are those of their question scorers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qilin.core.errors import UserError
from qilin.evaluate.config import ScoreConfig
from qilin.evaluate.items import is_caption, read_rows
from qilin.evaluate.manifest import scoring_manifest
from qilin.evaluate.scoring.aggregate import judge_prediction
from qilin.evaluate.scoring.answers import SCORER_VERSION
from qilin.evaluate.scoring.other_scorers import KITS, KitScore, count_points, count_rules

Row = Mapping[str, Any]
# Rows on which qilin and a kit disagree that are shown: enough to see why, few enough to read.
EXAMPLES = 12


def score_with_kits(config: ScoreConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One kit's scores (`scorer`) or all beside Qilin's (`compare`), and each row's verdict."""
    rows = read_rows(config.file)
    questions = [row for row in rows if not is_caption(row)]
    if not questions:
        raise UserError(f"{config.file}: holds captions only; --scorer and --compare score questions")
    if config.scorer:
        marks = [KITS[config.scorer].mark(row) for row in questions]
        found = kit_scores(config.scorer, questions, marks)
        judged = [
            {"id": row["id"], "correct": mark.correct, "rule": mark.rule, "points": mark.points}
            for row, mark in zip(questions, marks, strict=True)
        ]
    else:
        found, judged = compare_kits(questions)
    found |= {"captions_left_out": len(rows) - len(questions)}
    found["manifest"] = {"predictions": str(config.file), **scoring_manifest()}
    return found, judged


def kit_scores(name: str, rows: Sequence[Row], marks: Sequence[KitScore]) -> dict[str, Any]:
    """One kit's scores, with its version and how the reading was checked."""
    about = {"version": KITS[name].version, "checked": KITS[name].checked}
    return {"columns": {name: count_points(rows, marks) | {"about": about, "rules": count_rules(marks)}}}


def own_marks(rows: Sequence[Row]) -> list[KitScore]:
    """Qilin's verdicts as marks; what it cannot read counts nothing and is no guess."""
    verdicts = [judge_prediction(row, row["prediction"]) for row in rows]
    return [KitScore(float(v.correct is True), v.rule if v.correct is not None else "unread") for v in verdicts]


def compare_kits(rows: Sequence[Row]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All columns, how often each kit decides otherwise than Qilin with examples, and every row's verdicts."""
    by_name = {"qilin": own_marks(rows)} | {name: [kit.mark(row) for row in rows] for name, kit in KITS.items()}
    own = {"version": f"scorer {SCORER_VERSION}", "checked": "by its own tests"}
    columns: dict[str, Any] = {"qilin": count_points(rows, by_name["qilin"]) | {"about": own}}
    for name in KITS:
        columns |= kit_scores(name, rows, by_name[name])["columns"]
    judged = [
        {"id": row["id"], **{name: marks[i].points for name, marks in by_name.items()}} for i, row in enumerate(rows)
    ]
    unlike = [i for i, line in enumerate(judged) if len({line[name] for name in by_name}) > 1]
    for name in KITS:
        columns[name]["unlike_qilin"] = sum(line[name] != line["qilin"] for line in judged)
    seen: dict[tuple[str, ...], int] = {}
    for i in unlike:  # one example of each kind of pair
        seen.setdefault((rows[i]["reference"], rows[i]["prediction"]), i)
    examples = [
        {name: rows[i][name] for name in ("question", "reference", "prediction")} | judged[i]
        for i in list(seen.values())[:EXAMPLES]
    ]
    return {"columns": columns, "unlike": len(unlike), "rows": len(rows), "examples": examples}, judged


def show(found: Mapping[str, Any]) -> None:
    """The columns as a table, then examples of rows that are scored unlike."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    columns = found["columns"]
    table = Table(title="accuracy, as each would score it", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("", "n", *columns):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    first = next(iter(columns.values()))
    for part in ("all", "closed", "open", "choice"):
        if first[part]["n"]:
            table.add_row(part, str(first[part]["n"]), *(f"{c[part]['accuracy']:.3f}" for c in columns.values()))
    table.add_row("of these by lot", "", *(str(c["all"]["guessed"]) for c in columns.values()), style="dim")
    if "qilin" in columns:
        counts = (str(c.get("unlike_qilin", "")) for c in columns.values())
        table.add_row("unlike qilin", "", *counts, style="dim")
    console.print(table)
    for name, column in columns.items():
        console.print(f"{name}: {column['about']['version']}; checked {column['about']['checked']}", style="dim")
    if found["captions_left_out"]:
        console.print(f"{found['captions_left_out']} captions left out", style="dim")
    examples = found.get("examples")
    if examples:
        console.print(f"\n{found['unlike']} of {found['rows']} rows are scored unlike, such as")
        names = list(columns)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for name in ("reference", "prediction", *names):
            table.add_column(name, justify="right" if name in columns else "left")
        for row in examples:
            table.add_row(row["reference"][:24], row["prediction"][:32], *(f"{row[name]:g}" for name in names))
        console.print(table)
