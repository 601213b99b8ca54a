"""Benefit of stage 1: the two-stage curriculum against stage 2 alone, at equal training time, over several seeds.

    python bench/ablation.py --work DIR --data drawn=DIR --parts drawn=DIR --data slake=DIR --parts slake=DIR

Both arms start from the same pre-trained parts. `curriculum`: stage 1 on captions, then stage 2. `alone`: stage 2 with
an untrained projector and more epochs, to match the CPU time of stage 1. Each run is a separate process;
bench/results/ablation.json is written after each run and lists the missing runs, so the benchmark can be resumed. The
file records the recipe of each dataset; the script refuses to add rows of a different recipe.
"""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

from run_qilin import run_qilin

RESULT = Path(__file__).parent / "results" / "ablation.json"
ARMS = ("curriculum", "alone")
RECIPES = {"drawn": "tiny", "slake": "small"}
# Epochs (stage 1, stage 2): both arms take about the same CPU time, and no run takes more than eight minutes. A
# fraction of an epoch is implemented as a data weight.
EPOCHS: dict[str, dict[str, tuple[int, float]]] = {
    "drawn": {"curriculum": (1, 0.6), "alone": (0, 0.75)},
    "slake": {"curriculum": (3, 5), "alone": (0, 6)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER", help="dataset folder")
    parser.add_argument("--parts", action="append", default=[], metavar="NAME=FOLDER", help="pre-trained parts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    args = parser.parse_args()
    data, parts = (dict(pair.split("=", 1) for pair in pairs) for pairs in (args.data, args.parts))
    planned = [(name, arm, seed) for seed in args.seeds for name in data for arm in ARMS]
    for name, arm, seed in planned:
        rows = read_rows()
        if not any((r["data"], r["arm"], r["seed"]) == (name, arm, seed) for r in rows):
            row = run(name, arm, seed, Path(data[name]), Path(parts[name]), args.work)
            model = args.work / f"{name}-{arm}-{seed}" / "instruct"
            write_result([*read_rows(), row], merge_recipes(name, Path(data[name]), model), planned)


def run(name: str, arm: str, seed: int, data: Path, parts: Path, work: Path) -> dict[str, Any]:
    """Runs one arm: its stages and an evaluation without controls; returns its row."""
    out = work / f"{name}-{arm}-{seed}"
    stage1_epochs, stage2_epochs = EPOCHS[name][arm]
    recipe = RECIPES[name]
    start = [f"vision={parts / 'vision'}", f"language={parts / 'language'}"]
    seconds = 0.0
    if stage1_epochs:
        overrides = [f"data={data}", f"out={out / 'align'}", f"seed={seed}", f"num_epochs={stage1_epochs}", *start]
        seconds += run_qilin("train", f"{recipe}/align", *overrides)
        start = [f"model={out / 'align'}"]
    epochs = max(1, int(stage2_epochs))
    weighted = [f"data=[{{path: {data}, weight: {stage2_epochs / epochs}}}]", f"num_epochs={epochs}"]
    overrides = [*weighted, f"out={out / 'instruct'}", f"seed={seed}", *start]
    seconds += run_qilin("train", f"{recipe}/instruct", *overrides)
    options = ["--split", "validation", "--out", str(out / "scores"), "--no-controls", "--batch-size", "64"]
    run_qilin("evaluate", str(out / "instruct"), str(data), *options)
    scores = json.loads((out / "scores" / "scores.json").read_text())
    return {
        "data": name,
        "arm": arm,
        "seed": seed,
        "passes": [stage1_epochs, stage2_epochs],
        "train_cpu_minutes": round(seconds / 60, 2),
        **{subset: scores[subset]["exact"]["value"] for subset in ("all", "closed", "open")},
        "caption_fact_f1": scores["captions"].get("fact_f1"),
    }


def merge_recipes(name: str, data: Path, model: Path) -> dict[str, Any]:
    """The recipes in the result file plus that of a finished stage 2. Exits if the file has a different one."""
    recipe = json.loads((model / "qilin.json").read_text())["recipe"]
    summary = {
        "recipe": RECIPES[name],
        "stage 2 optimizer": recipe["optimizer"],
        "stage 2 rate": recipe["learning_rate"],
        "stage 2 batch": recipe["batch_size"],
        "stage 2 rates": {part: rate for part, rate in recipe["learning_rates"].items() if rate is not None},
        "pictures": json.loads((data / "manifest.json").read_text())["counts"]["pictures"],
    }
    stored = json.loads(RESULT.read_text())["recipes"] if RESULT.is_file() else {}
    if stored.get(name, summary) != summary:
        sys.exit(f"{RESULT}: the rows of {name} have recipe {stored[name]}, this run has {summary}; remove those rows")
    return {**stored, name: summary}


def read_rows() -> list[dict[str, Any]]:
    return list(json.loads(RESULT.read_text())["rows"]) if RESULT.is_file() else []


def write_result(rows: list[dict[str, Any]], recipes: dict[str, Any], planned: list[tuple[str, str, int]]) -> None:
    """Writes rows, means by dataset and arm, the recipes, and the missing runs."""
    finished = {(r["data"], r["arm"], r["seed"]) for r in rows}
    means = {}
    for name, arm in sorted({(r["data"], r["arm"]) for r in rows}):
        runs = [r for r in rows if (r["data"], r["arm"]) == (name, arm)]
        keys = ("all", "closed", "open", "caption_fact_f1", "train_cpu_minutes")
        means[f"{name} {arm}"] = {
            key: round(sum(r[key] for r in runs) / len(runs), 4)
            for key in keys
            if all(r[key] is not None for r in runs)
        } | {"seeds": len(runs)}
    result = {
        "command": "python bench/ablation.py",
        "machine": f"{platform.machine()}, one thread per run; other programs may run at the same time",
        "recipes": recipes,
        "means": means,
        "missing": [" ".join(map(str, run)) for run in planned if run not in finished],
        "rows": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
