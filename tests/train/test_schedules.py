"""The number of steps of a run and its learning rate over them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import get_scheduler

from builders.training import metrics_rows, steps_of, train_stage
from qilin.core.errors import UserError
from qilin.train.optimizer import lr_factor
from qilin.train.plan import Lengths, Plan, make_plan


def test_lr_schedules() -> None:
    shares = {name: [lr_factor(name, s, 100, 10) for s in range(100)] for name in ("cosine", "linear", "constant")}
    for result in shares.values():
        assert result[:11] == pytest.approx([s / 10 for s in range(11)])
    assert shares["constant"][10:] == [1.0] * 90
    assert shares["linear"][55] == pytest.approx(0.5)
    assert shares["cosine"][55] == pytest.approx(0.5)
    assert shares["cosine"][32] > shares["linear"][32]
    for name in ("cosine", "linear"):
        fall = shares[name][10:]
        assert all(a > b >= 0 for a, b in zip(fall, fall[1:], strict=False))
        assert fall[-1] < 0.02
    assert lr_factor("cosine", 0, 1, 1) == 1.0  # one step with its warm-up learns something


def test_max_steps_trains_the_first_steps_of_the_same_plan(home: Path, aligned: Path, tmp_path: Path) -> None:
    options = (f"model={aligned}", "lr_scheduler_type=constant")
    uninterrupted = train_stage(home, tmp_path / "whole", *options, "num_epochs=2")
    steps = steps_of(uninterrupted) - 1
    limited = train_stage(home, tmp_path / "limited", *options, "num_epochs=1", f"max_steps={steps}")
    assert steps_of(limited) == steps > steps_of(uninterrupted) // 2  # in the second epoch
    assert [row["loss"] for row in metrics_rows(limited)] == [row["loss"] for row in metrics_rows(uninterrupted)][
        :steps
    ]


def test_the_schedule_has_the_length_of_max_steps(home: Path, aligned: Path, tmp_path: Path) -> None:
    run = train_stage(
        home, tmp_path / "run", f"model={aligned}", "max_steps=3", "learning_rate=1e-3", "warmup_ratio=0.3"
    )
    factors = [row["rate"] / 1e-3 for row in metrics_rows(run)]
    assert factors == pytest.approx([lr_factor("cosine", step, 3, 1) for step in range(3)])


@pytest.mark.parametrize(
    ("name", "options", "ours"),
    [
        ("cosine", {}, {}),
        ("linear", {}, {}),
        ("constant_with_warmup", {}, {"scheduler_type": "constant"}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}, {"scheduler_type": "cosine", "min_ratio": 0.1}),
        ("warmup_stable_decay", {"num_decay_steps": 30}, {"scheduler_type": "wsd", "decay_steps": 30}),
        (
            "warmup_stable_decay",
            {"num_decay_steps": 7, "min_lr_ratio": 0.2},
            {"scheduler_type": "wsd", "decay_steps": 7, "min_ratio": 0.2},
        ),
    ],
)
def test_schedules_are_those_of_transformers(name: str, options: dict[str, Any], ours: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = get_scheduler(name, optimizer, 10, 100, scheduler_specific_kwargs=options)
    expected = [scheduler.lr_lambdas[0](step) for step in range(100)]
    options = {"scheduler_type": name} | ours
    factors = [lr_factor(step=step, num_steps=100, warmup_steps=10, **options) for step in range(100)]
    assert factors[10:] == pytest.approx(expected[10:])
    assert factors[:10] == [step / 10 for step in range(10)]  # from 0, also with a rate at the end


@pytest.mark.parametrize(
    ("num_epochs", "steps"), [(1, 10), (2, 20), (0.5, 5), (0.45, 5), (1.1, 11), (2.5, 25), (0.001, 1), (2.01, 21)]
)
def test_fractions_of_epochs_are_rounded_up_to_steps(num_epochs: float, steps: int) -> None:
    ones = np.ones(37, dtype=np.int64)
    lengths = Lengths(ones * 10, ones * 0, ones, -1 - np.arange(37), ones * 0, ones * 0)

    def plan(epochs: float) -> Plan:
        return make_plan(lengths, [1.0], batch_size=4, num_epochs=epochs, pack_tokens=100, seed=0)

    part, complete = plan(num_epochs), plan(math.ceil(num_epochs))
    assert len(part) == steps
    assert [part.samples(step).tolist() for step in range(steps)] == [
        complete.samples(step).tolist() for step in range(steps)
    ]


def test_warmup_steps_replace_the_ratio(home: Path, aligned: Path, tmp_path: Path) -> None:
    options = (f"model={aligned}", "learning_rate=1e-3", "warmup_ratio=0.5", "warmup_steps=1", "num_epochs=1.5")
    run = train_stage(home, tmp_path / "run", *options)
    assert [row["rate"] for row in metrics_rows(run)] == pytest.approx([0.0, 1e-3, 0.5e-3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("warmup_steps=400", "warmup_steps is 400, but the run has 4 steps"),
        ("lr_scheduler_type=wsd decay_ratio=0.9 warmup_ratio=0.9", "exceed the 4 steps"),
    ],
)
def test_a_schedule_longer_than_the_run_is_refused(
    home: Path, aligned: Path, tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_stage(home, tmp_path / "run", f"model={aligned}", *change.split())
    assert not (tmp_path / "run").exists()
