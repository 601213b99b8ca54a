"""Weights kept as bf16 and their low 16 bits train as fp32 weights do, and are saved and loaded exactly."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from qilin.train.checkpoint import Checkpointer, latest_checkpoint, load_checkpoint
from qilin.train.optimizer import TrainableParam, make_optimizer, set_learning_rates
from qilin.train.split_weights import SplitWeights, join_bits, join_weights, split_bits


def test_no_bit_is_lost() -> None:
    random = torch.randint(-(2**31), 2**31 - 1, (100_000,), generator=torch.Generator().manual_seed(0))
    edges = [0, 0x7F7FFFFF, -0x800001, 0x3F808000, 0x3F818000, -0x407F8000, 0x00007FFF, 0x00008000, 1]
    bits = torch.cat([random, torch.tensor(edges)]).to(torch.int32)
    weights = bits.view(torch.float32)
    weights = weights[weights.isfinite()]
    high, low = split_bits(weights)
    assert torch.equal(join_bits(high, low).view(torch.int32), weights.view(torch.int32))
    ties = (weights.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(high[~ties].view(torch.int16), weights[~ties].to(torch.bfloat16).view(torch.int16))
    assert int(ties.sum()) >= 3  # control: rounded away from zero there


def make_model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Tanh(), torch.nn.Linear(40, 8))


def optimizer_of(model: Any) -> Any:
    params = [TrainableParam(n, p, 1e-2, 0.1 if p.ndim == 2 else 0.0) for n, p in model.named_parameters()]
    return make_optimizer(params, "adamw", (0.9, 0.99))


def train(model: Any, optimizer: Any, steps: range) -> list[torch.Tensor]:
    """Steps whose gradients do not depend on the weights, so that the weights can be compared bit for bit."""
    for step in steps:
        random = torch.Generator().manual_seed(step)
        set_learning_rates(optimizer, 1 / (1 + step))
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [p.detach().clone() for p in model.parameters()]


def test_steps_equal_those_of_fp32_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qilin.train.split_weights.CHUNK", 500)  # the larger matrix alone
    plain, split = make_model(), make_model()
    expected = train(plain, optimizer_of(plain), range(20))
    optimizer = SplitWeights(optimizer_of(split))
    rounded = train(split, optimizer, range(20))
    assert {p.dtype for p in rounded} == {torch.bfloat16}
    join_weights(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(split.parameters(), expected, strict=True))
    other = make_model()  # control: plain bf16 weights lose small updates
    other.to(torch.bfloat16)
    bf16_optimizer = optimizer_of(other)
    for step in range(20):
        random = torch.Generator().manual_seed(step)
        set_learning_rates(bf16_optimizer, 1 / (1 + step))
        for parameter in other.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random).bfloat16()
        bf16_optimizer.step()
    assert not torch.equal(next(other.parameters()), expected[0].bfloat16())


def test_gradients_are_accumulated_in_fp32() -> None:
    model = make_model()
    SplitWeights(optimizer_of(model))
    rows = torch.randn(5, 24).bfloat16()
    for _ in range(3):
        model(rows).float().sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    total = next(model.parameters()).grad.clone()
    model.zero_grad()
    model(rows).float().sum().backward()
    assert torch.allclose(next(model.parameters()).grad * 3, total, rtol=1e-6)


@pytest.mark.parametrize("saved_split", [True, False])
@pytest.mark.parametrize("loaded_split", [True, False])
def test_a_checkpoint_continues_exactly(tmp_path: Path, saved_split: bool, loaded_split: bool) -> None:
    plain = make_model()
    expected = train(plain, optimizer_of(plain), range(6))
    model = make_model()
    optimizer = SplitWeights(optimizer_of(model)) if saved_split else optimizer_of(model)
    train(model, optimizer, range(3))
    Checkpointer(tmp_path, 1).save(3, model, optimizer, {})
    other = make_model(seed=1)
    optimizer = SplitWeights(optimizer_of(other)) if loaded_split else optimizer_of(other)
    path = latest_checkpoint(tmp_path)
    assert path is not None
    assert load_checkpoint(path, other, optimizer, {}) == 3
    train(other, optimizer, range(3, 6))
    join_weights(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), expected, strict=True))


def test_the_final_checkpoint_is_fp32_and_loads_into_split_weights(tmp_path: Path) -> None:
    model = make_model()
    optimizer = SplitWeights(optimizer_of(model))
    train(model, optimizer, range(3))
    join_weights(optimizer)
    expected = copy.deepcopy(model)
    Checkpointer(tmp_path, 1).save(3, model, None, {})
    other = make_model(seed=1)
    optimizer = SplitWeights(optimizer_of(other))
    path = latest_checkpoint(tmp_path)
    assert path is not None
    load_checkpoint(path, other, optimizer, {})
    join_weights(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), expected.parameters(), strict=True))
