"""A step's gradient does not depend on how the step was cut into packs, nor the loss on how it was cut into chunks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from builders.tiny import tiny_dataset, tiny_language, tiny_vision
from qilin.model.llava import compose, set_trainable
from qilin.train import loss
from qilin.train.config import DataSource, TrainConfig
from qilin.train.data_loader import Pack, PackedDataset
from qilin.train.distributed import ModelWithLoss
from qilin.train.loop import learn_step, pack_loss
from qilin.train.loss import answer_loss
from qilin.train.packed_attention import use_packed_attention
from qilin.train.plan import make_plan, group_samples

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny_language(folder / "llama")
    tiny_vision(folder / "clip")
    tiny_dataset(folder / "data", images=4, splits=("train",))
    return folder


@pytest.fixture
def stage(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, PackedDataset]:
    """A float64 model of which all learns, and the feed of its samples."""
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(1)
    made = compose(str(home / "clip"), str(home / "llama"), template="v1", system="", pad_square=True)
    set_trainable(made.model, ("vision", "projector", "language"))
    config = TrainConfig(model="here", data=(DataSource(path=home / "data"),), precision="fp32")
    feed = PackedDataset(config, made.processor)
    use_packed_attention(made.model)
    return made.model.double(), feed


def eight_in(feed: PackedDataset, packs: int) -> list[Pack]:
    """Eight samples, short answers and long captions, as one piece each in so many packs."""
    names = [feed.sample(int(number)).sample_id for number in feed.numbers]
    wanted = [f"train-caption-{i}" for i in range(4)] + [f"train-vqa-{i}-0" for i in range(4)]
    each = [group_samples(np.array([names.index(name)]), feed.lengths, 4096)[0] for name in wanted]
    size = 8 // packs
    return [feed.make_pack(each[i : i + size], CPU, torch.float64) for i in range(0, 8, size)]


def gradient(model: Any) -> torch.Tensor:
    """All gradients end to end, taken off the model."""
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_accumulation_gives_the_gradient_of_the_whole(stage: tuple[Any, PackedDataset]) -> None:
    model, feed = stage
    whole, count = learn_step(ModelWithLoss(model, pack_loss), eight_in(feed, 1), feed.config, 0)
    expected = gradient(model)
    assert expected.norm() > 0.01
    for packs in (2, 4, 8):
        value, tokens = learn_step(ModelWithLoss(model, pack_loss), eight_in(feed, packs), feed.config, 0)
        assert tokens == count
        assert value == pytest.approx(whole, rel=1e-9)
        assert far(gradient(model), expected) < 1e-6


def test_shared_prefixes_and_small_packs_give_the_gradient_of_the_whole(stage: tuple[Any, PackedDataset]) -> None:
    """The same by the plan's own way: pieces of several samples, and pack_tokens that cut them apart."""
    model, feed = stage
    gradients, cut = [], []
    for pack_tokens in (4096, 400, 100):
        plan = make_plan(feed.lengths, [1.0], batch_size=1000, num_epochs=1, pack_tokens=pack_tokens, seed=0)
        packs = [feed.make_pack(pieces, CPU, torch.float64) for pieces in plan.packs(0)[0]]
        cut.append(len(packs))
        learn_step(ModelWithLoss(model, pack_loss), packs, feed.config, 0)
        gradients.append(gradient(model))
    assert cut[0] == 1 < cut[1] < cut[2]
    assert far(gradients[1], gradients[0]) < 1e-6
    assert far(gradients[2], gradients[0]) < 1e-6


def test_control_means_of_packs_averaged_are_another_gradient(stage: tuple[Any, PackedDataset]) -> None:
    model, feed = stage
    learn_step(ModelWithLoss(model, pack_loss), eight_in(feed, 1), feed.config, 0)
    expected = gradient(model)
    packs = eight_in(feed, 8)
    for pack in packs:
        (pack_loss(model, pack, pack.pixels) / len(pack.targets) / len(packs)).backward()
    assert far(gradient(model), expected) > 1e-3


@pytest.mark.parametrize("chunk", [1, 7, 36])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_give_the_loss_and_gradients_of_the_whole(
    chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False, dtype=dtype)
    hidden = torch.randn(60, 16, dtype=dtype, requires_grad=True)
    where = torch.randint(60, (37,))  # some positions predict twice, as a prefix's last one does
    targets = torch.randint(50, (37,))

    logits = hidden[where] @ head.weight.T
    by_hand = (logits.exp().sum(1).log() - logits[range(37), targets]).sum()
    expected = torch.autograd.grad(by_hand, [hidden, head.weight])

    made = []
    real = loss.chunk_loss
    monkeypatch.setattr(loss, "chunk_loss", lambda h, *rest: made.append(len(h)) or real(h, *rest))
    for limit in (37, chunk):
        monkeypatch.setattr(loss, "CHUNK", limit)
        made.clear()
        summed = answer_loss(hidden, head, where, targets)
        found = torch.autograd.grad(summed, [hidden, head.weight])
        assert max(made) == limit  # never more logits at once
        torch.testing.assert_close([summed, *found], [by_hand, *expected])


@torch.no_grad()
def test_bf16_hidden_states_are_summed_in_fp32() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False, dtype=torch.bfloat16)
    hidden, targets = torch.randn(4000, 16, dtype=torch.bfloat16), torch.randint(50, (4000,))
    summed = answer_loss(hidden, head, torch.arange(4000), targets)
    assert summed.dtype == torch.float32
    expected = F.cross_entropy(head(hidden).double(), targets, reduction="sum")
    assert float(summed) == pytest.approx(float(expected), rel=1e-5)
