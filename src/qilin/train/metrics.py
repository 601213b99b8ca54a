"""Metrics of a run: how they are measured, and where they go: the progress bar or lines of a log file, metrics.jsonl,
TensorBoard, other trackers.

In: the work, loss and gradient norm of each step. Out: throughput, MFU and memory since the last row; rows in
metrics.jsonl, each step once, also after a resume; curves in the trackers.
"""

import importlib
import importlib.util
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qilin.core.config import to_dict
from qilin.core.errors import UserError
from qilin.core.files import write_atomic
from qilin.core.progress import ProgressBars, format_seconds
from qilin.train.context import TrainContext
from qilin.train.flops import FlopCost
from qilin.train.plan import WorkCounts

METRICS = "metrics.jsonl"
LINE_INTERVAL = 30.0  # seconds after which a log file gets a line, besides those every logging_steps


@dataclass(frozen=True)
class StepWork:
    """The work of one step over all devices."""

    samples: int
    counts: WorkCounts  # required work
    computed_tokens: int  # tokens that went through the model, padding included
    capacity: int  # tokens that its packs could hold
    data_wait: float  # seconds that the slowest device waited for data


class Throughput:
    """Accumulates steps and turns them into metrics. `peak`: operations per second that all devices can reach."""

    def __init__(self, cost: FlopCost, peak: float, device: torch.device, num_steps: int, start: int) -> None:
        self.cost, self.peak, self.device, self.num_steps = cost, peak, device, num_steps
        self.start = self.done = start
        self.started = time.perf_counter()
        self.reset()

    def add(self, work: StepWork) -> None:
        """Add a finished step."""
        self.work.append(work)
        self.done += 1

    def metrics(self) -> dict[str, float]:
        """The metrics since the last reset."""
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        tokens = sum(work.counts.tokens for work in self.work)
        computed = sum(work.computed_tokens for work in self.work)
        seconds_per_step = (now - self.started) / max(1, self.done - self.start)
        return {
            "samples_per_second": sum(work.samples for work in self.work) / seconds,
            "tokens_per_second": tokens / seconds,
            "answer_tokens_per_second": sum(work.counts.answer_tokens for work in self.work) / seconds,
            "padding": 1 - tokens / max(1, computed),
            "pack_filled": computed / max(1, sum(work.capacity for work in self.work)),
            "data_wait": sum(work.data_wait for work in self.work) / seconds,
            "mfu": sum(self.cost.total(work.counts) for work in self.work) / seconds / self.peak,
            "memory_gb": peak_memory(self.device) / 1e9,
            "left_seconds": seconds_per_step * (self.num_steps - self.done),
        }

    def exclude_time(self, seconds: float) -> None:
        """Exclude time that was not training (validation) from the speed; the remaining time includes it."""
        self.since += seconds

    def reset(self) -> None:
        self.since = time.perf_counter()
        self.work: list[StepWork] = []


def peak_memory(device: torch.device) -> float:
    """Peak bytes: allocated on an accelerator, on a CPU resident in this process."""
    if device.type != "cpu":
        return float(torch.accelerator.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


class MetricsLog:
    """The open log of a run, a context manager. Only the main process writes; elsewhere every method is a no-op."""

    def __init__(self, context: TrainContext, start: int) -> None:
        self.enabled = context.world.is_main
        if not self.enabled:
            return
        file = context.run_dir / METRICS
        remove_later_rows(file, start)
        self.file = file.open("a", encoding="utf-8")
        self.bars = ProgressBars()
        self.title, self.num_steps, self.last_line = context.title, len(context.plan), 0.0
        self.task = self.bars.add_task(context.title, total=len(context.plan), completed=start)
        self.validation_task = self.bars.add_task("  validation", visible=False)
        self.trackers = [open_tracker(name, context, start) for name in context.config.trackers]

    def __enter__(self) -> "MetricsLog":
        if self.enabled:
            self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self.enabled:
            return
        self.bars.stop()
        self.file.close()
        for tracker in self.trackers:
            tracker.close()

    def start_validation(self, num_steps: int) -> Callable[[int], None]:
        """Show a second bar, which keeps the loss afterwards; returns the function that advances it."""
        if not self.enabled:
            return lambda done: None
        self.bars.reset(self.validation_task, total=num_steps, visible=True)
        return lambda done: self.bars.update(self.validation_task, completed=done)

    def log_step(self, metrics: Mapping[str, float], write: bool) -> None:
        """Show a step's metrics in the bar or as a line; with `write` also add them to metrics.jsonl and the
        trackers."""
        if not self.enabled:
            return
        if "validation_loss" in metrics:
            self.bars.update(self.validation_task, figure=format_validation(metrics))
        if self.bars.on_terminal:
            self.bars.update(self.task, completed=metrics["step"], figure=format_metrics(metrics))
        elif write or time.monotonic() - self.last_line >= LINE_INTERVAL:
            self.last_line = time.monotonic()
            self.bars.console.print(f"{self.title}: {format_line(metrics, self.num_steps)}")
        if write:
            self.file.write(json.dumps(metrics) + "\n")
            self.file.flush()
            for tracker in self.trackers:
                tracker.log(metrics)


def format_validation(metrics: Mapping[str, float]) -> str:
    """The result of a validation."""
    score = f", score {metrics['validation_score']:.3f}" if "validation_score" in metrics else ""
    return f"loss {metrics['validation_loss']:.3f}{score} at step {metrics['step']:,}"


def format_line(metrics: Mapping[str, float], num_steps: int) -> str:
    """A step in one line of a log file."""
    parts = [
        f"step {metrics['step']:,} of {num_steps:,}",
        f"loss {metrics['loss']:.4f}",
        f"learning rate {metrics['rate']:.3g}",
        f"{metrics['tokens_per_second']:,.0f} tokens/s",
        f"{format_seconds(metrics['left_seconds'])} left",
    ]
    if "validation_loss" in metrics:
        parts.append(f"validation {format_validation(metrics)}")
    if metrics.get("skipped_steps"):
        parts.append(f"{metrics['skipped_steps']:.0f} steps skipped (fp16 overflow)")
    if metrics["data_wait"] > 0.05:
        parts.append(f"waiting for data {metrics['data_wait']:.0%}")
    return ", ".join(parts)


def format_metrics(metrics: Mapping[str, float]) -> str:
    """The metrics that fit beside the bar."""
    parts = [
        f"loss {metrics['loss']:.3f}",
        f"{metrics['tokens_per_second']:,.0f} tokens/s",
        f"MFU {metrics['mfu']:.0%}",
        f"{metrics['memory_gb']:.1f} GB",
    ]
    if metrics["data_wait"] > 0.05:  # less is not worth acting on
        parts.append(f"waiting for data {metrics['data_wait']:.0%}")
    if metrics.get("imbalance", 1) > 1.1:
        parts.append(f"imbalance {metrics['imbalance']:.2f}x")
    return "  ".join(parts)


def remove_later_rows(file: Path, step: int) -> None:
    """Remove rows after `step` (from a run killed after its last checkpoint), and an incomplete last row."""
    if file.is_file():
        rows = [line for line in file.read_text(encoding="utf-8").splitlines() if row_step(line) <= step]
        write_atomic(file, "".join(line + "\n" for line in rows))


def row_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")


class TensorBoard:
    """Curves for `tensorboard --logdir`."""

    def __init__(self, run_dir: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)  # hides steps that are repeated

    def log(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(metrics["step"]))

    def close(self) -> None:
        self.writer.close()


class Tracker:
    """SwanLab, W&B or trackio, which share init / log / finish."""

    def __init__(self, name: str, run_name: str, config: Any) -> None:
        self.library = importlib.import_module(name)
        self.library.init(project="qilin", name=run_name, config=config)

    def log(self, metrics: Mapping[str, float]) -> None:
        self.library.log(dict(metrics), step=int(metrics["step"]))

    def close(self) -> None:
        self.library.finish()


def open_tracker(name: str, context: TrainContext, start: int) -> TensorBoard | Tracker:
    if name == "tensorboard":
        return TensorBoard(context.run_dir, start)
    return Tracker(name, f"{context.run_dir.name} {context.title}", to_dict(context.config))


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise UserError for a library that is not installed, before the data is read."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers names {name}, which is not installed: pip install {name}")
