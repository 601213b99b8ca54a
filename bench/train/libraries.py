"""What settings of the libraries below do to training on a CPU: kept kernels bounded, memory kept by the heap.

In: a work folder, as in peers.py, which measures. Out: a JSON file with every run, and medians, by setting.

    python bench/train/libraries.py --work /tmp/peers --out bench/results/libraries.json
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from peer.results import Results
from peers import Bench, about

HEAP = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
CASES = {  # a way of Qilin in peers.py, and what stands before the command
    "bf16": ("bf16", {}),
    "bf16, 64 kernels": ("bf16", {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}),
    "bf16, 16 kernels": ("bf16", {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}),
    "fp32": ("fp32", {}),
    "fp32, heap keeps": ("fp32", HEAP),
    "fp32, packs of 2048": ("packs of 2048, fp32", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where environments, models and samples are made")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=["stage1-576-n48", "stage2-576-q3-n48"], help="as in peers.py")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results_by_case = {name: Results(Path(folder) / f"{name}.json") for name in CASES}
        for number in range(1, arguments.rounds + 1):
            for setting in arguments.settings:
                for name, (way, before) in CASES.items():
                    os.environ.update(before)
                    Bench(arguments.work.resolve(), results_by_case[name], 1, float("inf")).once(
                        setting, "qilin", way, number
                    )
                    for key in before:
                        del os.environ[key]
    facts = about("libraries.py", arguments.out)
    header = {key: facts[key] for key in ("command", "machine", "code")}
    cases = {
        name: {
            "way": way,
            "before": before,
            "medians": results_by_case[name].medians(),
            "rows": results_by_case[name].rows,
        }
        for name, (way, before) in CASES.items()
    }
    arguments.out.write_text(json.dumps(header | {"cases": cases}, indent=1) + "\n", encoding="utf-8")
    for name, results in results_by_case.items():
        print(name, results.table(), sep="\n")


if __name__ == "__main__":
    main()
