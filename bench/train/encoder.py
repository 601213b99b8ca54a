"""What a pretrained vision encoder brings on SLAKE-zh: DINOv2-S/14 against the demo's encoder from scratch.

    python bench/train/encoder.py slake ALIGN LANGUAGE ENCODER --work DIR --runs scratch=6 frozen=5 trained=4

ALIGN is the stage-1 model of recipe small with the encoder from scratch, LANGUAGE its tiny language model (the demo's
align/ and parts/language/), ENCODER a folder that bench/train/onnx_encoder.py wrote. `--runs` names variants with their
epochs, chosen so that stage 2 takes equal CPU time; the variants with ENCODER have no stage 1, the one from scratch had
its encoder's training and stage 1 besides. `--controls` names variants that also answer with shuffled and mean images.
Finished runs are reused, so the benchmark can be interrupted. Results are written to bench/results/encoder.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slake_runs import means, print_table, run

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
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        for text in args.runs:
            variant, epochs = text.split("=")
            parts = {"vision": args.encoder, "language": args.language}
            start = {"model": args.align} if variant == "scratch" else parts
            settings = [*(f"{key}={path}" for key, path in start.items()), *VARIANTS[variant], f"num_epochs={epochs}"]
            name = f"{variant}-{epochs}-epochs"
            rows.append(run(name, seed, settings, args.data, args.work, variant in args.controls))
            write(args, rows)
    print_table(rows)


def write(args: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """The rows so far, without the machine's paths."""
    command = (
        f"python bench/train/encoder.py {args.data.name} ALIGN LANGUAGE ENCODER --runs {' '.join(args.runs)} "
        f"--seeds {' '.join(map(str, args.seeds))}"
    )
    runs = [row | {"settings": [s for s in row["settings"] if "/" not in s]} for row in rows]
    write_result("encoder", command, {"means": means(runs), "runs": runs}, "one thread, other programs beside it")


if __name__ == "__main__":
    main()
