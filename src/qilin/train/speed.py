"""How fast a run goes and how well it uses the machine: the live figures of a run.

In: the work of each step and the time it took. Out: figures averaged since the last row of metrics.jsonl.
"""

import resource
import sys
import time
from dataclasses import dataclass

import torch

from qilin.train.cost import Cost
from qilin.train.plan import Counts


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
