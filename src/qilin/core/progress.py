"""Progress bars on a terminal, plain lines in a log file, and a table of rejected rows.

In: a description, a total and the units completed. Out: text on stderr, so that stdout stays free for results. Under
torchrun only rank 0 prints.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from qilin.core.terminal import make_console, printable

LOG_INTERVAL = 10.0  # seconds between lines where stderr is not a terminal


class ProgressBars:
    """One or more progress bars; a context manager. Without a terminal: a plain line per task every LOG_INTERVAL.

    `transient` bars disappear at the end. `unit="bytes"` shows sizes and a speed.
    """

    def __init__(self, transient: bool = False, unit: str = "items", console: Console | None = None) -> None:
        quiet = os.environ.get("RANK", "0") != "0"
        self.console = console or make_console(stderr=True, quiet=quiet)
        self.on_terminal = self.console.is_terminal
        columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=30)]
        columns += [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
        columns += [TextColumn("{task.fields[figure]}", markup=False), TimeElapsedColumn(), TimeRemainingColumn()]
        self.progress = Progress(*columns, console=self.console, transient=transient, disable=not self.on_terminal)
        self.unit = unit
        self.started: dict[Any, tuple[float, float]] = {}  # per task: when, and how many units were already complete
        self.last_line: dict[Any, float] = {}

    def __enter__(self) -> "ProgressBars":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        self.progress.start()

    def stop(self) -> None:
        self.progress.stop()

    def add_task(
        self, description: str, total: float | None = None, completed: int = 0, figure: str = "", visible: bool = True
    ) -> Any:
        """Add a bar and return its id. `figure` is a short text next to it, such as a loss."""
        task = self.progress.add_task(description, total=total, completed=completed, figure=figure, visible=visible)
        self.start_clock(task, completed)
        return task

    def update(self, task: Any, **changes: Any) -> None:
        """Change a bar: `completed`, `advance`, `total`, `description`, `figure`, `visible`."""
        changes |= {name: printable(changes[name]) for name in ("description", "figure") if changes.get(name)}
        self.progress.update(task, **changes)
        self.log_line(task)

    def advance(self, task: Any, amount: float = 1) -> None:
        """Add `amount` completed units."""
        self.progress.advance(task, amount)
        self.log_line(task)

    def reset(self, task: Any, total: float | None = None, visible: bool = True) -> None:
        """Reset a bar to zero."""
        self.progress.reset(task, total=total, visible=visible)
        self.start_clock(task, 0)

    def start_clock(self, task: Any, completed: float) -> None:
        """Estimate the time left from here: units of an earlier, interrupted run took none of this run's time."""
        self.started[task], self.last_line[task] = (time.monotonic(), completed), time.monotonic()

    def log_line(self, task_id: Any) -> None:
        """Without a terminal, print a line every LOG_INTERVAL seconds; shorter work prints nothing."""
        now = time.monotonic()
        if self.on_terminal or now - self.last_line[task_id] < LOG_INTERVAL:
            return
        task = next(task for task in self.progress.tasks if task.id == task_id)
        if not task.visible:
            return
        self.last_line[task_id] = now
        text = f"{task.description}: {format_count(task.completed, self.unit)}"
        if task.total:
            text += f" of {format_count(task.total, self.unit)} ({task.completed / task.total:.0%})"
            start, completed_before = self.started[task_id]
            if completed_before < task.completed < task.total:
                seconds = (now - start) * (task.total - task.completed) / (task.completed - completed_before)
                text += f", {format_seconds(seconds)} left"
        if task.fields["figure"]:
            text += f", {task.fields['figure']}"
        self.console.print(text, markup=False)


def format_count(count: float, unit: str = "items") -> str:
    """1234567 -> '1,234,567', or '1.2 MB' for bytes."""
    if unit != "bytes":
        return f"{count:,.0f}"
    size, names = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(names) > 1:
        size, names = size / 1000, names[1:]
    return f"{size:,.0f} {names[0]}" if names[0] == "bytes" else f"{size:,.1f} {names[0]}"


def format_seconds(seconds: float) -> str:
    """40 -> '40 s', 300 -> '5 min', 9000 -> '2.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def refusals(reasons: Mapping[str, int], what: str, where: str) -> Table:
    """A table of rejection reasons with their counts; the title names the file that lists the rows."""
    table = Table(what, "reason", title=f"listed in {where}", title_justify="left")
    for reason, count in reasons.items():
        table.add_row(f"{count:,}", reason)
    return table
