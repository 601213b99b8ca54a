"""Where a result comes from: code, versions, machine. Free of torch.

In: the running program. Out: plain words and numbers for the run folder of a training and the manifest of a score.
"""

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qilin import __version__

ROOT = Path(__file__).parents[1]


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Qilin's, Python's and those of installed packages."""
    found = {"qilin": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """The machine in words: system, processor, cores."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }


def code_hash() -> str:
    """sha256 over Qilin's own source files: two runs with the same one ran the same code."""
    digest = hashlib.sha256()
    for file in sorted(ROOT.rglob("*.py")):
        digest.update(file.relative_to(ROOT).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def commit() -> str | None:
    """The commit of this code, with -dirty where it was changed since; None where it is not a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
