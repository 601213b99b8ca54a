"""What both pages share, the report and the comparison: banners, sections, tiles, cards of images with answers.

In: rows, a function that writes one of them, the dataset for its images. Out: HTML for report.html's frame.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from qilin.core.files import write_atomic
from qilin.dataset.reader import Dataset
from qilin.imaging.decode import to_rgb

# Some 5 kB a thumbnail: this many images keep the page near 3 MB, which a browser opens at once.
MOST_IMAGES = 400
THUMBNAIL_SIDE = 192
DRAWN = "drawn"

Row = Mapping[str, Any]


def write_page(path: Path, body: Sequence[str]) -> None:
    """The parts in the frame of report.html, whole or not at all."""
    page = (resources.files("qilin") / "evaluate" / "report" / "report.html").read_text(encoding="utf-8")
    write_atomic(path, page.replace("{{body}}", "\n".join(body)))


def is_drawn(data: Dataset) -> bool:
    """Whether the dataset's images were drawn, by what their import recorded."""
    return (data.manifest.get("settings") or {}).get("importer") == DRAWN


def escape(text: Any) -> str:
    return html.escape(str(text))


def section(title: str, content: str) -> str:
    """A titled part of the page; nothing where there is no content."""
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def banners(label: str | None, drawn: bool, scores: Mapping[str, Any]) -> str:
    """What must not be overlooked: a quick run, drawn images, a part of the split, not for diagnosis."""
    found = []
    if label:
        found.append(f'<div class="banner loud"><b>{escape(label)}</b></div>')
    if drawn:
        found.append(
            '<div class="banner loud"><b>Drawn images.</b> The images were drawn by a program with known truth; '
            "no patient is shown, and the scores say nothing about medicine. 图片由程序绘制，并非真实病例。</div>"
        )
    limit = (scores["manifest"].get("settings") or {}).get("limit")
    if limit:
        found.append(f'<div class="banner">Only the first {limit} samples of the split were answered.</div>')
    found.append('<div class="banner quiet">For research, not for diagnosis. 仅供研究，不可用于诊断。</div>')
    return "".join(found)


def tile(title: str, value: str, note: str) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<div class='tile'><p>{escape(title)}</p><b>{value}</b>{small}</div>"


def interval_text(interval: Sequence[float] | None, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{interval[0]:{sign}.3f} … {interval[1]:{sign}.3f}" if interval else "no interval"


def choose(rows: Sequence[Row], most: int) -> list[Row]:
    """All rows of at most `most` images, picked by a fixed seed; rows without an image count as one each."""
    keys = list(dict.fromkeys(key_of(row) for row in rows))
    if len(keys) > most:
        picked = np.random.default_rng(0).choice(len(keys), most, replace=False)
        keys = [keys[i] for i in sorted(picked)]
    kept = set(keys)
    return [row for row in rows if key_of(row) in kept]


def key_of(row: Row) -> tuple[str, ...]:
    return tuple(row.get("image_ids") or ()) or (row["id"],)


def image_cards(rows: Sequence[Row], line: Callable[[Row], str], data: Dataset) -> list[str]:
    """One card an image (or set of images) with a line for everything asked about it."""
    by_key: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        by_key.setdefault(key_of(row), []).append(row)
    cards = []
    for mine in by_key.values():
        images = "".join(
            f'<img loading="lazy" alt="image {i[:8]}" src="{thumbnail_uri(data.image(i).bytes)}">'
            for i in mine[0].get("image_ids") or ()
        )
        lines = "".join(map(line, mine))
        images = images or "<i>no image</i>"
        cards.append(f"<article class='card'><div class='images'>{images}</div><ul>{lines}</ul></article>")
    return cards


def thumbnail_uri(data: bytes) -> str:
    """An image as a small JPEG in a data: address."""
    image = to_rgb(data)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def answers_section(cards: Sequence[str], rows: Sequence[Row], shown: Sequence[Row], states: Sequence[str]) -> str:
    """Filter buttons, one a state, and the cards."""
    buttons = "".join(
        f'<button data-filter="state" data-value="{state}" aria-pressed="{str(state == states[0]).lower()}">'
        f"{state}</button>"
        for state in states
    )
    types = sorted({str(row["question_type"]) for row in shown if row.get("question_type")})
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in types)
    select = (
        f"<select data-filter='type'><option value=''>every question type</option>{options}</select>" if types else ""
    )
    note = (
        "" if len(rows) == len(shown) else f"<p class='note'>{len(shown)} of {len(rows)} answers are shown, by lot.</p>"
    )
    search = "<input type='search' placeholder='search 搜索' aria-label='search'>"
    filters = f"<div class='filters'>{buttons}{select}{search}<output></output></div>"
    return f"{filters}{note}<div class='cards'>{''.join(cards)}</div>"
