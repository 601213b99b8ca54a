"""The charts of the report as inline SVG: training loss, scores with controls, calibration.

Inputs: rows of metrics.jsonl or blocks of scores.json. Outputs: SVG that takes its colors from the page's style sheet.
Lengths are in units of the SVG's view box; the page scales it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from pathlib import Path
from typing import Any

from markupsafe import Markup

from qilin.core.errors import UserError
from qilin.core.files import read_json_object, read_jsonl
from qilin.core.provenance import run_paths
from qilin.evaluate.report.html import render

WIDTH, HEIGHT = 460, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 30  # margins
FRAME = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT}
MAX_LINE_POINTS, MAX_DOTS = 400, 60
UNIT_TICKS = tuple(tick / 5 for tick in range(6))  # of an axis from 0 to 1

SCORE_WIDTH, SCORE_LEFT, SCORE_RIGHT, SCORE_TOP, SCORE_BOTTOM, ROW_HEIGHT = 760, 190, 60, 26, 22, 34
CONTROLS = ("blind", "shuffled", "nearest")

Point = tuple[float, float]  # (step, loss)


@dataclass(frozen=True)
class TrainingStage:
    """One training stage: its losses in order, its validation losses, and the step of the selected checkpoint."""

    name: str
    points: Sequence[Point]
    validation: Sequence[Point] = ()
    selected_step: int | None = None


def training_stages(model: str | Path) -> list[TrainingStage]:
    """The stages that led to a model folder, first stage first, as far as their qilin.json and metrics exist.

    A stage whose files are damaged is left out, and said on stderr: the report is written after hours of work.
    """
    stages: list[TrainingStage] = []
    folder: Path | None = Path(model)
    visited: set[Path] = set()
    while folder is not None and (folder / "qilin.json").is_file() and folder.resolve() not in visited:
        visited.add(folder.resolve())
        try:
            metadata = read_json_object(folder / "qilin.json")
            stage = read_stage(folder, metadata)
        except (UserError, OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
            print(f"{folder}: no loss curve in the report ({' '.join(str(error).split())})", file=sys.stderr)
            break
        if stage:
            stages.append(stage)
        parent = run_paths(folder).get("parent") or metadata.get("parent") or ""
        # The runs may have been moved together: the parent's name next to this folder is tried too.
        candidates = [Path(parent), folder.parent / Path(parent).name] if isinstance(parent, str) and parent else []
        folder = next((path for path in candidates if os.path.isdir(path)), None)  # False for a name too long
    return stages[::-1]


def read_stage(folder: Path, metadata: Mapping[str, Any]) -> TrainingStage | None:
    """The losses of one model folder; None without any. Raises UserError, ValueError or TypeError if damaged."""
    metrics = folder / (metadata.get("metrics") or "metrics.jsonl")
    points = read_points(metrics, "loss")
    if not points:
        return None
    step = (metadata.get("plan") or {}).get("model_of_step")
    name = f"{folder.name}: {metadata.get('stage', '')}"
    return TrainingStage(name, points, read_points(metrics, "validation_loss"), step if isinstance(step, int) else None)


def read_points(path: Path, metric: str) -> list[Point]:
    """(step, value) of every row of metrics.jsonl that has the metric; [] if the file does not exist."""
    if not path.is_file():
        return []
    points = []
    for _, row in read_jsonl(path, "a row per step"):
        step, value = row.get("step"), row.get(metric)
        if isinstance(step, int | float) and isinstance(value, int | float) and isfinite(step) and isfinite(value):
            points.append((float(step), float(value)))
    return points


def loss_curve(stage: TrainingStage) -> Markup:
    """One stage's loss over its steps: each logged step, a running mean, and the validation loss with dots."""
    steps, losses = [step for step, _ in stage.points], [loss for _, loss in stage.points]
    min_step, max_step = min(steps), max(max(steps), min(steps) + 1)
    max_loss = max([*losses, *(loss for _, loss in stage.validation)]) * 1.05 or 1.0

    def to_xy(point: Point) -> Point:
        step, loss = point
        x = LEFT + (step - min_step) / (max_step - min_step) * (WIDTH - LEFT - RIGHT)
        return x, TOP + (max_loss - loss) / max_loss * (HEIGHT - TOP - BOTTOM)

    means = running_mean(losses)
    lines = {"raw": stage.points, "mean": list(zip(steps, means, strict=True)), "validation": stage.validation}
    title = f"{stage.name}: loss {losses[0]:.3f} → {means[-1]:.3f} in {max(steps):g} steps"
    selected = next((point for point in stage.validation if point[0] == stage.selected_step), None)
    if stage.validation:
        title += f"; validation loss {stage.validation[0][1]:.3f} → {stage.validation[-1][1]:.3f}"
        if selected and selected != stage.validation[-1]:
            title += f" (selected checkpoint: {selected[1]:.3f} at step {selected[0]:g})"
    return render(
        "loss_curve.svg.jinja",
        title=title,
        **FRAME,
        y_ticks=[(to_xy((min_step, loss))[1], f"{loss:.2g}") for loss in axis_ticks(0.0, max_loss, 4)],
        x_ticks=[(to_xy((step, 0.0))[0], f"{step:g}") for step in axis_ticks(min_step, max_step, 5)],
        lines={name: polyline(map(to_xy, subsample(line, MAX_LINE_POINTS))) for name, line in lines.items() if line},
        dots=[to_xy(point) for point in subsample(stage.validation, MAX_DOTS)],
        selected=to_xy(selected) if selected else None,
    )


def polyline(points: Any) -> str:
    """The `points` attribute of an SVG polyline."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def running_mean(values: Sequence[float]) -> list[float]:
    """Trailing mean over a window of a twentieth of the run; the first values average what there is."""
    window = max(1, len(values) // 20)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(values))]


def subsample(points: Sequence[Point], max_points: int) -> Sequence[Point]:
    """At most `max_points` evenly spaced points, including the first and the last."""
    if len(points) <= max_points:
        return points
    return [points[round(i * (len(points) - 1) / (max_points - 1))] for i in range(max_points)]


def axis_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from low to high."""
    raw_step = (high - low) / max(1, count)
    unit = 10 ** floor(log10(raw_step)) if raw_step > 0 else 1.0
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw_step)
    return [round(step * i, 10) for i in range(ceil(low / step), floor(high / step) + 1)]


def score_plot(rows: Sequence[tuple[str, Mapping[str, Any]]], metric: str) -> Markup:
    """One row per (name, block of scores.json): a bar with its interval, and the controls as markers."""

    def to_x(value: float) -> float:
        return SCORE_LEFT + value * (SCORE_WIDTH - SCORE_LEFT - SCORE_RIGHT)

    bars = []
    for number, (name, block) in enumerate(rows):
        score = block[metric]
        if score["value"] is None:
            continue
        controls = [(control, to_x(score[control])) for control in CONTROLS if score[control] is not None]
        interval = [to_x(end) for end in score["interval"] or ()]
        bars.append({
            "name": name, "n": block["n"], "y": SCORE_TOP + ROW_HEIGHT * (number + 0.5), "value": score["value"],
            "end": to_x(score["value"]), "interval": interval, "controls": controls,
        })  # fmt: skip
    return render(
        "score_plot.svg.jinja",
        metric=metric,
        bars=bars,
        x_ticks=[(to_x(value), f"{value:.1f}") for value in UNIT_TICKS],
        width=SCORE_WIDTH,
        height=SCORE_TOP + ROW_HEIGHT * len(rows) + SCORE_BOTTOM,
        left=SCORE_LEFT,
        right=SCORE_WIDTH - SCORE_RIGHT,
    )


def reliability_diagram(calibration: Mapping[str, Any]) -> Markup:
    """Accuracy in each bin of confidence, as bars, and the diagonal of perfect calibration."""
    bars = [
        {"x": _unit_x(b["from"]) + 1, "width": _unit_x(b["to"]) - _unit_x(b["from"]) - 2, "y": _unit_y(b["accuracy"]),
         "height": _unit_y(0) - _unit_y(b["accuracy"]), **{name: b[name] for name in ("n", "confidence", "accuracy")}}
        for b in calibration["bins"]
    ]  # fmt: skip
    diagonal = [(_unit_x(end), _unit_y(end)) for end in (0, 1)]
    return _unit_chart("Reliability diagram: the line is perfect calibration", "accuracy", "confidence", diagonal, bars)


def coverage_curve(calibration: Mapping[str, Any]) -> Markup:
    """Accuracy if only the most confident share of the questions is answered."""
    curve = [(_unit_x(row["coverage"]), _unit_y(row["accuracy"])) for row in calibration["coverage"]]
    return _unit_chart("Accuracy over the most confident answers only", "accuracy", "share answered", curve)


def _unit_chart(title: str, y_label: str, x_label: str, line: Sequence[Point], bars: Sequence[Any] = ()) -> Markup:
    """A chart whose axes both run from 0 to 1."""
    return render(
        "unit_chart.svg.jinja",
        title=title,
        **FRAME,
        y_label=y_label,
        x_label=x_label,
        line=polyline(line),
        bars=bars,
        x_ticks=[(_unit_x(value), f"{value:.1f}") for value in UNIT_TICKS],
        y_ticks=[(_unit_y(value), f"{value:.1f}") for value in UNIT_TICKS],
    )


def _unit_x(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def _unit_y(value: float) -> float:
    return TOP + (1 - value) * (HEIGHT - TOP - BOTTOM)
