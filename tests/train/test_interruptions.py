"""When things go wrong in the middle of a run: no checkpoint is damaged, and the run continues where it was."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter

import qilin.train.checkpoint as checkpoint
import qilin.train.loop as loop
from builders.training import metrics_rows, stage_overrides, train_stage
from qilin import cli
from qilin.core.errors import RunError
from qilin.train.optimizer import TrainableParam, make_optimizer


def test_a_non_finite_loss_stops_before_the_optimizer_step(
    home: Path, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: dict[str, torch.Tensor] = {}
    recorded: list[Any] = []
    real = loop.compute_gradients

    def poisoned(context: Any, module: Any, batch: Any) -> Any:
        model = module.model
        if batch.step == 1:
            model.model.language_model.norm.weight.data[0] = float("nan")
            before.update({n: p.detach().clone() for n, p in model.named_parameters()})
            recorded.append((model, batch.sample_ids))
        return real(context, module, batch)

    monkeypatch.setattr(loop, "compute_gradients", poisoned)
    with pytest.raises(RunError, match="step 2: the loss is nan") as caught:
        train_stage(home, tmp_path / "run", f"model={aligned}")
    model, samples = recorded[0]
    assert all(name in str(caught.value) for name in samples)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.nan_to_num(7.0), before[name].nan_to_num(7.0)), name
    assert [row["step"] for row in metrics_rows(tmp_path / "run")] == [1]
    assert not (tmp_path / "run" / "qilin.json").exists()


@pytest.mark.parametrize("failing_call", ["data", "name"])
@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_damages_no_checkpoint(
    home: Path, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: str, background: bool
) -> None:
    """Full while the numbers are written, or when the folder is to get its name."""
    run, calls = tmp_path / "run", []
    owner, name = (FileSystemWriter, "write_data") if failing_call == "data" else (checkpoint, "sync_file")
    real = getattr(owner, name)

    def full(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        message = r"could not be written \(No space left on device\); the checkpoint of step 1 is complete"
        with pytest.raises(RunError, match=message):
            train_stage(home, run, f"model={aligned}", "save_steps=1", f"async_checkpoint={str(background).lower()}")
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-0000001"]
    train_stage(home, run, f"model={aligned}", "save_steps=1")
    uninterrupted = train_stage(home, tmp_path / "whole", f"model={aligned}", "save_steps=1")
    assert (run / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()


def test_incomplete_checkpoints_are_ignored(tmp_path: Path) -> None:
    for name in (".step-0000009.unfinished", "step-0000008"):  # the second: without its last file
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-0000009.unfinished" / "state.json").write_text('{"step": 9}')
    assert checkpoint.latest_checkpoint(tmp_path) is None
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    saver = checkpoint.Checkpointer(tmp_path, keep_last=2)
    for step in (1, 2, 3):
        saver.save(step, model, optimizer, {})
    assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path)] == [2, 3]


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_background_checkpoint_has_the_state_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    """Also of tensors that torch's asynchronous save does not copy, as those of the 8-bit optimizer; AdamW's stand in
    for them where torchao is not installed."""
    if name == "adamw8bit":
        pytest.importorskip("torchao")
    else:
        monkeypatch.setattr(checkpoint, "is_plain_tensor", lambda value: not isinstance(value, torch.Tensor))
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 128))
    model = torch.nn.Module()
    model.weight = weight
    optimizer = make_optimizer([TrainableParam("weight", weight, 1e-2, 0.0)], name, (0.9, 0.999))

    def step() -> None:
        weight.grad = torch.ones_like(weight)
        optimizer.step()

    def moments() -> torch.Tensor:
        return optimizer.state[weight]["exp_avg"].dequantize().clone()

    step()
    saver = checkpoint.Checkpointer(tmp_path, keep_last=1, background=True)
    before = weight.detach().clone(), moments()
    saver.save(1, model, optimizer, {})
    step()  # while it is written
    saver.close()
    assert not torch.equal(weight, before[0])
    checkpoint.load_checkpoint(tmp_path / "checkpoints" / "step-0000001", model, optimizer, {})
    assert torch.equal(weight, before[0])
    assert torch.equal(moments(), before[1])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_stop_signals_save_a_checkpoint_first(
    home: Path,
    aligned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    run, real = tmp_path / "run", loop.compute_gradients

    def signalled(context: Any, module: Any, batch: Any) -> Any:
        if batch.step == 1:
            os.kill(os.getpid(), number)
        return real(context, module, batch)

    command = ["train", "small/align", *stage_overrides(home, run, [f"model={aligned}"])]
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_gradients", signalled)
        assert cli.main(command) == code
    assert "continue" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    assert checkpoint.step_of(checkpoint.list_checkpoints(run)[-1]) == 2
    assert cli.main(command) == 0
    uninterrupted = train_stage(home, tmp_path / "whole", f"model={aligned}")
    assert (run / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    assert [row["loss"] for row in metrics_rows(run)] == [row["loss"] for row in metrics_rows(uninterrupted)]
