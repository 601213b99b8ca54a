"""What a run folder records besides the model: recipe.yaml, plan.json, starts.jsonl, dropped.jsonl, and their summary.

In: the config, the plan, the machine. Out: files that are complete or absent, and lines for the console.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from qilin.core.config import write_yaml
from qilin.core.errors import UserError
from qilin.core.files import read_json, to_json, write_atomic
from qilin.core.provenance import commit, machine, versions
from qilin.core.terminal import make_console
from qilin.train.checkpoint import latest_checkpoint, step_of
from qilin.train.config import TrainConfig
from qilin.train.context import ValidationSet
from qilin.train.data_loader import PackedDataset
from qilin.train.distributed import World
from qilin.train.metrics import METRICS
from qilin.train.plan import Plan, format_saving

RECIPE = "recipe.yaml"
PLAN = "plan.json"
STARTS = "starts.jsonl"
DROPPED = "dropped.jsonl"  # samples dropped for their length, if any
PACKAGES = ("torch", "transformers", "peft", "safetensors")  # their versions can change the result
console = make_console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")


def plan_facts(data: PackedDataset, plan: Plan, validation: ValidationSet | None) -> dict[str, Any]:
    """The numbers of a plan, for the console, plan.json and qilin.json."""
    lengths = plan.lengths
    facts = {
        "hash": plan.hash,
        "data": [source.dataset.hash for source in data.sources],
        "steps": len(plan),
        "samples": data.counts["samples"],
        "cut": data.counts["cut"],
        "dropped": data.counts["dropped"],
        "tokens": sum(group.tokens for step in range(len(plan)) for group in plan.groups(step)),
        "tokens_unshared": int(lengths.total[plan.order].sum()),
        "answer_tokens": int(lengths.answer_tokens[plan.order].sum()),
    }
    if validation is not None:
        facts["validation"] = {
            "samples": validation.num_samples,
            "of": validation.data.counts["samples"],
            "answer_tokens": validation.answer_tokens,
        }
    return facts


def format_plan(facts: Mapping[str, Any]) -> str:
    text = (
        f"  {facts['samples']:,} samples, {facts['steps']:,} steps, {facts['tokens']:,} tokens"
        f"{format_saving(facts)}, {facts['answer_tokens']:,} answer tokens"
    )
    if facts["cut"] or facts["dropped"]:
        text += f"; {facts['cut']} samples truncated and {facts['dropped']} dropped for their length"
    if "validation" in facts:
        validation = facts["validation"]
        text += (
            f"\n  validation on {validation['samples']:,} of {validation['of']:,} held-out samples, "
            f"{validation['answer_tokens']:,} answer tokens"
        )
    return text


def write_run_header(
    run_dir: Path, config: TrainConfig, facts: Mapping[str, Any], dropped: Sequence[Mapping[str, str]]
) -> None:
    """Write recipe, plan and dropped samples. Raises UserError if the run in the folder has another plan or data."""
    run_dir.mkdir(parents=True, exist_ok=True)
    plan_file = run_dir / PLAN
    if plan_file.is_file():
        previous = read_json(plan_file)
        if previous["hash"] != facts["hash"] or previous.get("data", facts["data"]) != facts["data"]:
            raise UserError(
                f"{run_dir}: this run started with other data or lengths; remove it or choose another out=FOLDER"
            )
        last = latest_checkpoint(run_dir)
        if last:
            console.print(f"  resuming after step {step_of(last):,} of {facts['steps']:,}")
    temporary = run_dir / f".{RECIPE}.unfinished"
    write_yaml(config, temporary)
    temporary.replace(run_dir / RECIPE)
    if dropped:
        write_atomic(run_dir / DROPPED, (to_json(row, indent=None) for row in dropped))
    write_atomic(plan_file, json.dumps(facts, indent=2))


def append_start(run_dir: Path, world: World) -> None:
    """Add a line to starts.jsonl: time, step, code, versions and machine of this start."""
    last = latest_checkpoint(run_dir)
    cuda = world.device.type == "cuda"
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "after_step": step_of(last) if last else 0,
        "devices": world.size,
        "device": torch.cuda.get_device_name(world.device) if cuda else str(world.device),
        **machine(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        **versions(PACKAGES),
    }
    with (run_dir / STARTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def validation_summary(run_dir: Path, step: int) -> dict[str, Any]:
    """The step of the final model with its validation loss and that of the last step; {} without validation."""
    rows = [json.loads(line) for line in (run_dir / METRICS).read_text(encoding="utf-8").splitlines()]
    losses = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    if not losses:
        return {}
    last = max(losses)
    console.print(
        f"  final model: step {step:,}, validation loss {losses[step]:.4f}"
        + (f" (last step, {last:,}: {losses[last]:.4f})" if step != last else "")
    )
    return {"model_of_step": step, "validation_loss": losses[step], "validation_loss_last": losses[last]}
