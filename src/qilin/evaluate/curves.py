"""Drawings of the report, as inline SVG: loss curves of the training stages, and scores with intervals and controls.

In: rows of metrics.jsonl, or blocks of scores.json. Out: SVG text that takes its colours from the page's style.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 460, 210  # units of the SVG; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 30


@dataclass(frozen=True)
class Stage:
    """One training stage: its name and (step, loss) in order."""

    name: str
    points: Sequence[tuple[float, float]]


def stages_of(model: str | Path) -> list[Stage]:
    """The stages behind a model folder, the first one first, as far as their qilin.json and metrics are still there."""
    stages: list[Stage] = []
    folder: Path | None = Path(model)
    seen: set[Path] = set()
    while folder is not None and (folder / "qilin.json").is_file() and folder.resolve() not in seen:
        seen.add(folder.resolve())
        card = json.loads((folder / "qilin.json").read_text(encoding="utf-8"))
        points = read_points(folder / (card.get("metrics") or "metrics.jsonl"))
        if points:
            stages.append(Stage(f"{folder.name}: {card.get('stage', '')}", points))
        parent = card.get("parent")
        # A moved run keeps its stages side by side: the parent's name beside this folder is tried too.
        places = [Path(parent), folder.parent / Path(parent).name] if parent else []
        folder = next((place for place in places if place.is_dir()), None)
    return stages[::-1]


def read_points(path: Path) -> list[tuple[float, float]]:
    """(step, loss) of every row of metrics.jsonl that has both; [] where there is no such file."""
    if not path.is_file():
        return []
    points = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if isinstance(row.get("step"), int | float) and isinstance(row.get("loss"), int | float):
            points.append((float(row["step"]), float(row["loss"])))
    return points


def loss_curve(stage: Stage) -> str:
    """One stage's loss over its steps: each logged step faint, a running mean strong."""
    steps, losses = [p[0] for p in stage.points], [p[1] for p in stage.points]
    low_x, high_x = min(steps), max(max(steps), min(steps) + 1)
    low_y, high_y = 0.0, max(losses) * 1.05 or 1.0

    def x(step: float) -> float:
        return LEFT + (step - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return TOP + (high_y - loss) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    parts = [grid([(y(v), f"{v:.2g}") for v in ticks(low_y, high_y, 4)])]
    for step in ticks(low_x, high_x, 5):
        parts.append(f'<text class="axis" x="{x(step):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{step:g}</text>')
    for name, values in (("raw", losses), ("mean", running_mean(losses))):
        line = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in thin(list(zip(steps, values, strict=True)), 400))
        parts.append(f'<polyline class="loss-{name}" points="{line}"/>')
    last = f"{losses[0]:.3f} → {running_mean(losses)[-1]:.3f}"
    title = f"{html.escape(stage.name)}: loss {last} in {max(steps):g} steps"
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}'
        f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 1}" text-anchor="end">step</text></svg>'
        f"<figcaption>{title}</figcaption></figure>"
    )


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a window of a twentieth of the run, at each point as far as it reaches back."""
    window = max(1, len(values) // 20)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(values))]


def thin(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, the first and last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, about so many."""
    from math import ceil, floor, log10

    raw = (high - low) / max(1, about)
    unit = 10 ** floor(log10(raw)) if raw > 0 else 1.0
    step = next(unit * f for f in (1, 2, 5, 10) if unit * f >= raw)
    return [round(step * i, 10) for i in range(ceil(low / step), floor(high / step) + 1)]


def grid(lines: Sequence[tuple[float, str]]) -> str:
    """Horizontal lines with their values on the left."""
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="axis" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        for y, text in lines
    )


MARKERS = {"blind": "blind", "shuffled": "shuffled pictures", "nearest": "nearest neighbour"}


def score_plot(rows: Sequence[tuple[str, Mapping[str, Any]]], metric: str) -> str:
    """A row for each (name, block): value with its interval, and the controls as marks."""
    left, right, line = 190, 60, 34
    width = 760
    height = 26 + line * len(rows) + 22

    def x(value: float) -> float:
        return left + value * (width - left - right)

    parts = [
        f'<line class="grid" x1="{x(v / 5):.1f}" x2="{x(v / 5):.1f}" y1="18" y2="{height - 22}"/>'
        f'<text class="axis" x="{x(v / 5):.1f}" y="{height - 6}" text-anchor="middle">{v / 5:.1f}</text>'
        for v in range(6)
    ]
    for number, (name, block) in enumerate(rows):
        score = block[metric]
        y = 26 + line * number + line / 2
        if score["value"] is None:
            continue
        label = f"{html.escape(name)} <tspan class='quiet'>n {block['n']}</tspan>"
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        parts.append(
            f'<rect class="bar" x="{x(0)}" y="{y - 6:.1f}" width="{x(score["value"]) - x(0):.1f}" height="12" rx="3"/>'
        )
        if score["interval"]:
            low, high = (x(v) for v in score["interval"])
            ends = f"M{low:.1f} {y - 5:.1f}v10M{high:.1f} {y - 5:.1f}v10"
            parts.append(f'<path class="interval" d="M{low:.1f} {y:.1f}H{high:.1f}{ends}"/>')
        parts += [mark(kind, x(score[kind]), y) for kind in MARKERS if score[kind] is not None]
        parts.append(f'<text class="value" x="{width - right + 12}" y="{y + 4:.1f}">{score["value"]:.3f}</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{metric} with controls">{"".join(parts)}</svg>'


def mark(kind: str, x: float, y: float) -> str:
    """A control's mark: a line for blind, a diamond for shuffled, a ring for the nearest neighbour."""
    if kind == "blind":
        return f'<line class="mark blind" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 11:.1f}" y2="{y + 11:.1f}"/>'
    if kind == "shuffled":
        return f'<path class="mark shuffled" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"/>'
    return f'<circle class="mark nearest" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'


def unit_frame(title: str, down: str, across: str, inside: str) -> str:
    """A square of 0 to 1 both ways with its axes named, and a drawing inside."""
    marks = "".join(
        f'<text class="axis" x="{unit_x(v / 5):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{v / 5:.1f}</text>'
        for v in range(6)
    )
    lines = grid([(unit_y(v / 5), f"{v / 5:.1f}") for v in range(6)])
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{lines}{marks}{inside}'
        f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 1}" text-anchor="end">{across}</text>'
        f'<text class="axis" x="{LEFT}" y="9">{down}</text></svg><figcaption>{title}</figcaption></figure>'
    )


def unit_x(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def unit_y(value: float) -> float:
    return TOP + (1 - value) * (HEIGHT - TOP - BOTTOM)


def reliability(sure: Mapping[str, Any]) -> str:
    """Accuracy in each bin of confidence, as bars, beside the line where both are equal."""
    bars = "".join(
        f'<rect class="bar" x="{unit_x(b["from"]) + 1:.1f}" width="{unit_x(b["to"]) - unit_x(b["from"]) - 2:.1f}" '
        f'y="{unit_y(b["accuracy"]):.1f}" height="{unit_y(0) - unit_y(b["accuracy"]):.1f}" rx="2">'
        f"<title>{b['n']} answers: confidence {b['confidence']:.2f}, accuracy {b['accuracy']:.2f}</title></rect>"
        for b in sure["bins"]
    )
    line = f'<path class="interval" d="M{unit_x(0):.1f} {unit_y(0):.1f}L{unit_x(1):.1f} {unit_y(1):.1f}"/>'
    return unit_frame(
        "Reliability: bars on the line mean that confidence can be believed", "accuracy", "confidence", bars + line
    )


def coverage(sure: Mapping[str, Any]) -> str:
    """Accuracy where only the surest share of the questions is answered."""
    points = " ".join(f"{unit_x(r['coverage']):.1f},{unit_y(r['accuracy']):.1f}" for r in sure["coverage"])
    line = f'<polyline class="loss-mean" points="{points}"/>'
    return unit_frame("Accuracy where only the surest answers are given", "accuracy", "share answered", line)
