"""Fixtures of the training tests."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test; modules override it to share cached lengths."""
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
