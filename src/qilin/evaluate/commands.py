"""The commands `qilin evaluate` and `qilin score`: run, then print a table or JSON.

In: EvaluateConfig or ScoreConfig. Out: on stdout the scores; on stderr what a JSON reader must not parse.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from qilin.core.errors import RunError
from qilin.core.terminal import make_console, print_json
from qilin.evaluate.config import EvaluateConfig, ScoreConfig
from qilin.evaluate.report.headline import headline
from qilin.evaluate.results import write_jsonl

SUBSETS = ("all", "closed", "open", "no_near_duplicate", "unseen_wording")


def evaluate_command(config: EvaluateConfig) -> None:
    """Evaluates a model, or repeats an evaluation. Raises RunError if a repeated one has different scores."""
    from qilin.evaluate.reproduce import reproduce
    from qilin.evaluate.run import evaluate

    if config.reproduce is None:
        print_evaluation(evaluate(config), config)
        return
    result = reproduce(config)
    print_evaluation(result.scores, config)
    output = sys.stderr if config.json else sys.stdout
    for name, lines in (("inputs", result.inputs), ("scores", result.differences)):
        print(f"differences in {name}: {'' if lines else 'none'}", *lines[:20], sep="\n  ", file=output)
    if result.answers_changed is not None:
        print(f"changed answers: {result.answers_changed}", file=output)
    if result.differences:
        raise RunError(
            f"{config.reproduce}: not reproduced, {len(result.differences)} values differ; see "
            f"{config.out / 'reproduced.json'}"
        )
    print(f"{config.reproduce}: reproduced, all scores are the same", file=output)


def score_command(config: ScoreConfig) -> None:
    """Scores a file of predictions; writes a verdict per row to `config.rows`."""
    print_table: Callable[[Mapping[str, Any]], None] = print_scores
    if config.scorer or config.compare:
        from qilin.evaluate.scoring.compare_scorers import print_columns, score_with_kits

        print_table = print_columns
        scores, rows = score_with_kits(config)
    else:
        from qilin.evaluate.score import score_file

        scores, rows = score_file(config)
    if config.rows is not None:
        write_jsonl(config.rows, rows)
    if config.json:
        print_json(scores)
    else:
        print_table(scores)


def print_evaluation(scores: Mapping[str, Any], config: EvaluateConfig) -> None:
    """Prints an evaluation's scores, its label, and the path of its report."""
    if config.json:
        print_json(scores)
        return
    from qilin.evaluate.run import DRAWN_IMAGES

    print_scores(scores)
    manifest = scores["manifest"]
    if manifest["label"]:
        print(manifest["label"])
    if manifest["pictures"] == DRAWN_IMAGES:
        print("The images are drawn by a program: these scores are not evidence about medical images.")
    print(f"report: {config.out / 'report.html'}")


def print_scores(scores: Mapping[str, Any]) -> None:
    """Prints the scores as a table."""
    table = Table(
        title=f"scores by scorer {scores['manifest']['scorer']}; 95 % intervals over independent images",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),  # 80 columns hold the table
    )
    for name in ("", "n", "images", "exact", "acc.", "interval", "blind", "shuffled", "unread"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, block in [*((name, scores[name]) for name in SUBSETS), *scores["by_question_type"].items()]:
        if block.get("n"):
            accuracy = block["accuracy"]
            controls = (format_value(accuracy["blind"]), format_value(accuracy["shuffled"]), str(block["unparsable"]))
            table.add_row(name.replace("_", " "), *format_block(block), *controls)
    nearest = scores["nearest_neighbour"]
    if nearest.get("accuracy"):
        table.add_section()
        table.add_row("nearest neighbor", *format_block(nearest))
    console = make_console(soft_wrap=False)
    console.print(table)
    for name, gain in scores["gain"].items():
        if gain["value"] is not None:
            interval = "{:+.3f} to {:+.3f}".format(*gain["interval"]) if gain["interval"] else "no interval"
            title = name.replace("_", " ").replace("neighbour", "neighbor")
            console.print(
                f"gain {title} ({gain['from']}): {gain['value']:+.3f}, {interval}, p {format_p(gain['p_value'])}"
            )
    for statement in headline(scores):
        if statement.level in ("loses", "unclear"):
            console.print(f"! {statement.english}")
    if scores["captions"]["n"]:
        console.print(format_captions(scores["captions"]))
        print_efficacy(console, scores["captions"]["efficacy"])
    presence = scores["presence"]
    if presence["n"]:
        shares = (f"{name} {format_value(presence[name]['value'])}{format_ends(presence[name]['interval'])}"
                  for name in ("sensitivity", "specificity", "ppv", "npv"))  # fmt: skip
        console.print(f"presence questions: n {presence['n']}, {', '.join(shares)}")
    confidence = scores["confidence"]
    if confidence["n"]:
        half = next(row for row in confidence["coverage"] if row["coverage"] == 0.5)
        console.print(
            f"confidence: calibration error {confidence['ece']:.3f}{format_ends(confidence['ece_interval'])}, "
            f"{confidence['ece_if_calibrated']:.3f} by chance; "
            f"accuracy of the most confident half {half['accuracy']:.3f}"
        )
    if "judge" in scores:
        from qilin.evaluate.scoring.answer_judge import format_judge

        console.print(format_judge(scores["judge"]))
    if "note" in scores["clusters"]:
        console.print(scores["clusters"]["note"])
    reasons = scores["all"]["accuracy"].get("reasons") or {}
    for name in ("blind", "shuffled"):
        if name in reasons:
            console.print(f"{name}: missing, {reasons[name]}", style="dim")


def format_block(block: Mapping[str, Any]) -> tuple[str, ...]:
    """n, independent clusters, exact match, accuracy and its interval."""
    accuracy = block["accuracy"]
    interval = accuracy["interval"]
    return (
        str(block["n"]),
        str(accuracy.get("clusters", block.get("clusters", "–"))),
        format_value(block["exact"]["value"]),
        format_value(accuracy["value"]),
        f"{interval[0]:.3f}–{interval[1]:.3f}" if interval else "–",
    )


def format_captions(captions: Mapping[str, Any]) -> str:
    """The caption scores in one line."""
    return (
        f"captions: n {captions['n']}, fact F1 {captions['fact_f1']:.3f}{format_ends(captions['fact_f1_interval'])} "
        f"over {captions['clusters']} independent images (precision {captions['fact_precision']:.3f}, "
        f"recall {captions['fact_recall']:.3f}; blind {format_value(captions['blind'])}, "
        f"shuffled {format_value(captions['shuffled'])}, nearest {format_value(captions['nearest'])}, "
        f"one caption for every image {format_value(captions['fixed'])}, "
        f"exchanged captions {format_value(captions['exchanged'])}), over abnormal findings only "
        f"{captions['abnormal_f1']:.3f} (one caption {format_value(captions['abnormal_controls']['fixed'])}, "
        f"exchanged {format_value(captions['abnormal_controls']['exchanged'])}), "
        f"per caption {captions['invented_findings']:.2f} invented findings and {captions['contradictions']:.2f} "
        f"contradictions, BLEU-4 {captions['bleu4']:.3f}, ROUGE-L {captions['rouge_l_char']:.3f}, "
        f"chrF {captions['chrf']:.3f}, CIDEr {captions['cider']:.2f}"
    )


def print_efficacy(console: Console, tables: Mapping[str, Any]) -> None:
    """Precision, recall, F1 and prevalence: of CheXbert's classes for chests, else of the most frequent findings."""
    block = tables["chexbert"] or tables["findings"]
    rows = [row for row in block["rows"] if row["n_true"] or row["n_stated"]]
    if not rows:
        return
    table = Table(title="captions by finding", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("finding")
    for name in ("n", "prevalence", "precision", "recall", "F1"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        name = f"{row['chinese']} {row['finding']}" if "chinese" in row else row["finding"]
        values = (row["prevalence"], row["precision"], row["recall"], row["f1"])
        table.add_row(name, str(row["n_true"]), *map(format_value, values))
    table.add_section()
    table.add_row("micro F1", "", "", "", "", format_value(block["micro_f1"]))
    table.add_row("macro F1", "", "", "", "", format_value(block["macro_f1"]))
    console.print(table)


def format_p(value: float) -> str:
    """A p-value with four decimals."""
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def format_ends(interval: Sequence[float] | None) -> str:
    """An interval in brackets, or nothing."""
    return f" [{interval[0]:.3f}–{interval[1]:.3f}]" if interval else ""


def format_value(value: float | None) -> str:
    """Three decimals, or a dash for a missing value."""
    return "–" if value is None else f"{value:.3f}"
