"""Effect of packing on training: the same run with packs and with one sample at a time, three seeds, 300 steps.

Inputs: a working folder and seeds. Outputs: a JSON file with the losses of all steps and on validation samples, and a
plot. "packed" is what `qilin train` computes: concatenated samples with shared image prefixes. "one by one" passes each
sample of a step through transformers' forward pass. In the control, the samples of a pack attend to each other. Model,
samples, order and optimizer are the same; images are synthetic and initial weights random.

    nice python bench/train/curve.py WORK bench/results/curve.json --seeds 0 1 2

Runs that are in the file are skipped, so the benchmark can be resumed.
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
from random_inputs import make_parts

from qilin.demo.synthetic.dataset import write_synthetic
from qilin.model.architectures import set_trainable
from qilin.train.config import TrainConfig, read_recipe
from qilin.train.context import TrainContext, TrainState
from qilin.train.data_loader import PackedDataset, StepBatch
from qilin.train.distributed import ModelWithLoss
from qilin.train.loop import clip_gradients, compute_gradients, pack_loss, trainable_params
from qilin.train.optimizer import lr_factor, make_optimizer, set_learning_rates
from qilin.train.pack import Pack
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
LAST_STEPS = 30  # steps over which the final training loss is averaged
CPU = torch.device("cpu")


def make_packed(data: PackedDataset, plan: Plan, step: int) -> list[Pack]:
    return [data.make_pack(groups, CPU, torch.float32) for groups in plan.packs(step)[0]]


def make_single_packs(data: PackedDataset, plan: Plan, step: int) -> list[Pack]:
    """One sample per pack."""
    lengths = plan.lengths.total
    return [
        data.make_pack([PackedGroup((i,), int(lengths[i]))], CPU, torch.float32) for i in plan.samples(step).tolist()
    ]


def make_unmasked(data: PackedDataset, plan: Plan, step: int) -> list[Pack]:
    """The control: each pack is one document, so samples attend to the previous samples of the pack."""
    return [
        Pack(**vars(pack) | {"layout": make_layout([(0, pack.ids.shape[1], -1)], CPU)})
        for pack in make_packed(data, plan, step)
    ]


def plain_loss(model: Any, pack: Pack, pixels: torch.Tensor | None) -> torch.Tensor:
    """Summed loss of a single sample with transformers' forward pass and all logits."""
    logits = model(input_ids=pack.ids, pixel_values=pixels, use_cache=False).logits[0]
    return F.cross_entropy(logits[pack.target_positions].float(), pack.targets, reduction="sum")


VARIANTS: dict[str, tuple[Callable[[PackedDataset, Plan, int], list[Pack]], Callable[..., torch.Tensor]]] = {
    "packed": (make_packed, pack_loss),
    "one by one": (make_single_packs, plain_loss),
    "control: samples of a pack see each other": (make_unmasked, pack_loss),
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
            write_result(out, seeds, [*runs, run])


def train(work: Path, seed: int, variant: str) -> dict[str, Any]:
    """One run; the random weights depend on the seed."""
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
    assert len(plan) >= STEPS, f"{len(plan)} steps of data, {STEPS} needed; increase IMAGES"
    optimizer = make_optimizer(trainable_params(model, config), "adamw", config.betas)
    make_packs, loss_function = VARIANTS[variant]
    (use_plain_attention if loss_function is plain_loss else use_packed_attention)(model)
    module, losses, tokens = ModelWithLoss(model, loss_function), [], 0
    context = TrainContext(config, work, "bench", data, plan, validation)
    start = time.process_time()
    for step in range(STEPS):
        packs = make_packs(data, plan, step)
        tokens += sum(pack.ids.shape[1] for pack in packs)
        set_learning_rates(optimizer, lr_factor("cosine", step, STEPS, int(config.warmup_ratio * STEPS)))
        batch = StepBatch(step, packs, [], 0.0)
        losses.append(compute_gradients(context, module, batch)[0])
        clip_gradients(context, model, batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.process_time() - start
    use_packed_attention(model)
    state = TrainState(ModelWithLoss(model, pack_loss), optimizer, {})
    validation_loss = validate(context, state, lambda done: None)
    return {
        "seed": seed,
        "variant": variant,
        "cpu_seconds": round(seconds, 1),
        "tokens": tokens,
        "loss_at_the_end": float(np.mean(losses[-LAST_STEPS:])),
        "validation_loss": validation_loss,
        "losses": [round(loss, 6) for loss in losses],
    }


def write_result(out: Path, seeds: list[int], runs: list[dict[str, Any]]) -> None:
    result = {
        "command": f"nice python bench/train/curve.py WORK OUT --seeds {' '.join(map(str, seeds))}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread, shared with other work",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        "recipe": " ".join(RECIPE),
        "model": "language 128 wide, 4 layers; vision the same; 96 pixels, 36 tokens an image; fp32; random weights",
        "data": f"{IMAGES} drawn images, a caption and about six questions each; {STEPS} steps of 16 samples",
        "against one by one": compare_variants(runs),
        "runs": runs,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".svg").write_text(plot(runs), encoding="utf-8")


def compare_variants(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Relative differences of each run from the one-by-one run of the same seed, and the spread over seeds."""
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
    """SVG of the losses, averaged over ten steps: one panel per seed, a thin packed line over one by one."""
    panel_width, panel_height, margin, styles = 300, 220, 40, {
        "one by one": ("#8ab", 5.0), "packed": ("#c22", 1.2), "control: samples of a pack see each other": ("#999", 1.2)
    }  # fmt: skip
    seeds = sorted({run["seed"] for run in runs})
    top = max(max(run["losses"]) for run in runs)
    parts = []
    for index, seed in enumerate(seeds):
        x0 = margin + index * (panel_width + 20)
        parts.append(f'<rect x="{x0}" y="20" width="{panel_width}" height="{panel_height}" fill="none" stroke="#bbb"/>')
        parts.append(f'<text x="{x0 + panel_width - 50}" y="36">seed {seed}</text>')
        parts.append(f'<text x="{x0 + panel_width / 2 - 30}" y="{panel_height + 34}">{STEPS} steps</text>')
        for variant, (color, width) in styles.items():
            for run in runs:
                if (run["seed"], run["variant"]) == (seed, variant):
                    means = np.array(run["losses"]).reshape(-1, 10).mean(1)
                    points = " ".join(
                        f"{x0 + panel_width * (i + 0.5) / len(means):.1f},{20 + panel_height * (1 - loss / top):.1f}"
                        for i, loss in enumerate(means)
                    )
                    parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width}"/>')
        for tick in range(0, int(top) + 1, 2):
            y = 20 + panel_height * (1 - tick / top)
            parts.append(f'<text x="{x0 - 14}" y="{y + 4:.1f}">{tick}</text>' if index == 0 else "")
    for index, (variant, (color, width)) in enumerate(styles.items()):
        x = margin + index * 260
        parts.append(f'<path d="M{x} {panel_height + 60}h24" stroke="{color}" stroke-width="{width}"/>')
        parts.append(f'<text x="{x + 30}" y="{panel_height + 64}">{variant}</text>')
    size = f'width="{margin + len(seeds) * (panel_width + 20)}" height="{panel_height + 80}"'
    style = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12"'
    return f"<svg {style} {size}>" + '<rect width="100%" height="100%" fill="#fff"/>' + "".join(parts) + "</svg>\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="working folder")
    parser.add_argument("out", type=Path, help="result file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    main(args.work, args.out, args.seeds)
