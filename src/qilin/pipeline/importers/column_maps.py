"""Published data sets that are tables, each as one declarative map from its columns to samples.

In: the folder or table as it is downloaded. Out: rows. A text with {columns} is filled from the row and is empty where
one of its cells is. `layout` says whose reading of the files this follows.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import CAPTION_INSTRUCTION, ImageFile, ImportRow, RejectedRow, guess_answer_type
from qilin.dataset.schema import assistant, user
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.table_files import KINDS, read_rows
from qilin.pipeline.pubmed.image_lookup import resolve
from qilin.text.normalize import has_chinese

LETTERS = "ABCDEFGH"
HOLE = re.compile(r"\{([^{}]+)\}")
ARTICLE = re.compile(r"(PMC\d+)_")
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Map:
    """Where the parts of a sample stand in one layout."""

    layout: str
    files: tuple[str, ...]  # patterns below the source folder
    images: str  # a column that holds a list makes several names
    folders: tuple[str, ...] = ("", "images", "figures")  # where images lie, from the table
    id: str = ""
    group: str = ""  # default: the article in an image's name
    texts: Mapping[str, str] = field(default_factory=dict)  # kind (caption, context, inline, report) -> its text
    question: str = ""
    answer: str = ""
    choices: tuple[str, ...] = ()  # columns; `answer` is then one of them, or its letter
    answer_type: str = ""
    question_type: str = ""
    modality: str = ""
    body_part: str = ""
    split: str = ""  # default: train, val or test at the beginning of the table's name
    only: tuple[str, str] | None = None  # (column, pattern): rows of another kind are not this data set's
    lead: str = r""  # a pattern taken off the beginning of questions, answers and choices
    license: str | None = None


COLUMN_MAPS = {
    "pmc-oa": Map(
        "the page of axiong/pmc_oa and its loader (2023), which quote rows", ("pmc_oa*.jsonl",), "{image}",
        folders=("", "images", "caption_T060_filtered_top4_sep_v0_subfigures"), id="{image}",
        texts={"caption": "{caption}"},
    ),
    "pmc-case-report": Map(
        "chaoyi-wu/RadFM, src/Dataset/dataset/case_report.py (PMC_id, img_ref, context, question, answer), and "
        "the fields that the page of the hub's filtered version lists (the same and inline; parquet)",
        ("*.csv", "train*.parquet", "test*.parquet"),
        "{PMC_id}_{img_ref}.jpg", group="{PMC_id}", texts={"context": "{context}", "inline": "{inline}"},
        question="{question}", answer="{answer}", lead=r"[QA]\s*:\s*",
    ),
    "pmc-vqa": Map(
        "xiaoman-zhang/PMC-VQA, src/MedVInT_TD/Dataset/PMC_QA_Dataset.py, and readers of its second version",
        ("train*.csv", "test*.csv"), "{Figure_path}", texts={"caption": "{Caption}"}, question="{Question}",
        answer="{Answer_label|Answer|Anwser}", choices=("Choice A", "Choice B", "Choice C", "Choice D"),
        lead=r"[A-D]\s*:\s*", license="CC BY-SA 4.0",
    ),
    "vqa-rad-train": Map(
        "readers of 'VQA_RAD Dataset Public.json' in public repositories; all but its test questions",
        ("VQA_RAD Dataset Public.json",), "{image_name}", folders=("VQA_RAD Image Folder", "images", ""), id="{qid}",
        question="{question}", answer="{answer}", answer_type="{answer_type}", question_type="{question_type}",
        body_part="{image_organ}", split="train", only=("phrase_type", r"(?!test_)"), license="CC0 1.0",
    ),
    "roco-v2": Map(
        "unverified: ID and Caption columns beside a folder of images, as its page describes",
        ("*captions.csv",), "{ID}", folders=("", "train", "valid", "test", "images"), id="{ID}",
        texts={"caption": "{Caption}"}, license="CC BY 4.0",
    ),
}  # fmt: skip


def files_of(config: ImportConfig, patterns: tuple[str, ...], what: str) -> list[Path]:
    """The tables: the source itself, or those of these patterns in or below it. Raises UserError for none."""
    if config.source.is_file():
        if config.source.suffix.lower() not in (*KINDS, ".parquet"):
            raise UserError(f"{config.source}: cannot tell what it is by its name; expected {what}")
        return [config.source]
    found = sorted({path for pattern in patterns for path in config.source.rglob(pattern) if path.is_file()})
    if not found:
        raise UserError(f"{config.source}: no {' or '.join(patterns)} there; expected {what}")
    return found


def inputs(config: ImportConfig) -> list[Path]:
    return files_of(config, COLUMN_MAPS[config.name].files, f"the tables of {config.name}, or their folder")


def read(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Every row of every table; a caption or context that several rows repeat about the same image comes once."""
    made = COLUMN_MAPS[config.name]
    told: set[tuple[str, ...]] = set()
    for path in inputs(config):
        for number, found in read_rows(path):
            if isinstance(found, RejectedRow):
                yield found
            elif not made.only or re.match(made.only[1], str(found.get(made.only[0], ""))):
                yield from samples(found, f"{path.stem}-{number}", path, made, config, told)


def samples(
    found: Mapping[str, Any], name: str, path: Path, made: Map, config: ImportConfig, told: set[tuple[str, ...]]
) -> Iterator[ImportRow | RejectedRow]:
    """The samples of one row, or why there are none."""
    names = image_names(found, made.images)
    if not names:
        yield RejectedRow(found, "row without an image")
        return
    own = fill(found, made.id)
    name = f"{path.stem}-{own}" if own else name
    images = tuple(image(found, n, path, made, config) for n in names)
    split = SPLITS.get((fill(found, made.split) or made.split or re.split(r"[-_.]", path.stem)[0]).lower())
    common = {
        "images": images, "group": fill(found, made.group) or article_of(names[0]), "split": split,
        "license": config.license or made.license,
    }  # fmt: skip
    question, answer = (re.sub(rf"^\s*{made.lead}", "", fill(found, part)) for part in (made.question, made.answer))
    texts = {kind: text for kind, part in made.texts.items() if (text := fill(found, part))}
    if not texts and not (question and answer):
        yield RejectedRow(found, "neither a text nor a question with its answer")
    elif made.question and not (question and answer):
        yield RejectedRow(found, "empty answer" if question else "empty question")
    for kind, text in texts.items():
        key = (kind, text, *names)
        if key not in told:
            told.add(key)
            row_name = name if not made.question and kind == "caption" else f"{name}-{kind}"
            messages = (user(CAPTION_INSTRUCTION, images=len(images)), assistant(text))
            yield ImportRow(row_name, kind, messages=messages, lang=lang_of(text), **common)  # type: ignore[arg-type]
    if question and answer:
        yield exchange(found, name, question, answer, made, common)


def exchange(
    found: Mapping[str, Any], name: str, question: str, answer: str, made: Map, common: dict[str, Any]
) -> ImportRow | RejectedRow:
    """A question with its answer; choices are written under the question, a letter becomes the choice it names."""
    choices = tuple(re.sub(rf"^\s*{made.lead}", "", cell(found, column)) for column in made.choices)
    if choices and not all(choices):
        return RejectedRow(found, "a choice is empty")
    if choices:
        answer = choices[LETTERS.index(answer)] if answer in LETTERS[: len(choices)] else answer
        if answer not in choices:
            return RejectedRow(found, "the answer is none of the choices")
    said = fill(found, made.answer_type).lower()
    asked = question + "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    known = said if said in ("open", "closed") else guess_answer_type(answer)
    return ImportRow(
        sample_id=name,
        kind="vqa",
        messages=(user(asked, images=len(common["images"])), assistant(answer)),
        answer_type="choice" if choices else known,  # type: ignore[arg-type]
        choices=choices,
        question_type=fill(found, made.question_type) or None,
        lang=lang_of(asked),
        **common,
    )


def image(found: Mapping[str, Any], name: str, path: Path, made: Map, config: ImportConfig) -> ImageFile:
    where = resolve(name, bases_of(config, path.parent, made.folders), config.pmc)
    return ImageFile(
        where.path,
        name,
        modality=fill(found, made.modality) or None,
        body_part=fill(found, made.body_part) or None,
        license=config.license or made.license,
        whole=where.whole,
    )


def bases_of(config: ImportConfig, folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """Folders that images are looked for in: the one that was said, else the usual ones beside the table."""
    return (config.images,) if config.images else tuple(folder / name for name in names)


def article_of(name: str) -> str:
    match = ARTICLE.match(name.rpartition("/")[2])
    return match.group(1) if match else ""


def lang_of(text: str) -> str:
    return "zh" if has_chinese(text) else "en"


def cell(found: Mapping[str, Any], column: str) -> str:
    value = found.get(column)
    return "" if value is None or isinstance(value, list | dict) else str(value).strip()


def fill(found: Mapping[str, Any], text: str) -> str:
    """A text with its {columns} filled; "" where one is empty. {a|b} is the first of these columns that is not."""
    if "{" not in text:
        return ""
    parts = {hole: next(filter(None, (cell(found, c) for c in hole.split("|"))), "") for hole in HOLE.findall(text)}
    return HOLE.sub(lambda hole: parts[hole[1]], text) if all(parts.values()) else ""


def image_names(found: Mapping[str, Any], text: str) -> list[str]:
    """The names of a row's images: one for each item where a column holds a list ("['F1', 'F2']" in a CSV)."""
    for hole in HOLE.findall(text):
        value = found.get(hole)
        if isinstance(value, str) and value.startswith("["):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                return []
        if isinstance(value, list):
            return [name for item in value if (name := fill({**found, hole: item}, text))]
    return [name] if (name := fill(found, text)) else []
