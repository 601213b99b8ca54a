"""What a measurement leaves behind: printed, and kept as bench/results/NAME.json with command, machine and versions."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def keep(name: str, command: str, found: Mapping[str, Any], machine: str = "one core") -> None:
    """Print and write a result. `machine`: how much of the machine it had to itself."""
    about = {
        "command": command,
        "machine": f"{platform.machine()}, {machine}",
        "python": platform.python_version(),
    }
    text = json.dumps({**about, **found}, indent=1, ensure_ascii=False)
    print(text)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
