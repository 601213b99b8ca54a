"""No vague identifiers: a name says what a variable holds or what a function does.

`python tests/test_vocabulary.py` prints the number of vague names per folder, and with a folder's name each of them.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE, BENCH = ROOT / "src" / "qilin", ROOT / "bench"

PARTICIPLE = "a participle does not say what the variable holds; use a noun: path, answer_text, row_index, samples"
PRONOUN = "a pronoun needs a reader who knows whose; name the thing: expected_sides, local_rank, translated_text"
VAGUE = {
    **dict.fromkeys(("found", "said", "told", "made", "kept", "asked", "given", "looked", "gone", "held"), PARTICIPLE),
    **dict.fromkeys(("begun", "spoken", "strange"), PARTICIPLE),
    **dict.fromkeys(("mine", "theirs", "ours", "own", "there"), PRONOUN),
    **dict.fromkeys(
        ("aside", "beside", "way", "whole"), "name what it is: a reserved share, a process, a path, a total"
    ),
    "tell": "say what the function does: print_summary, format_error, write_log",
    "place": "place was used for an index, a path, a URL and an anatomical site; name which of them",
    "places": "places was used for indices, paths and anatomical sites; name which of them",
    "most": "use maximum, max_… or majority_…",
    "least": "use minimum or min_…",
}


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of every variable, attribute, parameter, function, class and import alias that a module binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname, node.lineno) for alias in node.names if alias.asname)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name, node.lineno


def vague_names(source: Path) -> list[tuple[str, int, str]]:
    """(path relative to `source`, line, name) of every vague name below a folder; line 0 for a file or folder name."""
    hits = []
    for path in sorted(source.rglob("*.py")):
        relative = path.relative_to(source)
        names = [(name, 0) for name in relative.with_suffix("").parts]
        names += bound_names(ast.parse(path.read_text(encoding="utf-8")))
        hits += [(relative.as_posix(), line, name) for name, line in names if name.strip("_").lower() in VAGUE]
    return hits


@pytest.mark.parametrize("folder", [SOURCE, BENCH], ids=["src", "bench"])
def test_no_name_is_vague(folder: Path) -> None:
    messages = [f"{path}:{line}: {name}: {VAGUE[name.strip('_').lower()]}" for path, line, name in vague_names(folder)]
    assert not messages, f"{len(messages)} vague names in {folder.relative_to(ROOT)}:\n" + "\n".join(messages)


def test_the_check_can_fail(tmp_path: Path) -> None:
    (tmp_path / "told").mkdir()
    (tmp_path / "told" / "a.py").write_text("")
    (tmp_path / "b.py").write_text(
        "import json as kept\n"
        "def tell(most, *, _given=1): found = [made for made in most]\n"
        "class Place: least: int = 0\n"
        "self.there = lambda asked: 0\n"
        "path = 'found'  # told\n"
        "with open(path) as held, open(path) as file: (looked := file.found)\n"
    )
    expected = {
        (1, "kept"), (2, "tell"), (2, "most"), (2, "_given"), (2, "found"), (2, "made"), (3, "Place"), (3, "least"),
        (4, "there"), (4, "asked"), (6, "held"), (6, "looked"),
    }  # fmt: skip
    hits = vague_names(tmp_path)
    assert {(line, name) for path, line, name in hits if path == "b.py"} == expected
    assert [(path, line, name) for path, line, name in hits if path != "b.py"] == [("told/a.py", 0, "told")]


if __name__ == "__main__":
    hits = vague_names(SOURCE)
    counts = Counter(path.partition("/")[0] for path, _, _ in hits)
    for folder, count in sorted(counts.items()):
        print(f"{count:5}  {folder}")
    print(f"{len(hits):5}  all")
    for path, line, name in hits:
        if path.partition("/")[0] in sys.argv[1:]:
            print(f"src/qilin/{path}:{line}: {name}")
