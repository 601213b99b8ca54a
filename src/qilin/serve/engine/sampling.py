"""Chooses the next token of each row.

In: logits (B, V) and each row's settings. Out: token ids with their log probabilities. Rows are independent: a row's
tokens depend on its own seed and logits, never on its neighbors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SamplingSettings:
    """temperature 0 takes the most probable token. `top_logprobs` alternatives are reported with each token."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int = 0


@dataclass(frozen=True)
class ChosenToken:
    """A token, its log probability under the model (before temperature and top_p), and the most probable tokens."""

    id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


def make_generator(settings: SamplingSettings) -> torch.Generator | None:
    """A row's own source of random numbers; None where nothing is drawn."""
    if settings.temperature == 0:
        return None
    generator = torch.Generator()
    if settings.seed is None:
        generator.seed()
    else:
        generator.manual_seed(settings.seed % 2**63)
    return generator


def choose_tokens(
    logits: torch.Tensor, settings: Sequence[SamplingSettings], generators: Sequence[torch.Generator | None]
) -> list[ChosenToken]:
    """One token for each row of (B, V) logits."""
    logprobs = logits.float().log_softmax(-1)  # (B, V)
    chosen = logprobs.argmax(-1).tolist()
    for row, generator in enumerate(generators):
        if generator is not None:
            chosen[row] = draw(logprobs[row].cpu(), settings[row], generator)
    values = logprobs.gather(1, torch.tensor(chosen, device=logprobs.device)[:, None])[:, 0].tolist()
    tokens = []
    for row, (token, value) in enumerate(zip(chosen, values, strict=True)):
        count = settings[row].top_logprobs
        top = logprobs[row].topk(count) if count else None
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True) if top else ()
        tokens.append(ChosenToken(token, value, tuple(pairs)))
    return tokens


def draw(logprobs: torch.Tensor, settings: SamplingSettings, generator: torch.Generator) -> int:
    """A token drawn from one row (V,), with temperature and then top_p applied, as transformers orders them."""
    probabilities = (logprobs / settings.temperature).softmax(-1)
    if settings.top_p < 1:
        values, order = probabilities.sort(descending=True)
        outside = values.cumsum(0) - values >= settings.top_p  # the most probable token always stays
        probabilities[order[outside]] = 0
    return int(torch.multinomial(probabilities, 1, generator=generator))
