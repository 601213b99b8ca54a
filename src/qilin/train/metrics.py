"""What a person sees of a run: the bar, metrics.jsonl, TensorBoard and other trackers by name.

In: one row of figures a step. Out: a bar with stage, step, loss and time left; rows in metrics.jsonl (cut back to the
checkpoint on resume, so that each step stands there once); curves in the trackers.
"""

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
from qilin.core.progress import ProgressBars
from qilin.train.config import TrainConfig
from qilin.train.flops import Cost
from qilin.train.plan import Counts

METRICS = "metrics.jsonl"


class Log:
    """The open log of a run: a context manager around the loop. One process of many speaks; the others are silent."""

    def __init__(self, run: Path, title: str, steps: int, done: int, config: TrainConfig, speaks: bool) -> None:
        self.speaks = speaks
        if not speaks:
            return
        file = run / METRICS
        cut_back(file, done)
        self.rows = file.open("a", encoding="utf-8")
        self.bar = ProgressBars()
        self.task = self.bar.add_task(title, total=steps, completed=done, figure="")
        self.looking = self.bar.add_task("  validation", visible=False, figure="")
        self.writers = [open_tracker(name, run, title, done, to_dict(config)) for name in config.trackers]

    def __enter__(self) -> "Log":
        if self.speaks:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self.speaks:
            return
        self.bar.stop()
        self.rows.close()
        for writer in self.writers:
            writer.close()

    def begin_validation(self, steps: int) -> Callable[[int], None]:
        """A bar below the other, where the loss then stays; returns what moves it on."""
        if not self.speaks:
            return lambda done: None
        self.bar.reset(self.looking, total=steps, visible=True)
        return lambda done: self.bar.update(self.looking, completed=done)

    def step(self, figures: Mapping[str, float], write: bool) -> None:
        """One step is done; `write` puts its figures into the files too."""
        if not self.speaks:
            return
        if "validation_loss" in figures:
            told = f"loss {figures['validation_loss']:.3f} at step {figures['step']:,}"
            self.bar.update(self.looking, figure=told)
        self.bar.update(self.task, completed=figures["step"], figure=in_short(figures))
        if write:
            self.rows.write(json.dumps(figures) + "\n")
            self.rows.flush()
            for writer in self.writers:
                writer.add(figures)


def in_short(figures: Mapping[str, float]) -> str:
    """What fits beside the bar."""
    words = [
        f"loss {figures['loss']:.3f}",
        f"{figures['tokens_per_second']:,.0f} tokens/s",
        f"MFU {figures['mfu']:.0%}",
        f"{figures['memory_gb']:.1f} GB",
    ]
    if figures["data_wait"] > 0.05:  # below that nothing is to be gained
        words.append(f"waits for data {figures['data_wait']:.0%}")
    if figures.get("imbalance", 1) > 1.1:
        words.append(f"uneven {figures['imbalance']:.2f}x")
    return "  ".join(words)


def cut_back(file: Path, done: int) -> None:
    """Drop rows of steps after `done` (a run killed after its last checkpoint), and a half-written last one."""
    if not file.is_file():
        return
    kept = [line for line in file.read_text(encoding="utf-8").splitlines() if row_step(line) <= done]
    write_atomic(file, "".join(line + "\n" for line in kept))


def row_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")


class TensorBoard:
    """Curves for `tensorboard --logdir`."""

    def __init__(self, run: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1)  # hides what is done again

    def add(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(figures["step"]))

    def close(self) -> None:
        self.writer.close()


class Tracker:
    """SwanLab, W&B or trackio, which share init / log / finish."""

    def __init__(self, name: str, run: Path, title: str, config: Any) -> None:
        import importlib

        self.library = importlib.import_module(name)
        self.library.init(project="qilin", name=f"{run.name} {title}", config=config)

    def add(self, figures: Mapping[str, float]) -> None:
        self.library.log(dict(figures), step=int(figures["step"]))

    def close(self) -> None:
        self.library.finish()


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise UserError for a library that is not installed, before hours of reading."""
    import importlib.util

    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"trackers names {name}, which is not installed: pip install {name}")


def open_tracker(name: str, run: Path, title: str, done: int, config: Any) -> TensorBoard | Tracker:
    return TensorBoard(run, done) if name == "tensorboard" else Tracker(name, run, title, config)


@dataclass(frozen=True)
class Work:
    """What one step computed, over all devices."""

    samples: int
    counts: Counts  # what the samples need
    computed: int  # tokens that went through the model, those that no sample needs among them
    room: int  # tokens that its packs could have held


class Meter:
    """Adds up steps until their figures are asked for. `peak`: products a second that all devices can do at best."""

    def __init__(self, cost: Cost, peak: float, device: torch.device, steps: int, done: int) -> None:
        self.cost, self.peak, self.device, self.steps = cost, peak, device, steps
        self.begun_at = self.done = done
        self.started = self.since = time.perf_counter()
        self.waited = 0.0
        self.work: list[Work] = []

    def add(self, work: Work, waited: float) -> None:
        """A step is done; for `waited` seconds of it nothing was at hand to compute."""
        self.work.append(work)
        self.waited += waited
        self.done += 1

    def figures(self) -> dict[str, float]:
        """The figures since the last reset."""
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        counts = [work.counts for work in self.work]
        tokens, computed = sum(c.tokens for c in counts), sum(work.computed for work in self.work)
        a_step = (now - self.started) / max(1, self.done - self.begun_at)
        return {
            "samples_per_second": sum(work.samples for work in self.work) / seconds,
            "tokens_per_second": tokens / seconds,
            "answer_tokens_per_second": sum(c.answers for c in counts) / seconds,
            "padding": 1 - tokens / max(1, computed),
            "pack_filled": computed / max(1, sum(work.room for work in self.work)),
            "data_wait": self.waited / seconds,
            "mfu": sum(map(self.cost.of, counts)) / seconds / self.peak,
            "memory_gb": memory_used(self.device) / 1e9,
            "left_seconds": a_step * (self.steps - self.done),
        }

    def aside(self, seconds: float) -> None:
        """Time that was not for training (validation) counts in the time left, not in the speed."""
        self.since += seconds

    def reset(self) -> None:
        self.since, self.waited, self.work = time.perf_counter(), 0.0, []


def memory_used(device: torch.device) -> float:
    """The most bytes so far: allocated on an accelerator, on a CPU resident in this process."""
    if device.type != "cpu":
        return float(torch.accelerator.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
