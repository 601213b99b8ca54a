"""The GPU script is ready to run: on a CPU it goes through all its cases in small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "train" / "h200.py"


@pytest.mark.story
def test_the_gpu_script_in_miniature(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "out.json"), "--miniature"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]
    cases = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(cases) > 8
    failed = {case["case"]: case["failed"] for case in cases if "failed" in case}
    assert all("needs torchao" in why or "needs a GPU" in why for why in failed.values()), failed
