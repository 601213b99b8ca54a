"""Fixtures of the training tests."""

from pathlib import Path

import pytest

from builders.training import tiny_home, train_stage


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test; modules override it to share cached lengths."""
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny parts and a dataset of four images; modules with other needs override it."""
    folder = tmp_path_factory.mktemp("runs")
    return tiny_home(folder, images=4, questions=2, extras=False, splits=("train",))


@pytest.fixture(scope="session")
def aligned(home: Path) -> Path:
    """The model of a first stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QILIN_CACHE", str(home / "lengths"))
        return train_stage(home, home / "aligned")
