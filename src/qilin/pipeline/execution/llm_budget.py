"""Token budget of a step that calls an LLM service.

In: the service's options and the requests of each shard. Out: replies, with the cost so far on the progress bar; a step
whose budget is spent stops with an error, and the same command continues it from the cached replies.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qilin.core.errors import RunError
from qilin.core.llm_client import ChatReply, ChatRequest, Endpoint, complete_all
from qilin.core.llm_client_config import ServiceConfig
from qilin.core.llm_parameters import note
from qilin.core.progress import ProgressBars
from qilin.dataset.reader import Dataset, open_dataset
from qilin.pipeline.execution.dataset_map import cumulative_sizes, map_dataset


class TokenBudget:
    """Counts the tokens of a run (cached replies are free) and their cost, and stops when the budget is spent."""

    def __init__(self, service: ServiceConfig, description: str, progress: ProgressBars, total: int) -> None:
        self.service, self.description, self.progress = service, description, progress
        self.task = progress.add_task(description, total=total)
        self.prompt_tokens = self.completion_tokens = self.replies = 0
        self.reported: set[str] = set()  # kinds of refusals of which an example was shown

    @property
    def cost(self) -> float:
        """In the currency of the configured prices, which are per million tokens."""
        prices = self.service.price_in, self.service.price_out
        return (self.prompt_tokens * prices[0] + self.completion_tokens * prices[1]) / 1e6

    def cost_text(self) -> str:
        """ ", 1.20 spent"; empty if no price is configured."""
        return f", {self.cost:.2f} spent" if self.service.price_in or self.service.price_out else ""

    def usage_summary(self) -> str:
        return f"{self.prompt_tokens + self.completion_tokens:,} tokens in {self.replies:,} replies{self.cost_text()}"

    def usage_json(self) -> dict[str, Any]:
        return {"tokens": [self.prompt_tokens, self.completion_tokens], "cost": self.cost}

    def remaining(self) -> int | None:
        """Tokens that may still be spent; None without a budget. Raises RunError if none are left."""
        budget, spent = self.service.budget, self.prompt_tokens + self.completion_tokens
        if budget is not None and spent >= budget:
            raise RunError(
                f"the budget of {budget:,} tokens is spent; replies so far are cached in {self.service.cache}: run the "
                "same command again to continue with a new budget"
            )
        return None if budget is None else budget - spent

    def complete(
        self, endpoint: Endpoint, requests: Sequence[ChatRequest], samples_per_reply: int = 0
    ) -> list[ChatReply]:
        """Replies in the order of the requests, within the remaining budget. `samples_per_reply` advances the bar."""
        if not requests:
            return []
        limited = replace(endpoint, budget=self.remaining())
        return complete_all(limited, requests, lambda index, reply: self.record_usage(reply, samples_per_reply))

    def record_usage(self, reply: ChatReply, samples: int = 0) -> None:
        if reply.refusal and reply.refused_by not in self.reported:
            self.reported.add(reply.refused_by)
            note(f"a request is refused, the first of its kind: {reply.refusal}")
        if not reply.cached:
            self.replies += 1
            self.prompt_tokens += reply.tokens_in
            self.completion_tokens += reply.tokens_out
        self.progress.update(self.task, description=f"{self.description}{self.cost_text()}", advance=samples)

    def set_progress(self, completed: int) -> None:
        """Move the bar to `completed`, which includes the work of earlier runs."""
        self.progress.update(self.task, completed=completed)


@contextmanager
def open_budget(service: ServiceConfig, description: str, total: int) -> Iterator[TokenBudget]:
    """A token budget with a progress bar of `total` units."""
    with ProgressBars(transient=True) as progress:
        yield TokenBudget(service, description, progress, total)


def map_with_budget(
    source: Path,
    out: Path,
    step: Callable[..., Any],
    made_by: Mapping[str, Any],
    service: ServiceConfig,
    description: str,
    samples_per_shard: int,
) -> tuple[Dataset, bool, TokenBudget]:
    """`map_dataset` with `step(budget, rows)`; returns (dataset, whether it is new, budget).

    Shards run one after the other in this process: the service, not the CPU, is the bottleneck.
    """
    sizes = cumulative_sizes(open_dataset(source), samples_per_shard)
    with open_budget(service, description, sizes[-1] if sizes else 0) as budget:
        dataset, is_new = map_dataset(
            source, out, partial(step, budget), made_by, None, lambda shard: budget.set_progress(sizes[shard]),
            samples_per_shard,
        )  # fmt: skip
    return dataset, is_new, budget
