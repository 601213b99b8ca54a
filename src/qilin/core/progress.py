"""What the data commands show: a progress bar, and what was refused and why.

Out: a bar on stderr that goes when the work is done, so that what was made, or the error, stands alone; a table.
"""

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def bar() -> Progress:
    """Not yet started; a context manager."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def refusals(reasons: Mapping[str, int], what: str, where: str) -> Table:
    """Reasons with their counts, and the file that keeps the rows."""
    table = Table(what, "reason", title=f"kept in {where}", title_justify="left")
    for reason, count in reasons.items():
        table.add_row(f"{count:,}", reason)
    return table
