"""Token-weighted cross entropy on supervised positions only.

In: the last hidden states of a pack and the pairs (position, token to be said next). Out: the sum of losses; the loop
divides it by the whole step's number of such tokens, over all packs and devices, so that a step's gradient does not
depend on how it was cut.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 4096  # logits of at most this many positions exist at a time


def answer_loss(
    hidden: torch.Tensor, head: torch.nn.Linear, where: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """hidden (T, D), where (S,) positions, targets (S,) tokens -> the summed cross entropy in fp32 (or fp64)."""
    chosen = hidden.index_select(0, where)  # (S, D)
    if len(where) <= CHUNK:
        return chunk_loss(chosen, head, targets)
    parts = [
        checkpoint(chunk_loss, h, head, t, use_reentrant=False)
        for h, t in zip(chosen.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    return torch.stack(parts).sum()


def chunk_loss(hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    logits = head(hidden)  # (S, V)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, targets, reduction="sum")
