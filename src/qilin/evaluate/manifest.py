"""The provenance of a score: scorer, code, versions, machine, time; and the hashes that identify model and settings.

In: folders and settings. Out: parts of the manifest in scores.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import qilin
from qilin.core.files import sha256_file
from qilin.core.provenance import code_hash, machine, versions
from qilin.evaluate.answer_probability import MODEL_SUFFIXES, NOT_WEIGHTS
from qilin.evaluate.scoring.answers import SCORER_VERSION

PACKAGES = (  # whose versions can change a score
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "jieba",
    "sacrebleu",
    "opencc-python-reimplemented",
    "pillow",
)


def model_hash(folder: str | Path) -> str | None:
    """sha256 over the names and contents of the files in a model folder; None for a hub id."""
    path = Path(folder)
    if not path.is_dir():
        return None
    lines = [
        f"{file.name} {sha256_file(file)}"
        for file in sorted(path.iterdir())
        if file.is_file() and file.suffix in MODEL_SUFFIXES and file.name not in NOT_WEIGHTS
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def config_hash(values: Mapping[str, Any]) -> str:
    """sha256 of settings, independent of their order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def scorer_of(path: Path) -> str | None:
    """The version of the scorer that made a scores.json; None if there is no such file or it names none."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8")).get("manifest")
    except (OSError, ValueError, AttributeError):
        return None
    version = manifest.get("scorer") if isinstance(manifest, dict) else None
    return str(version) if version is not None else None


def scoring_manifest() -> dict[str, Any]:
    """The part of the manifest that does not depend on the origin of the predictions."""
    return {
        "scorer": SCORER_VERSION,
        "code": {"version": qilin.__version__, "sha256": code_hash()},
        "versions": versions(PACKAGES),
        "machine": machine(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
