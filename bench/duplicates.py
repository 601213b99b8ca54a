"""How fast repetitions are found, and how much memory that takes: synthetic texts without pictures, and random hashes.

    python bench/duplicates.py [--sizes 10000 100000 1000000]

Texts of some 60 characters from 400 words, a tenth of them one of the last thousand with a letter more; every one is
compared with all others by MinHash. Hashes: 64 random bits, a tenth of them another one with two bits changed. CPU
seconds of one core. Writes bench/results/duplicates.json after each size.
"""

import argparse
import json
import platform
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from qilin.data.duplicates import repeated
from qilin.data.records import Sample, assistant, user
from qilin.imaging.near import near_in

HERE = Path(__file__).parent
LETTERS = "肺部心脏肝胆胃肠骨骨折结节肿块阴影积液水肿炎症出血梗死囊性实质左右上下叶段边缘清晰模糊增大正常未见可见"


def samples(count: int) -> Iterator[Sample]:
    rng = random.Random(0)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(2, 5))) for _ in range(400)]
    kept: list[list[str]] = []
    for n in range(count):
        if kept and rng.random() < 0.1:
            text = list(rng.choice(kept))
            text[-1] += rng.choice("。完了")
        else:
            text = rng.choices(words, k=18)
            kept = [*kept[-999:], text]
        yield Sample(str(n), "vqa", (), (user("问"), assistant("".join(text))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    asked = parser.parse_args()
    runs = []
    for size in asked.sizes:
        data: Any = SimpleNamespace(splits=lambda: ["train"], samples=lambda split, size=size: samples(size))
        began = time.process_time()
        found = repeated(data, {})
        texts = time.process_time() - began
        rng = np.random.default_rng(0)
        values = rng.integers(0, 2**63, size, dtype=np.uint64)
        for _ in range(2):
            values[: size // 10] = values[-(size // 10) :] ^ (
                np.uint64(1) << rng.integers(0, 63, size // 10).astype(np.uint64)
            )
        began = time.process_time()
        pairs = sum(1 for _ in near_in(values, 4))
        hashed = time.process_time() - began
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        runs.append({
            "rows": size, "cpu_seconds_texts": round(texts, 1), "texts_found": len(found),
            "cpu_seconds_hashes": round(hashed, 1), "hash_pairs": pairs, "peak_mb": round(memory),
        })  # fmt: skip
        print(runs[-1], flush=True)
        about = {"command": "python bench/duplicates.py", "machine": f"{platform.machine()}, one core"}
        result = {**about, "python": platform.python_version(), "runs": runs}
        (HERE / "results" / "duplicates.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
