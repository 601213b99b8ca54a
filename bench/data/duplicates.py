"""How fast repetitions are found, and how much memory that takes: synthetic texts without images, and random hashes.

    python bench/data/duplicates.py [--sizes 10000 100000 1000000] [--workers 2]

Texts of some 60 characters from 400 words, a tenth of them one of the last thousand with a letter more; every one is
compared with all others by MinHash. Hashes: 64 random bits, a tenth of them another one with two bits changed. Peak
memory is that of this process; a worker's is that of a piece. Writes bench/results/duplicates.json after each size.
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
from qilin.imaging.near_duplicates import near_pairs_among
from qilin.pipeline.curation.near_duplicates import NearDuplicateGroups, find_duplicates
from qilin.pipeline.execution.workers import make_workers

HERE = Path(__file__).parents[1]
LETTERS = "肺部心脏肝胆胃肠骨骨折结节肿块阴影积液水肿炎症出血梗死囊性实质左右上下叶段边缘清晰模糊增大正常未见可见"


def rows(count: int, words_each: int) -> Iterator[dict[str, Any]]:
    """Samples without images."""
    rng = random.Random(0)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(2, 5))) for _ in range(400)]
    kept: list[list[str]] = []
    for n in range(count):
        if kept and rng.random() < 0.1:
            text = list(rng.choice(kept))
            text[-1] += rng.choice("。完了")
        else:
            text = rng.choices(words, k=words_each)
            kept = [*kept[-999:], text]
        said = [
            {"role": role, "content": [{"type": "text", "text": t}]}
            for role, t in (("user", "问"), ("", "".join(text)))
        ]
        yield {"sample_id": str(n), "image_ids": [], "messages": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--words", type=int, default=18, help="of a text, some 3.5 characters each")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    runs = []
    for size in asked.sizes:
        data: Any = SimpleNamespace(
            splits=lambda: ["train"], count=lambda split, size=size: size, hash="synthetic",
            stream_rows=lambda split, columns, size=size: rows(size, asked.words),
        )  # fmt: skip
        found = FingerprintMapBuilder()
        began, spent = time.monotonic(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            find_duplicates(
                data, NearDuplicateGroups(np.empty(0), np.empty(0)), Path(folder), found, make_workers(asked.workers)
            )
        texts, cpu = time.monotonic() - began, time.process_time() - spent
        rng = np.random.default_rng(0)
        values = rng.integers(0, 2**63, size, dtype=np.uint64)
        for _ in range(2):
            values[: size // 10] = values[-(size // 10) :] ^ (
                np.uint64(1) << rng.integers(0, 63, size // 10).astype(np.uint64)
            )
        began = time.process_time()
        pairs = sum(1 for _ in near_pairs_among(values, 4))
        hashed = time.process_time() - began
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        runs.append({
            "rows": size, "characters_a_text": round(3.5 * asked.words), "workers": asked.workers,
            "seconds_texts": round(texts, 1), "cpu_seconds_of_this_process": round(cpu, 1),
            "texts_found": len(found.keys),
            "cpu_seconds_hashes": round(hashed, 1), "hash_pairs": pairs, "peak_mb": round(memory),
        })  # fmt: skip
        print(runs[-1], flush=True)
        about = {"command": "python bench/data/duplicates.py", "machine": f"{platform.machine()}, one core"}
        result = {**about, "python": platform.python_version(), "runs": runs}
        (HERE / "results" / "duplicates.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
