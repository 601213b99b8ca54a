"""The page of `qilin compare --report`: the answers of two systems beside each image, and which of them is right.

Inputs: the comparison, the predictions and row scores of both systems, the dataset. Output: one self-contained page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qilin.dataset.reader import Dataset, is_synthetic
from qilin.evaluate.report.html import image_cards, question_types, sample_by_image, write_page
from qilin.evaluate.report.report import flatten
from qilin.evaluate.results import Prediction, Verdict

SIGNS = {"only A": "A", "only B": "B", "both": "✓", "neither": "✗", "caption": "¶"}  # by outcome
SUBSETS = (
    ("all questions", "all"),
    ("exact match", "exact"),
    ("closed", "closed"),
    ("open", "open"),
    ("captions (fact F1)", "captions"),
)
STYLES = {"only A": "unparsable", "only B": "unparsable", "both": "right", "neither": "wrong", "caption": "caption"}

RowScore = tuple[Verdict, float]  # 1 or 0, or the fact F1 of a caption


def write_comparison_report(
    path: Path,
    result: Mapping[str, Any],
    predictions_a: Sequence[Prediction],
    predictions_b: Sequence[Prediction],
    scores_a: Sequence[RowScore],
    scores_b: Sequence[RowScore],
    dataset: Dataset,
) -> None:
    """Writes the page atomically. All sequences are in the order of A's predictions."""
    shown = sample_by_image(predictions_a)
    answers = zip(predictions_a, predictions_b, scores_a, scores_b, strict=True)
    write_page(
        path,
        "comparison.html.jinja",
        is_synthetic=is_synthetic(dataset),
        names=result["names"],
        dataset=dataset.path.name,
        headline=[("accuracy", result["all"]), ("caption fact F1", result["captions"])],
        subsets=[
            *((title, result[name]) for title, name in SUBSETS),
            *result["by_question_type"].items(),
        ],
        cards=image_cards(shown, dataset),
        rows={a.id: compare_answers(a, b, score_a, score_b) for a, b, score_a, score_b in answers},
        outcomes=("all", *SIGNS),
        signs=SIGNS,
        styles=STYLES,
        types=question_types(shown),
        num_shown=len(shown),
        num_total=len(predictions_a),
        manifest=flatten(result["manifest"]),
    )


def compare_answers(a: Prediction, b: Prediction, score_a: RowScore, score_b: RowScore) -> dict[str, Any]:
    """Which system is right about one row, and both answers with their mark (✓, ✗, or the fact F1) and rule."""
    outcomes = {(True, False): "only A", (False, True): "only B", (True, True): "both", (False, False): "neither"}
    outcome = "caption" if a.is_caption else outcomes[score_a[1] == 1, score_b[1] == 1]
    answers = {}
    for system, prediction, (verdict, value) in (("A", a, score_a), ("B", b, score_b)):
        mark = f"{value:.2f}" if a.is_caption else ("✓" if value else "✗")
        answers[system] = {"text": prediction.prediction, "mark": mark, "rule": verdict.rule}
    return {"outcome": outcome, "answers": answers}
