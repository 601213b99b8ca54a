"""controls.jsonl: the answers of the controls and the metadata of each row, beside predictions.jsonl.

In and out: a ScoringContext. With this file `qilin score` computes exactly the scores of `qilin evaluate`, without
model, dataset or training data. The first line is a header, every other line belongs to one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import read_jsonl, shorten
from qilin.evaluate.results import Prediction, write_jsonl
from qilin.evaluate.scoring.aggregate import Controls, ScoringContext
from qilin.evaluate.scoring.captions import FactSource

CONTROLS_FILE = "controls.jsonl"
CONTROL_FIELDS = {
    "mean_picture": "mean_image",
    "commonest": "most_frequent",
}  # name in controls.jsonl -> field of Controls
ROW_FIELDS = ("near_duplicate", "known_question", "modality", "body_part")  # of ScoringContext: row id -> value

NO_MODEL = "only a model can be shown other images: run qilin evaluate"
NO_TRAINING_DATA = "no training data was named: give --train DATASET"
NO_TRAINING_IMAGES = "no training images were named: give --train DATASET and --dataset DATASET"


@dataclass(frozen=True)
class StoredControls:
    """The content of controls.jsonl; the optional fields are None if it is missing."""

    controls: Controls
    hashes: Mapping[str, str] | None = None  # image id -> perceptual hash
    facts: FactSource | None = None
    near_duplicate: Mapping[str, bool] | None = None  # as in ScoringContext
    known_question: Mapping[str, bool] | None = None
    modality: Mapping[str, str | None] | None = None
    body_part: Mapping[str, str | None] | None = None
    other_modality: Sequence[Mapping[str, bool]] = ()


def write_controls(
    path: Path, predictions: Sequence[Prediction], context: ScoringContext, hashes: Mapping[str, str]
) -> None:
    """Writes controls.jsonl for these predictions; `hashes` maps image ids to perceptual hashes."""
    controls, facts = context.controls, context.facts
    image_ids = [image_id for prediction in predictions for image_id in prediction.image_ids]
    header: dict[str, Any] = {
        "reasons": dict(controls.reasons),
        "has": [name for name, field in CONTROL_FIELDS.items() if getattr(controls, field) is not None],
        "neighbours": list(controls.nearest),
        "blank": controls.blank is not None,
        "shuffles": len(controls.shuffled),
        "knows": [name for name in ROW_FIELDS if getattr(context, name) is not None],
        "phash": {i: hashes[i] for i in image_ids if i in hashes},
        "vocabulary": facts.vocabulary,
        "truth": {i: sorted(facts.truth[i]) for i in image_ids if i in facts.truth},
    }

    def row(row_id: str) -> dict[str, Any]:
        return {
            "id": row_id,
            **{name: getattr(controls, CONTROL_FIELDS[name])[row_id] for name in header["has"]},
            "nearest": [answers[row_id] for answers in controls.nearest.values()],
            "blank": controls.blank.get(row_id) if controls.blank is not None else None,
            "shuffled": [answers[row_id] for answers in controls.shuffled],
            "other_modality": [by_id[row_id] for by_id in context.other_modality],
            **{name: getattr(context, name)[row_id] for name in header["knows"]},
        }

    write_jsonl(path, [header, *(row(prediction.id) for prediction in predictions)])


def read_controls(path: Path, predictions: Sequence[Prediction]) -> StoredControls:
    """Reads controls.jsonl for these predictions; without the file, or for one about other rows, only the reasons."""
    if not path.is_file():
        reasons = {"blind": NO_TRAINING_DATA, "shuffled": NO_MODEL, "nearest": NO_TRAINING_IMAGES}
        return StoredControls(Controls(reasons=reasons))
    try:
        return parse_controls([row for _, row in read_jsonl(path, "a row per prediction")], path.name, predictions)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: damaged, or not written by qilin evaluate ({type(error).__name__}: {error}); remove it to score "
            "without controls"
        ) from None


def check_controls(header: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises TypeError, LookupError or AttributeError for a value of another type than write_controls writes."""
    answer_columns = [name for name in header["has"] if name in CONTROL_FIELDS]
    for row in rows.values():
        texts = [*(row[name] for name in answer_columns), *row["shuffled"], *row.get("nearest", ())]
        labels = [row.get(name) for name in ("blank", "modality", "body_part")]
        if not all(isinstance(t, str) for t in texts) or not all(isinstance(t, str | None) for t in labels):
            raise TypeError(f"a value of row {row['id']} is not a text")
    for name in ("reasons", "phash"):
        if not all(isinstance(text, str) for text in header[name].values()):
            raise TypeError(f"{name} holds a value that is not a text")
    tables = [header["truth"].values(), *(table.values() for table in header["vocabulary"].values())]
    if not all(isinstance(text, str) for table in tables for texts in table for text in iter_list(texts)):
        raise TypeError("truth or vocabulary holds a value that is not a text")


def iter_list(value: Any) -> list[Any]:
    """The value if it is a list; TypeError for any other, a text too."""
    if not isinstance(value, list):
        raise TypeError(f"{shorten(value)} is not a list")
    return value


def parse_controls(
    lines: Sequence[Mapping[str, Any]], file_name: str, predictions: Sequence[Prediction]
) -> StoredControls:
    """The rows of controls.jsonl. Raises LookupError, TypeError, AttributeError or ValueError for a damaged file."""
    header, rows = lines[0], {line["id"]: line for line in lines[1:]}
    if any(prediction.id not in rows for prediction in predictions):
        reason = f"{file_name} beside the file is about other rows"
        return StoredControls(Controls(reasons=dict.fromkeys(("blind", "shuffled", "nearest"), reason)))

    def column(name: str) -> dict[str, Any] | None:
        return {i: row[name] for i, row in rows.items()} if name in header["has"] + header["knows"] else None

    def columns(name: str, count: int) -> list[dict[str, Any]]:
        return [{i: row[name][k] for i, row in rows.items()} for k in range(count)]

    check_controls(header, rows)
    blank = {i: row["blank"] for i, row in rows.items() if row.get("blank") is not None}
    neighbors = header.get("neighbours") or ()
    return StoredControls(
        controls=Controls(
            mean_image=column("mean_picture"),
            most_frequent=column("commonest"),
            shuffled=columns("shuffled", header["shuffles"]),
            blank=blank if header.get("blank") else None,
            nearest=dict(zip(neighbors, columns("nearest", len(neighbors)), strict=True)),
            reasons=header["reasons"],
        ),
        hashes=header["phash"],
        facts=FactSource(header["vocabulary"], {i: frozenset(facts) for i, facts in header["truth"].items()}),
        other_modality=columns(
            "other_modality", min((len(row.get("other_modality") or ()) for row in rows.values()), default=0)
        ),
        **{name: column(name) for name in ROW_FIELDS},
    )
