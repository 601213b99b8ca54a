"""How many threads the demo's small models want: a short demo on one thread and on all, chapter by chapter, alternated.

    python bench/threads.py --work DIR

The recipes are those of drawn pictures with less to read and fewer passes. Writes bench/results/threads.json. For a
quiet machine: with anything else at work more threads look worse than they are.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from importlib import resources
from pathlib import Path

from qilin.settings import read_yaml, write_yaml

RESULT = Path(__file__).parent / "results" / "threads.json"
# Each chapter ends where its file is written; the first begins with demo.yaml.
CHAPTERS = {
    "drawing": "dataset/manifest.json",
    "language model": "parts/language/part.json",
    "vision encoder": "parts/vision/part.json",
    "stage 1": "align/config.json",
    "stage 2": "instruct/config.json",
    "evaluation": "evaluation/report.html",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=600)
    asked = parser.parse_args()
    recipes = short_recipes(asked.work)
    threads = (1, os.cpu_count() or 1)
    found: dict[int, list[dict[str, float]]] = {number: [] for number in threads}
    for _ in range(asked.rounds):
        for number in threads:
            found[number].append(chapters(asked.work / "demo", recipes, asked.pictures, number))
    seconds = {
        name: {str(number): statistics.median(row[name] for row in rows) for number, rows in found.items()}
        for name in CHAPTERS
    }
    kept = {
        "command": " ".join(["python", "bench/threads.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "rounds": asked.rounds,
        "median_seconds_by_threads": seconds,
    }
    RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(kept, indent=1))


def short_recipes(work: Path) -> Path:
    """The recipes of drawn pictures, made short."""
    folder = work / "recipes"
    shutil.copytree(str(resources.files("qilin") / "recipes" / "tiny"), folder, dirs_exist_ok=True)
    parts = read_yaml(folder / "parts.yaml")
    parts["language"]["texts"] = 400
    parts["vision"]["epochs"] = 6
    write_yaml(parts, folder / "parts.yaml")
    return folder


def chapters(out: Path, recipes: Path, pictures: int, threads: int) -> dict[str, float]:
    """The seconds of each chapter of one demo."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["--out", str(out), "--recipes", str(recipes), "--pictures", str(pictures), "--threads", str(threads)]
    subprocess.run([sys.executable, "-m", "qilin.cli", "demo", *words], check=True)
    before = (out / "demo.yaml").stat().st_mtime
    found = {}
    for name, file in CHAPTERS.items():
        now = (out / file).stat().st_mtime
        found[name] = round(now - before, 2)
        before = now
    return found


if __name__ == "__main__":
    main()
