"""What a run folder records besides the model: recipe.yaml, plan.json, starts.jsonl, dropped.jsonl, and their summary.

In: the config, the plan, the machine. Out: files that are complete or absent, and lines for the console.
"""

import itertools
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from qilin.core.config import write_yaml
from qilin.core.errors import UserError
from qilin.core.files import read_json, to_json, write_atomic
from qilin.core.progress import format_count
from qilin.core.provenance import STARTS, commit, machine, versions
from qilin.core.recipes import training_recipes
from qilin.core.terminal import make_console
from qilin.dataset.reader import open_dataset
from qilin.train.checkpoint import latest_checkpoint, step_of
from qilin.train.config import TrainConfig
from qilin.train.context import ValidationSet
from qilin.train.data_loader import PackedDataset
from qilin.train.distributed import World
from qilin.train.metrics import METRICS
from qilin.train.plan import Plan, format_saving

RECIPE = "recipe.yaml"
PLAN = "plan.json"
DROPPED = "dropped.jsonl"  # samples dropped for their length or a refused image, if any
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
        "samples_drawn": len(plan.order),
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
    drawn = facts["samples_drawn"]
    source = "" if drawn == facts["samples"] else f" drawn from {facts['samples']:,}"
    text = (
        f"  {drawn:,} samples{source}, {facts['steps']:,} steps, {facts['tokens']:,} tokens"
        f"{format_saving(facts)}, {facts['answer_tokens']:,} answer tokens"
    )
    if facts["cut"] or facts["dropped"]:
        text += f"; {facts['cut']} samples truncated and {facts['dropped']} dropped, with reasons in {DROPPED}"
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


def append_start(run_dir: Path, world: World, data: Sequence[tuple[Path, str]], parent: str | None) -> None:
    """Add a line to starts.jsonl: time, step, code, versions, machine and paths of this start. `data`: folder and hash
    of each dataset."""
    paths = {hash_: str(path.resolve()) for path, hash_ in data}
    if parent is not None and Path(parent).exists():
        paths["parent"] = str(Path(parent).resolve())
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
        "paths": paths,
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


def format_saved_step(run_dir: Path, title: str) -> str:
    """What an interrupted run has saved."""
    last = latest_checkpoint(run_dir)
    if last is None:
        return f"{title}: interrupted before the first checkpoint; nothing is lost but the steps of this start"
    steps = read_json(run_dir / PLAN)["steps"]
    return f"{title}: interrupted; step {step_of(last):,} of {steps:,} is saved in {last}"


def format_size(folder: Path) -> str:
    """The size of a model's weights: '3.1 MB'."""
    return format_count(sum(file.stat().st_size for file in folder.glob("*.safetensors")), "bytes")


def next_command(config: TrainConfig, recipe: str) -> str:
    """The command after a finished run: stage 2 after stage 1, else the evaluation on a split that was not trained on,
    else a chat."""
    assert config.out is not None, "a finished run has a folder"
    out, data = str(config.out), [str(source.path) for source in config.data]
    second_stage = recipe.removesuffix("/align") + "/instruct"
    if recipe in training_recipes() and recipe.endswith("/align") and second_stage in training_recipes():
        folders = data[0] if len(data) == 1 else f"[{', '.join(data)}]"
        return shlex.join(
            [
                "qilin",
                "train",
                second_stage,
                f"data={folders}",
                f"model={out}",
                f"out={sibling(config.out, 'instruct')}",
            ]
        )
    for source in config.data:
        splits = [split for split in ("test", "validation") if split in open_dataset(source.path).splits()]
        if splits and splits[0] != source.split:
            words = ["qilin", "evaluate", out, str(source.path), "--split", splits[0]]
            return shlex.join([*words, "--out", str(sibling(config.out, f"{config.out.name}-evaluation"))])
    return f"{shlex.join(['qilin', 'chat', out])} IMAGE"


def sibling(folder: Path, name: str) -> Path:
    """A folder that does not exist yet beside another one: runs/instruct, else runs/instruct-2, …"""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in (folder.parent / name for name in names) if not path.exists())
