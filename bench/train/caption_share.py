"""What captions in stage 2 keep and cost: caption and question scores after stage 2, for several shares of captions.

    python bench/train/caption_share.py slake runs/align --work DIR --weights 0 0.25 1 --seeds 0 1 2 --epochs 8

DATA is a dataset folder with captions and questions, ALIGN the stage-1 model that all runs start from. `--weights` are
kind_weights of the captions (0: none). Finished runs are reused, so the benchmark can be interrupted. Results are
written to bench/results/caption_share.json.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from slake_runs import question_and_caption_scores, run_evaluation

from run_qilin import run_qilin
from write_result import write_result

INSTRUCTION = "根据图中的信息，撰写一段描述性文本。"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("align", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--weights", type=float, nargs="+", default=[0, 0.25, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    rows = [{"weight": None, "seed": None, **evaluate(args.align, args.data, args.work / "align-scores")}]
    for weight in args.weights:
        for seed in args.seeds:
            out = args.work / f"captions-{weight}-epochs-{args.epochs}-seed-{seed}"
            train(args, weight, seed, out)
            rows.append({"weight": weight, "seed": seed, **evaluate(out, args.data, Path(f"{out}-scores"))})
            write(args, rows)


def train(args: argparse.Namespace, weight: float, seed: int, out: Path) -> None:
    """Stage 2 of recipe small, on questions and this share of the captions."""
    kinds = "kinds=[vqa, chat, caption]" if weight else "kinds=[vqa, chat]"
    options = [f"kind_weights={{caption: {weight}}}", f"instructions=[{INSTRUCTION}]"] if weight else []
    run_qilin("train", "small/instruct", f"model={args.align}", f"data={args.data}", f"out={out}", f"seed={seed}",
              f"num_epochs={args.epochs}", kinds, *options)  # fmt: skip


def evaluate(model: Path, data: Path, out: Path) -> dict[str, Any]:
    """Exact match and accuracy of the questions, fact scores of the captions, on the validation split."""
    return question_and_caption_scores(
        run_evaluation(model, data, out, "--no-controls", "--caption-prompt", INSTRUCTION)
    )


def write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    means = [
        {"weight": weight, "seeds": len(group)}
        | {name: round(statistics.mean(row[name] for row in group), 4) for name in ("exact", "accuracy", "fact_f1")}
        for weight in args.weights
        if (group := [row for row in rows if row["weight"] == weight])
    ]
    command = (
        f"python bench/train/caption_share.py {args.data.name} ALIGN --weights {' '.join(map(str, args.weights))} "
        f"--seeds {' '.join(map(str, args.seeds))} --epochs {args.epochs}"
    )
    write_result("caption_share", command, {"epochs": args.epochs, "means": means, "runs": rows}, "one thread")


if __name__ == "__main__":
    main()
