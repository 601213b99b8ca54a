"""What a run has asked of a service and paid for it: shown on the bar, stopped where the budget is spent, told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from qilin.core.errors import RunError
from qilin.core.llm_client import ChatReply
from qilin.core.progress import ProgressBars, refusals
from qilin.dataset.reader import Dataset


class TokenBudget:
    """Tokens read and written in this run, their cost at the prices of a million, and what is left of the budget."""

    def __init__(
        self, verb: str, budget: int | None, prices: tuple[float, float], cache: Path, progress: ProgressBars, task: Any
    ) -> None:
        self.verb, self.budget, self.prices, self.cache = verb, budget, prices, cache
        self.progress, self.task = progress, task
        self.read = self.written = self.asked = 0

    def cost(self) -> float:
        return (self.read * self.prices[0] + self.written * self.prices[1]) / 1e6

    def cost_text(self) -> str:
        """The cost in words; none where no price was said, for then nobody knows it."""
        return f", {self.cost():.2f} spent" if any(self.prices) else ""

    def usage_summary(self) -> str:
        return f"{self.read + self.written:,} tokens in {self.asked:,} replies{self.cost_text()}"

    def remaining(self) -> int | None:
        """Tokens that may still be spent; None without a budget. Raises RunError where nothing is left."""
        if self.budget is None:
            return None
        if self.read + self.written >= self.budget:
            raise RunError(
                f"the budget of {self.budget:,} tokens is spent; what was answered is in {self.cache}, the same "
                "command with a new budget goes on"
            )
        return self.budget - self.read - self.written

    def record_usage(self, reply: ChatReply, samples: int = 0) -> None:
        if not reply.cached:
            self.asked += 1
            self.read += reply.tokens_in
            self.written += reply.tokens_out
        self.progress.update(self.task, description=f"{self.verb}{self.cost_text()}", advance=samples)

    def on_reply(self, samples: int = 0) -> Callable[[int, ChatReply], None]:
        """What `ask_all` tells each reply to; `samples`: how many it brings the bar further."""
        return lambda place, reply: self.record_usage(reply, samples)

    def set_progress(self, samples: int) -> None:
        """So many are done in all, those of an earlier run included."""
        self.progress.update(self.task, completed=samples)


def print_summary(out: Path, made: Dataset, fresh: bool, purse: TokenBudget, as_json: bool) -> None:
    """What a run made, what it cost, and what was refused."""
    counts = made.manifest["counts"]
    if as_json:
        said = {"out": str(out), "made": fresh, "tokens": [purse.read, purse.written], "cost": purse.cost()}
        print(json.dumps(said | counts, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{'made' if fresh else 'already there:'} {out}: {sum(counts['samples'].values()):,} samples")
    if fresh:
        console.print(purse.usage_summary())
    if counts["dropped"]:
        console.print(refusals(counts["dropped_reasons"], "refused", str(out / "dropped.jsonl")))
