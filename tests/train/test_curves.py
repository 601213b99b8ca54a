"""The loss curves of the report: where lines and marks stand, and that a run without validation has none of its own."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qilin.evaluate.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, loss_curve, training_stages

LOSSES = [4.0, 3.0, 2.0, 1.5, 1.2, 1.0]
VALIDATION = {2: 3.5, 4: 2.5, 6: 5.0}


def model(folder: Path, losses: list[float], validation: dict[int, float], plan: dict[str, Any]) -> Path:
    folder.mkdir()
    card = {"stage": "instruct", "metrics": "metrics.jsonl", "plan": plan, "parent": None}
    (folder / "qilin.json").write_text(json.dumps(card))
    rows: list[dict[str, float]] = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    for row in rows:
        if row["step"] in validation:
            row["validation_loss"] = validation[int(row["step"])]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def drawn(curve: str, kind: str) -> list[tuple[float, float]]:
    """The (step, loss) that a line of the drawing stands for, read back from its places."""
    image = curve.split("</svg>")[0]
    found = re.search(rf'<polyline class="loss-{kind}" points="([^"]+)"', image)
    return [value_of(*map(float, place.split(","))) for place in found[1].split()] if found else []


def value_of(x: float, y: float, top: float = max(VALIDATION.values()) * 1.05) -> tuple[float, float]:
    step = 1 + (x - LEFT) / (WIDTH - LEFT - RIGHT) * (len(LOSSES) - 1)
    return round(step, 1), round(top * (1 - (y - TOP) / (HEIGHT - TOP - BOTTOM)), 1)


def test_validation_is_a_second_line_on_the_same_scale(tmp_path: Path) -> None:
    (stage,) = training_stages(
        model(tmp_path / "run", LOSSES, VALIDATION, {"model_of_step": 4, "validation_loss": 2.5})
    )
    curve = loss_curve(stage)
    assert drawn(curve, "raw") == [(float(step), loss) for step, loss in enumerate(LOSSES, 1)]
    assert drawn(curve, "validation") == [(float(step), loss) for step, loss in VALIDATION.items()]
    image, legend = curve.split("</svg>", 1)
    assert image.count('class="loss-dot"') == 3
    ring = re.search(r'class="loss-kept" cx="([\d.]+)" cy="([\d.]+)"', image)
    assert ring is not None
    assert value_of(float(ring[1]), float(ring[2])) == (4.0, 2.5)
    for said in ("each step", "running mean", "validation: samples not learnt from", "whose weights the model has"):
        assert said in legend
    assert (
        "run: instruct: loss 4.000 → 1.000 in 6 steps; validation 3.500 → 5.000 (the model: 2.500 at step 4)" in legend
    )


def test_without_validation_nothing_is_said_of_it(tmp_path: Path) -> None:
    (stage,) = training_stages(model(tmp_path / "run", LOSSES, {}, {}))
    curve = loss_curve(stage)
    assert "validation" not in curve
    assert "loss-kept" not in curve
    assert "running mean" in curve


@pytest.mark.parametrize("plan", [{}, {"model_of_step": 3}])
def test_no_ring_where_no_look_was(tmp_path: Path, plan: dict[str, Any]) -> None:
    (stage,) = training_stages(model(tmp_path / "run", LOSSES, VALIDATION, plan))
    assert "loss-kept" not in loss_curve(stage)
