"""report.html: one self-contained page with scores, controls, loss curves, and the answers beside their images.

Inputs: scores.json as a dictionary, predictions with verdicts, the dataset for its images, the model folder for its
loss curves. Output: a page that needs no network: style, script and JPEG thumbnails are inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qilin.dataset.reader import Dataset, is_synthetic
from qilin.evaluate.controls.contamination import format_contamination
from qilin.evaluate.report.caption_facts import caption_facts
from qilin.evaluate.report.charts import coverage_curve, loss_curve, reliability_diagram, score_plot, training_stages
from qilin.evaluate.report.headline import headline
from qilin.evaluate.report.html import image_cards, question_types, sample_by_image, write_page
from qilin.evaluate.results import Prediction, Verdict
from qilin.evaluate.scoring.captions import FactSource

SIGNS = {"right": "✓", "wrong": "✗", "unparsable": "?", "caption": "¶"}  # by outcome
CONTROL_TITLES = (("blind", "blind"), ("shuffled", "shuffled images"), ("nearest", "nearest neighbor"))
SUBSETS = (
    ("all questions", "all"),
    ("closed", "closed"),
    ("open", "open"),
    ("unseen images", "no_near_duplicate"),
    ("unseen questions", "unseen_wording"),
)
CAPTION_TITLES = (
    ("fact F1", "fact_f1"),
    ("fact precision", "fact_precision"),
    ("fact recall", "fact_recall"),
    ("fact F1, abnormal findings", "abnormal_f1"),
    ("fact F1, blind", "blind"),
    ("fact F1, shuffled images", "shuffled"),
    ("fact F1, nearest neighbor", "nearest"),
    ("fact F1, one caption for every image", "fixed"),
    ("fact F1, exchanged captions", "exchanged"),
    ("invented findings per caption", "invented_findings"),
    ("share of captions with invented findings", "captions_that_invent"),
    ("contradictions per caption", "contradictions"),
    ("BLEU-4", "bleu4"),
    ("chrF", "chrf"),
    ("CIDEr (0 to 10)", "cider"),
    ("ROUGE-L, characters", "rouge_l_char"),
    ("ROUGE-L, words", "rouge_l_word"),
)
PROBE_TITLES = (
    ("own_picture", "the original image"),
    ("mean_picture", "mean image: shows no finding"),
    ("blank_picture", "black image: shows no finding"),
    ("other_modality", "an image of another modality"),
)


def write_report(
    out: Path,
    scores: Mapping[str, Any],
    predictions: Sequence[Prediction],
    verdicts: Sequence[Verdict],
    dataset: Dataset,
    model: str,
    label: str | None = None,
    facts: FactSource | None = None,
    language: str = "en",
    runs: Mapping[str, Any] | None = None,
    baseline: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the page and returns its path: `out`, or report.html in the folder `out`.

    `label` (such as "quick run") is shown as a banner. `facts`: the source of the captions' true facts, to mark which
    are right. `runs` and `baseline`: other evaluations of the same questions, as `qilin report` reads them.
    """
    shown = sample_by_image(predictions)
    subsets = [(title, scores[name]) for title, name in SUBSETS if scores[name].get("n")]
    by_type = list(scores["by_question_type"].items())
    nearest = scores["nearest_neighbour"]
    counts = scores["manifest"].get("leaks")
    contamination = format_contamination(counts) if counts else ""
    path = out / "report.html" if out.is_dir() else out
    write_page(
        path,
        "report.html.jinja",
        language=language,
        findings=headline(scores),
        runs=runs,
        baseline=baseline,
        facts={p.id: caption_facts(facts, p) for p in shown if p.is_caption} if facts else {},
        label=label,
        is_synthetic=is_synthetic(dataset),
        limit=(scores["manifest"].get("settings") or {}).get("limit"),
        model=Path(model).name,
        dataset=dataset.path.name,
        scores=scores,
        gains=[
            ("gain over blind", scores["gain"]["over_blind"]),
            ("gain over shuffled images", scores["gain"]["over_shuffled"]),
            ("gain over nearest neighbor", scores["gain"]["over_nearest_neighbour"]),
        ],
        control_titles=CONTROL_TITLES,
        subsets=subsets,
        breakdowns=[
            ("By question type", by_type),
            ("By modality", list(scores["by_modality"].items())),
            ("By body part", list(scores["by_body_part"].items())),
        ],
        table_rows=subsets + by_type,
        nearest_rows=list(nearest["each"].items()) if nearest.get("accuracy") else [],
        missing=scores["all"]["accuracy"].get("reasons") or {},
        contamination=contamination[:1].upper() + contamination[1:],
        caption_titles=CAPTION_TITLES,
        probe_titles=PROBE_TITLES,
        score_plot=score_plot,
        reliability_diagram=reliability_diagram,
        coverage_curve=coverage_curve,
        loss_curves=[loss_curve(stage) for stage in training_stages(model)],
        cards=image_cards(shown, dataset),
        verdicts={p.id: verdict for p, verdict in zip(predictions, verdicts, strict=True)},
        outcomes=("all", *SIGNS),
        signs=SIGNS,
        types=question_types(shown),
        num_shown=len(shown),
        num_total=len(predictions),
        manifest=flatten(scores["manifest"]),
    )
    return path


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted names."""
    entries: dict[str, Any] = {}
    for name, inner in value.items():
        entries |= flatten(inner, f"{prefix}{name}.") if isinstance(inner, Mapping) else {prefix + name: inner}
    return entries
