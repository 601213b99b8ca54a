"""One training and one evaluation of the SLAKE benchmarks, each a separate process on one thread whose CPU time counts.

In: a recipe with its settings, and a folder for the run. Out: a row of scores, kept in the folder as row.json: a run
with a row is not repeated, one without starts over, so that its CPU time is that of the whole run.
"""

import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from run_qilin import run_qilin

FACTS = ("fact_f1", "fact_precision", "fact_recall")
SCORES = ("exact", "accuracy", "fact_f1", "no_near_duplicate", "cpu_seconds")


def run(
    name: str, seed: int, settings: Sequence[str], data: Path, work: Path, controls: bool = False
) -> dict[str, Any]:
    """Train recipe small/instruct with these settings, evaluate on the validation split, return the row."""
    out = work / f"{name}-seed-{seed}"
    file = Path(f"{out}-row.json")
    if not file.is_file():
        shutil.rmtree(out, ignore_errors=True)
        seconds = run_qilin("train", "small/instruct", f"data={data}", f"out={out}", f"seed={seed}", *settings)
        row = {"name": name, "seed": seed, "settings": list(settings), "train_cpu_seconds": round(seconds, 1)}
        file.write_text(json.dumps(row | evaluate(out, data), ensure_ascii=False), encoding="utf-8")
    row = json.loads(file.read_text(encoding="utf-8"))
    if controls and "shuffled" not in row:
        row |= evaluate_controls(out, data)
        file.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    return dict(row)


def is_finished(name: str, seed: int, work: Path) -> bool:
    return (work / f"{name}-seed-{seed}-row.json").is_file()


def evaluate(model: Path, data: Path) -> dict[str, Any]:
    """Exact match and accuracy of the questions, fact scores of the captions, exact match by type of question."""
    scores = run_evaluation(model, data, Path(f"{model}-scores"), "--no-controls")
    return question_and_caption_scores(scores) | {
        "nearest_neighbor": scores["all"]["exact"].get("nearest"),
        "no_near_duplicate": scores["no_near_duplicate"]["exact"]["value"],
        "by_question_type": {k: round(v["exact"]["value"], 4) for k, v in scores["by_question_type"].items()},
    }


def question_and_caption_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """Exact match and accuracy of the questions, fact scores of the captions, out of scores.json."""
    captions = scores.get("captions", {})
    values = {name: scores["all"][name]["value"] for name in ("exact", "accuracy")}
    return values | {name: captions[name] for name in FACTS if name in captions}


def evaluate_controls(model: Path, data: Path) -> dict[str, Any]:
    """Exact match with shuffled images and with the mean image, and its interval with the own ones."""
    exact = run_evaluation(model, data, Path(f"{model}-controls"), "--shuffles", "1")["all"]["exact"]
    return {"interval": exact["interval"], "shuffled": exact["shuffled"], "blind": exact["blind_each"]}


def run_evaluation(model: Path, data: Path, out: Path, *options: str) -> dict[str, Any]:
    if not (out / "scores.json").is_file():
        run_qilin("evaluate", str(model), str(data), "--split", "validation", "--out", str(out), "--batch-size", "64",
                  "--caption-tokens", "96", *options)  # fmt: skip
    scores: dict[str, Any] = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    return scores


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean scores of each name, with the exact match of each seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    return [
        {"name": name, "seeds": len(group), "exact_by_seed": [round(row["exact"], 4) for row in group]}
        | {key: round(statistics.mean(row[key] for row in group), 4) for key in SCORES if all(key in r for r in group)}
        for name, group in groups.items()
    ]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """One line per name: its mean scores and CPU seconds."""
    for row in means(rows):
        values = "  ".join(f"{key} {row[key]:.4g}" for key in SCORES if key in row)
        print(f"{row['name']:24} {row['seeds']} seeds  {values}")
