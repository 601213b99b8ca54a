"""`qilin compare A B`: a paired comparison of two systems on the same questions.

In: two evaluation folders or prediction files that share ids. Out: differences with intervals and p-values over
independent images, as a table or JSON, and with `--report` as a page with the answers of both systems beside each
image. N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qilin.core.errors import UserError
from qilin.core.files import shorten
from qilin.core.llm_client import Endpoint
from qilin.core.llm_client_config import parse_extra
from qilin.core.terminal import make_console, print_json
from qilin.dataset.import_rows import CAPTION_INSTRUCTION
from qilin.dataset.reader import open_dataset
from qilin.evaluate.config import CompareConfig
from qilin.evaluate.controls.controls_file import CONTROLS_FILE, read_controls
from qilin.evaluate.controls.training_set import read_hashes
from qilin.evaluate.manifest import scoring_manifest
from qilin.evaluate.prediction_files import check_prediction_path, read_prediction_file
from qilin.evaluate.results import CAPTION_VERDICT, Prediction, Verdict
from qilin.evaluate.score import clusters_and_facts, print_notes
from qilin.evaluate.scoring.answers import exact_match, judge_prediction
from qilin.evaluate.scoring.captions import FactSource
from qilin.evaluate.scoring.intervals import compare_paired
from qilin.evaluate.scoring.llm_judge import judge_pairs
from qilin.text.facts import DEFAULT_VOCABULARY

# A row's verdict and score (1 or 0, or the fact F1 of a caption)
RowScore = tuple[Verdict, float]


def compare_command(config: CompareConfig) -> dict[str, Any]:
    """Prints how two systems differ, as a table or JSON; returns the result."""
    dataset = open_dataset(config.dataset) if config.dataset else None
    files = [check_prediction_path(path) for path in (config.a, config.b)]
    tables = [
        read_prediction_file(path, config.fields, config.references, dataset, CAPTION_INSTRUCTION) for path in files
    ]
    for table in tables:
        print_notes(table)
    check_questions = tables[0].layout == tables[1].layout  # other systems add instructions to the questions
    predictions_a, predictions_b = align(tables[0].predictions, tables[1].predictions, files, check_questions)
    left_out = {name: len(t.predictions) - len(predictions_a) for name, t in zip("ab", tables, strict=True)}
    stored = read_controls(files[0].parent / CONTROLS_FILE, predictions_a)
    hashes = read_hashes(dataset) if dataset else stored.hashes
    cluster, facts = clusters_and_facts(predictions_a, stored, dataset, hashes)
    result, scores_a, scores_b = compare_predictions(predictions_a, predictions_b, cluster, facts)
    if config.judge is not None and config.endpoint is not None:
        cache = (config.a if config.a.is_dir() else config.a.parent) / "judge.sqlite"
        judge = Endpoint(
            config.endpoint, config.judge, cache=cache, budget=config.budget, seed=config.seed,
            extra=parse_extra(config.extra),
        )  # fmt: skip
        result["judge"] = judge_pairs(predictions_a, predictions_b, cluster, judge)
    result["left_out"] = left_out
    result["names"] = {"a": system_name(config.a), "b": system_name(config.b)}
    result["manifest"] = {
        "a": str(files[0]),
        "b": str(files[1]),
        "seed": config.seed,
        "judge": result["judge"]["judge"] if "judge" in result else None,
        **scoring_manifest(),
    }
    if config.report is not None and dataset is not None:
        from qilin.evaluate.report.comparison import write_comparison_report

        write_comparison_report(config.report, result, predictions_a, predictions_b, scores_a, scores_b, dataset)
    if config.json:
        print_json(result)
    else:
        print_comparison(result)
        if config.report:
            print(f"report: {config.report}")
    return result


def system_name(path: Path) -> str:
    """The display name of a system: its folder, or its file unless that is predictions.jsonl."""
    if path.is_dir():
        return path.name
    return path.stem if path.stem != "predictions" else path.resolve().parent.name


def align(
    predictions_a: Sequence[Prediction],
    predictions_b: Sequence[Prediction],
    files: Sequence[Path],
    check_questions: bool = True,
) -> tuple[list[Prediction], list[Prediction]]:
    """The rows whose id both files have, in A's order. Raises UserError for none, or for one with another reference."""
    by_id = {b.id: b for b in predictions_b}
    pairs = [(a, by_id[a.id]) for a in predictions_a if a.id in by_id]
    if not pairs:
        raise UserError(
            f"{files[1]}: no id of {files[0]}; A has {shorten(predictions_a[0].id)}, B has "
            f"{shorten(predictions_b[0].id)}; a paired test needs answers to the same questions under the same ids"
        )
    for a, b in pairs:
        for name in ("question", "reference") if check_questions else ("reference",):
            value_a, value_b = getattr(a, name), getattr(b, name)
            if value_a != value_b:
                raise UserError(
                    f"{files[1]}: {name} of {a.id} is {shorten(value_b)}, in {files[0]} it is {shorten(value_a)}; "
                    "expected the same questions"
                )
    return [a for a, _ in pairs], [b for _, b in pairs]


def compare_predictions(
    predictions_a: Sequence[Prediction],
    predictions_b: Sequence[Prediction],
    cluster: NDArray[np.int64],
    facts: FactSource,
) -> tuple[dict[str, Any], list[RowScore], list[RowScore]]:
    """{subset: {"n", "a", "b", "difference", "interval", "p_value", …}}, and the score of each row of A and of B.

    `predictions_b` are aligned with `predictions_a`, whose answer types and choices count for both; `cluster` is (N,).
    """
    answers = [[p.prediction for p in rows] for rows in (predictions_a, predictions_b)]
    scores_a, scores_b = (
        [score_answer(p, text, facts) for p, text in zip(predictions_a, texts, strict=True)] for texts in answers
    )
    values = [np.array([value for _, value in scores]) for scores in (scores_a, scores_b)]
    exact = [
        np.array([float(exact_match(text, p.reference)) for p, text in zip(predictions_a, texts, strict=True)])
        for texts in answers
    ]

    def compare_subset(mask: NDArray[np.bool_], pair: Sequence[NDArray[np.float64]] = values) -> dict[str, Any]:
        if not mask.any():
            return {"n": 0, "reason": "no such rows"}
        a, b = (row_values[mask] for row_values in pair)
        paired = compare_paired(a, b, cluster[mask])
        return {
            "n": int(mask.sum()),
            "a": float(a.mean()),
            "b": float(b.mean()),
            "difference": paired.difference,
            "interval": list(paired.interval) if paired.interval else None,
            "p_value": paired.p_value,
            "clusters": paired.clusters,
            "only_a": int((a > b).sum()),
            "only_b": int((a < b).sum()),
        }

    caption = np.array([p.is_caption for p in predictions_a], dtype=bool)
    closed = np.array([not p.is_caption and p.is_closed for p in predictions_a], dtype=bool)
    types = [None if p.is_caption else p.question_type for p in predictions_a]
    result: dict[str, Any] = {
        "all": compare_subset(~caption),
        "exact": compare_subset(~caption, exact),
        "closed": compare_subset(closed),
        "open": compare_subset(~caption & ~closed),
        "captions": compare_subset(caption),
        "by_question_type": {
            name: compare_subset(np.array([other == name for other in types], dtype=bool))
            for name in sorted({name for name in types if name})
        },
        "vocabulary": "default" if facts.vocabulary is DEFAULT_VOCABULARY else "of the dataset",
    }
    return result, scores_a, scores_b


def score_answer(prediction: Prediction, answer: str, facts: FactSource) -> RowScore:
    """Scores an answer to the question of `prediction`: 1 if correct, else 0; a caption by its fact F1."""
    if prediction.is_caption:
        return CAPTION_VERDICT, facts.compare(prediction.image_ids, prediction.reference, answer).f1
    verdict = judge_prediction(prediction, answer)
    return verdict, float(verdict.correct is True)


def print_comparison(result: Mapping[str, Any]) -> None:
    """Prints the differences as a table."""
    from rich import box
    from rich.table import Table

    console = make_console(soft_wrap=False)
    names = result["names"]
    table = Table(title=f"A {names['a']}  B {names['b']}", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("", "n", "A", "B", "A - B", "interval", "p", "A:B"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    subsets = [(name, result[name]) for name in ("all", "exact", "closed", "open")]
    subsets += [("captions (facts)", result["captions"]), *result["by_question_type"].items()]
    for name, block in subsets:
        if block["n"]:
            interval = block["interval"]
            table.add_row(
                name,
                str(block["n"]),
                f"{block['a']:.3f}",
                f"{block['b']:.3f}",
                f"{block['difference']:+.3f}",
                f"{interval[0]:+.3f} {interval[1]:+.3f}" if interval else "–",
                f"{block['p_value']:.4f}",
                f"{block['only_a']}:{block['only_b']}",
            )
    console.print(table)
    if "judge" in result:
        judge = result["judge"]
        console.print(
            f"judge {judge['judge']['model']}, both orders: A wins {judge['a']}, B wins {judge['b']}, "
            f"ties {judge['tie']}, contradicted itself {judge['contradicted']}, unreadable {judge['unreadable']}, "
            f"identical answers {judge['alike']}; A - B {judge['difference']:+.3f}, p {judge['p_value']:.4f}"
        )
    left_out = result["left_out"]
    if any(left_out.values()):
        console.print(
            f"compared on the ids that both have: {left_out['a']} rows of A and {left_out['b']} of B are left out"
        )
    clusters = max(result[name].get("clusters", 0) for name in ("all", "captions"))
    console.print(
        f"paired test over {clusters} independent images or groups; the 95 % interval excludes 0 exactly if p < 0.05; "
        "A:B counts the rows that only A or only B has right. "
        "p-values by question type are not corrected for multiple comparisons.",
        style="dim",
    )
