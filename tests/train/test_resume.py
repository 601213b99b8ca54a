"""A run killed twice, once while it writes a checkpoint, ends where an uninterrupted one does, bit for bit."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builders.tiny import tiny_dataset, tiny_language, tiny_vision
from qilin.train.checkpoint import list_checkpoints, step_of

# dropout, augmentation, a running average and two optimizers, because each of them has a state that could be forgotten
WORDS = (
    "precision=fp32 device=cpu template=v1 kinds=[vqa] batch_size=6 num_epochs=6 learning_rate=1e-2 save_steps=2 "
    "logging_steps=1 augment=0.5 ema_decay=0.9 optimizer=muon lora={rank:4,dropout:0.1} trackers=[]"
).replace(":", ": ")
# Trains as `qilin train` does, and dies in the middle of the step that KILL names, or while it writes the checkpoint
PROGRAM = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import qilin.train.checkpoint as checkpoint
import qilin.train.loop as loop
from qilin import cli

place, at = sys.argv[1].split("=")
real_step, real_complete = loop.compute_gradients, checkpoint.Checkpointer.complete

def step(context, module, batch):
    found = real_step(context, module, batch)
    if place == "step" and batch.step == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return found

def complete(checkpointer, folder, metadata, future):
    if place == "save" and metadata["step"] == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    real_complete(checkpointer, folder, metadata, future)

loop.compute_gradients, checkpoint.Checkpointer.complete = step, complete
sys.exit(cli.main(sys.argv[2:]))
"""


def go(home: Path, out: Path, kill: str) -> int:
    command = [
        *("train", "small/align", f"vision={home / 'vision'}", f"language={home / 'language'}"),
        *(f"data={home / 'data'}", f"out={out}", *split(WORDS)),
    ]
    environment = os.environ | {"QILIN_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, kill, *command], env=environment, capture_output=True, text=True, timeout=600
    )
    assert process.returncode in (0, -signal.SIGKILL), process.stderr
    return process.returncode


def split(overrides: str) -> list[str]:
    """Words apart, but what stands in braces together."""
    return re.findall(r"\S*\{[^}]*\}|\S+", overrides)


def losses(run: Path) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


@pytest.mark.story
def test_a_killed_and_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    tiny_language(tmp_path / "language")
    tiny_vision(tmp_path / "vision")
    tiny_dataset(tmp_path / "data", images=4, questions=3, extras=False, splits=("train",))
    uninterrupted, killed = tmp_path / "whole", tmp_path / "killed"
    assert go(tmp_path, uninterrupted, "step=-1") == 0
    steps = json.loads((uninterrupted / "plan.json").read_text())["steps"]
    assert steps == 12

    assert go(tmp_path, killed, "save=6") < 0
    assert (killed / "checkpoints" / ".step-0000006.unfinished").is_dir()
    assert [step_of(path) for path in list_checkpoints(killed)] == [2, 4]
    assert go(tmp_path, killed, "step=11") < 0
    assert not (killed / "qilin.json").exists()
    started = time.time()
    assert go(tmp_path, killed, "step=-1") == 0
    assert (killed / "qilin.json").stat().st_mtime >= started

    assert losses(killed) == losses(uninterrupted)
    assert [row[0] for row in losses(uninterrupted)] == list(range(1, steps + 1))
    sums = [hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest() for run in (uninterrupted, killed)]
    assert sums[0] == sums[1]
    assert not (killed / "checkpoints").exists()
