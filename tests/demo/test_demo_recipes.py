"""The recipes of `qilin demo`: packaged names take precedence over local folders; unknown names raise errors."""

from pathlib import Path

import pytest

from qilin.core.config import read_config
from qilin.core.errors import UserError
from qilin.demo.config import DemoConfig, TinyModelsConfig
from qilin.demo.run import choose_recipes, demo, recipe_file


def test_packaged_recipes_take_precedence_over_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").mkdir()  # as `qilin demo --quick --out quick` creates it
    assert choose_recipes(DemoConfig(quick=True)) == "quick"
    assert read_config(TinyModelsConfig, recipe_file("quick", "parts"))
    assert recipe_file("./quick", "parts") == Path("quick/parts.yaml")


def test_unknown_recipes_writes_nothing(tmp_path: Path) -> None:
    for recipes in ("qwen3-8b", str(tmp_path)):  # its parts are downloaded, not trained; an empty folder
        with pytest.raises(UserError, match=r"parts\.yaml.*tiny, small"):
            demo(DemoConfig(out=tmp_path / "out", recipes=recipes))
    assert not (tmp_path / "out").exists()
