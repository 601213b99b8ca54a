"""docs/migrating.md: each option in its tables gets, from a recipe, the hint that the page gives."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from qilin.train.config import TrainConfig
from qilin.train.recipe_keys import find_other_name

DOCS = Path(__file__).parents[2] / "docs"
KEYS = {field.name for field in fields(TrainConfig)}


def rows(page: str) -> list[list[list[str]]]:
    """The names in backticks of each cell, for every row of the table of options."""
    text = (DOCS / page).read_text(encoding="utf-8")
    table = text.split("| LLaMA-Factory | ms-swift |")[1].split("\n\n")[0]
    cells = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return [[re.findall(r"`([^`]+)`", cell) for cell in row] for row in cells]


@pytest.mark.parametrize("page", ["migrating.md", "zh/migrating.md"])
def test_every_option_of_the_table_has_the_key_of_its_row(page: str) -> None:
    table = rows(page)
    assert len(table) > 30
    for *others, ours, _ in table:
        for name in {name for cell in others for name in cell} - KEYS:
            key = find_other_name(name)[0]
            assert key in (ours or [""]), f"{name}: the page says {ours}, a recipe says {key!r}"
        assert all(key.split(".")[0] in KEYS for key in ours)


def test_the_pages_have_the_same_options() -> None:
    assert [row[:4] for row in rows("migrating.md")] == [row[:4] for row in rows("zh/migrating.md")]


@pytest.mark.parametrize("page", ["migrating.md", "zh/migrating.md"])
def test_what_has_no_equivalent_is_refused_with_a_reason(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8").split("## ")[3]
    rows_of_names = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    names = [name for row in rows_of_names for name in re.findall(r"`(\w+)`", row)]
    assert len(names) > 10
    assert not [name for name in names if find_other_name(name) == ("", "")]
