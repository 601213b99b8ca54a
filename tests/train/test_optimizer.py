"""Muon for the matrices inside the layers and AdamW for the rest: which parameter each one updates, and by how much."""

import pytest
import torch

from qilin.train.checkpoint import init_optimizer_state
from qilin.train.optimizer import CombinedOptimizer, TrainableParam, make_optimizer, set_learning_rates

BETAS = (0.9, 0.999)
SHAPES = {
    "model.embed_tokens.weight": (40, 8),
    "layers.0.mlp.up_proj.weight": (16, 8),
    "layers.0.norm.weight": (8,),
    "patch_embedding.weight": (8, 3, 4, 4),
    "lm_head.weight": (40, 8),
}
MATRIX = "layers.0.mlp.up_proj.weight"


def make_params() -> list[TrainableParam]:
    random = torch.Generator().manual_seed(0)
    return [
        TrainableParam(name, torch.nn.Parameter(torch.randn(shape, generator=random)), 0.01, 0.1 * (len(shape) > 1))
        for name, shape in SHAPES.items()
    ]


def set_gradients(params: list[TrainableParam], seed: int = 1) -> None:
    random = torch.Generator().manual_seed(seed)
    for param in params:
        param.parameter.grad = torch.randn(param.parameter.shape, generator=random)


def test_muon_updates_only_matrices_inside_layers() -> None:
    params = make_params()
    optimizer = make_optimizer(params, "muon", BETAS)
    assert isinstance(optimizer, CombinedOptimizer)
    adamw, muon = optimizer.optimizers
    assert isinstance(muon, torch.optim.Muon)
    names = {id(param.parameter): param.name for param in params}
    by_muon = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    by_adamw = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    assert by_muon == [MATRIX]
    assert sorted(by_muon + by_adamw) == sorted(SHAPES)
    assert not isinstance(make_optimizer(params, "adamw", BETAS), CombinedOptimizer)


def first_update(name: str) -> torch.Tensor:
    """Singular values of a matrix's first update, without weight decay, relative to the learning rate."""
    param = next(param for param in make_params() if param.name == MATRIX)
    without_decay = [TrainableParam(param.name, param.parameter, param.peak_lr, 0.0)]
    before = param.parameter.detach().clone()
    set_gradients(without_decay)
    make_optimizer(without_decay, name, BETAS).step()  # type: ignore[arg-type]
    return torch.linalg.svdvals((param.parameter.detach() - before) / param.peak_lr)


def test_muons_update_is_orthogonal_and_of_adamws_size() -> None:
    muon, adamw = first_update("muon"), first_update("adamw")
    assert muon.max() / muon.min() < 2
    assert adamw.max() / adamw.min() > 2, "control: AdamW's first update follows the gradient's dominant directions"
    rms = {name: float(values.square().sum().div(16 * 8).sqrt()) for name, values in (("muon", muon), ("adamw", adamw))}
    assert rms["adamw"] == pytest.approx(1.0, abs=0.01)  # the sign of every entry
    assert 0.1 < rms["muon"] < 0.4  # 0.2, the typical size of AdamW's later updates


def test_learning_rates_are_relative_to_each_peak() -> None:
    params = [
        TrainableParam(p.name, p.parameter, 0.02 if p.name == MATRIX else 0.01, p.weight_decay) for p in make_params()
    ]
    optimizer = make_optimizer(params, "muon", BETAS)
    set_learning_rates(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.005, 0.01])


def test_the_state_of_both_optimizers_is_restored() -> None:
    uninterrupted, resumed = make_params(), make_params()
    optimizer = make_optimizer(uninterrupted, "muon", BETAS)
    before = make_optimizer(resumed, "muon", BETAS)
    for seed in (1, 2):
        set_gradients(uninterrupted, seed)
        optimizer.step()
    set_gradients(resumed, 1)
    before.step()
    after = make_optimizer(resumed, "muon", BETAS)
    without_state = [
        TrainableParam(p.name, torch.nn.Parameter(p.parameter.detach().clone()), p.peak_lr, p.weight_decay)
        for p in resumed
    ]
    new = make_optimizer(without_state, "muon", BETAS)
    init_optimizer_state(after, [param.parameter for param in resumed])  # as a checkpoint is loaded: in place
    for parameter, state in before.state.items():
        for key, value in state.items():
            after.state[parameter][key].copy_(value)
    for params, one in ((resumed, after), (without_state, new)):
        set_gradients(params, 2)
        one.step()
    assert all(torch.equal(a.parameter, b.parameter) for a, b in zip(uninterrupted, resumed, strict=True))
    assert not torch.equal(uninterrupted[1].parameter, without_state[1].parameter), "control: without state it differs"
