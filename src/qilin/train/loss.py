"""Cross-entropy on supervised positions only.

In: the last hidden states of a pack, the supervised positions and their target tokens. Out: the sum of the losses.
The training loop divides it by the number of answer tokens of the step over all packs and devices, so that a step's
gradient does not depend on how it is split.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 4096  # positions whose logits exist at the same time


def answer_loss(
    hidden: torch.Tensor, head: torch.nn.Linear, target_positions: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """hidden (T, D), target_positions (S,), targets (S,) tokens -> summed cross-entropy in fp32 (or fp64)."""
    selected = hidden.index_select(0, target_positions)  # (S, D)
    if len(target_positions) <= CHUNK:
        return chunk_loss(selected, head, targets)
    losses = [
        checkpoint(chunk_loss, hidden_chunk, head, target_chunk, use_reentrant=False)
        for hidden_chunk, target_chunk in zip(selected.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    return torch.stack(losses).sum()


def chunk_loss(hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    logits = head(hidden)  # (S, V)
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets, reduction="sum")
