"""The report and the comparison looked at in a real browser, light and dark."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qilin.evaluate.compare import compare_command
from qilin.evaluate.run import evaluate
from qilin.evaluate.settings import CompareSettings
from test_evaluate import dataset, settings_for, table_model  # noqa: F401

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the report cannot be looked at"),
]


def browse(page: Path, profile: Path, *words: str) -> str:
    """Run the browser once on a page; returns what it prints."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1200,1600",
    ]
    command += [f"--user-data-dir={profile}", *words, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, timeout=120, text=True).stdout


def shot(page: Path, folder: Path, *words: str) -> np.ndarray[Any, Any]:
    file = folder / "shot.png"
    browse(page, folder / "profile", f"--screenshot={file}", *words)
    return np.asarray(Image.open(file).convert("L"), dtype=float)


def test_pages_are_drawn(table_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:  # noqa: F811
    evaluate(settings_for(table_model, dataset, tmp_path / "a"))
    rows = [
        json.loads(line) for line in (tmp_path / "a" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    worse = [row | {"prediction": "右侧" if i % 3 == 0 else row["prediction"]} for i, row in enumerate(rows)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in worse), encoding="utf-8")
    compared = tmp_path / "compared.html"
    compare_command(
        CompareSettings(a=tmp_path / "a", b=tmp_path / "b.jsonl", dataset=dataset, report=compared, resamples=100)
    )
    for page in (tmp_path / "a" / "report.html", compared):
        light, dark = (
            shot(page, tmp_path),
            shot(page, tmp_path, "--force-dark-mode", "--blink-settings=preferredColorScheme=0"),
        )
        assert light.shape == (1600, 1200)
        assert light.mean() > 200  # a light page
        assert dark.mean() < 90  # and a dark one
        assert light.std() > 15  # with something on it
        # the script has run: the filters have counted the answers
        dom = browse(page, tmp_path / "profile", "--dump-dom")
        assert "60 answers</output>" in dom
    empty = tmp_path / "empty.html"
    empty.write_text("<!doctype html><title>empty</title>", encoding="utf-8")
    assert shot(empty, tmp_path).std() < 1  # the control: an empty page would have been seen
