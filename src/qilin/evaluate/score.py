"""`qilin score FILE`: scores the predictions of any system.

In: rows with id, question, reference, prediction and, optionally, the other fields of predictions.jsonl; controls.jsonl
in the same folder. Out: the scores that `qilin evaluate` would write, and a verdict per row.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qilin.core.errors import UserError
from qilin.core.llm_client_config import parse_extra
from qilin.dataset.import_rows import CAPTION_INSTRUCTION
from qilin.evaluate.config import ScoreConfig
from qilin.evaluate.controls.controls_file import CONTROLS_FILE, StoredControls, read_controls
from qilin.evaluate.foreign_rows import OWN_LAYOUT
from qilin.evaluate.manifest import scoring_manifest
from qilin.evaluate.prediction_files import PredictionFile, check_prediction_path, read_prediction_file
from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.aggregate import ScoringContext, score_predictions
from qilin.evaluate.scoring.captions import FactSource, read_fact_source
from qilin.evaluate.scoring.intervals import assign_clusters

if TYPE_CHECKING:
    from qilin.dataset.reader import Dataset

# What reads datasets and images is imported where it is used: it takes 40 MB that a file of predictions does not need.


def score_file(config: ScoreConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scores of a file of predictions, and a row {"id", "correct", "rule"} for each of them.

    Raises UserError for rows that are not predictions, and for a dataset or training data that do not fit them.
    """
    dataset: Dataset | None = None
    if config.dataset:
        from qilin.dataset.reader import open_dataset

        dataset = open_dataset(config.dataset)
    path = check_prediction_path(config.file)
    file = read_prediction_file(path, config.fields, config.references, dataset, CAPTION_INSTRUCTION)
    predictions = file.predictions
    print_notes(file)
    stored = read_controls(path.parent / CONTROLS_FILE, predictions)
    hashes = stored.hashes
    if dataset:
        from qilin.evaluate.controls.training_set import read_hashes

        hashes = read_hashes(dataset)
    cluster, facts = clusters_and_facts(predictions, stored, dataset, hashes)
    context = ScoringContext(
        cluster=cluster,
        controls=stored.controls,
        facts=facts,
        near_duplicate=stored.near_duplicate,
        known_question=stored.known_question,
        modality=stored.modality,
        body_part=stored.body_part,
        other_modality=stored.other_modality,
        resamples=config.resamples,
        seed=config.seed,
    )
    if config.train is not None:
        context = with_training_data(context, config.train, predictions, dataset, hashes or {})
    scores, verdicts = score_predictions(predictions, context)
    scores["manifest"] = {
        "predictions": str(path), "format": file.layout, "notes": file.notes, "judge": None,
        **scoring_manifest(),
    }  # fmt: skip
    rows = [verdict.to_row(p.id) for p, verdict in zip(predictions, verdicts, strict=True)]
    if config.judge_model is not None and config.endpoint is not None:
        # not above: the client's libraries take 11 MB that scoring by the rules does not need
        from qilin.core.llm_client import Endpoint
        from qilin.evaluate.scoring.answer_judge import judge_answers, read_pairs

        endpoint = Endpoint(
            config.endpoint, config.judge_model, cache=path.parent / "judge.sqlite", budget=config.budget,
            seed=config.seed, extra=parse_extra(config.extra),
        )  # fmt: skip
        pairs = read_pairs(config.judge_pairs)
        scores["judge"], judged = judge_answers(
            predictions, verdicts, cluster, endpoint, config.judge, pairs, config.seed
        )
        scores["manifest"]["judge"] = {name: scores["judge"][name] for name in ("model", "endpoint", "prompt", "scope")}
        rows = [row | ({"judge": verdict} if verdict else {}) for row, verdict in zip(rows, judged, strict=True)]
    return scores, rows


def print_notes(file: PredictionFile) -> None:
    """Says on stderr what layout a file has, if not Qilin's own, and what was left out or guessed."""
    if file.layout != OWN_LAYOUT:
        print(f"read as {file.layout}: {len(file.predictions)} rows", file=sys.stderr)
    for note in file.notes:
        print(f"note: {note}", file=sys.stderr)


def clusters_and_facts(
    predictions: Sequence[Prediction],
    stored: StoredControls,
    dataset: Dataset | None,
    hashes: Mapping[str, str] | None,
) -> tuple[NDArray[np.int64], FactSource]:
    """The cluster of each row (N,), and the caption facts: of the dataset, else of controls.jsonl, else the default."""
    cluster = assign_clusters([p.image_ids for p in predictions], [p.group for p in predictions], hashes)
    if dataset is None and stored.facts:
        return cluster, stored.facts
    return cluster, read_fact_source(dataset.path if dataset else None)


def with_training_data(
    context: ScoringContext,
    train: Path,
    predictions: Sequence[Prediction],
    dataset: Dataset | None,
    hashes: Mapping[str, str],
) -> ScoringContext:
    """Adds to the context the most frequent training answers and which questions occur in the training data.

    With a dataset also: the nearest neighbor by thumbnails and the near-duplicates; prints the contamination.
    """
    from qilin.dataset.reader import open_dataset
    from qilin.evaluate.controls.contamination import find_contamination, format_contamination
    from qilin.evaluate.controls.nearest_neighbor import embed_thumbnails, nearest_neighbor_answers
    from qilin.evaluate.controls.training_set import (
        has_training_image,
        match_training_images,
        most_frequent_answers,
        read_training_set,
    )

    training = read_training_set(open_dataset(train), CAPTION_INSTRUCTION)
    if training is None:
        raise UserError(f"{train}: has no train split; --train expects the dataset folder of the training data")
    most_frequent, known_question = most_frequent_answers(training, predictions)
    controls = replace(context.controls, most_frequent=most_frequent)
    if dataset is None:
        return replace(context, controls=controls, known_question=known_question)
    missing = next(((p.id, image_id) for p in predictions for image_id in p.image_ids if image_id not in hashes), None)
    if missing:
        raise UserError(f"{dataset.path}: image {missing[1]} of row {missing[0]} is not in this dataset")
    matches = match_training_images(training, predictions, dataset)
    print(format_contamination(find_contamination(training, predictions, matches)), file=sys.stderr)
    nearest = nearest_neighbor_answers(
        training, predictions, dataset, embed_thumbnails, context.seed, "nearest by thumbnails"
    )
    return replace(
        context,
        controls=replace(controls, nearest={**controls.nearest, "thumbnails": nearest}),
        known_question=known_question,
        near_duplicate=has_training_image(predictions, matches),
    )
