import os
import signal
from pathlib import Path

import pytest

from qilin.core.errors import RunError, UserError
from qilin.demo.tiny_models.background import Tell, beside


def count(upto: int, tell: Tell) -> None:
    for step in range(upto):
        tell(step + 1, upto, 0.5)


def complain(tell: Tell) -> None:
    raise UserError("captions: there are none")


def die(tell: Tell) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(file: Path, tell: Tell) -> None:
    signal.pause()
    file.write_text("ended by itself")


def test_its_steps_are_told_and_it_is_waited_for() -> None:
    told: list[tuple[int, int, float]] = []
    with beside(count, (5,), lambda *step: told.append(step)):
        pass
    assert told == [(n, 5, 0.5) for n in range(1, 6)]


def test_what_went_wrong_there_is_said_here() -> None:
    with pytest.raises(UserError, match="captions: there are none"), beside(complain, (), lambda *step: None):
        pass
    with pytest.raises(RunError, match="die was killed"), beside(die, (), lambda *step: None):
        pass


def test_it_ends_with_the_block_that_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), beside(wait_for, (tmp_path / "file",), lambda *step: None):
        raise KeyboardInterrupt
    assert not (tmp_path / "file").exists()
