"""The precision of a run: chosen, kept, and fp16 with loss scaling."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import qilin.train.loop as loop
from builders.training import metrics_rows, stage_overrides, steps_of, train_stage, weights
from qilin.core.config import read_yaml
from qilin.core.errors import UserError
from qilin.model.architectures import set_trainable
from qilin.train.config import read_recipe
from qilin.train.flops import fast_precision
from qilin.train.loss_scale import LossScale
from qilin.train.model_setup import apply_precision
from qilin.train.start_model import load_start


def fake_peaks(monkeypatch: pytest.MonkeyPatch, bf16: float) -> None:
    """A processor that fake_peaks bf16 so many times as fast as fp32."""
    peaks = {torch.float32: 1e9, torch.bfloat16: bf16 * 1e9}
    monkeypatch.setattr("qilin.train.flops.measure_peak_flops", lambda device, dtype: peaks[dtype])


@pytest.mark.parametrize(("bf16", "expected"), [(2.0, "bf16"), (0.5, "fp32")])
def test_precision_auto_takes_the_faster_one_on_a_cpu(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: float, expected: str
) -> None:
    fake_peaks(monkeypatch, bf16)
    assert (
        read_yaml(train_stage(home, tmp_path / "run", "precision=auto", "num_epochs=1") / "recipe.yaml")["precision"]
        == expected
    )


def test_precision_auto_keeps_the_precision_of_the_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_stage(home, tmp_path / "run", "precision=bf16", "num_epochs=1")
    fake_peaks(monkeypatch, 0.5)
    train_stage(home, tmp_path / "run", "precision=auto", "num_epochs=1")
    assert "already done" in capsys.readouterr().err
    with pytest.raises(UserError, match="precision.*'bf16'.*'fp32'"):
        train_stage(home, tmp_path / "run", "precision=fp32", "num_epochs=1")


@pytest.mark.usefixtures("memory_formula")
def test_the_recipe_of_a_run_has_resolved_values(
    home: Path, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run resumes on another machine, where `auto` resolves to something else."""
    fake_peaks(monkeypatch, 0.5)
    memory = [1e12, 1.0]  # bytes: nothing needs checkpointing, then everything
    monkeypatch.setattr("qilin.train.stage.device_memory", lambda world: memory.pop(0))
    auto = (f"model={aligned}", "precision=auto", "gradient_checkpointing=auto", "save_steps=1")
    run, real = tmp_path / "run", loop.compute_gradients

    def stop_after_first(context: Any, module: Any, batch: Any) -> Any:
        if batch.step == 1:
            raise KeyboardInterrupt
        return real(context, module, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_gradients", stop_after_first)
        with pytest.raises(KeyboardInterrupt):
            train_stage(home, run, *auto)
    recipe = read_yaml(run / "recipe.yaml")
    assert (recipe["precision"], recipe["gradient_checkpointing"]) == ("fp32", 0.0)
    fake_peaks(monkeypatch, 2.0)
    train_stage(home, run, *auto)
    assert not memory
    recipe = json.loads((run / "qilin.json").read_text())["recipe"]
    assert (recipe["precision"], recipe["gradient_checkpointing"]) == ("fp32", 1.0)
    assert [row["step"] for row in metrics_rows(run)] == list(range(1, steps_of(run) + 1))


# --- fp16


def test_the_loss_scale_follows_torchs() -> None:
    scaler = torch.amp.GradScaler("cpu", growth_interval=3)
    scale = LossScale(True)
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qilin.train.loss_scale.GROWTH_INTERVAL", 3)
        for grad in (1.0, math.inf, 1.0, 1.0, 1.0, math.nan, 1.0, 1.0, 1.0, 1.0):
            before = parameter.detach().clone()
            scaler.scale((parameter * grad).sum()).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert scale.accepts(grad) == (not torch.equal(parameter, before))
            assert scale.scale == scaler.get_scale()
    assert scale.skipped == 2
    disabled = LossScale(False)
    assert disabled.accepts(math.inf)
    assert disabled.scale == 1.0


@pytest.mark.story
def test_fp16_trains_as_fp32_does_and_skips_steps_that_overflow(
    home: Path, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (f"model={aligned}", "lr_scheduler_type=constant", "learning_rate=1e-3")
    exact = metrics_rows(train_stage(home, tmp_path / "fp32", *options))
    half = metrics_rows(train_stage(home, tmp_path / "fp16", *options, "precision=fp16"))
    assert [row["loss"] for row in half] == pytest.approx([row["loss"] for row in exact], rel=0.01)
    assert [row["grad_norm"] for row in half] == pytest.approx([row["grad_norm"] for row in exact], rel=0.05)
    assert half[-1]["loss_scale"] == 2**16
    assert "loss_scale" not in exact[-1]
    monkeypatch.setattr("qilin.train.loss_scale.INITIAL_SCALE", 2.0**120)  # overflows in fp32 too
    rows = metrics_rows(train_stage(home, tmp_path / "overflow", *options, "precision=fp16", "max_steps=2"))
    assert [row["skipped_steps"] for row in rows] == [1, 2]
    start = {name: tensor for name, tensor in weights(aligned).items() if "projector" in name}
    after = weights(tmp_path / "overflow")
    assert all(torch.equal(after[name], tensor) for name, tensor in start.items()), "skipped steps change nothing"


def test_a_resumed_fp16_run_has_its_loss_scale(
    home: Path, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qilin.train.loss_scale.GROWTH_INTERVAL", 2)
    options = (f"model={aligned}", "precision=fp16", "save_steps=1", "max_steps=4")
    uninterrupted = metrics_rows(train_stage(home, tmp_path / "whole", *options))
    real = loop.compute_gradients

    def stop(context: Any, module: Any, batch: Any) -> Any:
        if batch.step == 3:
            raise KeyboardInterrupt
        return real(context, module, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_gradients", stop)
        with pytest.raises(KeyboardInterrupt):
            train_stage(home, tmp_path / "run", *options)
    rows = metrics_rows(train_stage(home, tmp_path / "run", *options))
    for key in ("loss", "loss_scale"):
        assert [row[key] for row in rows] == [row[key] for row in uninterrupted]
    assert rows[-1]["loss_scale"] > 2**16


def test_weights_beyond_fp16_are_refused(home: Path, tmp_path: Path) -> None:
    config = read_recipe("small/align", stage_overrides(home, tmp_path, ["precision=fp16"]))
    loaded = load_start(config)
    set_trainable(loaded.model, config.trainable)
    loaded.model.lm_head.weight.data[0, 0] = 1e5
    with pytest.raises(UserError, match=r"fp16, which ends at 65504, but lm_head\.weight holds 100000"):
        apply_precision(loaded.model, config)


def test_older_gpus_get_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: False)
    for capability, expected in (((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, result=capability: result)
        assert fast_precision(torch.device("cuda")) == expected
