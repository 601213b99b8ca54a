"""What an evaluation says about its images: made with another window than the training images, or of another kind than
the question says.

In: an opened evaluation. Out: the questions concerned, and lines for the screen. Nothing is refused.
"""

from __future__ import annotations

from typing import Any

from qilin.evaluate.job import EvaluationJob
from qilin.imaging.windowing import windowing_mismatch
from qilin.text.modality import other_modality


def check_images(job: EvaluationJob) -> tuple[dict[str, Any], list[str]]:
    """(what the manifest records, lines for the screen)."""
    rows = job.dataset.image_table(("image_id", "modality")).to_pylist()
    modalities = {row["image_id"]: row["modality"] for row in rows}
    questions = {
        item.id: other_modality(item.question, [modalities.get(image_id) for image_id in item.image_ids])
        for item in job.items
    }
    conflicts = [item_id for item_id, kind in questions.items() if kind is not None]
    mismatch = windowing_mismatch(job.qilin_json, job.dataset.manifest.get("settings"))
    lines = [f"! {mismatch}"] if mismatch else []
    if conflicts:
        lines.append(
            f"! {len(conflicts):,} of {len(job.items):,} questions speak of another kind of image than theirs, such as "
            f"{conflicts[0]} ({questions[conflicts[0]]})"
        )
    return {"other_modality": {"n": len(conflicts), "ids": conflicts[:100]}, "windowing": mismatch or None}, lines
