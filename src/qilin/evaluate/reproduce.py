"""Repeats the evaluation of a scores.json in a new folder and lists what differs.

In: the manifest of a scores.json. Out: a new evaluation, and reproduced.json with the differences in inputs (model,
data, code, versions), in scores, and in answers where the old predictions still exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qilin.core.config import build_config
from qilin.core.errors import UserError
from qilin.core.files import check_regular_file, read_json_object, to_json, write_atomic
from qilin.evaluate.config import EvaluateConfig
from qilin.evaluate.results import read_predictions
from qilin.evaluate.run import evaluate

INPUTS = ("model", "dataset", "train", "decoding", "prompt", "seed", "scorer", "code", "versions", "machine")
# A changed answer moves a score by more than this in up to a million rows. The last bit of a single-precision
# confidence moves it by less (3e-8 was measured), and a different batch size, device or thread count can flip that bit.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Reproduction:
    """The new scores, and one line per difference in inputs and scores; `answers_changed` is None if unknown."""

    scores: Mapping[str, Any]
    inputs: list[str]
    differences: list[str]
    answers_changed: int | None


def reproduce(config: EvaluateConfig) -> Reproduction:
    """Repeats the evaluation of `config.reproduce` in `config.out`.

    Batch size, concurrency and device come from `config`, and model, dataset and training data where it names them
    (they may have moved); everything else from the manifest. Raises UserError for a file that is not a scores.json.
    """
    assert config.reproduce is not None, "the caller checks this"
    old_scores = read_scores(config.reproduce)
    old = build_config(EvaluateConfig, {**old_scores["manifest"]["settings"], "reproduce": None}, str(config.reproduce))
    if config.out.resolve() == config.reproduce.resolve().parent:
        raise UserError(f"{config.out}: holds the evaluation to reproduce; choose another --out")
    scores = evaluate(
        replace(
            old,
            out=config.out,
            batch_size=config.batch_size,
            device=config.device,
            concurrency=config.concurrency,
            model=config.model or old.model,
            dataset=config.dataset or old.dataset,
            train=config.train or old.train,
        )
    )
    new_scores = json.loads(json.dumps(scores))
    inputs = [
        line
        for name in INPUTS
        for line in find_differences(old_scores["manifest"].get(name), new_scores["manifest"].get(name), name)
    ]
    differences = list(find_differences(without_manifest(old_scores), without_manifest(new_scores), ""))
    old_predictions = config.reproduce.parent / "predictions.jsonl"
    result = Reproduction(
        scores, inputs, differences, count_changed_answers(old_predictions, config.out / "predictions.jsonl")
    )
    report = {
        "inputs": inputs,
        "scores": differences,
        "answers_changed": result.answers_changed,
        "same": not differences,
    }
    write_atomic(config.out / "reproduced.json", to_json(report))
    return result


def read_scores(path: Path) -> dict[str, Any]:
    """Reads a scores.json of `qilin evaluate`. Raises UserError for any other file."""
    check_regular_file(path, "a scores.json of qilin evaluate")
    scores = read_json_object(path)
    manifest = scores.get("manifest")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("settings"), dict):
        raise UserError(f"{path}: not a scores.json of qilin evaluate: manifest.settings is missing")
    return scores


def without_manifest(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores alone."""
    return {name: block for name, block in scores.items() if name != "manifest"}


def find_differences(old: Any, new: Any, name: str) -> Iterator[str]:
    """Yields a line per value that differs, numbers by more than TOLERANCE; ignores fields called "path"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            if key != "path":
                yield from find_differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from find_differences(a, b, f"{name}[{index}]")
    elif isinstance(old, float) and isinstance(new, int | float):
        if abs(old - new) > TOLERANCE:
            yield f"{name}: {old} before, {new} now"
    elif old != new:
        yield f"{name}: {old} before, {new} now"


def count_changed_answers(old: Path, new: Path) -> int | None:
    """How many predictions differ between two files; None if the old one does not exist."""
    if not old.is_file():
        return None
    old_answers = {p.id: p.prediction for p in read_predictions(old)}
    return sum(p.prediction != old_answers.get(p.id) for p in read_predictions(new))
