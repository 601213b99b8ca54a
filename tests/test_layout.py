"""The layout of the source: imports follow one direction without cycles, every module has a header, files stay small.

Imports are read from the syntax tree: at the top of a module, inside functions, under TYPE_CHECKING, and the
"module:name" strings that name a function to import later (the table of commands in cli.py).
"""

import ast
import re
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
# DESIGN.md, section 3: a folder imports from itself and from the folders before it
ORDER = (
    "core", "text", "imaging", "dataset", "pipeline", "model", "convert", "train", "evaluate", "serve", "demo", "cli",
)  # fmt: skip
# these read the dataset folder, not the code that made it; the review page shows what pipeline/review samples
NO_PIPELINE = ("model", "convert", "train", "evaluate", "serve")
REVIEW_PAGE = ("qilin.serve.review", "qilin.serve.review_app")
MAX_LINES = 500
REFERENCE = re.compile(r"(qilin(?:\.\w+)+):\w+")


@dataclass(frozen=True)
class Import:
    """One import of a qilin module by another, and where it is written."""

    source: str
    target: str
    location: str  # path:line

    def __str__(self) -> str:
        return f"{self.location}: {self.source} imports {self.target}"


def modules_of(source: Path) -> dict[str, Path]:
    """Dotted name -> file, of every module in source/qilin."""
    modules = {}
    for path in sorted((source / "qilin").rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(source: Path) -> list[Import]:
    """Every import between qilin modules, lazy ones and references in strings included."""
    modules = modules_of(source)
    return [
        Import(name, target, f"{path.relative_to(source)}:{line}")
        for name, path in modules.items()
        for target, line in targets_of(name, path, modules)
        if target != name and target != "qilin"  # qilin/__init__.py holds the version alone
    ]


def targets_of(name: str, path: Path, modules: Collection[str]) -> Iterator[tuple[str, int]]:
    """(imported module, line) of every import in one file."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            reference = REFERENCE.fullmatch(node.value)
            targets = [reference[1]] if reference else []
        else:
            continue
        yield from ((target, node.lineno) for target in targets if target.split(".")[0] == "qilin")


def folder_of(module: str) -> str:
    """qilin.train.loop -> train; qilin.cli -> cli."""
    folder = module.split(".")[1]
    assert folder in ORDER, f"{module}: {folder} is not in ORDER; add it there and to DESIGN.md, section 3"
    return folder


def backward_imports(imports: Iterable[Import]) -> list[str]:
    """Imports from a folder that comes later in ORDER."""
    return [str(i) for i in imports if ORDER.index(folder_of(i.target)) > ORDER.index(folder_of(i.source))]


def pipeline_imports(imports: Iterable[Import]) -> list[str]:
    """Imports of pipeline by a folder that must only read the dataset folder."""
    return [
        str(i)
        for i in imports
        if folder_of(i.target) == "pipeline" and folder_of(i.source) in NO_PIPELINE and i.source not in REVIEW_PAGE
    ]


def find_cycle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """A cycle in a directed graph as its nodes, the first one repeated at the end; [] if there is none."""
    graph: dict[str, set[str]] = {}
    for start, end in edges:
        graph.setdefault(start, set()).add(end)
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        for target in sorted(graph.get(node, ())):
            if cycle := visit(target, [*path, node]):
                return cycle
        finished.add(node)
        return []

    return next((cycle for node in sorted(graph) if (cycle := visit(node, []))), [])


def module_cycle(imports: Iterable[Import]) -> list[str]:
    """The imports along one cycle of modules; [] if there is none."""
    by_edge: Mapping[tuple[str, str], Import] = {(i.source, i.target): i for i in imports}
    cycle = find_cycle(by_edge)
    return [str(by_edge[edge]) for edge in zip(cycle, cycle[1:], strict=False)]


def folder_cycle(imports: Iterable[Import]) -> list[str]:
    """Folders in qilin, or subfolders of one folder, that import each other in a cycle; [] if there is none."""
    edges = set()
    for i in imports:
        source, target = i.source.split(".")[:-1], i.target.split(".")[:-1]
        shared = 0  # number of leading folders in common; the first different ones are siblings
        while source[shared : shared + 1] == target[shared : shared + 1] != []:
            shared += 1
        if len(source) > shared and len(target) > shared:
            edges.add((".".join(source[: shared + 1]), ".".join(target[: shared + 1])))
    return find_cycle(edges)


def test_imports_follow_the_order_of_folders() -> None:
    assert backward_imports(imports_of(SOURCE)) == []


def test_model_train_evaluate_and_serve_do_not_import_pipeline() -> None:
    assert pipeline_imports(imports_of(SOURCE)) == []


def test_no_modules_import_each_other_in_a_cycle() -> None:
    assert module_cycle(imports_of(SOURCE)) == []


def test_no_folders_import_each_other_in_a_cycle() -> None:
    assert folder_cycle(imports_of(SOURCE)) == []


def write_package(folder: Path, files: Mapping[str, str]) -> list[Import]:
    """Write source files below folder/qilin and return their imports."""
    for name, content in {"__init__.py": "", **files}.items():
        path = folder / "qilin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return imports_of(folder)


LAZY = "def f():\n    from qilin.train import loop\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"dataset/a.py": "import json\n", "train/loop.py": "from qilin.dataset.a import json\n"}, {}),
        (
            {"dataset/a.py": LAZY, "train/loop.py": ""},
            {"backward": ["qilin/dataset/a.py:2: qilin.dataset.a imports qilin.train.loop"]},
        ),
        (
            {"dataset/a.py": "from ..train.loop import f\n", "train/loop.py": ""},
            {"backward": ["qilin/dataset/a.py:1: qilin.dataset.a imports qilin.train.loop"]},
        ),
        (
            {"core/a.py": 'RUN = "qilin.train.loop:run"\n', "train/loop.py": ""},
            {"backward": ["qilin/core/a.py:1: qilin.core.a imports qilin.train.loop"]},
        ),
        (
            {"cli.py": 'RUN = "qilin.train.loop:run"\n', "train/loop.py": "import qilin.cli\n"},
            {
                "backward": ["qilin/train/loop.py:1: qilin.train.loop imports qilin.cli"],
                "modules": [
                    "qilin/cli.py:1: qilin.cli imports qilin.train.loop",
                    "qilin/train/loop.py:1: qilin.train.loop imports qilin.cli",
                ],
            },
        ),
        (
            {"train/a.py": "from qilin.train import b\n", "train/b.py": "def f():\n    import qilin.train.a\n"},
            {
                "modules": [
                    "qilin/train/a.py:1: qilin.train.a imports qilin.train.b",
                    "qilin/train/b.py:2: qilin.train.b imports qilin.train.a",
                ]
            },
        ),
        (
            {
                "train/x/a.py": "import qilin.train.y.b\n", "train/x/c.py": "",
                "train/y/b.py": "", "train/y/d.py": "import qilin.train.x.c\n",
            },
            {"folders": ["qilin.train.x", "qilin.train.y", "qilin.train.x"]},
        ),
        (
            {
                "pipeline/a.py": "", "demo/run.py": "import qilin.pipeline.a\n",
                "serve/review.py": "import qilin.pipeline.a\n",
            },
            {},
        ),
        (
            {"pipeline/a.py": "", "train/loop.py": "def f():\n    import qilin.pipeline.a\n"},
            {"pipeline": ["qilin/train/loop.py:2: qilin.train.loop imports qilin.pipeline.a"]},
        ),
    ],
)  # fmt: skip
def test_the_import_checks_can_fail(tmp_path: Path, files: dict[str, str], expected: dict[str, list[str]]) -> None:
    imports = write_package(tmp_path, files)
    checks = {
        "backward": backward_imports(imports),
        "pipeline": pipeline_imports(imports),
        "modules": module_cycle(imports),
        "folders": folder_cycle(imports),
    }
    assert {name: messages for name, messages in checks.items() if messages} == expected


def test_a_folder_without_a_position_in_the_order_is_reported() -> None:
    with pytest.raises(AssertionError, match="misc is not in ORDER"):
        backward_imports([Import("qilin.misc.a", "qilin.core.files", "qilin/misc/a.py:1")])


def test_every_module_has_a_header() -> None:
    contents = {name: path.read_text(encoding="utf-8") for name, path in modules_of(SOURCE).items()}
    assert [name for name, text in contents.items() if text.strip() and not ast.get_docstring(ast.parse(text))] == []


def test_no_file_is_too_long_to_read() -> None:
    lines = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules_of(SOURCE).values()}
    too_long = {path: count for path, count in lines.items() if count > MAX_LINES}
    assert too_long == {}, f"longer than {MAX_LINES} lines; split them"


def tracked_files() -> list[Path]:
    """Every text file in git."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    output = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in output.split("\0") if name]
    return [path for path in files if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


def test_no_tracked_file_contains_an_absolute_path_of_one_machine() -> None:
    prefixes = ("/" + "work/", "/" + "home/", "/" + "root/")
    hits = [
        f"{path.relative_to(ROOT)}: {prefix}"
        for path in tracked_files()
        for prefix in prefixes
        if prefix in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert hits == []
