"""Gradients of packs and of plain forwards, how far they differ, and packs with a fault that must show."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from qilin.train.pack import Pack
from qilin.train.packed_attention import Layout, make_layout

CPU = torch.device("cpu")
Gradients = dict[str, torch.Tensor]


def gradients_of(model: Any, losses: Sequence[Callable[[], torch.Tensor]]) -> tuple[float, Gradients]:
    """The sum of losses and all gradients, the graph of one loss held at a time."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for make in losses:
        loss = make().sum()
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def relative_error(actual: tuple[float, Gradients], expected: tuple[float, Gradients]) -> float:
    """The largest relative error: of the loss, and of each parameter's gradient by its norm.

    Some gradients are nothing but rounding (a bias of keys changes no softmax); they are measured against a
    thousandth of the whole gradient.
    """
    assert set(actual[1]) == set(expected[1])
    total_norm = torch.stack([g.norm() for g in expected[1].values()]).norm()
    errors = [abs(actual[0] - expected[0]) / abs(expected[0])]
    for name, gradient in expected[1].items():
        errors.append(float((actual[1][name] - gradient).norm() / torch.maximum(gradient.norm(), 1e-3 * total_norm)))
    return max(errors)


def layout_of(pack: Pack, documents: list[tuple[int, int, int]]) -> Layout:
    return make_layout(documents, CPU, window=pack.layout.window or None)


def blind(pack: Pack) -> Pack:
    """One document a pack: boundaries removed."""
    return replace(pack, layout=layout_of(pack, [(0, pack.ids.shape[1], -1)]))


def swapped(pack: Pack) -> Pack:
    return pack if pack.pixels is None else replace(pack, pixels=pack.pixels.flip(0))


def with_visible_siblings(pack: Pack) -> Pack:
    """A prefix and its branches as one document: a question sees the questions and answers before it."""
    merged: list[list[int]] = []
    for start, length, prefix in pack.layout.documents.tolist():
        if prefix >= 0:
            merged[-1][1] += length
        else:
            merged.append([start, length, -1])
    return replace(pack, layout=layout_of(pack, [(a, b, c) for a, b, c in merged]))


def continuous_positions(pack: Pack) -> Pack:
    return replace(pack, positions=torch.arange(pack.ids.shape[1]).expand(pack.positions.shape))


def positions_in_a_line(pack: Pack) -> Pack:
    """As if the tokens of an image had the positions of text."""
    assert len(pack.positions) == 3
    lines = []
    for _, length, prefix in pack.layout.documents.tolist():
        first = int(pack.layout.documents[prefix, 1]) if prefix >= 0 else 0
        lines.append(torch.arange(first, first + length))
    return replace(pack, positions=torch.cat(lines).expand(3, 1, -1))


def causal_images(pack: Pack) -> Pack:
    """As if the tokens of an image did not see those behind them."""
    documents = [(a, b, c) for a, b, c in pack.layout.documents.tolist()]
    return replace(pack, layout=layout_of(pack, documents))


def without_window(pack: Pack) -> Pack:
    """As if no layer had a sliding window."""
    assert pack.layout.windowed is not None, "a sample is longer than the window"
    return replace(pack, layout=replace(pack.layout, windowed=replace(pack.layout, windowed=None, window=0)))


# what must show in loss and gradients: of every pack, and of those of one architecture
CONTROLS: tuple[Callable[[Pack], Pack], ...] = (blind, swapped, with_visible_siblings, continuous_positions)
MORE_CONTROLS: dict[str, tuple[Callable[[Pack], Pack], ...]] = {
    "Qwen2.5-VL": (positions_in_a_line,),
    "Qwen3-VL": (positions_in_a_line,),
    "Qwen3-VL-MoE": (positions_in_a_line,),
    "Gemma 3": (causal_images, without_window),
}
