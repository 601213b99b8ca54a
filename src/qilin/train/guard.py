"""Checks before the first step that a packed loss is the loss of plain transformers, one sample at a time.

In: the model, the data and the plan of a run. Out: the shortcuts that fit the model, or a UserError that says what
differs and by how much. Samples: the first of the plan and its two longest. Large models are computed on their first
layers and as many of these samples as fit a budget, which takes a second or two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from qilin.core.errors import UserError
from qilin.model.architectures import language_of
from qilin.model.guard import describe, eval_mode, first_layers
from qilin.train.data_loader import PackedDataset
from qilin.train.loop import pack_hidden
from qilin.train.pack import Pack
from qilin.train.packed_attention import Shortcuts, use_packed_attention, use_plain_attention
from qilin.train.plan import PackedGroup, Plan

FIRST_SAMPLES = 6
BUDGET = 3e11  # floating-point operations: about two seconds on two cores
TOLERANCE = 1e-3  # of a token's loss, in nats; fp32 differs by about 1e-6
CHOICES = (
    Shortcuts(),
    Shortcuts(vision=False),
    Shortcuts(last_layer=False),
    Shortcuts(vision=False, last_layer=False),
    Shortcuts(last_layer=False, packing=False),
    Shortcuts(vision=False, last_layer=False, packing=False),
)


@dataclass(frozen=True)
class Comparison:
    """What a choice of shortcuts gives: the largest difference of a token's loss, or why it does not run."""

    difference: float
    error: str = ""

    @property
    def fits(self) -> bool:
        return not self.error and self.difference <= TOLERANCE

    def __str__(self) -> str:
        return self.error or f"the loss of a token is off by {self.difference:.2g} nats (at most {TOLERANCE:.0e})"


def choose_shortcuts(model: Any, name: str, data: PackedDataset, plan: Plan) -> Shortcuts:
    """The fastest computation that gives the losses of plain transformers. Raises UserError if none does."""
    check_positions(model.config.text_config, name, plan)
    with eval_mode(model), first_layers(model), torch.no_grad():
        groups = choose_groups(model, plan)
        pack = data.make_pack(groups, torch.device("cpu"), torch.float32)
        longest = int(plan.lengths.total[plan.order].max())
        if data.window is None:
            pack = replace(pack, layout=replace(pack.layout, max_context=longest))  # for the check of sliding windows
        try:
            expected = plain_losses(model, data, groups)
        except Exception as error:  # any code of transformers
            raise UserError(f"{name}: the model does not run on a sample ({describe(error)})") from error
        if not torch.isfinite(expected).all():
            raise UserError(f"{name}: the loss of the first samples is not finite; are its weights damaged?")
        comparisons = []
        for shortcuts in CHOICES:
            comparison = compare_losses(model, pack, shortcuts, expected)
            if comparison.fits:
                return shortcuts
            comparisons.append(comparison)
    kinds = getattr(model.config.text_config, "layer_types", None) or []
    layers = f" (layers of {', '.join(dict.fromkeys(kinds))})" if len(set(kinds)) > 1 else ""
    raise UserError(
        f"{name}: training of {type(language_of(model)).__name__}{layers} differs from plain "
        f"transformers: {comparisons[-1]}; choose another language model"
    )


def check_positions(text_config: Any, name: str, plan: Plan) -> None:
    """Raise UserError if a sample has more tokens than the language model has positions."""
    limit = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return
    rope = getattr(text_config, "rope_parameters", None) or {}
    if isinstance(rope.get("factor"), int | float):
        limit = max(limit, int(rope["factor"] * (rope.get("original_max_position_embeddings") or limit)))
    totals = plan.lengths.total[plan.order]
    if int(totals.max()) > limit:
        raise UserError(
            f"{name}: {int((totals > limit).sum())} samples have up to {int(totals.max())} tokens, but the language "
            f"model has {limit} positions (max_position_embeddings in its config.json); set max_length={limit}, with "
            "on_overlength=truncate or drop"
        )


def choose_groups(model: Any, plan: Plan) -> list[PackedGroup]:
    """The first samples of the plan and the two longest, at least two, within the budget."""
    lengths = plan.lengths
    parameters = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    free_tokens = BUDGET / (4 * parameters)  # 2 operations per weight and token, packed and plain
    first = [group for group in plan.groups(0) if group.tokens <= free_tokens / 2]
    first = [replace(group, samples=group.samples[:FIRST_SAMPLES]) for group in first[:FIRST_SAMPLES]]
    order = plan.order[lengths.total[plan.order].argsort(kind="stable")]
    longest = [PackedGroup((int(index),), int(lengths.total[index])) for index in reversed(order[-2:])]
    shortest = [PackedGroup((int(index),), int(lengths.total[index])) for index in order[:2]]
    groups: list[PackedGroup] = []
    for group in (*first[:2], *longest, *first[2:], *shortest):
        tokens = sum(int(lengths.total[index]) for index in group.samples)
        if tokens <= free_tokens or len(groups) < 2 and group in shortest:
            groups.append(group)
            free_tokens -= tokens
    return groups if len(groups) > 1 else groups * 2


def plain_losses(model: Any, data: PackedDataset, groups: Sequence[PackedGroup]) -> torch.Tensor:
    """(S,) the loss of each supervised token, sample by sample through transformers' own forward pass."""
    losses = []
    for index in (index for group in groups for index in group.samples):
        number = int(data.numbers[index])
        sample = data.sample(number)
        encoded, _ = data.encode(number, sample)
        assert encoded is not None, "in the plan, so it fits"
        targets = [i for i, supervised in enumerate(encoded.loss_mask) if supervised and i > 0]
        ids = torch.tensor([encoded.ids])
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **data.plain_inputs(number, sample, encoded),
            logits_to_keep=torch.tensor(targets) - 1,
            use_cache=False,
        ).logits[0]
        losses.append(F.cross_entropy(logits.float(), ids[0, targets], reduction="none"))
    return torch.cat(losses)


def compare_losses(model: Any, pack: Pack, shortcuts: Shortcuts, expected: torch.Tensor) -> Comparison:
    """A pack's losses with some shortcuts against the expected ones. Raises UserError for what no choice changes."""
    try:
        use_packed_attention(model, shortcuts)
        hidden = pack_hidden(model, pack, pack.pixels).index_select(0, pack.target_positions)
        losses = F.cross_entropy(model.lm_head(hidden).float(), pack.targets, reduction="none")
        return Comparison(float((losses - expected).abs().max().nan_to_num(math.inf)))
    except UserError:
        raise
    except Exception as error:  # any code of transformers
        return Comparison(math.inf, describe(error))
    finally:
        use_plain_attention(model)
