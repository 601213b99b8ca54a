"""The table of docs/training.md: which architectures train, and how.

In: what the comparison before step 1 says of each architecture. Out: the lines between the two marks of the page.
"""

from collections.abc import Mapping
from pathlib import Path

from qilin.train.packed_attention import Shortcuts

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
BEGIN, END = "<!-- architectures: written by `make architectures` -->", "<!-- architectures end -->"
ROWS = ("packed, all shortcuts", "packed, without some", "one sample at a time", "refused")
Results = Mapping[str, Shortcuts | str]  # name -> the shortcuts that fit, or the refusal


def row_of(result: Shortcuts | str) -> int:
    """The index of an architecture's row in ROWS."""
    if isinstance(result, str):
        return 3
    return 2 if not result.packing else 0 if result == Shortcuts() else 1


def write_table(languages: Results, encoders: Results) -> None:
    lines = ["| | language models | vision encoders |", "|---|---|---|"]
    for row, label in enumerate(ROWS):
        cells = (", ".join(n for n, result in part.items() if row_of(result) == row) for part in (languages, encoders))
        lines.append(f"| {label} | " + " | ".join(cell or "–" for cell in cells) + " |")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text("\n".join([before + BEGIN, *lines, END + rest.partition(END)[2]]), encoding="utf-8")


def written_rows() -> tuple[dict[str, int], dict[str, int]]:
    """Name -> index of its row, of the language models and of the vision encoders in the page."""
    block = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [line.strip("| ").split(" | ") for line in block.strip().splitlines()[2:]]
    languages, encoders = ({n: i for i, row in enumerate(rows) for n in row[column].split(", ")} for column in (1, 2))
    return languages, encoders
