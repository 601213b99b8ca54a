"""Fixtures of the training tests."""

from pathlib import Path
from typing import Any

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


@pytest.fixture
def memory_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations by a formula in place of a simulation of seconds, where a test is about what follows from them."""

    def activations(model_config: Any, config: Any, shape: Any, on_gpu: bool, sharded: bool, depth: int) -> int:
        itemsize = 4 if config.precision == "fp32" else 2
        vectors = 2 if config.gradient_checkpointing else 12 + len(config.trainable)
        logits = shape.answer_tokens * model_config.text_config.vocab_size
        return itemsize * (depth * vectors * shape.tokens * int(model_config.text_config.hidden_size) + logits)

    monkeypatch.setattr("qilin.train.memory_estimate.cached_peak", activations)
