"""The GPU benchmark runs: on a CPU it runs all its cases with a miniature model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "train" / "h200.py"


@pytest.mark.story
def test_gpu_benchmark_with_a_miniature_model(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "out.json"), "--miniature"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-2000:]
    cases = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(cases) > 8
    failed = {case["case"]: case["failed"] for case in cases if "failed" in case}
    assert all("needs torchao" in why or "needs a GPU" in why for why in failed.values()), failed
