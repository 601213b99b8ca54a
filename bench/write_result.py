"""Prints a benchmark's result and writes it to bench/results/NAME.json with command, machine and Python version."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, command: str, result: Mapping[str, Any], machine: str = "one core") -> None:
    """`machine`: how much of the machine the benchmark used."""
    header = {
        "command": command,
        "machine": f"{platform.machine()}, {machine}",
        "python": platform.python_version(),
    }
    text = json.dumps({**header, **result}, indent=1, ensure_ascii=False)
    print(text)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
