"""What each trick of Qilin's trainer buys: the same run with one of them switched off, and with all of them off.

In: a work folder, as in peers.py, which measures; resumable as there. Out: a JSON file with every run, and medians.

    python bench/train/gains.py --work /tmp/peers --out bench/results/gains.json
"""

import argparse
import time
from pathlib import Path

from peer.results import Results
from peers import Bench, about

TRICKS = (
    "packing",
    "shared prefix",
    "supervised-only loss",
    "attention by document",
    "attention in blocks",
    "what nobody reads left out",
    "images kept",
    "packs made ahead",
    "bf16",
)
CASES = ((), *((trick,) for trick in TRICKS), tuple(trick for trick in TRICKS if trick != "attention by document"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where environments, models and samples are made")
    parser.add_argument("--out", type=Path, required=True, help="the result file; what stands there is not run again")
    parser.add_argument("--settings", nargs="+", default=["stage1-576", "stage2-576-q3"], help="as in peers.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so many")
    arguments = parser.parse_args()
    results = Results(arguments.out)
    until = time.monotonic() + 60 * arguments.minutes
    bench = Bench(arguments.work.resolve(), results, arguments.threads, until)
    for number in range(1, arguments.rounds + 1):
        for setting in arguments.settings:
            for case in CASES:
                bench.once(setting, "qilin", "default", number, case)
    results.write(about("gains.py", arguments.out) | {"tricks": TRICKS})
    print(results.table())


if __name__ == "__main__":
    main()
