"""Floating-point operations: computed from the model's shape, compared with what PyTorch counts during a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from builders.tiny import PATCHES, SIZE, tiny_language, tiny_vision
from qilin.model.architectures import set_trainable
from qilin.model.llava import compose
from qilin.train.flops import flop_cost, matmul_flops, measure_peak_flops, recomputed_cost
from qilin.train.gpus import GPUS, find_gpu, gpu_names
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


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100 pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100 40gb"),
        ("A100-40G", "a100 40gb"),
        ("NVIDIA H20", "h20"),
        ("h200", "h200"),
        ("4090", "rtx 4090"),
        ("RTX4090D", "rtx 4090 d"),
        ("rtx_3090", "rtx 3090"),
        ("3090ti", "rtx 3090 ti"),
        ("NVIDIA GeForce RTX 5090", "rtx 5090"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx 6000 ada"),
        ("6000-ada", "rtx 6000 ada"),
        ("NVIDIA RTX A6000", "rtx a6000"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-32GB", "v100 32gb"),
        ("v100", "v100"),
        ("AMD Instinct MI300X", "mi300x"),
        ("Ascend910B", "ascend 910b"),
        ("昇腾 910B", "ascend 910b"),
    ],
)
def test_gpus_are_recognized_by_their_names(name: str, key: str) -> None:
    assert find_gpu(name) is GPUS[key]


def test_a_memory_size_in_the_name_counts() -> None:
    h20 = find_gpu("H20-141G")
    assert h20 is not None
    assert (h20.memory, h20.half) == (141e9, GPUS["h20"].half)
    assert find_gpu("a potato") is None
    assert all(find_gpu(name) is gpu for name, gpu in zip(gpu_names(), GPUS.values(), strict=True))
    assert {key for key, gpu in GPUS.items() if not gpu.has_bf16} == {"v100", "v100 32gb", "t4", "rtx 2080 ti"}


def test_checkpointed_layers_are_counted_again(home: Path) -> None:
    model = tiny_model(home)
    set_trainable(model, ("projector",))
    counts = WorkCounts(100, 10, 2, 900, 90)
    half, complete = (recomputed_cost(model, share).total(counts) for share in (1 / 3, 1.0))
    assert recomputed_cost(model, 0.0).total(counts) == 0
    assert half == pytest.approx(complete / 3)
    layers = model.model.language_model.layers
    matrices = sum(p.numel() for layer in layers for name, p in layer.named_parameters() if p.ndim == 2)
    width = model.config.text_config.hidden_size
    assert complete == pytest.approx(2 * matrices * 100 + 4 * width * len(layers) * 900)


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
