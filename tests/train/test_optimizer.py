"""Muon for the matrices inside the layers, AdamW for all else: who is moved by which, and by how much."""

import pytest
import torch

from qilin.train.checkpoint import init_optimizer_state
from qilin.train.optimizer import TrainableParam, CombinedOptimizer, make_optimizer, set_learning_rates

SHAPES = {
    "model.embed_tokens.weight": (40, 8),
    "layers.0.mlp.up_proj.weight": (16, 8),
    "layers.0.norm.weight": (8,),
    "patch_embedding.weight": (8, 3, 4, 4),
    "lm_head.weight": (40, 8),
}
MATRIX = "layers.0.mlp.up_proj.weight"


def learning() -> list[TrainableParam]:
    random = torch.Generator().manual_seed(0)
    return [
        TrainableParam(
            name, torch.nn.Parameter(torch.randn(shape, generator=random)), 0.01, 0.1 if len(shape) > 1 else 0.0
        )
        for name, shape in SHAPES.items()
    ]


def give_gradients(items: list[TrainableParam], seed: int = 1) -> None:
    random = torch.Generator().manual_seed(seed)
    for item in items:
        item.parameter.grad = torch.randn(item.parameter.shape, generator=random)


def test_only_matrices_inside_layers_are_moved_by_muon() -> None:
    items = learning()
    optimizer = make_optimizer(items, "muon", (0.9, 0.999))
    assert isinstance(optimizer, CombinedOptimizer)
    adamw, muon = optimizer.optimizers
    assert isinstance(muon, torch.optim.Muon)
    names = {id(item.parameter): item.name for item in items}
    mine = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    others = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    assert mine == [MATRIX]
    assert sorted(mine + others) == sorted(SHAPES)
    assert not isinstance(make_optimizer(items, "adamw", (0.9, 0.999)), CombinedOptimizer)


def first_move(kind: str) -> torch.Tensor:
    """Singular values of a matrix's first move, without decay, in units of the rate."""
    item = next(item for item in learning() if item.name == MATRIX)
    plain = [TrainableParam(item.name, item.parameter, item.peak_lr, 0.0)]
    before = item.parameter.detach().clone()
    give_gradients(plain)
    make_optimizer(plain, kind, (0.9, 0.999)).step()  # type: ignore[arg-type]
    return torch.linalg.svdvals((item.parameter.detach() - before) / item.peak_lr)


def test_muon_moves_in_all_directions_alike_and_by_as_much_as_adamw() -> None:
    muon, adamw = first_move("muon"), first_move("adamw")
    assert muon.max() / muon.min() < 2
    assert adamw.max() / adamw.min() > 2, "control: AdamW's first move has the gradient's favourite directions"
    size = {name: found.square().sum().div(16 * 8).sqrt() for name, found in (("muon", muon), ("adamw", adamw))}
    assert size["adamw"] == pytest.approx(1.0, abs=0.01)  # the sign of every entry
    assert 0.1 < size["muon"] < 0.4  # 0.2 by root mean square, what AdamW's steps are in the long run


def test_rates_are_shares_of_each_peak() -> None:
    items = [
        TrainableParam(i.name, i.parameter, 0.02 if i.name == MATRIX else 0.01, i.weight_decay) for i in learning()
    ]
    optimizer = make_optimizer(items, "muon", (0.9, 0.999))
    set_learning_rates(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.005, 0.01])


def test_the_state_of_both_is_kept() -> None:
    whole, halted = learning(), learning()
    optimizer = make_optimizer(whole, "muon", (0.9, 0.999))
    before = make_optimizer(halted, "muon", (0.9, 0.999))
    for seed in (1, 2):
        give_gradients(whole, seed)
        optimizer.step()
    give_gradients(halted, 1)
    before.step()
    after = make_optimizer(halted, "muon", (0.9, 0.999))
    fresh = [
        TrainableParam(i.name, torch.nn.Parameter(i.parameter.detach().clone()), i.peak_lr, i.weight_decay)
        for i in halted
    ]
    forgetful = make_optimizer(fresh, "muon", (0.9, 0.999))
    init_optimizer_state(
        after, [item.parameter for item in halted]
    )  # as a checkpoint is loaded: into the tensors themselves
    for parameter, kept in before.state.items():
        for key, value in kept.items():
            after.state[parameter][key].copy_(value)
    for items, one in ((halted, after), (fresh, forgetful)):
        give_gradients(items, 2)
        one.step()
    assert all(torch.equal(a.parameter, b.parameter) for a, b in zip(whole, halted, strict=True))
    assert not torch.equal(whole[1].parameter, fresh[1].parameter), "control: without its state it goes another way"
