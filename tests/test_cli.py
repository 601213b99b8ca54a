"""The command line: overview and --help are fast and complete, examples parse, mistakes are reported with a hint."""

import dataclasses
import os
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from qilin.cli import COMMANDS, RENAMED, load, main, make_parser, split_command
from qilin.core.config import flat_fields, nested_configs

SOURCE = Path(__file__).parents[1] / "src"
HEAVY = ("torch", "transformers", "datasets", "sklearn", "tensorboard")
CHECK = """
import contextlib, io, sys
{code}
heavy = [name for name in {heavy!r} if name in sys.modules]
assert not heavy, f"loads {{heavy}}"
"""


def run_without_heavy_imports(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter that fails if a heavy package was imported."""
    program = CHECK.format(code=code, heavy=HEAVY)
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)


def main_with(arguments: list[str]) -> str:
    """Python code that runs the command line and discards its output."""
    return (
        "from qilin.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    main({arguments!r})"
    )


def test_import_and_overview_load_no_heavy_package() -> None:
    for code in ("import qilin, qilin.cli, qilin.core.config, qilin.core.errors", main_with(["--help"]), main_with([])):
        result = run_without_heavy_imports(code)
        assert result.returncode == 0, result.stderr
    assert "loads ['torch'" in run_without_heavy_imports("import torch").stderr  # control


EVERY_HELP = """
from qilin.cli import COMMANDS, main
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    missing = [line for line in COMMANDS[name].example.splitlines() if line not in output.getvalue()]
    assert not missing, f"{{name}} --help lacks {{missing}}"
    assert not [package for package in {heavy!r} if package in sys.modules], f"{{name}} --help loads a heavy package"
"""


def test_help_of_every_command_loads_no_heavy_package_and_shows_an_example() -> None:
    """One interpreter for all commands: the first one that loads a heavy package is named."""
    result = run_without_heavy_imports(EVERY_HELP.format(heavy=HEAVY))
    assert result.returncode == 0, result.stderr[-2000:]
    assert all(COMMANDS[name].example.startswith(f"qilin {name}") for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse(name: str) -> None:
    for line in COMMANDS[name].example.splitlines():
        command_name, arguments = split_command(shlex.split(line)[1:])
        assert command_name in COMMANDS, line
        command = COMMANDS[command_name]
        parser = make_parser(command_name, command, load(command.config))
        _, unknown = parser.parse_known_intermixed_args(arguments)
        assert unknown == [], line


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_line_of_help(name: str) -> None:
    config_class = load(COMMANDS[name].config)
    pending, seen_classes = [config_class], set()
    while pending:
        cls = pending.pop()
        seen_classes.add(cls)
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            has_help = field.metadata.get("help") or "flatten" in field.metadata
            assert has_help, f"{cls.__name__}.{field.name} has no line of help"
            pending += [inner for inner in nested_configs(hints[field.name]) if inner not in seen_classes]
    assert set(COMMANDS[name].positional) <= {field.name for field in flat_fields(config_class)}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["tarin"], "did you mean train"),
        (["data", "improt"], "did you mean data import"),
        (["data", "look"], "data filter-figures"),
        (["data", "to", "llava", "a", "b"], "data export"),
        (["convert", "a", "b", "--chekc"], "did you mean --check"),
        (["score", "a.jsonl", "--as", "vlmevalkit"], "--scorer"),
        (["convert", "a", "b", "c"], "'c'"),
        (["convert", "a", "b", "--dtype", "fp8"], "dtype is 'fp8'"),
    ],
)
def test_mistakes_exit_with_2_and_a_hint(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert hint in capsys.readouterr().err


def test_renamed_commands_exist() -> None:
    assert {new for old, new in RENAMED.items() if not old.startswith("-")} <= set(COMMANDS)
