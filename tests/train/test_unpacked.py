"""Language models that cannot be packed: samples are computed one by one, and give plain transformers' gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from builders.architectures import language_model, vision_encoder
from builders.tiny import tiny_dataset
from qilin.core.errors import UserError
from qilin.model.architectures import set_trainable
from qilin.model.llava import compose
from qilin.train.config import DataSource, TrainConfig
from qilin.train.data_loader import PackedDataset
from qilin.train.guard import plain_losses
from qilin.train.loop import pack_loss
from qilin.train.packed_attention import Shortcuts, use_packed_attention, use_plain_attention
from qilin.train.plan import make_plan
from qilin.train.stage import check_model


def gradient(model: Any) -> torch.Tensor:
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(parts)


@pytest.mark.parametrize("name", ["qwen3.5", "lfm2", "llama"])
def test_loss_and_gradient_equal_plain_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "cache"))
    vision = vision_encoder(tmp_path / "clip", "clip")
    language = language_model(tmp_path / "language", name)
    dataset = tiny_dataset(tmp_path / "data", images=2, questions=2, splits=("train",))
    loaded = compose(str(vision), str(language), template="chatml", system="", pad_square=True)
    model = loaded.model.eval()
    set_trainable(model, ("vision", "projector", "language"))
    config = TrainConfig(model="unused", data=(DataSource(path=dataset),), template="chatml")
    data = PackedDataset(config, loaded.processor)
    plan = make_plan(data.lengths, [1.0], batch_size=99, num_epochs=1, pack_tokens=600, seed=0)
    groups = [group for pack in plan.packs(0)[0] for group in pack]
    assert any(len(group.samples) > 1 for group in groups)  # a shared prefix

    loss = plain_losses(model, data, groups).sum()
    loss.backward()
    expected = gradient(model)
    pack = data.make_pack(groups, torch.device("cpu"), torch.float32)

    def packed(packing: bool) -> tuple[float, float]:
        use_packed_attention(model, Shortcuts(last_layer=False, packing=packing))
        value = pack_loss(model, pack, pack.pixels)
        value.backward()
        use_plain_attention(model)
        return abs(float(value.detach() / loss.detach() - 1)), float(
            (gradient(model) - expected).norm() / expected.norm()
        )

    assert max(packed(packing=False)) < 1e-5
    assert (packed(packing=True)[1] > 1e-2) == (name != "llama")  # control
    assert float(F.relu(plain_losses(model, data, groups).sum() - loss).detach()) < 1e-4  # plain again

    if name != "llama":
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match="one device"):
            check_model(config, loaded, data, plan)
