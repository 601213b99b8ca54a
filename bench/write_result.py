"""Writes the result of a benchmark: printed, and in bench/results/NAME.json with command, machine and versions."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, command: str, result: Mapping[str, Any], machine: str = "one core") -> None:
    """Prints and writes a result. `machine`: how much of the machine the benchmark used."""
    header = {
        "command": command,
        "machine": f"{platform.machine()}, {machine}",
        "python": platform.python_version(),
    }
    text = json.dumps({**header, **result}, indent=1, ensure_ascii=False)
    print(text)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
