"""A mistyped folder is refused at once, with the folder that was meant, instead of being asked for on a hub."""

import time
from pathlib import Path

import pytest

from qilin.core.errors import UserError
from qilin.model.hub import fetch


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("runs/algin", "did you mean runs/align?"),
        ("run/align", "did you mean runs/align?"),
        ("runs/other", "runs has align, instruct"),
        ("runs/align/", "did you mean"),
        ("demo/parts/vison", "did you mean demo/parts/vision?"),
        ("runz", "did you mean runs?"),
    ],
)
def test_a_mistyped_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/align", "runs/instruct", "demo/parts/vision"):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "qilin.json").write_text("{}")
    if name == "runs/align/":
        Path("runs/align").rename("runs/aligns")
    start = time.monotonic()
    with pytest.raises(UserError, match="no such folder") as error:
        fetch(name, "huggingface")
    assert hint in str(error.value)
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "openai/clip-vit-large-patch14-336"])
def test_ids_of_the_hub_stay_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Qwen/Qwen3-4B").mkdir(parents=True)
    assert fetch(name, "huggingface") == name
