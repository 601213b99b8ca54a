"""`qilin score FILE.jsonl`: predictions that any system made -> scores on screen, as JSON, and row by row.

In: rows with id, question, reference, prediction and, where known, the other fields of predictions.jsonl. Out: the same
numbers that `qilin evaluate` writes. Controls that lie beside the file (controls.jsonl) are taken up.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset, open_dataset
from qilin.evaluate.config import CAPTION_PROMPT, ScoreConfig
from qilin.evaluate.items import item_of_row, read_rows, write_jsonl
from qilin.evaluate.manifest import scoring_manifest
from qilin.evaluate.scoring.aggregate import ScoringContext, Controls, Row, score_predictions
from qilin.evaluate.scoring.bootstrap import assign_clusters
from qilin.evaluate.scoring.captions import read_fact_source

CONTROLS_FILE = "controls.jsonl"


def score_command(config: ScoreConfig) -> None:
    """Score a file and print the result; writes `rows` if asked to."""
    show: Callable[[Mapping[str, Any]], None] = print_scores
    if config.scorer or config.compare:
        from qilin.evaluate.scoring import compare_scorers as side_by_side

        show = side_by_side.show
        scores, judged = side_by_side.score_with_kits(config)
    else:
        scores, judged = score_file(config)
    if config.rows is not None:
        write_jsonl(config.rows, judged)
    if config.json:
        json.dump(scores, sys.stdout, ensure_ascii=False, indent=2)
        print()
    else:
        show(scores)


def score_file(config: ScoreConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scores of a file of predictions, and each row's verdict. Raises UserError for rows that are none."""
    rows = read_rows(config.file)
    data = open_dataset(config.dataset) if config.dataset else None
    kept = read_controls(config.file.parent / CONTROLS_FILE, rows)
    phash: Mapping[str, str] | None = kept["phash"]
    if data is not None:
        from qilin.evaluate.controls.training_set import phashes

        phash = phashes(data)
    context = ScoringContext(
        cluster=assign_clusters([row.get("image_ids") or () for row in rows], [row.get("group") or "" for row in rows], phash),
        controls=kept["controls"],
        facts=kept["facts"] if data is None and kept["facts"] else read_fact_source(data.path if data else None),
        near_duplicate=kept["near_duplicate"],
        known_question=kept["known_question"],
        modality=kept["modality"],
        body_part=kept["body_part"],
        other_modality=kept["other_modality"] or (),
        resamples=config.resamples,
        seed=config.seed,
    )
    if config.train is not None:
        context = with_training(context, config.train, rows, data)
    scores, judged = score_predictions(rows, context)
    scores["manifest"] = {"predictions": str(config.file), **scoring_manifest()}
    return scores, judged


def with_training(context: ScoringContext, train: Path, rows: Sequence[Row], data: Dataset | None) -> ScoringContext:
    """The context with what the training split of a dataset folder tells: the commonest answers and which questions it
    asks; where the images are at hand too, the nearest neighbour by thumbnails, near-duplicates, and leaks (printed).
    """
    from qilin.evaluate.controls.contamination import find_leaks, in_words
    from qilin.evaluate.controls.nearest_neighbor import nearest_in, thumbnails
    from qilin.evaluate.controls.training_set import commonest_answers, near_training, phashes, read_training

    training = read_training(open_dataset(train), CAPTION_PROMPT)
    if training is None:
        raise UserError(f"{train}: has no train split; --train names the dataset folder that the system learnt from")
    items = [item_of_row(row) for row in rows]
    commonest, known = commonest_answers(training, items)
    controls = replace(context.controls, commonest=commonest)
    if data is None:
        return replace(context, controls=controls, known_question=known)
    ours = phashes(data)
    strange = next(((item.id, i) for item in items for i in item.image_ids if i not in ours), None)
    if strange:
        raise UserError(f"{data.path}: row {strange[0]} is about image {strange[1]}, which is not in this dataset")
    print(in_words(find_leaks(training, items, ours)), file=sys.stderr)
    nearest = nearest_in(training, items, data, lambda: thumbnails, context.seed, "nearest by thumbnails")
    return replace(
        context,
        controls=replace(controls, nearest={**controls.nearest, "thumbnails": nearest}),
        known_question=known,
        near_duplicate=near_training(training, items, ours),
    )


CONTROL_FIELDS = {"mean_picture": "mean_image", "commonest": "commonest"}  # name in controls.jsonl -> field of Controls


def write_controls(path: Path, rows: Sequence[Row], context: ScoringContext, phash: Mapping[str, str]) -> None:
    """controls.jsonl beside predictions.jsonl: per row what the controls answered and what is known of its images.

    With it `qilin score` gives exactly the numbers that `qilin evaluate` gave, without model, dataset or training data.
    """
    c = context.controls
    head: dict[str, Any] = {
        "reasons": dict(c.reasons),
        "has": [name for name, field in CONTROL_FIELDS.items() if getattr(c, field) is not None],
        "neighbours": list(c.nearest),
        "blank": c.blank is not None,
        "shuffles": len(c.shuffled),
        "knows": [
            name
            for name in ("near_duplicate", "known_question", "modality", "body_part")
            if getattr(context, name) is not None
        ],
        "phash": {i: phash[i] for row in rows for i in row["image_ids"] if i in phash},
        "vocabulary": context.facts.vocabulary,
        "truth": {
            i: sorted(context.facts.truth[i]) for row in rows for i in row["image_ids"] if i in context.facts.truth
        },
    }
    lines: list[Mapping[str, Any]] = [head]
    for row in rows:
        line: dict[str, Any] = {"id": row["id"]}
        line |= {name: getattr(c, CONTROL_FIELDS[name])[row["id"]] for name in head["has"]}
        line["nearest"] = [answers[row["id"]] for answers in c.nearest.values()]
        line["blank"] = c.blank.get(row["id"]) if c.blank is not None else None
        line["shuffled"] = [answers[row["id"]] for answers in c.shuffled]
        line["other_modality"] = [strange[row["id"]] for strange in context.other_modality]
        line |= {name: getattr(context, name)[row["id"]] for name in head["knows"]}
        lines.append(line)
    write_jsonl(path, lines)


def read_controls(path: Path, rows: Sequence[Row]) -> dict[str, Any]:
    """What controls.jsonl says about these rows; nothing, with reasons, where it is not there or is about others."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("phash", "near_duplicate", "known_question", "modality", "body_part", "facts", "other_modality")
    )
    if not path.is_file():
        why = "only a model can be shown other images: run qilin evaluate"
        train = "no training data was named: give --train DATASET"
        neighbour = "no training images were named: give --train DATASET and --dataset DATASET"
        return {**nothing, "controls": Controls(reasons={"blind": train, "shuffled": why, "nearest": neighbour})}
    from qilin.evaluate.scoring.captions import FactSource

    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    head, by_id = lines[0], {line["id"]: line for line in lines[1:]}
    if any(row["id"] not in by_id for row in rows):
        why = f"{path.name} beside the file is about other rows"
        return {**nothing, "controls": Controls(reasons=dict.fromkeys(("blind", "shuffled", "nearest"), why))}

    def column(name: str) -> dict[str, Any] | None:
        return {i: line[name] for i, line in by_id.items()} if name in head["has"] + head["knows"] else None

    blank = {i: line["blank"] for i, line in by_id.items() if line.get("blank") is not None}
    return {
        "controls": Controls(
            mean_image=column("mean_picture"),
            commonest=column("commonest"),
            shuffled=[{i: line["shuffled"][k] for i, line in by_id.items()} for k in range(head["shuffles"])],
            blank=blank if head.get("blank") else None,
            nearest={
                name: {i: line["nearest"][k] for i, line in by_id.items()}
                for k, name in enumerate(head.get("neighbours") or ())
            },
            reasons=head["reasons"],
        ),
        "phash": head["phash"],
        "other_modality": [
            {i: line["other_modality"][k] for i, line in by_id.items()}
            for k in range(min((len(line.get("other_modality") or ()) for line in by_id.values()), default=0))
        ],
        **{name: column(name) for name in ("near_duplicate", "known_question", "modality", "body_part")},
        "facts": FactSource(head["vocabulary"], {i: frozenset(facts) for i, facts in head["truth"].items()}),
    }


def print_scores(scores: Mapping[str, Any]) -> None:
    """The scores as a table on the screen."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = "scores; intervals: 95 %, bootstrap over independent images"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("", "n", "exact", "accuracy", "interval", "blind", "shuffled", "unread"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    names = ["all", "closed", "open", "no_near_duplicate", "unseen_wording"]
    for name, part in [*((n, scores[n]) for n in names), *scores["by_question_type"].items()]:
        if part.get("n"):
            accuracy = part["accuracy"]
            controls = (plain(accuracy["blind"]), plain(accuracy["shuffled"]), str(part["unparsable"]))
            figures = (plain(part["exact"]["value"]), plain(accuracy["value"]), span(accuracy["interval"]))
            table.add_row(name.replace("_", " "), str(part["n"]), *figures, *controls)
    nearest = scores["nearest_neighbour"]
    if nearest.get("accuracy"):
        table.add_section()
        exact, accuracy = nearest["exact"], nearest["accuracy"]
        figures = (plain(exact["value"]), plain(accuracy["value"]), span(accuracy["interval"]))
        table.add_row("nearest neighbour", str(nearest["n"]), *figures)
    console = Console()
    console.print(table)
    for name, gain in scores["gain"].items():
        if gain["value"] is not None:
            interval = "{:+.3f} to {:+.3f}".format(*gain["interval"]) if gain["interval"] else "no interval"
            rival = f"{name.replace('_', ' ')} ({gain['from']})"
            console.print(f"gain {rival}: {gain['value']:+.3f}, {interval}, p {gain['p_value']:.4f}")
    captions = scores["captions"]
    if captions["n"]:
        console.print(
            f"captions: n {captions['n']}, fact F1 {captions['fact_f1']:.3f} (precision "
            f"{captions['fact_precision']:.3f}, "
            f"recall {captions['fact_recall']:.3f}; blind {plain(captions['blind'])}, "
            f"shuffled {plain(captions['shuffled'])}, nearest {plain(captions['nearest'])}), "
            f"invented findings {captions['invented_findings']:.2f} and contradictions "
            f"{captions['contradictions']:.2f} a caption, BLEU-4 {captions['bleu4']:.3f}, "
            f"ROUGE-L {captions['rouge_l_char']:.3f}, chrF {captions['chrf']:.3f}, CIDEr {captions['cider']:.2f}"
        )
    sure = scores["confidence"]
    if sure["n"]:
        half = next(row for row in sure["coverage"] if row["coverage"] == 0.5)
        console.print(
            f"confidence: calibration error {sure['ece']:.3f}; accuracy of the surer half {half['accuracy']:.3f}",
        )
    for name, part in (("blind", scores["all"]["accuracy"]), ("shuffled", scores["all"]["accuracy"])):
        reason = (part.get("reasons") or {}).get(name)
        if reason:
            console.print(f"{name}: not known, {reason}", style="dim")


def span(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.3f}–{interval[1]:.3f}" if interval else "–"


def plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
