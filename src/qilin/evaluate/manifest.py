"""Where a score comes from: model, data, prompt, decoding, scorer, code, versions, machine, time.

In: folders and settings. Out: the manifest of scores.json, and the hashes by which a second run knows the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import qilin
from qilin.core.provenance import code_hash, machine, versions
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
# What decides a model's answers: weights, configuration, tokenizer, chat template.
MODEL_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


def model_hash(folder: str | Path) -> str | None:
    """sha256 over the names and contents of a model folder's own files; None for a hub id."""
    path = Path(folder)
    if not path.is_dir():
        return None
    lines = []
    for file in sorted(path.iterdir()):
        # qilin.json names paths and the time of the run; it does not change an answer.
        if file.is_file() and file.suffix in MODEL_SUFFIXES and file.name != "qilin.json":
            with file.open("rb") as opened:
                lines.append(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def config_hash(values: Mapping[str, Any]) -> str:
    """sha256 of settings that decide the answers."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def scoring_manifest() -> dict[str, Any]:
    """The part that every score has, whoever made the predictions."""
    return {
        "scorer": SCORER_VERSION,
        "code": {"version": qilin.__version__, "sha256": code_hash()},
        "versions": versions(PACKAGES),
        "machine": machine(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
