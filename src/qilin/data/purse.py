"""What a run has asked of a service and paid for it: shown on the bar, and stopped where the budget is spent."""

from pathlib import Path

from rich.progress import Progress, TaskID

from qilin.endpoint import Reply
from qilin.errors import RunError


class Purse:
    """Tokens read and written in this run, their cost at the prices of a million, and what is left of the budget."""

    def __init__(
        self, verb: str, budget: int | None, prices: tuple[float, float], cache: Path, progress: Progress, task: TaskID
    ) -> None:
        self.verb, self.budget, self.prices, self.cache = verb, budget, prices, cache
        self.progress, self.task = progress, task
        self.read = self.written = self.asked = 0

    def cost(self) -> float:
        return (self.read * self.prices[0] + self.written * self.prices[1]) / 1e6

    def left(self) -> int | None:
        """Tokens that may still be spent; None without a budget. Raises RunError where nothing is left."""
        if self.budget is None:
            return None
        if self.read + self.written >= self.budget:
            raise RunError(
                f"the budget of {self.budget:,} tokens is spent; what was answered is in {self.cache}, the same "
                "command with a new budget goes on"
            )
        return self.budget - self.read - self.written

    def pay(self, reply: Reply) -> None:
        if not reply.cached:
            self.asked += 1
            self.read += reply.tokens_in
            self.written += reply.tokens_out
        self.progress.update(self.task, description=f"{self.verb}, {self.cost():.2f} spent")

    def done(self, samples: int) -> None:
        self.progress.advance(self.task, samples)
