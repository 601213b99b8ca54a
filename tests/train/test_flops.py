"""Floating-point operations: computed from the model's shape, compared with what PyTorch counts during a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from builders.tiny import PATCHES, SIZE, tiny_language, tiny_vision
from qilin.model.llava import compose, set_trainable
from qilin.train.flops import GPUS, find_gpu, flop_cost, matmul_flops, measure_peak_flops
from qilin.train.metrics import StepWork, Throughput
from qilin.train.plan import Lengths, PackedGroup, WorkCounts, count_work

TOKENS, ANSWERS, IMAGES = 40, 7, 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("flops")
    for architecture in ("llama", "qwen3"):
        tiny_language(home / architecture, architecture, width=64, layers=3)
    for architecture in ("clip", "siglip"):
        tiny_vision(home / architecture, architecture)
    return home


def tiny_model(home: Path, vision: str = "clip", language: str = "llama", template: str = "v1") -> Any:
    return compose(
        str(home / vision), str(home / language), template=template, system=None, pad_square=True
    ).model.train()


def answer_only_modules(model: Any) -> tuple[torch.nn.Module, ...]:
    """The modules of the last layer that are computed only for supervised positions."""
    last = model.model.language_model.layers[-1]
    return last.self_attn.q_proj, last.self_attn.o_proj, last.mlp


def pytorch_flops(model: Any) -> float:
    """Operations that PyTorch counts in forward and backward of one row, with eager attention."""
    model.set_attn_implementation("eager")
    ids = torch.full((1, TOKENS), 5)
    ids[0, : IMAGES * PATCHES] = model.config.image_token_id
    with FlopCounterMode(display=False) as counter:
        hidden = model.model(input_ids=ids, pixel_values=torch.randn(IMAGES, 3, SIZE, SIZE)).last_hidden_state
        model.lm_head(hidden[0, -ANSWERS:]).sum().backward()
    return float(counter.get_total_flops())


@pytest.mark.parametrize(("vision", "language"), [("clip", "llama"), ("siglip", "qwen3")])
@pytest.mark.parametrize("trainable", [("projector",), ("projector", "language"), ("vision", "projector", "language")])
def test_operations_match_pytorchs_counter(home: Path, vision: str, language: str, trainable: tuple[str, ...]) -> None:
    model = tiny_model(home, vision, language, "chatml" if language == "qwen3" else "v1")
    model.config.vision_feature_layer = -1  # unused layers are not counted: use all of them
    set_trainable(model, trainable)
    cost = flop_cost(model)
    counted = pytorch_flops(model)
    # Eager attention computes the full square, and the last layer for all tokens. A class token, which the cost
    # ignores, is a 17th row here.
    last_layer = sum(matmul_flops(part, needs_input_grad=True) for part in answer_only_modules(model))
    full = WorkCounts(TOKENS, ANSWERS, IMAGES, TOKENS**2, TOKENS**2)
    expected = cost.total(full) + last_layer * (TOKENS - ANSWERS)
    assert counted == pytest.approx(expected, rel=0.12 if vision == "clip" else 0.06)
    assert cost.total(WorkCounts(TOKENS, ANSWERS, IMAGES, 0, 0)) < expected
    assert cost.total(WorkCounts(TOKENS, ANSWERS, IMAGES, TOKENS**2, TOKENS * ANSWERS)) < 0.97 * expected
    model.config.vision_feature_layer = -2
    assert flop_cost(model).image < cost.image, "a layer whose output is not used costs nothing"


def test_frozen_weights_cost_less(home: Path) -> None:
    model = tiny_model(home)
    costs = []
    for trainable in (("projector",), ("projector", "language")):
        set_trainable(model, trainable)
        costs.append(flop_cost(model))
    assert costs[1].token == pytest.approx(costs[0].token * 1.5)  # plus the gradient of the weights
    assert costs[1].attention_pair == costs[0].attention_pair  # attention has no weights
    all_layers, *last = (
        sum(m.weight.numel() for m in part.modules() if isinstance(m, torch.nn.Linear))
        for part in (model.model.language_model, *answer_only_modules(model))
    )
    assert costs[1].token == 6 * (all_layers - sum(last))
    assert costs[1].answer_token - costs[0].answer_token == 2 * (sum(last) + model.lm_head.weight.numel())


def test_work_of_shared_and_single_samples() -> None:
    """Two questions about one image, and one about another, counted token by token."""
    arrays = [np.array(a) for a in ([10, 12, 9], [8, 8, 8], [1, 2, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1])]
    counts = count_work([PackedGroup((0, 1), 14), PackedGroup((2,), 9)], Lengths(*arrays))
    pairs = sum(range(1, 9)) + (9 + 10) + (9 + 10 + 11 + 12) + sum(range(1, 10))
    answer_pairs = 10 + (12 + 11) + 9  # one, two and one answer tokens at the ends of 10, 12 and 9
    assert counts == WorkCounts(tokens=23, answer_tokens=4, images=2, attention_pairs=pairs, answer_pairs=answer_pairs)


def test_gpus_are_recognized_by_their_device_names() -> None:
    assert find_gpu("NVIDIA H100 80GB HBM3") is GPUS["h100"]
    assert find_gpu("NVIDIA H100 PCIe") is GPUS["h100 pcie"]
    assert find_gpu("NVIDIA A100-SXM4-80GB") is GPUS["a100"]
    assert find_gpu("NVIDIA A100-PCIE-40GB") is GPUS["a100"]  # the key "a100 40gb" is not in it; the peak is the same
    assert find_gpu("NVIDIA H20") is GPUS["h20"]
    assert find_gpu("h200") is GPUS["h200"]
    assert find_gpu("a potato") is None


def test_the_peak_of_a_cpu_is_measured() -> None:
    assert measure_peak_flops(torch.device("cpu"), torch.float32) > 1e8


def test_throughput_accumulates_since_its_last_reset(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    cost = flop_cost(tiny_model(home))
    throughput = Throughput(cost, 1e9, torch.device("cpu"), num_steps=10, start=4)
    counts = WorkCounts(100, 10, 2, 900, 90)
    for _ in range(2):
        clock[0] += 2
        throughput.add(StepWork(6, counts, computed_tokens=125, capacity=250, data_wait=0.5))
    metrics = throughput.metrics()
    assert metrics["tokens_per_second"] == 50
    assert metrics["answer_tokens_per_second"] == 5
    assert metrics["samples_per_second"] == 3
    assert (metrics["padding"], metrics["pack_filled"], metrics["data_wait"]) == pytest.approx((0.2, 0.5, 0.25))
    assert metrics["mfu"] == pytest.approx(2 * cost.total(counts) / 4 / 1e9)
    assert metrics["left_seconds"] == pytest.approx(4 * 2)
    assert metrics["memory_gb"] > 0.05
    throughput.reset()
    clock[0] += 1
    throughput.add(StepWork(6, counts, 100, 100, 0))
    assert throughput.metrics()["tokens_per_second"] == 100
