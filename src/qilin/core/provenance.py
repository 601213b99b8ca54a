"""Provenance of a result: code hash, commit, package versions, machine. Free of torch.

In: the running program. Out: strings and numbers for a training run's folder and the manifest of scores.json.
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

PACKAGE = Path(__file__).parents[1]


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Qilin, Python and `packages`; "not installed" for a missing one."""
    numbers = {"qilin": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            numbers[package] = "not installed"
    return numbers


def machine() -> dict[str, Any]:
    """Operating system, processor name and number of cores."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }


def code_hash() -> str:
    """sha256 over Qilin's source files: runs with the same hash ran the same code."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def commit() -> str | None:
    """The git commit of this code, with "-dirty" for uncommitted changes; None outside a checkout."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
