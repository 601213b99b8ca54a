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


Point = tuple[float, float]  # (step, loss)


@dataclass(frozen=True)
class Stage:
    """One training stage: its name, its losses in order, those on samples that it did not learn from, and the step
    whose weights the model has, where the run looked for the best."""

    name: str
    points: Sequence[Point]
    validation: Sequence[Point] = ()
    model_of_step: int | None = None


def stages_of(model: str | Path) -> list[Stage]:
    """The stages behind a model folder, the first one first, as far as their qilin.json and metrics are still there."""
    stages: list[Stage] = []
    folder: Path | None = Path(model)
    seen: set[Path] = set()
    while folder is not None and (folder / "qilin.json").is_file() and folder.resolve() not in seen:
        seen.add(folder.resolve())
        card = json.loads((folder / "qilin.json").read_text(encoding="utf-8"))
        metrics = folder / (card.get("metrics") or "metrics.jsonl")
        points = read_points(metrics, "loss")
        if points:
            name, best = f"{folder.name}: {card.get('stage', '')}", (card.get("plan") or {}).get("model_of_step")
            stages.append(Stage(name, points, read_points(metrics, "validation_loss"), best))
        parent = card.get("parent")
        # A moved run keeps its stages side by side: the parent's name beside this folder is tried too.
        places = [Path(parent), folder.parent / Path(parent).name] if parent else []
        folder = next((place for place in places if place.is_dir()), None)
    return stages[::-1]


def read_points(path: Path, figure: str) -> list[Point]:
    """(step, figure) of every row of metrics.jsonl that has both; [] where there is no such file."""
    if not path.is_file():
        return []
    points = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if isinstance(row.get("step"), int | float) and isinstance(row.get(figure), int | float):
            points.append((float(row["step"]), float(row[figure])))
    return points


def loss_curve(stage: Stage) -> str:
    """One stage's loss over its steps: each logged step faint, a running mean strong, the validation loss as dots."""
    steps, losses = [p[0] for p in stage.points], [p[1] for p in stage.points]
    low_x, high_x = min(steps), max(max(steps), min(steps) + 1)
    low_y, high_y = 0.0, max([*losses, *(loss for _, loss in stage.validation)]) * 1.05 or 1.0

    def x(step: float) -> float:
        return LEFT + (step - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return TOP + (high_y - loss) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    def line(kind: str, points: Sequence[Point]) -> str:
        places = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in thin(list(points), 400))
        return f'<polyline class="loss-{kind}" points="{places}"/>'

    means = running_mean(losses)
    parts = [grid([(y(v), f"{v:.2g}") for v in ticks(low_y, high_y, 4)])]
    for step in ticks(low_x, high_x, 5):
        parts.append(f'<text class="axis" x="{x(step):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{step:g}</text>')
    parts += [line("raw", stage.points), line("mean", list(zip(steps, means, strict=True)))]
    title = f"{html.escape(stage.name)}: loss {losses[0]:.3f} → {means[-1]:.3f} in {max(steps):g} steps"
    kinds = ["raw", "mean"]
    if stage.validation:
        kinds.append("validation")
        parts.append(line("validation", stage.validation))
        parts += [dot(x(step), y(loss)) for step, loss in thin(list(stage.validation), 60)]
        title += f"; validation {stage.validation[0][1]:.3f} → {stage.validation[-1][1]:.3f}"
        kept = next((point for point in stage.validation if point[0] == stage.model_of_step), None)
        if kept is not None:
            kinds.append("kept")
            parts.append(ring(x(kept[0]), y(kept[1])))
            if kept != stage.validation[-1]:
                title += f" (the model: {kept[1]:.3f} at step {kept[0]:g})"
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}'
        f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 1}" text-anchor="end">step</text></svg>'
        f"<figcaption>{title}</figcaption>{legend([KEYS[kind] for kind in kinds])}</figure>"
    )


def dot(x: float, y: float) -> str:
    return f'<circle class="loss-dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'


def ring(x: float, y: float) -> str:
    return f'<circle class="loss-kept" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'


# what stands for a kind in the legend of a loss curve, and what it is called there
KEYS = {
    "raw": ('<path class="loss-raw" d="M0 12H20"/>', "each step"),
    "mean": ('<path class="loss-mean" d="M0 12H20"/>', "running mean"),
    "validation": (f'<path class="loss-validation" d="M0 12H20"/>{dot(10, 12)}', "validation: samples not learnt from"),
    "kept": (ring(10, 12), "the step whose weights the model has"),
}


def legend(keys: Sequence[tuple[str, str]]) -> str:
    """A line of (drawing in 20 x 24 units, what it stands for)."""
    spans = (f'<span><svg viewBox="0 0 20 24" class="key">{drawing}</svg>{name}</span>' for drawing, name in keys)
    return f'<p class="legend">{"".join(spans)}</p>'


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a window of a twentieth of the run, at each point as far as it reaches back."""
    window = max(1, len(values) // 20)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(values))]


def thin(points: list[Point], most: int) -> list[Point]:
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


MARKERS = {"blind": "blind", "shuffled": "shuffled images", "nearest": "nearest neighbour"}


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
