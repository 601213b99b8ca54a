"""Building blocks of both pages, the report and the comparison: Jinja templates, image cards, thumbnails.

Inputs: predictions and the dataset for their images. Outputs: self-contained HTML; every template is autoescaped.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from qilin.core.files import data_uri, write_atomic
from qilin.dataset.reader import Dataset
from qilin.evaluate.report.labels import both_languages, label, name_of_type, svg_label, type_names
from qilin.evaluate.results import Prediction
from qilin.imaging.decode import to_rgb

# About 5 kB per thumbnail: this many images keep the page near 3 MB, which a browser opens at once.
MAX_IMAGES = 400
THUMBNAIL_SIDE = 192  # pixels
MAX_SHOWN_CHARACTERS = 2_000  # of one answer


@cache
def environment() -> jinja2.Environment:
    """The templates beside this file. An undefined name is an error."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("qilin.evaluate.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["label"] = label
    templates.filters["svg_label"] = svg_label
    templates.filters["type_name"] = name_of_type
    templates.filters["type_names"] = type_names
    templates.globals["both"] = both_languages
    templates.filters["shorten"] = shorten_answer
    templates.filters["score"] = format_score
    templates.filters["interval"] = format_interval
    templates.filters["p_value"] = lambda value: "< 0.0001" if value < 0.0001 else f"{value:.4f}"
    return templates


def render(template: str, **context: Any) -> Markup:
    """A template as HTML or SVG that other templates include without escaping."""
    return Markup(environment().get_template(template).render(context))


def write_page(path: Path, template: str, language: str = "en", **context: Any) -> None:
    """Renders a page, whose labels are first shown in `language` (en or zh), and writes it atomically."""
    write_atomic(path, render(template, language=language, **context))


def shorten_answer(text: str) -> str:
    """The first MAX_SHOWN_CHARACTERS of an answer: a model that repeats itself must not fill the page."""
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]} … ({len(text):,} characters)"


def format_score(value: float | None, signed: bool = False) -> str:
    """Three decimals, or a dash for a missing value."""
    return "–" if value is None else f"{value:{'+' if signed else ''}.3f}"


def format_interval(interval: Sequence[float] | None, signed: bool = False) -> str:
    """Low and high end of an interval."""
    return " … ".join(format_score(end, signed) for end in interval) if interval else "no interval"


@dataclass(frozen=True)
class ImageCard:
    """An image, or the images of one question, with all rows about it."""

    thumbnails: dict[str, str]  # image_id -> data URI
    predictions: list[Prediction]


def sample_by_image(predictions: Sequence[Prediction], max_images: int = MAX_IMAGES) -> list[Prediction]:
    """All rows about at most `max_images` images, drawn with a fixed seed; a row without an image counts as one."""
    keys = list(dict.fromkeys(_image_key(p) for p in predictions))
    if len(keys) <= max_images:
        return list(predictions)
    drawn = np.random.default_rng(0).choice(len(keys), max_images, replace=False)
    sampled = {keys[i] for i in drawn}
    return [p for p in predictions if _image_key(p) in sampled]


def image_cards(predictions: Sequence[Prediction], dataset: Dataset) -> list[ImageCard]:
    """One card per image (or set of images), in order of first appearance."""
    cards: dict[tuple[str, ...], ImageCard] = {}
    for p in predictions:
        key = _image_key(p)
        if key not in cards:
            cards[key] = ImageCard({i: thumbnail_uri(dataset.image(i).bytes) for i in p.image_ids}, [])
        cards[key].predictions.append(p)
    return list(cards.values())


def _image_key(p: Prediction) -> tuple[str, ...]:
    return p.image_ids or (p.id,)


def thumbnail_uri(image_bytes: bytes) -> str:
    """An encoded image as a small JPEG in a data URI."""
    image = to_rgb(image_bytes)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=72)
    return data_uri(file.getvalue(), "image/jpeg")


def question_types(predictions: Sequence[Prediction]) -> list[str]:
    """The question types that occur, sorted."""
    return sorted({p.question_type for p in predictions if p.question_type})
