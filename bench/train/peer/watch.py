"""A stop watch that every system's run carries: the same marks, counts and clocks, whoever trains.

In: a job (JSON), and calls from inside the training loop. Out: the job's report (JSON). Runs in each peer's own
environment, so it knows nothing of Qilin. A sample is counted by the end-of-sequence token in its labels: one an
answer, in packs and conversations too.
"""

import functools
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "transformers", "accelerate", "trl", "ms-swift", "llamafactory", "qilin-med")


class Watch:
    """Marks of one run. `begin` when the loop starts, `batch` before each forward, `step` after each optimizer step."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.process = job, psutil.Process()
        self.marks: list[dict[str, float]] = []
        self.counts = {"samples": 0, "answer_tokens": 0, "tokens": 0, "computed": 0, "checksum": 0}
        self.losses: list[tuple[int, float]] = []  # (answer tokens of the step, their mean loss)
        self.peak = 0

    def begin(self) -> None:
        reset_peak()
        self.before = self.process.memory_info().rss
        self.mark()

    def batch(self, ids: Any, labels: Any, learnt: Any, real: int) -> None:
        """One forward: token ids, the labels of learnt positions (1-D), and how many tokens are not padding."""
        self.counts["computed"] += ids.numel()
        self.counts["tokens"] += real
        self.counts["samples"] += int((learnt == self.job["eos"]).sum())
        self.counts["answer_tokens"] += learnt.numel()
        # the same for the same labels in any order
        self.counts["checksum"] = (self.counts["checksum"] + int((learnt.long() + 1).pow(3).sum())) % (1 << 61)

    def step(self) -> None:
        self.peak = peak()
        self.mark()

    def loss(self, mean: float) -> None:
        """The logged loss of the step just marked."""
        before = self.marks[-2]["answer_tokens"]
        self.losses.append((int(self.marks[-1]["answer_tokens"] - before), mean))

    def mark(self) -> None:
        self.marks.append({"wall": time.perf_counter(), "cpu": cpu_seconds(self.process), **self.counts})

    def report(self, told: dict[str, Any]) -> None:
        """Steps after the first are timed: it pays for what is made once, such as kernels and memory."""
        assert len(self.marks) > 2, "a run needs two steps at least"
        first, last = self.marks[1], self.marks[-1]
        timed = {key: last[key] - first[key] for key in first}
        learnt = sum(tokens for tokens, _ in self.losses)
        row = {
            "steps": len(self.marks) - 1,
            **self.counts,
            "timed_samples": timed["samples"],
            "timed_wall": round(timed["wall"], 3),
            "timed_cpu": round(timed["cpu"], 3),
            "samples_per_cpu_second": round(timed["samples"] / timed["cpu"], 4),
            "samples_per_second": round(timed["samples"] / timed["wall"], 4),
            "padding": round(1 - self.counts["tokens"] / self.counts["computed"], 4),
            "memory_before_mb": round(self.before / 1e6),
            "memory_peak_mb": round(self.peak / 1e6),
            "before_training_seconds": round(self.marks[0]["wall"] - self.job_started(), 1),
            "mean_loss": sum(tokens * loss for tokens, loss in self.losses) / learnt if learnt else None,
            "first_loss": self.losses[0][1] if self.losses else None,
            "told": told,
            "versions": {"python": platform.python_version(), **versions()},
        }
        Path(self.job["report"]).write_text(json.dumps(row), encoding="utf-8")

    def job_started(self) -> float:
        """When this process began, on the clock of the marks."""
        return time.perf_counter() - (time.time() - self.process.create_time())


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_seconds(process: psutil.Process) -> float:
    """Of this process and of its data workers, dead or alive."""
    mine = process.cpu_times()
    total = mine.user + mine.system + mine.children_user + mine.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return float(total)


def reset_peak() -> None:
    """Linux forgets the highest resident memory so far."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> int:
    """The highest resident memory since, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM in /proc/self/status: the measurement needs Linux")


def read_job(path: str) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    return job


def rewrite(samples: Path, file: Path, change: Callable[[str, str], str]) -> None:
    """The samples with each message's text as `change` makes it of role and text."""
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        for message in row["messages"]:
            message["content"] = change(message["role"], message["content"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def watch_trainer(watch: Watch) -> list[Any]:
    """Every transformers.Trainer made from now on, or what is derived from it, carries the watch. Returns the list in
    which they will stand."""
    from transformers import Trainer, TrainerCallback

    class Marks(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            watch.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            watch.step()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            if watch.job["check"] and logs and "loss" in logs:
                watch.loss(float(logs["loss"]))

    made: list[Any] = []
    plain, begin = Trainer.training_step, Trainer.__init__

    @functools.wraps(begin)  # ms-swift reads its signature
    def init(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **named)
        self.add_callback(Marks)
        made.append(self)

    def training_step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        labels, mask = inputs["labels"][:, 1:], inputs.get("attention_mask")
        real = int((mask != 0).sum()) if mask is not None and mask.ndim == 2 else inputs["input_ids"].numel()
        watch.batch(inputs["input_ids"], labels, labels[labels != -100], real)
        return plain(self, model, inputs, *rest)

    Trainer.training_step, Trainer.__init__ = training_step, init  # type: ignore[method-assign]
    return made


def facts_of(trainer: Any) -> dict[str, Any]:
    """What a Trainer says of itself after all defaults are filled in."""
    args, model = trainer.args, trainer.model
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kinds = sorted({str(p.dtype) for p in model.parameters()})
    return {
        "learning_parameters": learning,
        "dtypes": kinds,
        "batch": args.per_device_train_batch_size,
        "accumulation": args.gradient_accumulation_steps,
        "bf16": args.bf16,
        "gradient_checkpointing": args.gradient_checkpointing,
        "optimizer": str(args.optim),
        "workers": args.dataloader_num_workers,
        "attention": getattr(model.config.text_config, "_attn_implementation", None),
    }
