"""Speedup from each optimization of Qilin's trainer: the same run with one of them disabled, and with all disabled.

Input: a working folder as in peers.py, which runs the measurements. Output: a JSON file with all runs and medians; runs
that are in the file are skipped.

    python bench/train/gains.py --work /tmp/peers --out bench/results/gains.json
"""

import argparse
import time
from pathlib import Path

from peer.results import Results
from peers import Bench, result_header

OPTIMIZATIONS = (
    "packing",
    "shared prefix",
    "supervised-only loss",
    "attention by document",
    "blocked attention",
    "skipping unused positions",
    "image cache",
    "prefetch",
    "bf16",
)
CASES = (
    (),
    *((optimization,) for optimization in OPTIMIZATIONS),
    tuple(optimization for optimization in OPTIMIZATIONS if optimization != "attention by document"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for environments, models and samples")
    parser.add_argument("--out", type=Path, required=True, help="result file; its runs are not repeated")
    parser.add_argument("--settings", nargs="+", default=["stage1-576", "stage2-576-q3"], help="as in peers.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6, help="start no run after this time")
    args = parser.parse_args()
    results = Results(args.out)
    deadline = time.monotonic() + 60 * args.minutes
    bench = Bench(args.work.resolve(), results, args.threads, deadline)
    for round_number in range(1, args.rounds + 1):
        for setting in args.settings:
            for case in CASES:
                bench.run_once(setting, "qilin", "default", round_number, case)
    results.write(result_header("gains.py", args.out) | {"tricks": OPTIMIZATIONS})
    print(results.table())


if __name__ == "__main__":
    main()
