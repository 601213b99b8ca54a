"""A step's gradient does not depend on how the step was cut into packs, nor the loss on how it was cut into chunks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from builders.training import tiny_home
from qilin.model.architectures import set_trainable
from qilin.model.llava import compose
from qilin.train import loss
from qilin.train.config import DataSource, TrainConfig
from qilin.train.context import TrainContext
from qilin.train.data_loader import PackedDataset, StepBatch
from qilin.train.distributed import ModelWithLoss
from qilin.train.loop import compute_gradients, pack_loss
from qilin.train.loss import answer_loss
from qilin.train.pack import Pack
from qilin.train.packed_attention import use_packed_attention
from qilin.train.plan import group_samples, make_plan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_home(tmp_path_factory.mktemp("parts"), language="llama", vision="clip", images=4, splits=("train",))


@pytest.fixture
def stage(home: Path) -> tuple[Any, PackedDataset]:
    """A float64 model of which all learns, and the data of its samples."""
    torch.manual_seed(1)
    loaded = compose(str(home / "clip"), str(home / "llama"), template="v1", system="", pad_square=True)
    set_trainable(loaded.model, ("vision", "projector", "language"))
    config = TrainConfig(model="here", data=(DataSource(path=home / "data"),), precision="fp32")
    data = PackedDataset(config, loaded.processor)
    use_packed_attention(loaded.model)
    return loaded.model.double(), data


def eight_samples_in(data: PackedDataset, packs: int) -> list[Pack]:
    """Eight samples, short answers and long captions, as one piece each in so many packs."""
    names = [data.sample(int(number)).sample_id for number in data.numbers]
    wanted = [f"train-caption-{i}" for i in range(4)] + [f"train-vqa-{i}-0" for i in range(4)]
    each = [group_samples(np.array([names.index(name)]), data.lengths, 4096)[0] for name in wanted]
    size = 8 // packs
    return [data.make_pack(each[i : i + size], CPU, torch.float64) for i in range(0, 8, size)]


def step(model: Any, data: PackedDataset, packs: list[Pack]) -> tuple[float, int]:
    """Forward and backward of one step; (mean loss, answer tokens)."""
    plan = make_plan(data.lengths, [1.0], batch_size=1000, num_epochs=1, pack_tokens=4096, seed=0)
    context = TrainContext(data.config, Path("unused"), "test", data, plan)
    return compute_gradients(context, ModelWithLoss(model, pack_loss), StepBatch(0, packs, [], 0.0))


def gradient(model: Any) -> torch.Tensor:
    """All gradients end to end, taken off the model."""
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return gradients


def relative_error(gradients: torch.Tensor, expected: torch.Tensor) -> float:
    return float((gradients - expected).norm() / expected.norm())


def test_accumulation_gives_the_gradient_of_one_pack(stage: tuple[Any, PackedDataset]) -> None:
    model, data = stage
    loss_of_one_pack, count = step(model, data, eight_samples_in(data, 1))
    expected = gradient(model)
    assert expected.norm() > 0.01
    for packs in (2, 4, 8):
        value, tokens = step(model, data, eight_samples_in(data, packs))
        assert tokens == count
        assert value == pytest.approx(loss_of_one_pack, rel=1e-9)
        assert relative_error(gradient(model), expected) < 1e-6


def test_shared_prefixes_and_small_packs_give_the_same_gradient(stage: tuple[Any, PackedDataset]) -> None:
    """The same by the plan's own way: pieces of several samples, and pack_tokens that cut them apart."""
    model, data = stage
    gradients, cut = [], []
    for pack_tokens in (4096, 400, 100):
        plan = make_plan(data.lengths, [1.0], batch_size=1000, num_epochs=1, pack_tokens=pack_tokens, seed=0)
        packs = [data.make_pack(groups, CPU, torch.float64) for groups in plan.packs(0)[0]]
        cut.append(len(packs))
        step(model, data, packs)
        gradients.append(gradient(model))
    assert cut[0] == 1 < cut[1] < cut[2]
    assert relative_error(gradients[1], gradients[0]) < 1e-6
    assert relative_error(gradients[2], gradients[0]) < 1e-6


def test_control_an_average_of_pack_means_is_another_gradient(stage: tuple[Any, PackedDataset]) -> None:
    model, data = stage
    step(model, data, eight_samples_in(data, 1))
    expected = gradient(model)
    packs = eight_samples_in(data, 8)
    for pack in packs:
        (pack_loss(model, pack, pack.pixels) / len(pack.targets) / len(packs)).backward()
    assert relative_error(gradient(model), expected) > 1e-3


@pytest.mark.parametrize("chunk", [1, 7, 36])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_give_the_loss_and_gradients_of_one_chunk(
    chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False, dtype=dtype)
    hidden = torch.randn(60, 16, dtype=dtype, requires_grad=True)
    target_positions = torch.randint(60, (37,))  # some positions predict twice, as a prefix's last one does
    targets = torch.randint(50, (37,))

    logits = hidden[target_positions] @ head.weight.T
    by_hand = (logits.exp().sum(1).log() - logits[range(37), targets]).sum()
    expected = torch.autograd.grad(by_hand, [hidden, head.weight])

    chunk_sizes = []
    real = loss.chunk_loss
    monkeypatch.setattr(loss, "chunk_loss", lambda h, *rest: chunk_sizes.append(len(h)) or real(h, *rest))
    for limit in (37, chunk):
        monkeypatch.setattr(loss, "CHUNK", limit)
        chunk_sizes.clear()
        summed = answer_loss(hidden, head, target_positions, targets)
        gradients = torch.autograd.grad(summed, [hidden, head.weight])
        assert max(chunk_sizes) == limit  # never more logits at once
        torch.testing.assert_close([summed, *gradients], [by_hand, *expected])


@torch.no_grad()
def test_bf16_losses_are_summed_in_fp32() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False, dtype=torch.bfloat16)
    hidden, targets = torch.randn(4000, 16, dtype=torch.bfloat16), torch.randint(50, (4000,))
    summed = answer_loss(hidden, head, torch.arange(4000), targets)
    assert summed.dtype == torch.float32
    expected = F.cross_entropy(head(hidden).double(), targets, reduction="sum")
    assert float(summed) == pytest.approx(float(expected), rel=1e-5)


def test_images_at_known_positions_give_the_gradients_of_transformers_own_search(
    stage: tuple[Any, PackedDataset],
) -> None:
    """Bit for bit, in fp32."""
    model, data = stage[0].float(), stage[1]
    model.train()
    (pack,) = eight_samples_in(data, 1)
    assert pack.pixels is not None
    assert pack.image_positions is not None
    pack = replace(pack, pixels=pack.pixels.float())
    backwards = pack.image_positions.flip(0)
    results = []
    for positions in (None, pack.image_positions, backwards):  # transformers', known ones, wrong ones (control)
        model.zero_grad()
        loss = pack_loss(model, replace(pack, image_positions=positions), pack.pixels)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    searched, known, wrong = results
    assert len(searched) > 20
    assert all(torch.equal(a, b) for a, b in zip(searched, known, strict=True))
    assert not torch.equal(searched[0], wrong[0])
