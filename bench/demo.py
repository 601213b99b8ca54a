"""Time and scores of `qilin demo` on a dataset folder or on synthetic images, over several seeds.

    python bench/demo.py slake --data SLAKE_FOLDER --seeds 0 1 2 --work DIR
    python bench/demo.py drawn --seeds 0 --work DIR

Each seed runs in a separate process; its CPU time includes child processes. Results are added to
bench/results/story-NAME.json after each seed, and existing seeds are skipped, so the benchmark can be resumed.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name for the result file")
    parser.add_argument("--data", type=Path, help="dataset folder; without it, synthetic images")
    parser.add_argument("--recipes", help="passed to qilin demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    args = parser.parse_args()
    file = RESULTS / f"story-{args.name}.json"
    for seed in args.seeds:
        if not any(row["seed"] == seed for row in read_rows(file)):
            row = run_demo(args, seed)
            # read again: another process may have added a row
            write_result(file, args, sorted([*read_rows(file), row], key=lambda r: r["seed"]))


def read_rows(file: Path) -> list[dict[str, Any]]:
    return list(json.loads(file.read_text())["rows"]) if file.is_file() else []


def run_demo(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Runs one demo; returns its times and scores."""
    out = args.work / f"{args.name}-{seed}"
    command = [sys.executable, "-m", "qilin.cli", "demo", "--out", str(out), "--seed", str(seed)]
    command += ["--threads", str(args.threads)]
    command += ["--data", str(args.data)] if args.data else []
    command += ["--recipes", args.recipes] if args.recipes else []
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(args.threads)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    scores = json.loads((out / "evaluation" / "scores.json").read_text())
    blocks = ("all", "closed", "open", "no_near_duplicate", "unseen_wording", "nearest_neighbour", "captions")
    return {
        "seed": seed,
        "cpu_minutes": round(cpu / 60, 2),
        "wall_minutes": round((time.monotonic() - start) / 60, 2),
        "scores": {name: scores[name] for name in blocks if name in scores},
        "by_question_type": scores.get("by_question_type"),
    }


def write_result(file: Path, args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Writes command, machine, versions, and the rows with their mean."""
    import torch
    import transformers

    exact = [row["scores"]["all"]["exact"] for row in rows]
    result = {
        "command": f"python bench/demo.py {args.name} --seeds {' '.join(str(row['seed']) for row in rows)} "
        f"--threads {args.threads}" + (" --data FOLDER" if args.data else ""),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.processor() or cpu_name()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "mean": {key: round(sum(e[key] for e in exact) / len(exact), 4) for key in ("value", "blind", "shuffled")}
        | {"cpu_minutes": round(sum(row["cpu_minutes"] for row in rows) / len(rows), 2)},
        "rows": rows,
    }
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
