"""Tests that need a GPU: FlexAttention against the CPU, losses, training with quantized weights and optimizers.

Run on a machine with an NVIDIA GPU: `python -m pytest -m gpu`.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from builders.gpu_recipes import COMMON, RECIPES
from builders.training import metrics_rows, source_options, tiny_home
from qilin.model.architectures import set_trainable
from qilin.train.config import read_recipe
from qilin.train.data_loader import PackedDataset
from qilin.train.loop import pack_loss
from qilin.train.packed_attention import PACKED, make_layout, packed_attention, use_packed_attention
from qilin.train.plan import make_plan
from qilin.train.stage import load_start, run_stage

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]
DOCUMENTS = [(0, 150, -1), (150, 40, 0), (190, 33, 0), (223, 200, -1), (423, 89, -1)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_home(tmp_path_factory.mktemp("gpu"), images=6, splits=("train",), width=128)


def attention_and_gradients(device: str, dtype: torch.dtype) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 512, 32, generator=random).to(device, dtype) for heads in (4, 2, 2))
    for tensor in (q, k, v):
        tensor.requires_grad_(True)
    layout = make_layout(DOCUMENTS, torch.device(device))
    module: Any = SimpleNamespace(layer_idx=0, config=SimpleNamespace(num_hidden_layers=2))
    out, _ = packed_attention(module, q, k, v, None, layout=layout)
    out.square().sum().backward()
    gradients = [tensor.grad for tensor in (q, k, v) if tensor.grad is not None]
    return torch.cat([tensor.detach().flatten().float().cpu() for tensor in (out, *gradients)])


def test_flex_attention_matches_the_cpu() -> None:
    expected = attention_and_gradients("cpu", torch.float32)
    actual = attention_and_gradients("cuda", torch.float32)
    assert float((actual - expected).norm() / expected.norm()) < 5e-3  # FlexAttention multiplies in TF32
    assert PACKED == "qilin_packed"


def test_loss_matches_the_cpu(home: Path, tmp_path: Path) -> None:
    overrides = [*source_options(home), f"out={tmp_path}"]
    config = read_recipe("small/align", [*overrides, "precision=fp32", "template=v1", "kinds=[]", "batch_size=100"])
    values = []
    for device in ("cpu", "cuda"):
        loaded = load_start(config)
        set_trainable(loaded.model, ("projector", "language"))
        data = PackedDataset(config, loaded.processor)
        plan = make_plan(data.lengths, [1.0], batch_size=100, num_epochs=1, pack_tokens=8192, seed=0)
        model: Any = loaded.model.to(device)
        use_packed_attention(model)
        pack = data.make_pack(plan.packs(0)[0][0], torch.device(device), torch.float32)
        values.append(float(pack_loss(model, pack, pack.pixels)))
    assert values[1] == pytest.approx(values[0], rel=2e-3)


@pytest.mark.parametrize("options", RECIPES, ids=" ".join)
def test_training_on_the_gpu_reduces_the_loss(home: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    config = read_recipe("small/align", [*source_options(home), f"out={run}", *COMMON.split(), *options])
    run_stage(config, "test")
    rows = metrics_rows(run)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert (run / "qilin.json").is_file()
