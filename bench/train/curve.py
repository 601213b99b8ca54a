"""Effect of packing on the result: the same run packed and one sample at a time, three seeds, 300 steps.

In: a work folder and seeds. Out: a JSON file with the losses of every step and on held-out samples, and their plot.
"packed" is what `qilin train` computes: samples end to end, with shared image prefixes. "one by one" passes each
sample of the step through transformers' own forward. In the control the samples of a pack attend to each other.
Model, samples, order and optimizer are the same; images are synthetic and weights random.

    nice python bench/train/curve.py WORK bench/results/curve.json --seeds 0 1 2

Runs in the file are not repeated, so that it can be interrupted.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from made import make_parts

from qilin.demo.synthetic.dataset import write_synthetic
from qilin.model.llava import set_trainable
from qilin.train.config import TrainConfig, read_recipe
from qilin.train.context import TrainContext, TrainState
from qilin.train.data_loader import Pack, PackedDataset, StepBatch
from qilin.train.distributed import ModelWithLoss
from qilin.train.loop import clip_gradients, compute_gradients, pack_loss, trainable_params
from qilin.train.optimizer import lr_factor, make_optimizer, set_learning_rates
from qilin.train.packed_attention import make_layout, use_packed_attention, use_plain_attention
from qilin.train.plan import PackedGroup, Plan, make_plan
from qilin.train.stage import load_start
from qilin.train.validation import make_validation_set, validate

RECIPE = [
    *[
        "batch_size=16",
        "num_epochs=1",
        "learning_rate=1e-3",
        "warmup_ratio=0.05",
        "template=v1",
        "kinds=[]",
        "precision=fp32",
        "device=cpu",
    ],
    *["max_length=256", "pack_tokens=1024", "trainable=[vision,projector,language]", "validate={samples: 400}"],
]
IMAGES, STEPS, SIDE = 900, 300, 96
TAIL = 30  # steps at the end over which a training loss is averaged
CPU = torch.device("cpu")


def packed(data: PackedDataset, plan: Plan, step: int) -> list[Pack]:
    return [data.make_pack(groups, CPU, torch.float32) for groups in plan.packs(step)[0]]


def one_by_one(data: PackedDataset, plan: Plan, step: int) -> list[Pack]:
    """Each sample of the step a pack of its own."""
    lengths = plan.lengths.total
    return [
        data.make_pack([PackedGroup((i,), int(lengths[i]))], CPU, torch.float32) for i in plan.samples(step).tolist()
    ]


def all_visible(data: PackedDataset, plan: Plan, step: int) -> list[Pack]:
    """The control: a pack is one document, so that a sample sees those laid before it."""
    return [
        Pack(**vars(pack) | {"layout": make_layout([(0, pack.ids.shape[1], -1)], CPU)})
        for pack in packed(data, plan, step)
    ]


def plain_loss(model: Any, pack: Pack, pixels: torch.Tensor | None) -> torch.Tensor:
    """The summed loss of a single sample through transformers' forward, all logits computed."""
    logits = model(input_ids=pack.ids, pixel_values=pixels, use_cache=False).logits[0]
    return F.cross_entropy(logits[pack.target_positions].float(), pack.targets, reduction="sum")


VARIANTS: dict[str, tuple[Callable[[PackedDataset, Plan, int], list[Pack]], Callable[..., torch.Tensor]]] = {
    "packed": (packed, pack_loss),
    "one by one": (one_by_one, plain_loss),
    "control: samples of a pack see each other": (all_visible, pack_loss),
}


def main(work: Path, out: Path, seeds: list[int]) -> None:
    torch.set_num_threads(1)
    data = work / "data"
    if not data.is_dir():
        write_synthetic(data, IMAGES, size=SIDE, validation=0.1, test=0.05)
    for seed in seeds:
        for variant in VARIANTS:
            runs = json.loads(out.read_text())["runs"] if out.is_file() else []
            if any((run["seed"], run["variant"]) == (seed, variant) for run in runs):
                continue
            run = train(work, seed, variant)
            print({key: value for key, value in run.items() if key != "losses"}, file=sys.stderr, flush=True)
            write(out, seeds, [*runs, run])


def train(work: Path, seed: int, variant: str) -> dict[str, Any]:
    """One run, from random weights that follow from the seed."""
    parts = make_parts(work / f"parts-{seed}", 128, 4, side=SIDE, tower=(128, 4), vocabulary=1000, seed=seed)
    config: TrainConfig = read_recipe(
        "small/align",
        [
            *RECIPE,
            f"seed={seed}",
            f"vision={parts / 'vision'}",
            f"language={parts / 'language'}",
            f"data={work / 'data'}",
        ],
    )
    loaded = load_start(config)
    model = loaded.model.train()
    set_trainable(model, config.trainable)
    data, validation = (
        PackedDataset(config, loaded.processor),
        make_validation_set(config, PackedDataset(config, loaded.processor, purpose="validation")),
    )
    plan = make_plan(
        data.lengths,
        [1.0],
        batch_size=config.batch_size,
        num_epochs=1,
        pack_tokens=config.pack_tokens,
        seed=config.seed,
    )
    assert len(plan) >= STEPS, f"{len(plan)} steps of data; draw more images"
    optimizer = make_optimizer(trainable_params(model, config), "adamw", config.betas)
    packs_of, loss_of = VARIANTS[variant]
    (use_plain_attention if loss_of is plain_loss else use_packed_attention)(model)
    module, losses, tokens = ModelWithLoss(model, loss_of), [], 0
    context = TrainContext(config, work, "bench", data, plan, validation)
    started = time.process_time()
    for step in range(STEPS):
        packs = packs_of(data, plan, step)
        tokens += sum(pack.ids.shape[1] for pack in packs)
        set_learning_rates(optimizer, lr_factor("cosine", step, STEPS, int(config.warmup_ratio * STEPS)))
        batch = StepBatch(step, packs, [], 0.0)
        losses.append(compute_gradients(context, module, batch)[0])
        clip_gradients(context, model, batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.process_time() - started
    use_packed_attention(model)
    state = TrainState(ModelWithLoss(model, pack_loss), optimizer, {})
    held_loss = validate(context, state, lambda done: None)
    return {
        "seed": seed,
        "variant": variant,
        "cpu_seconds": round(seconds, 1),
        "tokens": tokens,
        "loss_at_the_end": float(np.mean(losses[-TAIL:])),
        "validation_loss": held_loss,
        "losses": [round(loss, 6) for loss in losses],
    }


def write(out: Path, seeds: list[int], runs: list[dict[str, Any]]) -> None:
    result = {
        "command": f"nice python bench/train/curve.py WORK OUT --seeds {' '.join(map(str, seeds))}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread, others at work beside",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        "recipe": " ".join(RECIPE),
        "model": "language 128 wide, 4 layers; vision the same; 96 pixels, 36 tokens an image; fp32; random weights",
        "data": f"{IMAGES} drawn images, a caption and some six questions each; {STEPS} steps of 16 samples",
        "against one by one": compared(runs),
        "runs": runs,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".svg").write_text(plot(runs), encoding="utf-8")


def compared(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Each variant's distance from the run of the same seed one sample at a time, and how far apart seeds are."""
    plain = {run["seed"]: run for run in runs if run["variant"] == "one by one"}
    comparison: dict[str, Any] = {}
    for run in runs:
        if run["seed"] in plain and run["variant"] != "one by one":
            other = plain[run["seed"]]
            gaps = np.abs(np.array(run["losses"]) / np.array(other["losses"]) - 1)
            comparison.setdefault(run["variant"], []).append({
                "seed": run["seed"],
                "first step": float(gaps[0]),
                "largest of all steps": float(gaps.max()),
                "loss at the end": run["loss_at_the_end"] / other["loss_at_the_end"] - 1,
                "validation loss": run["validation_loss"] / other["validation_loss"] - 1,
                "CPU seconds": run["cpu_seconds"] / other["cpu_seconds"],
                "tokens": run["tokens"] / other["tokens"],
            })  # fmt: skip
    ends = [run["validation_loss"] for run in plain.values()]
    if len(ends) > 1:
        comparison["seeds apart (validation loss, one by one)"] = max(ends) / min(ends) - 1
    return comparison


def plot(runs: list[dict[str, Any]]) -> str:
    """The losses as SVG, a mean of ten steps a point: a panel a seed, packed drawn thin over one by one."""
    wide, high, margin, styles = 300, 220, 40, {
        "one by one": ("#8ab", 5.0), "packed": ("#c22", 1.2), "control: samples of a pack see each other": ("#999", 1.2)
    }  # fmt: skip
    seeds = sorted({run["seed"] for run in runs})
    top = max(max(run["losses"]) for run in runs)
    parts = []
    for index, seed in enumerate(seeds):
        x0 = margin + index * (wide + 20)
        parts.append(f'<rect x="{x0}" y="20" width="{wide}" height="{high}" fill="none" stroke="#bbb"/>')
        parts.append(f'<text x="{x0 + wide - 50}" y="36">seed {seed}</text>')
        parts.append(f'<text x="{x0 + wide / 2 - 30}" y="{high + 34}">{STEPS} steps</text>')
        for variant, (color, width) in styles.items():
            for run in runs:
                if (run["seed"], run["variant"]) == (seed, variant):
                    means = np.array(run["losses"]).reshape(-1, 10).mean(1)
                    points = " ".join(
                        f"{x0 + wide * (i + 0.5) / len(means):.1f},{20 + high * (1 - loss / top):.1f}"
                        for i, loss in enumerate(means)
                    )
                    parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width}"/>')
        for mark in range(0, int(top) + 1, 2):
            y = 20 + high * (1 - mark / top)
            parts.append(f'<text x="{x0 - 14}" y="{y + 4:.1f}">{mark}</text>' if index == 0 else "")
    for index, (variant, (color, width)) in enumerate(styles.items()):
        x = margin + index * 260
        parts.append(f'<path d="M{x} {high + 60}h24" stroke="{color}" stroke-width="{width}"/>')
        parts.append(f'<text x="{x + 30}" y="{high + 64}">{variant}</text>')
    size = f'width="{margin + len(seeds) * (wide + 20)}" height="{high + 80}"'
    style = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12"'
    return f"<svg {style} {size}>" + '<rect width="100%" height="100%" fill="#fff"/>' + "".join(parts) + "</svg>\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    main(arguments.work, arguments.out, arguments.seeds)
