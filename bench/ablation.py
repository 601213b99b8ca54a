"""What stage 1 buys: the curriculum against stage 2 alone, at the same budget of time, seed by seed.

    python bench/ablation.py --work DIR --data drawn=DIR --parts drawn=DIR --data slake=DIR --parts slake=DIR

Both arms begin from the same parts. `curriculum`: stage 1 on captions, then stage 2. `alone`: stage 2 from a fresh
projector, with as many more passes through its data as make up for stage 1's CPU time. One run is one process;
bench/results/ablation.json is written after each and lists those that are missing, so that the whole can be interrupted
and continued. It says what recipe each part was trained by; rows of another one are refused, not averaged.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "ablation.json"
ARMS = ("curriculum", "alone")
RECIPES = {"drawn": "tiny", "slake": "small"}
# Passes through the data (stage 1, stage 2), chosen so that both arms take about the same CPU time and no run more than
# eight minutes. A pass and a part of one is one pass over data that weighs more than 1.
PASSES: dict[str, dict[str, tuple[int, float]]] = {
    "drawn": {"curriculum": (1, 0.6), "alone": (0, 0.75)},
    "slake": {"curriculum": (3, 5), "alone": (0, 6)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--parts", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    data, parts = (dict(word.split("=", 1) for word in words) for words in (asked.data, asked.parts))
    wanted = [(name, arm, seed) for seed in asked.seeds for name in data for arm in ARMS]
    for name, arm, seed in wanted:
        rows = read()
        if not any((r["data"], r["arm"], r["seed"]) == (name, arm, seed) for r in rows):
            row = run(name, arm, seed, Path(data[name]), Path(parts[name]), asked.work)
            model = asked.work / f"{name}-{arm}-{seed}" / "instruct"
            write([*read(), row], recipes(name, Path(data[name]), model), wanted)


def run(name: str, arm: str, seed: int, data: Path, parts: Path, work: Path) -> dict[str, Any]:
    """One arm: its stages and its evaluation without controls."""
    out = work / f"{name}-{arm}-{seed}"
    first, second = PASSES[name][arm]
    folder = RECIPES[name]
    start = [f"vision={parts / 'vision'}", f"language={parts / 'language'}"]
    seconds = 0.0
    if first:
        words = [f"data={data}", f"out={out / 'align'}", f"seed={seed}", f"num_epochs={first}", *start]
        seconds += command("train", f"{folder}/align", *words)
        start = [f"model={out / 'align'}"]
    whole = max(1, int(second))
    again = [f"data=[{{path: {data}, weight: {second / whole}}}]", f"num_epochs={whole}"]
    words = [*again, f"out={out / 'instruct'}", f"seed={seed}", *start]
    seconds += command("train", f"{folder}/instruct", *words)
    scores_folder = ["--split", "validation", "--out", str(out / "scores")]
    command("evaluate", str(out / "instruct"), str(data), *scores_folder, "--no-controls", "--batch", "64")
    scores = json.loads((out / "scores" / "scores.json").read_text())
    return {
        "data": name,
        "arm": arm,
        "seed": seed,
        "passes": [first, second],
        "train_cpu_minutes": round(seconds / 60, 2),
        **{kind: scores[kind]["exact"]["value"] for kind in ("all", "closed", "open")},
        "caption_fact_f1": scores["captions"].get("fact_f1"),
    }


def command(*words: str) -> float:
    """Run one qilin command on one thread; returns its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "qilin.cli", *words], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def recipes(name: str, data: Path, model: Path) -> dict[str, Any]:
    """What the file says of recipes, with that of a finished stage 2 added. Stops where the file knows another one."""
    how = json.loads((model / "qilin.json").read_text())["recipe"]
    own = {
        "recipe": RECIPES[name],
        **{f"stage 2 {key}": how[key] for key in ("optimizer", "rate", "batch")},
        "stage 2 rates": {part: rate for part, rate in how["rates"].items() if rate is not None},
        "pictures": json.loads((data / "manifest.json").read_text())["counts"]["pictures"],
    }
    known = json.loads(RESULT.read_text())["recipes"] if RESULT.is_file() else {}
    if known.get(name, own) != own:
        sys.exit(f"{RESULT}: its rows of {name} were trained by {known[name]}, this run by {own}; remove those rows")
    return {**known, name: own}


def read() -> list[dict[str, Any]]:
    return list(json.loads(RESULT.read_text())["rows"]) if RESULT.is_file() else []


def write(rows: list[dict[str, Any]], how: dict[str, Any], wanted: list[tuple[str, str, int]]) -> None:
    """Rows, means by data and arm, the recipes, and what is still missing."""
    done = {(r["data"], r["arm"], r["seed"]) for r in rows}
    means = {}
    for name, arm in sorted({(r["data"], r["arm"]) for r in rows}):
        mine = [r for r in rows if (r["data"], r["arm"]) == (name, arm)]
        keys = ("all", "closed", "open", "caption_fact_f1", "train_cpu_minutes")
        means[f"{name} {arm}"] = {
            key: round(sum(r[key] for r in mine) / len(mine), 4)
            for key in keys
            if all(r[key] is not None for r in mine)
        } | {"seeds": len(mine)}
    missing = [" ".join(map(str, w)) for w in wanted if w not in done]
    found = {
        "command": "python bench/ablation.py",
        "machine": f"{platform.machine()}, one thread a run; other work may run beside",
        "recipes": how,
        "means": means,
        "missing": missing,
        "rows": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
