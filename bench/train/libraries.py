"""Effect of library settings on CPU training: size of the oneDNN kernel caches, retention of freed memory by glibc.

Input: a working folder as in peers.py, which runs the measurements. Output: a JSON file with all runs and medians by
setting.

    python bench/train/libraries.py --work /tmp/peers --out bench/results/libraries.json
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from peer.results import Results
from peers import Bench, result_header

RETAIN_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
CASES = {  # (variant of Qilin in peers.py, environment variables)
    "bf16": ("bf16", {}),
    "bf16, 64 kernels": ("bf16", {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}),
    "bf16, 16 kernels": ("bf16", {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}),
    "fp32": ("fp32", {}),
    "fp32, glibc retains memory": ("fp32", RETAIN_MEMORY),
    "fp32, packs of 2048": ("packs of 2048, fp32", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for environments, models and samples")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--settings", nargs="+", default=["stage1-576-n48", "stage2-576-q3-n48"], help="as in peers.py")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results_by_case = {name: Results(Path(folder) / f"{name}.json") for name in CASES}
        for round_number in range(1, args.rounds + 1):
            for setting in args.settings:
                for name, (variant, variables) in CASES.items():
                    os.environ.update(variables)
                    bench = Bench(args.work.resolve(), results_by_case[name], 1, float("inf"))
                    bench.run_once(setting, "qilin", variant, round_number)
                    for key in variables:
                        del os.environ[key]
    facts = result_header("libraries.py", args.out)
    header = {key: facts[key] for key in ("command", "machine", "code")}
    cases = {
        name: {
            "way": variant,
            "before": variables,
            "medians": results_by_case[name].medians(),
            "rows": results_by_case[name].rows,
        }
        for name, (variant, variables) in CASES.items()
    }
    args.out.write_text(json.dumps(header | {"cases": cases}, indent=1) + "\n", encoding="utf-8")
    for name, results in results_by_case.items():
        print(name, results.table(), sep="\n")


if __name__ == "__main__":
    main()
