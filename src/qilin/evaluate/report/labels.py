"""The labels of the pages in English and Chinese, and readable names of question types (labels.json).

In: an English label, or a question type as a dataset names it. Out: markup that holds both languages; the page's switch
shows one of them. A label without a translation is shown as it is.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from markupsafe import Markup, escape


@cache
def tables() -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """(question type as datasets write it -> English, Chinese; English label -> Chinese), from labels.json."""
    content = json.loads((resources.files("qilin.evaluate.report") / "labels.json").read_text(encoding="utf-8"))
    return {name: (names[0], names[1]) for name, names in content["question_types"].items()}, content["labels"]


def both_languages(english: str, chinese: str) -> Markup:
    """A label in both languages; the page's script shows one."""
    return Markup('<span data-en="{0}" data-zh="{1}">{0}</span>').format(english, chinese)


def label(text: str) -> Markup:
    """A fixed label with its Chinese form."""
    chinese = tables()[1].get(text)
    return escape(text) if chinese is None else both_languages(text, chinese)


def svg_label(text: str) -> Markup:
    """The same inside an SVG text, for fixed labels and question types."""
    english, chinese = type_names(text)
    return Markup('<tspan data-en="{0}" data-zh="{1}">{0}</tspan>').format(english, chinese)


def name_of_type(question_type: str) -> Markup:
    """The readable name of a question type (or of any label of a breakdown)."""
    names = tables()[0].get(question_type)
    return label(question_type) if names is None else both_languages(*names)


def type_names(question_type: str) -> tuple[str, str]:
    """(English, Chinese) of a question type."""
    types, labels = tables()
    return types.get(question_type) or (question_type, labels.get(question_type, question_type))
