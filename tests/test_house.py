"""The rules of the house, read from its source: one direction of imports, no torch before it is needed, small files."""

import ast
import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qilin.cli import COMMANDS
from qilin.core.config import nested_configs

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
# a room imports from itself and from the rooms before it; __init__ holds the version alone
ROOMS = (
    ("__init__", "core"),
    ("cli",),  # imports none of the folders below: it names them in strings and loads one to run it
    ("text",),
    ("imaging",),
    ("dataset",),
    ("pipeline",),
    ("model",),
    ("convert",),
    ("train",),
    ("evaluate",),
    ("serve",),
    ("demo",),
)
LINES = 500


def modules(source: Path) -> dict[str, Path]:
    """Dotted name -> file, of everything under src/qilin."""
    found = {}
    for path in sorted((source / "qilin").rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int, bool]]:
    """(module of qilin imported, line, whether at import time) for every import, inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {id(inner) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for inner in ast.walk(f)}  # fmt: skip
    late |= {id(inner) for test in ast.walk(tree) if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.dump(test.test)
             for inner in ast.walk(test)}  # fmt: skip
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        else:
            continue
        for target in targets:
            if target == "qilin" or target.startswith("qilin."):
                yield target, node.lineno, id(node) not in late


def room(name: str) -> int:
    """The place of a module's room in the order."""
    part = name.split(".")[1] if "." in name else "__init__"
    places = [place for place, names in enumerate(ROOMS) if part in names]
    assert places, f"{name}: {part} has no place in ROOMS; give it one"
    return places[0]


def arrows_back(source: Path) -> list[str]:
    """Every import that points to a later room."""
    known = modules(source)
    return [
        f"{path.relative_to(source)}:{line}: {name} imports {target}"
        for name, path in known.items()
        for target, line, _ in imports(name, path, known)
        if room(target) > room(name)
    ]


def circle(source: Path) -> list[str]:
    """A circle of modules that import each other while being imported, or [] where there is none."""
    known = modules(source)
    edges = {name: {to for to, _, now in imports(name, path, known) if now} for name, path in known.items()}
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for target in sorted(edges.get(name, ())):
            if found := walk(target, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := walk(name, []))), [])


def test_imports_go_one_way() -> None:
    assert arrows_back(SOURCE) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(SOURCE) == []


def build(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / "qilin" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "qilin" / "__init__.py").write_text("")
    return folder


def test_the_two_tests_above_can_fail(tmp_path: Path) -> None:
    sound = build(
        tmp_path / "sound", dataset__rows="import json\n", train__loop="from qilin.dataset.rows import json\n"
    )
    assert (arrows_back(sound), circle(sound)) == ([], [])
    back = build(tmp_path / "back", dataset__rows="def f():\n    from qilin.train import loop\n", train__loop="")
    assert arrows_back(back) == ["qilin/dataset/rows.py:2: qilin.dataset.rows imports qilin.train.loop"]
    relative = build(tmp_path / "relative", dataset__rows="from ..train.loop import f\n", train__loop="def f(): ...\n")
    assert len(arrows_back(relative)) == 1
    round_ = build(
        tmp_path / "round", dataset__a="from qilin.dataset import b\n", dataset__b="import qilin.dataset.a\n"
    )
    assert circle(round_) == ["qilin.dataset.a", "qilin.dataset.b", "qilin.dataset.a"]
    late = build(
        tmp_path / "late",
        dataset__a="from qilin.dataset import b\n",
        dataset__b="def f():\n    import qilin.dataset.a\n",
    )
    assert circle(late) == []


HEAVY = ("torch", "transformers", "datasets", "sklearn", "tensorboard")
CHECK = """
import contextlib, io, sys
{work}
heavy = [name for name in {heavy!r} if name in sys.modules]
assert not heavy, f"loads {{heavy}}"
"""


def runs_light(work: str) -> subprocess.CompletedProcess[str]:
    """Run `work` in a fresh interpreter that fails if something heavy was imported."""
    code = CHECK.format(work=work, heavy=HEAVY)
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)


def asks(words: list[str]) -> str:
    return (
        "from qilin.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    main({words!r})"
    )


def test_importing_qilin_and_its_overview_are_light() -> None:
    for work in ("import qilin, qilin.cli, qilin.core.config, qilin.core.errors", asks(["--help"]), asks([])):
        found = runs_light(work)
        assert found.returncode == 0, found.stderr
    assert "loads ['torch'" in runs_light("import torch").stderr  # control


EVERY_HELP = """
from qilin.cli import COMMANDS, main
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    missing = [line for line in COMMANDS[name].example.splitlines() if line not in said.getvalue()]
    assert not missing, f"{{name}} --help lacks {{missing}}"
    assert not [big for big in {heavy!r} if big in sys.modules], f"{{name}} --help loads something heavy"
"""


def test_help_of_every_command_is_light_and_has_an_example() -> None:
    """One after the other in one interpreter: the first that is not light is named."""
    found = runs_light(EVERY_HELP.format(heavy=HEAVY))
    assert found.returncode == 0, found.stderr[-2000:]
    assert all(COMMANDS[name].example.startswith(f"qilin {name}") for name in COMMANDS)


def config_class_of(place: str) -> type:
    module, name = place.split(":")
    made = getattr(importlib.import_module(module), name)
    assert isinstance(made, type)
    return made


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_has_a_line_of_help(name: str) -> None:
    import typing

    waiting, met = [config_class_of(COMMANDS[name].config)], set()
    while waiting:
        cls = waiting.pop()
        met.add(cls)
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            assert field.metadata.get("help"), f"{cls.__name__}.{field.name} has no line of help"
            waiting += [inner for inner in nested_configs(hints[field.name]) if inner not in met]
    names = {field.name for field in dataclasses.fields(config_class_of(COMMANDS[name].config))}
    assert set(COMMANDS[name].positional) <= names


def test_every_module_opens_with_what_lives_there() -> None:
    bare = [
        name
        for name, path in modules(SOURCE).items()
        if path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert bare == []


def test_no_file_grows_past_what_a_reader_holds() -> None:
    long = {str(path): n for path in modules(SOURCE).values() if (n := len(path.read_text().splitlines())) > LINES}
    assert long == {}, f"longer than {LINES} lines; divide them"


def tracked() -> list[Path]:
    """Every text file git knows of."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in files if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    here = ("/" + "work/", "/" + "home/", "/" + "root/")
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked()
        for word in here
        if word in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert found == []
