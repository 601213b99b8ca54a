"""What a reader must know first: where a control does as well as the model, and how much of the test is in training.

Input: scores.json as a dictionary. Output: sentences in English and Chinese, the worst first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qilin.evaluate.report.labels import type_names

CONTROL_NAMES = {
    "over_blind": ("a control that does not see the image", "盲测对照"),
    "over_shuffled": ("the model with exchanged images", "换成别的图像后的模型"),
    "over_nearest_neighbour": ("the nearest training answer", "最近邻的训练答案"),
}
SUBSET_CONTROLS = {"blind": "over_blind", "nearest": "over_nearest_neighbour"}
MIN_ROWS = 20  # of a question type that is named here
MAX_TYPES = 8


@dataclass(frozen=True)
class Statement:
    """One sentence in both languages. `level`: loses, unclear, note or wins."""

    level: str
    english: str
    chinese: str


def headline(scores: Mapping[str, Any]) -> list[Statement]:
    """The sentences, controls that win first."""
    statements = [
        *compare_gains(scores["gain"], "accuracy", "准确率", scores["all"]["accuracy"]["value"]),
        *compare_gains(
            scores["captions"].get("gain") or {}, "caption fact F1", "描述的事实 F1", scores["captions"].get("fact_f1")
        ),
        *compare_types(scores["by_question_type"]),
        *known_images(scores["manifest"].get("leaks")),
    ]
    order = ("loses", "unclear", "note", "wins")
    return sorted(statements, key=lambda statement: order.index(statement.level))


def compare_gains(
    gains: Mapping[str, Any], metric: str, chinese_metric: str, value: float | None
) -> Iterator[Statement]:
    """One sentence per control: it wins, the difference is unclear, or the model is above it."""
    for name, (english, chinese) in CONTROL_NAMES.items():
        gain = gains.get(name) or {}
        if gain.get("value") is None or value is None:
            continue
        control = value - gain["value"]
        interval = gain["interval"]
        ends = f", interval {interval[0]:+.3f} to {interval[1]:+.3f}" if interval else ""
        chinese_ends = f"，区间 {interval[0]:+.3f} 至 {interval[1]:+.3f}" if interval else ""
        numbers = f"{control:.3f} against {value:.3f} ({gain['value']:+.3f}{ends})"
        chinese_numbers = f"{control:.3f} 对 {value:.3f}（{gain['value']:+.3f}{chinese_ends}）"
        if gain["value"] <= 0:
            yield Statement(
                "loses", f"In {metric} {english} does as well or better: {numbers}.",
                f"{chinese_metric}：{chinese}不低于模型，{chinese_numbers}。",
            )  # fmt: skip
        elif interval is None or interval[0] <= 0:
            yield Statement(
                "unclear", f"In {metric} the model is not shown to be above {english}: {numbers}.",
                f"{chinese_metric}：尚不能说明模型高于{chinese}，{chinese_numbers}。",
            )  # fmt: skip
        else:
            yield Statement(
                "wins", f"In {metric} the model is above {english}: {value:.3f} against {control:.3f}{ends}.",
                f"{chinese_metric}：模型高于{chinese}，{value:.3f} 对 {control:.3f}{chinese_ends}。",
            )  # fmt: skip


def compare_types(types: Mapping[str, Any]) -> Iterator[Statement]:
    """One sentence that names the question types in which a control is at least as good as the model."""
    for control, gain in SUBSET_CONTROLS.items():
        losses = []
        for name, block in types.items():
            accuracy = block.get("accuracy") or {}
            if block["n"] and block["n"] >= MIN_ROWS and accuracy.get(control) is not None:
                losses += (
                    [(accuracy[control] - accuracy["value"], name, accuracy)] if accuracy["value"] is not None else []
                )
        losses = sorted((loss for loss in losses if loss[0] >= 0), reverse=True, key=lambda loss: loss[0])[:MAX_TYPES]
        if losses:
            english, chinese = CONTROL_NAMES[gain]
            by_type = [(type_names(name), f"{a[control]:.3f}", f"{a['value']:.3f}") for _, name, a in losses]
            listed = "; ".join(f"{names[0]} {c} against {v}" for names, c, v in by_type)
            chinese_listed = "；".join(f"{names[1]} {c} 对 {v}" for names, c, v in by_type)
            yield Statement(
                "loses", f"By question type, {english} does as well or better in: {listed}.",
                f"按问题类型，{chinese}在以下类型不低于模型：{chinese_listed}。",
            )  # fmt: skip


def known_images(leaks: Mapping[str, Any] | None) -> Iterator[Statement]:
    """How many of the test images have a near-duplicate in training."""
    images = (leaks or {}).get("pictures") or {}
    count = images.get("same", 0) + images.get("near", 0)
    if count:
        total = images["n"]
        yield Statement(
            "note",
            f"{count} of {total} test images are in the training data or have a near-duplicate there; read the row "
            "of unseen images.",
            f"{total} 张测试图像中有 {count} 张在训练集中或有近似重复；请看“训练集中没有近似图像”一行。",
        )
