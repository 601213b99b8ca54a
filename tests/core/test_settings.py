"""Settings: typed, frozen, and every mistake named with its field and the nearest right one."""

import argparse
from pathlib import Path
from typing import Literal

import pytest

from qilin.core.config import add_flags, config_class, describe, from_flags, option, read, to_dict, write_yaml
from qilin.core.errors import UserError


@config_class
class Part:
    path: Path = option(help="where")
    weight: float = option(default=1.0, help="how often")


@config_class
class Recipe:
    batch: int = option(default=8, help="samples a step")
    rate: float = option(default=1e-3, help="learning rate")
    data: tuple[Part, ...] = option(default=(), help="what to learn from")
    mode: Literal["a", "b"] = option(default="a", help="one of two")

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; expected at least 1")


def test_words_win_over_the_file_and_keep_their_types(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("batch: 4\nmode: b\n")
    made = read(Recipe, tmp_path / "r.yaml", ["batch=16", "rate=2e-5", "data=[{path: x, weight: 2}]"])
    assert made == Recipe(batch=16, rate=2e-5, mode="b", data=(Part(path=Path("x"), weight=2.0),))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("bach=3", "unknown key bach; did you mean batch?"),
        ("data=[{pth: x}]", r"unknown key data\[0\]\.pth; did you mean data\[0\]\.path"),
        ("batch=many", "batch is 'many'"),
        ("batch=2.5", "batch is 2.5"),
        ("mode=c", "mode is 'c'"),
        ("batch=0", "at least 1"),
        ("data=[{}]", "path is required"),
        ("batch", "expected key=value"),
    ],
)
def test_mistakes_are_named(word: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(Recipe, None, [word])


def test_a_file_that_is_not_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("batch: [1,\nmode")
    with pytest.raises(UserError, match=r"r\.yaml: not valid YAML.*line 2"):
        read(Recipe, tmp_path / "r.yaml")


def test_written_settings_read_back_the_same(tmp_path: Path) -> None:
    made = read(Recipe, None, ["data=[{path: 数据}]"])
    write_yaml(made, tmp_path / "r.yaml")
    assert read(Recipe, tmp_path / "r.yaml") == made
    assert to_dict(made)["data"][0]["path"] == "数据"


def test_flags_come_from_the_fields() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Recipe)
    assert "samples a step" in parser.format_help()
    assert from_flags(Recipe, parser.parse_args(["--batch", "3"])).batch == 3


@config_class
class Flags:
    captions: bool = option(default=True, help="slake: compose captions")
    kinds: tuple[Literal["vqa", "chat"], ...] = option(default=("vqa",), help="which kinds")
    others: tuple[str, ...] = option(default=(), help="which others")


def test_help_shows_values_as_they_are_typed() -> None:
    parser = argparse.ArgumentParser(prog="x")
    add_flags(parser, Flags)
    said = " ".join(parser.format_help().split())
    assert "--no-captions slake: do not compose captions" in said
    assert "which kinds (default: vqa)" in said
    assert said.endswith("which others")
    assert describe(Flags) == [
        ("captions", "default: true", "slake: compose captions"),
        ("kinds", "of vqa, chat; default: [vqa]", "which kinds"),
        ("others", "", "which others"),
    ]
    assert ("mode", "a or b; default: a", "one of two") in describe(Recipe)
    assert ("data.path", "required", "where") in describe(Recipe)
