"""`qilin score --scorer KIT` and `--compare`: the same answers scored by Qilin's rules and by those of four kits.

Input: a file of predictions. Outputs: the scores as JSON or a table, and one row of verdicts per question. Captions are
excluded and counted: only the kits' question scorers are reimplemented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import CAPTION_INSTRUCTION
from qilin.dataset.reader import open_dataset
from qilin.evaluate.config import ScoreConfig
from qilin.evaluate.manifest import scoring_manifest
from qilin.evaluate.prediction_files import read_prediction_file
from qilin.evaluate.results import Prediction
from qilin.evaluate.score import print_notes
from qilin.evaluate.scoring.answers import SCORER_VERSION, judge_prediction
from qilin.evaluate.scoring.other_scorers import KITS, KitScore, count_rules, total_points

MAX_EXAMPLES = 12  # rows on which Qilin and a kit disagree, in the output


def score_with_kits(config: ScoreConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scores of one kit (`scorer`), or of all next to Qilin's (`compare`); and one row per question.

    Raises UserError for a file without questions.
    """
    dataset = open_dataset(config.dataset) if config.dataset else None
    file = read_prediction_file(config.file, config.fields, config.references, dataset, CAPTION_INSTRUCTION)
    print_notes(file)
    predictions = file.predictions
    questions = [p for p in predictions if not p.is_caption]
    if not questions:
        raise UserError(f"{config.file}: holds captions only; --scorer and --compare score questions")
    if config.scorer:
        scores = [KITS[config.scorer].score(p) for p in questions]
        result: dict[str, Any] = {"columns": {config.scorer: kit_column(config.scorer, questions, scores)}}
        rows = [
            {"id": p.id, "correct": score.correct, "rule": score.rule, "points": score.points}
            for p, score in zip(questions, scores, strict=True)
        ]
    else:
        result, rows = compare_kits(questions)
    result["captions_left_out"] = len(predictions) - len(questions)
    result["manifest"] = {
        "predictions": str(config.file), "format": file.layout, "notes": file.notes, **scoring_manifest(),
    }  # fmt: skip
    return result, rows


def kit_column(name: str, predictions: Sequence[Prediction], scores: Sequence[KitScore]) -> dict[str, Any]:
    """One kit's accuracies, its version, how it was checked, and how often each of its rules decided."""
    about = {"version": KITS[name].version, "checked": KITS[name].checked}
    return total_points(predictions, scores) | {"about": about, "rules": count_rules(scores)}


def qilin_score(p: Prediction) -> KitScore:
    """Qilin's verdict as a KitScore; an unparsable answer gives no points and is not a guess."""
    verdict = judge_prediction(p)
    return KitScore(float(verdict.correct is True), verdict.rule if verdict.correct is not None else "unread")


def compare_kits(predictions: Sequence[Prediction]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One column per scorer, the disagreements with examples, and every row's points."""
    scores = {"qilin": [qilin_score(p) for p in predictions]}
    scores |= {name: [kit.score(p) for p in predictions] for name, kit in KITS.items()}
    about = {"version": f"scorer {SCORER_VERSION}", "checked": "by its own tests"}
    columns: dict[str, Any] = {"qilin": total_points(predictions, scores["qilin"]) | {"about": about}}
    rows: list[dict[str, Any]] = [
        {"id": p.id, **{name: column[i].points for name, column in scores.items()}} for i, p in enumerate(predictions)
    ]
    for name in KITS:
        columns[name] = kit_column(name, predictions, scores[name])
        columns[name]["unlike_qilin"] = sum(row[name] != row["qilin"] for row in rows)
    disagreements = [i for i, row in enumerate(rows) if len({row[name] for name in scores}) > 1]
    first_index: dict[tuple[str, str], int] = {}
    for i in disagreements:  # one example of each pair of texts
        first_index.setdefault((predictions[i].reference, predictions[i].prediction), i)
    examples = [
        {name: getattr(predictions[i], name) for name in ("question", "reference", "prediction")} | rows[i]
        for i in list(first_index.values())[:MAX_EXAMPLES]
    ]
    return {"columns": columns, "unlike": len(disagreements), "rows": len(predictions), "examples": examples}, rows


def print_columns(result: Mapping[str, Any]) -> None:
    """Prints the columns as a table, then examples of disagreements."""
    from rich import box
    from rich.table import Table

    from qilin.core.terminal import make_console

    console = make_console(soft_wrap=False)
    columns = result["columns"]
    table = Table(title="accuracy by scorer", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("", "n", *columns):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    first = next(iter(columns.values()))
    for subset in ("all", "closed", "open", "choice"):
        if first[subset]["n"]:
            accuracies = (f"{column[subset]['accuracy']:.3f}" for column in columns.values())
            table.add_row(subset, str(first[subset]["n"]), *accuracies)
    table.add_row("random guesses", "", *(str(column["all"]["guessed"]) for column in columns.values()), style="dim")
    if "qilin" in columns:
        counts = (str(column.get("unlike_qilin", "")) for column in columns.values())
        table.add_row("differs from qilin", "", *counts, style="dim")
    console.print(table)
    for name, column in columns.items():
        console.print(f"{name}: {column['about']['version']}; checked {column['about']['checked']}", style="dim")
    if result["captions_left_out"]:
        console.print(f"{result['captions_left_out']} captions excluded", style="dim")
    examples = result.get("examples")
    if examples:
        console.print(f"\nthe scorers disagree on {result['unlike']} of {result['rows']} rows, for example:")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for name in ("reference", "prediction", *columns):
            table.add_column(name, justify="right" if name in columns else "left")
        for row in examples:
            table.add_row(row["reference"][:24], row["prediction"][:32], *(f"{row[name]:g}" for name in columns))
        console.print(table)
