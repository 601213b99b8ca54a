"""Configs: typed, frozen, flattened where declared; every mistake names its field and the closest known key."""

import argparse
from pathlib import Path
from typing import Literal

import pytest

from qilin.core.config import (
    add_flags,
    build_config,
    config_class,
    flat_values,
    from_flags,
    list_fields,
    option,
    read_config,
    to_dict,
    write_yaml,
)
from qilin.core.errors import UserError


@config_class
class Source:
    path: Path = option(help="dataset folder")
    weight: float = option(default=1.0, help="sampling weight")


@config_class
class Recipe:
    batch: int = option(default=8, help="samples per step")
    rate: float = option(default=1e-3, help="learning rate")
    data: tuple[Source, ...] = option(default=(), help="training data")
    mode: Literal["a", "b"] = option(default="a", help="one of two")

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; expected at least 1")


def test_overrides_win_over_the_file_and_get_their_types(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("batch: 4\nmode: b\n")
    config = read_config(Recipe, tmp_path / "r.yaml", ["batch=16", "rate=2e-5", "data=[{path: x, weight: 2}]"])
    assert config == Recipe(batch=16, rate=2e-5, mode="b", data=(Source(path=Path("x"), weight=2.0),))


@pytest.mark.parametrize(
    ("override", "message"),
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
def test_errors_name_the_key_and_the_value(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_config(Recipe, None, [override])


def test_invalid_yaml_is_reported_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("batch: [1,\nmode")
    with pytest.raises(UserError, match=r"r\.yaml: not valid YAML.*line 2"):
        read_config(Recipe, tmp_path / "r.yaml")


def test_a_written_config_reads_back_equal(tmp_path: Path) -> None:
    config = read_config(Recipe, None, ["data=[{path: 数据}]"])
    write_yaml(config, tmp_path / "r.yaml")
    assert read_config(Recipe, tmp_path / "r.yaml") == config
    assert to_dict(config)["data"][0]["path"] == "数据"


def test_flags_come_from_the_fields() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Recipe)
    assert "samples per step" in parser.format_help()
    assert from_flags(Recipe, parser.parse_args(["--batch", "3"])).batch == 3


@config_class
class Flags:
    captions: bool = option(default=True, help="slake: compose captions")
    kinds: tuple[Literal["vqa", "chat"], ...] = option(default=("vqa",), help="which kinds")
    others: tuple[str, ...] = option(default=(), help="which others")


def test_help_shows_defaults_and_choices() -> None:
    parser = argparse.ArgumentParser(prog="x")
    add_flags(parser, Flags)
    text = " ".join(parser.format_help().split())
    assert "--no-captions slake: do not compose captions" in text
    assert "which kinds (default: vqa)" in text
    assert text.endswith("which others")
    assert list_fields(Flags) == [
        ("captions", "default: true", "slake: compose captions"),
        ("kinds", "list of vqa, chat; default: [vqa]", "which kinds"),
        ("others", "", "which others"),
    ]
    assert ("mode", "a or b; default: a", "one of two") in list_fields(Recipe)
    assert ("data.path", "required", "dataset folder") in list_fields(Recipe)


@config_class
class Execution:
    workers: int = option(default=0, help="worker processes")
    json: bool = option(default=False, help="print JSON")


@config_class
class Service:
    endpoint: str = option(help="URL")
    cache: Path | None = option(default=None, help="cache file")
    concurrency: int = option(default=16, help="concurrent requests")

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}; expected at least 1")


@config_class
class Step:
    source: Path = option(help="dataset folder")
    service: Service = option(default={"cache": Path("replies.sqlite")}, flatten=True, help="service")
    execution: Execution = option(default=Execution(workers=2), flatten=True, help="execution")


def test_flattened_configs_share_the_keys_and_flags_of_the_outer_class(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Step, ("source",))
    config = from_flags(Step, parser.parse_args(["data", "--endpoint", "http://x/v1", "--json", "--concurrency", "4"]))
    expected = Step(
        source=Path("data"),
        service=Service(endpoint="http://x/v1", cache=Path("replies.sqlite"), concurrency=4),
        execution=Execution(workers=2, json=True),
    )
    assert config == expected
    flat = {
        "source": "data", "endpoint": "http://x/v1", "cache": "replies.sqlite", "concurrency": 4,
        "workers": 2, "json": True,
    }  # fmt: skip
    assert to_dict(config) == flat
    assert list(to_dict(config)) == [key for key, _, _ in list_fields(Step)]
    assert flat_values(config)["cache"] == Path("replies.sqlite")
    assert build_config(Step, flat, "test") == expected
    write_yaml(config, tmp_path / "step.yaml")
    assert read_config(Step, tmp_path / "step.yaml") == expected
    assert ("cache", "default: replies.sqlite", "cache file") in list_fields(Step)
    assert ("workers", "default: 2", "worker processes") in list_fields(Step)
    assert ("endpoint", "required", "URL") in list_fields(Step)
    assert "(default: replies.sqlite)" in parser.format_help()
    assert "URL (required)" in parser.format_help()
    assert Step(source=Path("data"), service=expected.service).execution.workers == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"endpiont": "x"}, "test: unknown key endpiont; did you mean endpoint?"),
        ({"service": {"endpoint": "x"}}, "unknown key service"),
        ({}, "test: endpoint is required"),
        ({"endpoint": "x", "workers": "many"}, "test: workers is 'many'"),
        ({"endpoint": "x", "concurrency": 0}, "test: concurrency is 0; expected at least 1"),
    ],
)
def test_errors_about_flattened_keys_name_the_flat_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_config(Step, {"source": "data", **values}, "test")


def test_an_unknown_key_of_several_lines_is_one_line() -> None:
    with pytest.raises(UserError, match="unknown key") as error:
        build_config(Source, {"path": "x", "pat\n\nh": 1, "x" * 500: 2}, "here")
    assert "\n" not in str(error.value)
