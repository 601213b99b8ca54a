"""Timing, sample counts and memory of a training run, measured identically for all systems.

Inputs: a job (JSON), and calls from inside the training loop. Output: the job's report (JSON). Runs in the environment
of each system, so it does not import Qilin. Samples are counted by the end-of-sequence tokens in the labels, one per
answer, also in packs and conversations.
"""

import functools
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "transformers", "accelerate", "trl", "ms-swift", "llamafactory", "qilin-med")


class Watch:
    """Measurements of one run. Call `begin` when the loop starts, `batch` before each forward pass, `step` after each
    optimizer step."""

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

    def batch(self, ids: Any, targets: Any, real_tokens: int) -> None:
        """One forward pass: token ids, labels of trained positions (1-D), number of tokens that are not padding."""
        self.counts["computed"] += ids.numel()
        self.counts["tokens"] += real_tokens
        self.counts["samples"] += int((targets == self.job["eos"]).sum())
        self.counts["answer_tokens"] += targets.numel()
        # independent of the order of the labels
        self.counts["checksum"] = (self.counts["checksum"] + int((targets.long() + 1).pow(3).sum())) % (1 << 61)

    def step(self) -> None:
        self.peak = peak()
        self.mark()

    def loss(self, mean: float) -> None:
        """The logged loss of the last step."""
        before = self.marks[-2]["answer_tokens"]
        self.losses.append((int(self.marks[-1]["answer_tokens"] - before), mean))

    def mark(self) -> None:
        self.marks.append({"wall": time.perf_counter(), "cpu": cpu_seconds(self.process), **self.counts})

    def report(self, facts: dict[str, Any]) -> None:
        """Writes the report. The first step is not timed: it includes one-time costs such as kernel creation."""
        assert len(self.marks) > 2, "a run needs at least two steps"
        first, last = self.marks[1], self.marks[-1]
        timed = {key: last[key] - first[key] for key in first}
        answer_tokens = sum(tokens for tokens, _ in self.losses)
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
            "mean_loss": sum(tokens * loss for tokens, loss in self.losses) / answer_tokens if answer_tokens else None,
            "first_loss": self.losses[0][1] if self.losses else None,
            "told": facts,
            "versions": {"python": platform.python_version(), **versions()},
        }
        Path(self.job["report"]).write_text(json.dumps(row), encoding="utf-8")

    def job_started(self) -> float:
        """Start of this process on the clock of the marks."""
        return time.perf_counter() - (time.time() - self.process.create_time())


def versions() -> dict[str, str]:
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of this process and of its data workers, running or finished."""
    times = process.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return float(total)


def reset_peak() -> None:
    """Resets the peak resident memory of this process (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> int:
    """Peak resident memory in bytes since `reset_peak`."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM in /proc/self/status: the measurement needs Linux")


def read_job(path: str) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    if job["model_type"] != "llava" and find_spec("torchvision"):
        allow_torchvision()
    return job


def allow_torchvision() -> None:
    """Let torchvision be imported beside a CPU build of torch: its compiled operators, which do not load there, are
    declared. The processors of Qwen-VL use its transformations, which are Python code."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    DECLARED.append(library)  # the operators go with their library


DECLARED: list[Any] = []


def rewrite(samples: Path, file: Path, change: Callable[[str, str], str]) -> None:
    """Writes the samples to `file` with each message's text replaced by `change(role, text)`."""
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        for message in row["messages"]:
            message["content"] = change(message["role"], message["content"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def watch_trainer(watch: Watch) -> list[Any]:
    """Attaches the watch to all transformers.Trainer objects created later, including subclasses.

    Returns the list to which they will be added.
    """
    from transformers import Trainer, TrainerCallback

    class Marks(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            watch.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            watch.step()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **unused: Any) -> None:
            if watch.job["check"] and logs and "loss" in logs:
                watch.loss(float(logs["loss"]))

    trainers: list[Any] = []
    original_step, original_init = Trainer.training_step, Trainer.__init__

    @functools.wraps(original_init)  # ms-swift inspects the signature
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original_init(self, *args, **kwargs)
        self.add_callback(Marks)
        trainers.append(self)

    def training_step(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        labels, mask = inputs["labels"][:, 1:], inputs.get("attention_mask")
        real_tokens = int((mask != 0).sum()) if mask is not None and mask.ndim == 2 else inputs["input_ids"].numel()
        watch.batch(inputs["input_ids"], labels[labels != -100], real_tokens)
        return original_step(self, model, inputs, *more)

    Trainer.training_step, Trainer.__init__ = training_step, init  # type: ignore[method-assign]
    return trainers


def trainer_facts(trainer: Any) -> dict[str, Any]:
    """The settings of a Trainer after all defaults are applied."""
    args, model = trainer.args, trainer.model
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    dtypes = sorted({str(p.dtype) for p in model.parameters()})
    return {
        "learning_parameters": num_trainable,
        "dtypes": dtypes,
        "batch": args.per_device_train_batch_size,
        "accumulation": args.gradient_accumulation_steps,
        "bf16": args.bf16,
        "gradient_checkpointing": args.gradient_checkpointing,
        "optimizer": str(args.optim),
        "workers": args.dataloader_num_workers,
        "attention": getattr(model.config.text_config, "_attn_implementation", None),
    }
