"""Two processes train what one does; killed in a step or a save, they go on exactly, or one goes on alone."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builders.training import metrics_rows, tiny_home
from qilin.core.errors import UserError
from qilin.train.checkpoint import list_checkpoints, step_of
from qilin.train.config import read_recipe
from qilin.train.stage import run_stage

# talk and text without an image among the samples, so that some packs have no image; a random change of images and
# a running average, because each has a state that could differ from device to device
USUAL = (
    "precision=fp32 device=cpu template=v1 kinds=[vqa,chat] batch_size=7 num_epochs=3 learning_rate=1e-2 save_steps=2 "
    "logging_steps=1 augment=0.5 ema_decay=0.9 trackers=[] pack_tokens=512 max_length=512"
)
# Trains as `qilin train` does; PLACE=STEP=RANK ends one process by force, in a step or while a checkpoint is written
PROGRAM = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import qilin.train.checkpoint as checkpoint
import qilin.train.loop as loop
from qilin import cli

place, at, rank = sys.argv[1].split("=")
mine = os.environ.get("RANK", "0") == rank
real_step, real_complete = loop.compute_gradients, checkpoint.Checkpointer.complete

def step(context, module, batch):
    if mine and place == "step" and batch.step == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return real_step(context, module, batch)

def complete(checkpointer, folder, metadata, future):
    if mine and place == "save" and metadata["step"] == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    real_complete(checkpointer, folder, metadata, future)

loop.compute_gradients, checkpoint.Checkpointer.complete = step, complete
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tiny_home(tmp_path_factory.mktemp("ranks"), images=5, splits=("train", "validation"))
    (home / "program.py").write_text(PROGRAM)
    return home


def go(home: Path, out: Path, ranks: int, more: Sequence[str], kill: str = "none=0=0") -> int:
    """Train with `ranks` processes; the exit status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={port}"] if ranks > 1 else []
    command = [
        *(sys.executable, *launch, str(home / "program.py"), kill, "train", "small/align"),
        *(f"vision={home / 'vision'}", f"language={home / 'language'}", f"data={home / 'data'}", f"out={out}"),
        *(*USUAL.split(), *more),
    ]
    environment = os.environ | {"QILIN_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert process.returncode in (0, 1, -signal.SIGKILL), process.stderr
    if kill.startswith("none"):
        assert process.returncode == 0, process.stderr
    return process.returncode


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in metrics_rows(run)]


def relative_distance(one: Path, other: Path) -> float:
    """The largest difference of two models' weights, relative to the largest weight of its tensor."""
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max() / a[name].abs().max().clamp(min=1e-3)) for name in a)


@pytest.mark.story
def test_two_processes_match_one_and_survive_kills(home: Path, tmp_path: Path) -> None:
    more = ("trainable=[projector,language]", "shard=all")
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    go(home, one, 1, more)
    go(home, two, 2, more)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert relative_distance(one, two) < 1e-3
    steps = len(losses(one))
    assert [row["step"] for row in metrics_rows(two)] == list(range(1, steps + 1))
    for a, b in zip(metrics_rows(one), metrics_rows(two), strict=True):
        assert (a["samples"], a["answer_tokens"], a["tokens"]) == (b["samples"], b["answer_tokens"], b["tokens"])
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert b["imbalance"] >= 1
        assert "imbalance" not in a

    assert go(home, killed, 2, more, "save=4=0") != 0
    assert (killed / "checkpoints" / ".step-0000004.unfinished").is_dir()
    assert [step_of(path) for path in list_checkpoints(killed)] == [2]
    assert go(home, killed, 2, more, "step=5=1") != 0
    assert [step_of(path) for path in list_checkpoints(killed)] == [2, 4]
    shutil.copytree(killed, tmp_path / "other")
    go(home, killed, 2, more)
    assert losses(killed) == losses(two)  # exactly: the same number of devices
    assert (killed / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert not (killed / "checkpoints").exists()

    recipe = (tmp_path / "other" / "recipe.yaml").read_text()
    (tmp_path / "other" / "recipe.yaml").write_text(recipe.replace(str(killed), str(tmp_path / "other")))
    go(home, tmp_path / "other", 1, more)  # on one device from what two have saved
    assert losses(tmp_path / "other") == pytest.approx(losses(one), rel=1e-5)
    assert relative_distance(one, tmp_path / "other") < 1e-3


@pytest.mark.story
def test_two_processes_validate_as_one_does(home: Path, tmp_path: Path) -> None:
    more = ("trainable=[projector,language]", "shard=all")
    validating = (*more, "validate={interval: 2}", "save_steps=3", "save_total_limit=1")
    plain, one, two, killed = (tmp_path / name for name in ("plain", "one", "two", "killed"))
    go(home, plain, 2, more)
    go(home, one, 1, validating)
    go(home, two, 2, validating)
    assert losses(two) == losses(plain)  # whole weights that a validation has gathered are not trained on
    validation_losses = [
        [row["validation_loss"] for row in metrics_rows(run) if "validation_loss" in row] for run in (one, two)
    ]
    assert len(validation_losses[0]) > 3
    assert validation_losses[1] == pytest.approx(validation_losses[0], rel=1e-5)
    assert len(set(validation_losses[0])) == len(validation_losses[0]), "control: it moves with the weights"
    assert relative_distance(one, two) < 1e-3

    assert go(home, killed, 2, validating, "step=5=1") != 0
    go(home, killed, 2, validating)
    assert [row.get("validation_loss") for row in metrics_rows(killed)] == [
        row.get("validation_loss") for row in metrics_rows(two)
    ]
    assert (killed / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


@pytest.mark.story
def test_adapters_over_a_replicated_frozen_model(home: Path, tmp_path: Path) -> None:
    more = ("lora={rank: 4}", "shard=trainable", "gradient_checkpointing=true", "async_checkpoint=true")
    go(home, tmp_path / "one", 1, more)
    go(home, tmp_path / "two", 2, more)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert relative_distance(tmp_path / "one", tmp_path / "two") < 1e-3
    assert (tmp_path / "two" / "adapter" / "adapter_config.json").is_file()


def test_muon_on_many_devices_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [
        f"vision={home / 'vision'}",
        f"language={home / 'language'}",
        f"data={home / 'data'}",
        "optimizer=muon",
    ]
    config = read_recipe("small/align", [*overrides, f"out={tmp_path / 'run'}"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="optimizer=adamw"):
        run_stage(config, "test")
    assert not (tmp_path / "run").exists()


def test_a_single_device_does_not_communicate(monkeypatch: pytest.MonkeyPatch) -> None:
    from qilin.train.distributed import SINGLE_DEVICE, full_tensor, init_world

    monkeypatch.delenv("RANK", raising=False)
    world = init_world("cpu")
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.sum([1.5, 2]) == [1.5, 2]
    assert world.max([3]) == [3]
    assert world.gather(["a"]) == ["a"]
    with SINGLE_DEVICE.one_rank_at_a_time():
        SINGLE_DEVICE.barrier()
    assert not torch.distributed.is_initialized()
    tensor = torch.ones(2)
    assert full_tensor(tensor) is tensor
