"""What a pack costs: counted by the model's shape, compared with what PyTorch counts while it runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from builders.tiny import PATCHES, SIZE, tiny_language, tiny_vision
from qilin.model.llava import compose, set_trainable
from qilin.train.flops import GPUS, find_gpu, flop_cost, measure_peak_flops, matmul_flops
from qilin.train.metrics import Throughput, Work
from qilin.train.plan import WorkCounts, Lengths, PackedGroup, count_work

TOKENS, ANSWERS, IMAGES = 40, 7, 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("cost")
    for kind in ("llama", "qwen3"):
        tiny_language(home / kind, kind, width=64, layers=3)
    for kind in ("clip", "siglip"):
        tiny_vision(home / kind, kind)
    return home


def for_what_is_read(model: object) -> tuple[torch.nn.Module, ...]:
    """Of the last layer what is computed only for tokens that predict something."""
    end = model.model.language_model.layers[-1]  # type: ignore[attr-defined]
    return end.self_attn.q_proj, end.self_attn.o_proj, end.mlp


def counted(model: object, learn: tuple[str, ...]) -> float:
    """Operations that PyTorch counts in forward and backward of one row, its attention done by plain matmul_flops."""
    model.set_attn_implementation("eager")  # type: ignore[attr-defined]
    ids = torch.full((1, TOKENS), 5)
    ids[0, : IMAGES * PATCHES] = model.config.image_token_id  # type: ignore[attr-defined]
    with FlopCounterMode(display=False) as counter:
        hidden = model.model(input_ids=ids, pixel_values=torch.randn(IMAGES, 3, SIZE, SIZE)).last_hidden_state  # type: ignore[attr-defined]
        model.lm_head(hidden[0, -ANSWERS:]).sum().backward()  # type: ignore[attr-defined]
    return float(counter.get_total_flops())


@pytest.mark.parametrize(("vision", "language"), [("clip", "llama"), ("siglip", "qwen3")])
@pytest.mark.parametrize("learn", [("projector",), ("projector", "language"), ("vision", "projector", "language")])
def test_operations_are_those_that_pytorch_counts(
    home: Path, vision: str, language: str, learn: tuple[str, ...]
) -> None:
    template = "chatml" if language == "qwen3" else "v1"
    model = compose(
        str(home / vision), str(home / language), template=template, system=None, pad_square=True
    ).model.train()
    # what is thrown away is not counted: let nothing be thrown away
    model.config.vision_feature_layer = -1
    set_trainable(model, learn)
    cost = flop_cost(model)
    found = counted(model, learn)
    # eager attention computes the whole square; a class token is not counted in images, and is a 17th row here
    # and the last layer everything
    last = sum(matmul_flops(part, gradient=True) for part in for_what_is_read(model))
    expected = cost.of(WorkCounts(TOKENS, ANSWERS, IMAGES, TOKENS**2, TOKENS**2)) + last * (TOKENS - ANSWERS)
    assert found == pytest.approx(expected, rel=0.12 if vision == "clip" else 0.06)
    assert cost.of(WorkCounts(TOKENS, ANSWERS, IMAGES, 0, 0)) < expected
    assert cost.of(WorkCounts(TOKENS, ANSWERS, IMAGES, TOKENS**2, TOKENS * ANSWERS)) < 0.97 * expected
    # the layer whose output is not used costs nothing
    model.config.vision_feature_layer = -2
    assert flop_cost(model).image < cost.image


def test_learning_less_costs_less(home: Path) -> None:
    model = compose(str(home / "clip"), str(home / "llama"), template="v1", system=None, pad_square=True).model
    costs = []
    for learn in (("projector",), ("projector", "language")):
        set_trainable(model, learn)
        costs.append(flop_cost(model))
    assert costs[1].token == pytest.approx(costs[0].token * 1.5)  # the gradient of the weights on top
    assert costs[1].pair == costs[0].pair  # attention has no weights
    language = model.model.language_model
    all_layers, *ends = (
        sum(m.weight.numel() for m in part.modules() if isinstance(m, torch.nn.Linear))
        for part in (language, *for_what_is_read(model))
    )
    last = sum(ends)
    assert costs[1].token == 6 * (all_layers - last)
    assert costs[1].answer - costs[0].answer == 2 * (last + model.lm_head.weight.numel())


def test_counts_of_shared_and_single_samples() -> None:
    """Two questions of one image, and one of another, counted token by token."""
    array = [np.array(a) for a in ([10, 12, 9], [8, 8, 8], [1, 2, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1])]
    found = count_work([PackedGroup((0, 1), 14), PackedGroup((2,), 9)], Lengths(*array))
    seen = sum(range(1, 9)) + (9 + 10) + (9 + 10 + 11 + 12) + sum(range(1, 10))
    answers = 10 + (12 + 11) + 9  # one, two and one learnt tokens at the ends of 10, 12 and 9
    assert found == WorkCounts(tokens=23, answers=4, images=2, pairs=seen, answer_pairs=answers)


def test_cards_are_found_by_the_names_that_devices_give() -> None:
    assert find_gpu("NVIDIA H100 80GB HBM3") is GPUS["h100"]
    assert find_gpu("NVIDIA H100 PCIe") is GPUS["h100 pcie"]
    assert find_gpu("NVIDIA A100-SXM4-80GB") is GPUS["a100"]
    assert find_gpu("NVIDIA A100-PCIE-40GB") is GPUS["a100"]  # its name does not say so: peak is the same
    assert find_gpu("NVIDIA H20") is GPUS["h20"]
    assert find_gpu("h200") is GPUS["h200"]
    assert find_gpu("a potato") is None


def test_a_processor_without_a_data_sheet_is_measured() -> None:
    assert measure_peak_flops(torch.device("cpu"), torch.float32) > 1e8


def test_a_meter_adds_up_since_its_last_row(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    model = compose(str(home / "clip"), str(home / "llama"), template="v1", system=None, pad_square=True).model
    cost = flop_cost(model)
    meter = Throughput(cost, 1e9, torch.device("cpu"), steps=10, done=4)
    counts = WorkCounts(100, 10, 2, 900, 90)
    for _ in range(2):
        clock[0] += 2
        meter.add(Work(6, counts, computed=125, room=250), waited=0.5)
    found = meter.figures()
    assert found["tokens_per_second"] == 50
    assert found["answer_tokens_per_second"] == 5
    assert found["samples_per_second"] == 3
    assert (found["padding"], found["pack_filled"], found["data_wait"]) == pytest.approx((0.2, 0.5, 0.25))
    assert found["mfu"] == pytest.approx(2 * cost.of(counts) / 4 / 1e9)
    assert found["left_seconds"] == pytest.approx(4 * 2)
    assert found["memory_gb"] > 0.05
    meter.reset()
    clock[0] += 1
    meter.add(Work(6, counts, 100, 100), 0)
    assert meter.figures()["tokens_per_second"] == 100
