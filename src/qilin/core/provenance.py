"""Provenance of a result: code hash, commit, package versions, machine. Free of torch.

In: the running program. Out: strings and numbers for a training run's folder and the manifest of scores.json.
"""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qilin import __version__

PACKAGE = Path(__file__).parents[1]
STARTS = "starts.jsonl"  # in a run folder: a line per start


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


def public_name(source: str | Path) -> str:
    """The last part of a local path; a hub id (owner/name) as it is. What is published names no folder of a machine."""
    path = Path(source).expanduser()
    is_hub_id = not path.exists() and not path.is_absolute() and str(source).count("/") <= 1 and str(source)[:1] != "."
    return str(source) if is_hub_id else path.resolve().name


def run_paths(folder: Path) -> dict[str, str]:
    """Where data (by hash) and parent (as "parent") of a run were on the machine that trained it, by the last line of
    its starts.jsonl; {} without one. qilin.json has their names only."""
    file = folder / STARTS
    if not file.is_file():
        return {}
    try:
        row = json.loads(file.read_text(encoding="utf-8").splitlines()[-1])
        return {str(key): str(path) for key, path in row["paths"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # damaged, or of an earlier version
        return {}


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
