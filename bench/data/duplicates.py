"""Speed and memory of near-duplicate detection on synthetic texts without images.

    python bench/data/duplicates.py [--sizes 10000 100000 1000000] [--workers 2]

Texts have about 60 characters from a vocabulary of 400 words; a tenth of them repeat one of the previous thousand with
one more character. MinHash compares each text with all others. Peak memory is that of the main process; the memory of a
worker depends only on the shard size. Images: near_duplicates.py. Writes bench/results/duplicates.json after each size.
"""

import argparse
import json
import platform
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from qilin.dataset.hash_tables import FingerprintMapBuilder
from qilin.pipeline.curation.near_duplicate_images import NearDuplicateGroups
from qilin.pipeline.curation.near_duplicates import find_duplicates
from qilin.pipeline.execution.workers import make_workers

BENCH = Path(__file__).parents[1]
LETTERS = "肺部心脏肝胆胃肠骨骨折结节肿块阴影积液水肿炎症出血梗死囊性实质左右上下叶段边缘清晰模糊增大正常未见可见"


def make_rows(count: int, words_per_text: int) -> Iterator[dict[str, Any]]:
    """Samples without images."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices(LETTERS, k=rng.randint(2, 5))) for _ in range(400)]
    recent: list[list[str]] = []
    for n in range(count):
        if recent and rng.random() < 0.1:
            words = list(rng.choice(recent))
            words[-1] += rng.choice("。完了")
        else:
            words = rng.choices(vocabulary, k=words_per_text)
            recent = [*recent[-999:], words]
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("user", "问"), ("", "".join(words)))
        ]
        yield {"sample_id": str(n), "image_ids": [], "messages": messages}


def measure_texts(size: int, words_per_text: int, num_workers: int) -> dict[str, Any]:
    data: Any = SimpleNamespace(
        splits=lambda: ["train"], count=lambda split: size, hash="synthetic",
        stream_rows=lambda split, columns: make_rows(size, words_per_text),
    )  # fmt: skip
    duplicates = FingerprintMapBuilder()
    no_images = NearDuplicateGroups(np.empty(0), np.empty(0))
    wall_start, cpu_start = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        find_duplicates(data, no_images, Path(folder), duplicates, make_workers(num_workers))
    return {
        "seconds_texts": round(time.monotonic() - wall_start, 1),
        "cpu_seconds_of_this_process": round(time.process_time() - cpu_start, 1),
        "texts_found": len(duplicates.keys),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="numbers of rows")
    parser.add_argument("--words", type=int, default=18, help="words per text, about 3.5 characters each")
    parser.add_argument("--workers", type=int, default=1, help="number of processes")
    args = parser.parse_args()
    runs = []
    for size in args.sizes:
        run = {"rows": size, "characters_a_text": round(3.5 * args.words), "workers": args.workers}
        run |= measure_texts(size, args.words, args.workers)
        run["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        runs.append(run)
        print(run, flush=True)
        header = {"command": "python bench/data/duplicates.py", "machine": f"{platform.machine()}, one core"}
        result = {**header, "python": platform.python_version(), "runs": runs}
        (BENCH / "results" / "duplicates.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
