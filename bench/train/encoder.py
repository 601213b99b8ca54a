"""What a pretrained vision encoder brings on SLAKE-zh: DINOv2-S/14 against the demo's encoder from scratch.

    python bench/train/encoder.py slake ALIGN LANGUAGE ENCODER --work DIR --runs scratch=6 frozen=10 trained=7

ALIGN is the stage-1 model of recipe small with the encoder from scratch, LANGUAGE its tiny language model (the demo's
align/ and parts/language/), ENCODER a folder that bench/train/onnx_encoder.py wrote. `--runs` names variants with their
epochs. The variants with ENCODER have no stage 1; the time of the one from scratch is that of stage 2 plus `--before`:
the CPU seconds of its encoder's training and of stage 1. All start from the same language model. `--controls` names
variants that also answer with shuffled and mean images. Finished runs are reused, so the benchmark can be interrupted;
`--finished` reports them and starts no other. Results are written to bench/results/encoder.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slake_runs import is_finished, means, print_table, run

sys.path.insert(0, str(Path(__file__).parents[1]))
from write_result import write_result

# Of an encoder cut to its first 7 of 12 layers: on the training split, a linear classifier of the answers to frequent
# questions was better on the middle layers than on the last ones, and no better with larger images.
PRETRAINED = ["feature_layer=-1"]
VARIANTS = {
    "scratch": [],
    "frozen": [*PRETRAINED, "trainable=[projector, language]", "learning_rates={vision: null}"],
    # Muon's step on 22 million weights takes longer than the gradients on one core, so adapters train the encoder.
    "trained": [*PRETRAINED, "trainable=[projector, language]", "learning_rates={vision: null}",
                "lora={parts: [vision], rank: 16}"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="dataset folder of SLAKE's Chinese half")
    parser.add_argument("align", type=Path, help="stage-1 model of recipe small")
    parser.add_argument("language", type=Path, help="tiny language model of recipe small")
    parser.add_argument("encoder", type=Path, help="pretrained encoder")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--runs", nargs="+", required=True, metavar="VARIANT=EPOCHS", help=", ".join(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--controls", nargs="*", default=[], metavar="VARIANT", help="also with other images")
    parser.add_argument("--before", type=float, default=0, help="CPU seconds of the encoder from scratch and stage 1")
    parser.add_argument("--finished", action="store_true", help="report finished runs, start no other")
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        for text in args.runs:
            variant, epochs = text.split("=")
            parts = {"vision": args.encoder, "language": args.language}
            start = {"model": args.align} if variant == "scratch" else parts
            settings = [*(f"{key}={path}" for key, path in start.items()), *VARIANTS[variant], f"num_epochs={epochs}"]
            name = f"{variant}-{epochs}-epochs"
            if args.finished and not is_finished(name, seed, args.work):
                continue
            row = run(name, seed, settings, args.data, args.work, variant in args.controls)
            before = args.before if variant == "scratch" else 0.0
            rows.append(row | {"cpu_seconds": row["train_cpu_seconds"] + before})
            write(args, rows)
    print_table(rows)


def write(args: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """The rows so far, without the machine's paths."""
    command = (
        f"python bench/train/encoder.py {args.data.name} ALIGN LANGUAGE ENCODER --runs {' '.join(args.runs)} "
        f"--seeds {' '.join(map(str, args.seeds))} --before {args.before:g}"
    )
    runs = [row | {"settings": [s for s in row["settings"] if "/" not in s]} for row in rows]
    write_result("encoder", command, {"means": means(runs), "runs": runs}, "one thread, other programs beside it")


if __name__ == "__main__":
    main()
