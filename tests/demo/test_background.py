"""A second training in the background: its progress, its errors, its end."""

import os
import signal
from pathlib import Path

import pytest

from qilin.core.errors import RunError, UserError
from qilin.demo.tiny_models.background import OnStep, run_in_background


def count(total: int, on_step: OnStep) -> None:
    for step in range(total):
        on_step(step + 1, total, 0.5)


def raise_user_error(on_step: OnStep) -> None:
    raise UserError("captions: none found")


def die(on_step: OnStep) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(file: Path, on_step: OnStep) -> None:
    signal.pause()
    file.write_text("not terminated")


def test_progress_is_reported_and_the_block_waits() -> None:
    steps: list[tuple[int, int, float]] = []
    with run_in_background(count, (5,), lambda *step: steps.append(step)):
        pass
    assert steps == [(n, 5, 0.5) for n in range(1, 6)]


def test_errors_of_the_child_are_raised() -> None:
    with (
        pytest.raises(UserError, match="captions: none found"),
        run_in_background(raise_user_error, (), lambda *step: None),
    ):
        pass
    with pytest.raises(RunError, match="die was killed"), run_in_background(die, (), lambda *step: None):
        pass


def test_the_child_is_terminated_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), run_in_background(wait_for, (tmp_path / "file",), lambda *step: None):
        raise KeyboardInterrupt
    assert not (tmp_path / "file").exists()
