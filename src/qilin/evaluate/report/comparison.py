"""The page of `qilin compare --report`: two systems' answers beside each image, with who was right.

In: the comparison, both systems' rows, their marks, the dataset. Out: one self-contained HTML page like the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qilin.dataset.reader import Dataset
from qilin.evaluate.report.html import (
    MOST_IMAGES,
    answers_section,
    banners,
    choose,
    escape,
    image_cards,
    interval_text,
    is_drawn,
    section,
    tile,
    write_page,
)
from qilin.evaluate.report.report import manifest_section

Row = Mapping[str, Any]
Marks = tuple[str, str, float, float]
STATES = ("all", "only A", "only B", "both", "neither", "caption")


def write_comparison(
    path: Path,
    found: Mapping[str, Any],
    rows_a: Sequence[Row],
    rows_b: Sequence[Row],
    marks: Sequence[Marks],
    data: Dataset,
) -> None:
    """Write the page, whole or not at all."""
    shown = choose(rows_a, MOST_IMAGES)
    other = {row["id"]: row for row in rows_b}
    mark = {row["id"]: m for row, m in zip(rows_a, marks, strict=True)}
    cards = image_cards(shown, lambda row: line(row, other[row["id"]], mark[row["id"]]), data)
    write_page(
        path,
        [
            banners(None, is_drawn(data), found),
            headline(found, data),
            section("Where they differ", table(found)),
            section("Answers", answers_section(cards, rows_a, shown, STATES)),
            section("How these numbers were made", manifest_section({**found, "rules": {}})),
        ],
    )


def headline(found: Mapping[str, Any], data: Dataset) -> str:
    """Both names and the difference of the parts that there are."""
    names, tiles = found["names"], []
    for part, title in (("all", "accuracy, A − B"), ("captions", "facts F1, A − B")):
        if found[part]["n"]:
            note = interval_text(found[part]["interval"], signed=True)
            tiles.append(tile(title, f"{found[part]['difference']:+.3f}", note))
            for letter in ("a", "b"):
                tiles.append(
                    tile(f"{letter.upper()}: {names[letter]}", f"{found[part][letter]:.3f}", f"n {found[part]['n']}")
                )
    return (
        f"<header><p class='eyebrow'>Qilin comparison</p><h1>{escape(names['a'])} "
        f"<span>against</span> {escape(names['b'])} "
        f"<span>on {escape(data.path.name)}</span></h1><div class='tiles'>{''.join(tiles)}</div>"
        "<p class='note'>Paired on the same questions. Intervals (95 %) by bootstrap, p by sign flips, both over "
        "independent images.</p></header>"
    )


def table(found: Mapping[str, Any]) -> str:
    """Every part in figures."""
    head = "".join(
        f"<th>{name}</th>" for name in ("", "n", "A", "B", "A − B", "95 % interval", "p", "only A", "only B")
    )
    parts = [(name, found[name]) for name in ("all", "exact", "closed", "open", "captions")]
    lines = []
    for name, part in [*parts, *found["by_question_type"].items()]:
        if part["n"]:
            cells = (part["n"], f"{part['a']:.3f}", f"{part['b']:.3f}", f"{part['difference']:+.3f}",
                     interval_text(part["interval"], signed=True), f"{part['p_value']:.4f}", part["only_a"],
                     part["only_b"])  # fmt: skip
            lines.append(f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def line(row: Row, other: Row, marks: Marks) -> str:
    """Question, reference, both answers with their signs and rules."""
    rule_a, rule_b, a, b = marks
    if rule_a == "caption":
        state, style = "caption", "caption"
    else:
        state = {(1.0, 0.0): "only A", (0.0, 1.0): "only B", (1.0, 1.0): "both", (0.0, 0.0): "neither"}[(a, b)]
        style = {"both": "right", "neither": "wrong"}.get(state, "unparsable")
    sign = {"only A": "A", "only B": "B", "both": "✓", "neither": "✗", "caption": "¶"}[state]

    def answer(letter: str, text: str, mark: float, rule: str) -> str:
        figure = f"{mark:.2f}" if rule == "caption" else ("✓" if mark else "✗")
        said = escape(text) or "<i>nothing</i>"
        return f"<p><span class='tag'>{letter} {figure}</span>{said} <span class='rule'>{escape(rule)}</span></p>"

    return (
        f"<li class='{style}' data-state='{state}' data-type='{escape(row.get('question_type') or '')}'>"
        f"<span class='sign' title='{state}'>{sign}</span><div><p class='question'>{escape(row['question'])}</p>"
        f"<p><span class='tag'>truth</span>{escape(row['reference'])}</p>"
        f"{answer('A', row['prediction'], a, rule_a)}{answer('B', other['prediction'], b, rule_b)}</div></li>"
    )
