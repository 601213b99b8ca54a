"""Progress without a terminal: plain lines per task, with the time left estimated from this run alone."""

import io

import pytest
from rich.console import Console

from qilin.core import progress
from qilin.core.progress import ProgressBars, format_count, format_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_resumed_task_estimates_the_time_left_from_its_own_units(clock: list[float]) -> None:
    output = io.StringIO()
    with ProgressBars(console=Console(file=output)) as bars:
        task = bars.add_task("training", total=1000, completed=900)
        clock[0] += 20
        bars.update(task, completed=904)
    assert "training: 904 of 1,000 (90%), 8 min left" in output.getvalue()  # 96 steps at 5 s each


def test_every_task_has_lines_of_its_own(clock: list[float]) -> None:
    output = io.StringIO()
    with ProgressBars(console=Console(file=output)) as bars:
        first, second = bars.add_task("first", total=10), bars.add_task("second", total=10)
        bars.advance(first)
        assert output.getvalue() == ""  # quick work prints nothing
        clock[0] += 11
        bars.advance(first)
        bars.advance(second)
        bars.advance(second)
    assert [line.split(":")[0] for line in output.getvalue().splitlines()] == ["first", "second"]


@pytest.mark.parametrize(("count", "unit", "text"), [(1234567, "items", "1,234,567"), (1234567, "bytes", "1.2 MB")])
def test_counts_are_formatted_by_unit(count: int, unit: str, text: str) -> None:
    assert format_count(count, unit) == text


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (300, "5 min"), (9000, "2.5 h")])
def test_durations_are_rounded_to_their_unit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
