"""Fixtures of the evaluation tests."""

from pathlib import Path
from typing import Any

import pytest

from builders.evaluation import write_evaluation_dataset, write_lookup_model


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder with 40 training and 12 test images; tests only read it."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    write_evaluation_dataset(folder)
    return folder


@pytest.fixture
def lookup_model(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A model that knows the reference of every question in `dataset`."""
    return write_lookup_model(tmp_path / "model", dataset, monkeypatch)
