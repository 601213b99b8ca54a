"""The charts of the report: coordinates of lines and markers, escaping, and no validation line without validation."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qilin.evaluate.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, loss_curve, training_stages

LOSSES = [4.0, 3.0, 2.0, 1.5, 1.2, 1.0]
VALIDATION = {2: 3.5, 4: 2.5, 6: 5.0}


def write_model(folder: Path, validation: dict[int, float], plan: dict[str, Any]) -> Path:
    folder.mkdir()
    metadata = {"stage": "instruct", "metrics": "metrics.jsonl", "plan": plan, "parent": None}
    (folder / "qilin.json").write_text(json.dumps(metadata))
    rows: list[dict[str, float]] = [{"step": step, "loss": loss} for step, loss in enumerate(LOSSES, 1)]
    for row in rows:
        if row["step"] in validation:
            row["validation_loss"] = validation[int(row["step"])]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def line_values(chart: str, name: str) -> list[tuple[float, float]]:
    """The (step, loss) points of a line, computed back from its coordinates."""
    match = re.search(rf'<polyline class="loss-{name}" points="([^"]+)"', chart.split("</svg>")[0])
    return [point_value(*map(float, point.split(","))) for point in match[1].split()] if match else []


def point_value(x: float, y: float) -> tuple[float, float]:
    max_loss = max(VALIDATION.values()) * 1.05
    step = 1 + (x - LEFT) / (WIDTH - LEFT - RIGHT) * (len(LOSSES) - 1)
    return round(step, 1), round(max_loss * (1 - (y - TOP) / (HEIGHT - TOP - BOTTOM)), 1)


def test_validation_is_a_second_line_on_the_same_scale(tmp_path: Path) -> None:
    (stage,) = training_stages(write_model(tmp_path / "run", VALIDATION, {"model_of_step": 4, "validation_loss": 2.5}))
    chart = loss_curve(stage)
    assert line_values(chart, "raw") == [(float(step), loss) for step, loss in enumerate(LOSSES, 1)]
    assert line_values(chart, "validation") == [(float(step), loss) for step, loss in VALIDATION.items()]
    image, legend = chart.split("</svg>", 1)
    assert image.count('class="loss-dot"') == 3
    ring = re.search(r'class="loss-selected" cx="([\d.]+)" cy="([\d.]+)"', image)
    assert ring is not None
    assert point_value(float(ring[1]), float(ring[2])) == (4.0, 2.5)
    for label in ("each step", "running mean", "validation loss", "selected checkpoint"):
        assert f"{label}</span>" in legend
    caption = re.search("<figcaption>(.*)</figcaption>", legend)
    assert caption is not None
    assert re.findall(r"\d\.\d{3}", caption[1]) == ["4.000", "1.000", "3.500", "5.000", "2.500"]


def test_without_validation_there_is_no_validation_line(tmp_path: Path) -> None:
    (stage,) = training_stages(write_model(tmp_path / "run", {}, {}))
    chart = loss_curve(stage)
    assert "validation" not in chart
    assert "loss-selected" not in chart
    assert "running mean" in chart


@pytest.mark.parametrize("plan", [{}, {"model_of_step": 3}])
def test_no_ring_without_a_validated_selected_step(tmp_path: Path, plan: dict[str, Any]) -> None:
    (stage,) = training_stages(write_model(tmp_path / "run", VALIDATION, plan))
    assert "loss-selected" not in loss_curve(stage)


def test_names_are_escaped(tmp_path: Path) -> None:
    (stage,) = training_stages(write_model(tmp_path / "<b>run", {}, {}))
    assert "&lt;b&gt;run" in loss_curve(stage)
    assert "<b>" not in loss_curve(stage)
