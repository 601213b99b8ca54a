"""Published data sets that are tables, each described by one declarative map from its columns to samples.

In: the folder or table as downloaded. Out: import rows. A template with {columns} is filled from the row and is empty
if one of its cells is; {a|b} takes the first of these columns that is not empty.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qilin.dataset.import_rows import ImageFile, ImportRow, RejectedRow, guess_answer_type
from qilin.dataset.schema import assistant, user
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.rows import (
    LETTERS,
    SPLIT_NAMES,
    add_choices,
    article_id,
    caption_row,
    convert_rows,
    detect_lang,
    find_image,
    find_tables,
    image_folders,
)
from qilin.pipeline.importers.table_files import PLACEHOLDER, cell_text, fill_template


@dataclass(frozen=True)
class ColumnMap:
    """Where one layout keeps the parts of a sample. Values are templates, except where the comment names columns."""

    layout: str  # the public reader or page that it follows
    file_patterns: tuple[str, ...]  # in or below the source folder
    images: str  # a column that holds a list makes several names
    image_folders: tuple[str, ...] = ("", "images", "figures")  # relative to the table
    id: str = ""
    group: str = ""  # default: the article in the image's name
    texts: Mapping[str, str] = field(default_factory=dict)  # kind (caption, context, inline, report) -> its text
    question: str = ""
    answer: str = ""
    choices: tuple[str, ...] = ()  # columns; `answer` is then one of the choices, or its letter
    answer_type: str = ""
    question_type: str = ""
    modality: str = ""
    body_part: str = ""
    split: str = ""  # default: train, val or test at the beginning of the table's name
    row_filter: tuple[str, str] | None = None  # (column, pattern): other rows do not belong to this data set
    strip_prefix: str = ""  # a pattern removed from the beginning of questions, answers and choices
    license: str | None = None


COLUMN_MAPS = {
    "pmc-oa": ColumnMap(
        "the page of axiong/pmc_oa and its loader (2023), which quote rows", ("pmc_oa*.jsonl",), "{image}",
        image_folders=("", "images", "caption_T060_filtered_top4_sep_v0_subfigures"), id="{image}",
        texts={"caption": "{caption}"},
    ),
    "pmc-case-report": ColumnMap(
        "chaoyi-wu/RadFM, src/Dataset/dataset/case_report.py (PMC_id, img_ref, context, question, answer), and "
        "the fields that the page of the hub's filtered version lists (the same and inline; parquet)",
        ("*.csv", "train*.parquet", "test*.parquet"),
        "{PMC_id}_{img_ref}.jpg", group="{PMC_id}", texts={"context": "{context}", "inline": "{inline}"},
        question="{question}", answer="{answer}", strip_prefix=r"[QA]\s*:\s*",
    ),
    "pmc-vqa": ColumnMap(
        "xiaoman-zhang/PMC-VQA, src/MedVInT_TD/Dataset/PMC_QA_Dataset.py, and readers of its second version",
        ("train*.csv", "test*.csv"), "{Figure_path}", texts={"caption": "{Caption}"}, question="{Question}",
        answer="{Answer_label|Answer|Anwser}", choices=("Choice A", "Choice B", "Choice C", "Choice D"),
        strip_prefix=r"[A-D]\s*:\s*", license="CC BY-SA 4.0",
    ),
    "vqa-rad-train": ColumnMap(
        "readers of 'VQA_RAD Dataset Public.json' in public repositories; all but its test questions",
        ("VQA_RAD Dataset Public.json",), "{image_name}", image_folders=("VQA_RAD Image Folder", "images", ""),
        id="{qid}", question="{question}", answer="{answer}", answer_type="{answer_type}",
        question_type="{question_type}", body_part="{image_organ}", split="train",
        row_filter=("phrase_type", r"(?!test_)"), license="CC0 1.0",
    ),
    "roco-v2": ColumnMap(
        "unverified: ID and Caption columns next to a folder of images, as its page describes",
        ("*captions.csv",), "{ID}", image_folders=("", "train", "valid", "test", "images"), id="{ID}",
        texts={"caption": "{Caption}"}, license="CC BY 4.0",
    ),
}  # fmt: skip


def inputs(config: ImportConfig) -> list[Path]:
    patterns = COLUMN_MAPS[config.name].file_patterns
    return find_tables(config, patterns, f"the tables of {config.name}, or their folder")


def read(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Every row of every table. A text that several rows repeat about the same images is read once."""
    column_map = COLUMN_MAPS[config.name]
    seen_texts: set[tuple[str, ...]] = set()
    for path in inputs(config):

        def convert(row: Mapping[str, Any], number: int, path: Path = path) -> Iterator[ImportRow | RejectedRow]:
            column, pattern = column_map.row_filter or ("", "")
            if re.match(pattern, str(row.get(column, ""))):
                yield from map_row(row, f"{path.stem}-{number}", path, column_map, config, seen_texts)

        yield from convert_rows(path, config, convert)


def map_row(
    row: Mapping[str, Any], default_id: str, path: Path, column_map: ColumnMap, config: ImportConfig,
    seen_texts: set[tuple[str, ...]],
) -> Iterator[ImportRow | RejectedRow]:  # fmt: skip
    """The samples of one row of a table, or the reason why there are none. Adds to `seen_texts`."""
    names = image_names(row, column_map.images)
    if not names:
        yield RejectedRow(row, "row without an image")
        return
    row_id = fill_template(row, column_map.id)
    sample_id = f"{path.stem}-{row_id}" if row_id else default_id
    images = map_images(row, names, path, column_map, config)
    split_name = fill_template(row, column_map.split) or re.split(r"[-_.]", path.stem)[0]
    split = SPLIT_NAMES.get(split_name.lower())
    group = fill_template(row, column_map.group) or article_id(names[0])
    license = config.license or column_map.license
    question = without_prefix(fill_template(row, column_map.question), column_map)
    answer = without_prefix(fill_template(row, column_map.answer), column_map)
    texts = {kind: text for kind, template in column_map.texts.items() if (text := fill_template(row, template))}
    if not texts and not (question and answer):
        yield RejectedRow(row, "neither a text nor a question with its answer")
    elif column_map.question and not (question and answer):
        yield RejectedRow(row, "empty answer" if question else "empty question")
    for kind, text in texts.items():
        key = (kind, text, *names)
        if key not in seen_texts:
            seen_texts.add(key)
            text_id = sample_id if not column_map.question and kind == "caption" else f"{sample_id}-{kind}"
            yield caption_row(kind, text_id, images, text, group=group, license=license, split=split)  # type: ignore[arg-type]
    if question and answer:
        yield map_question(row, sample_id, question, answer, column_map, images, group, split, license)


def map_question(
    row: Mapping[str, Any], sample_id: str, question: str, answer: str, column_map: ColumnMap,
    images: tuple[ImageFile, ...], group: str, split: str | None, license: str | None,
) -> ImportRow | RejectedRow:  # fmt: skip
    """A question with its answer. Choices are appended to the question; a letter is replaced by the choice it names."""
    choices = tuple(without_prefix(cell_text(row.get(column)), column_map) for column in column_map.choices)
    if choices and not all(choices):
        return RejectedRow(row, "a choice is empty")
    if choices:
        answer = choices[LETTERS.index(answer)] if answer in LETTERS[: len(choices)] else answer
        if answer not in choices:
            return RejectedRow(row, "the answer is none of the choices")
    stated_type = fill_template(row, column_map.answer_type).lower()
    answer_type = stated_type if stated_type in ("open", "closed") else guess_answer_type(answer)
    text = add_choices(question, choices)
    return ImportRow(
        sample_id=sample_id,
        kind="vqa",
        images=images,
        messages=(user(text, len(images)), assistant(answer)),
        answer_type="choice" if choices else answer_type,  # type: ignore[arg-type]
        choices=choices,
        question_type=fill_template(row, column_map.question_type) or None,
        lang=detect_lang(text),
        group=group,
        split=split,
        license=license,
    )


def map_images(
    row: Mapping[str, Any], names: list[str], path: Path, column_map: ColumnMap, config: ImportConfig
) -> tuple[ImageFile, ...]:
    folders = image_folders(config, path.parent, column_map.image_folders)
    modality, body_part = fill_template(row, column_map.modality), fill_template(row, column_map.body_part)
    return tuple(
        find_image(
            name, folders, config,
            modality=modality or None, body_part=body_part or None, license=config.license or column_map.license,
        )
        for name in names
    )  # fmt: skip


def without_prefix(text: str, column_map: ColumnMap) -> str:
    return re.sub(rf"^\s*{column_map.strip_prefix}", "", text)


def image_names(row: Mapping[str, Any], template: str) -> list[str]:
    """The names of a row's images: one per item if a column holds a list, also one written as text (['F1', 'F2'])."""
    for column in PLACEHOLDER.findall(template):
        value = row.get(column)
        if isinstance(value, str) and value.startswith("["):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                return []
        if isinstance(value, list):
            return [name for item in value if (name := fill_template({**row, column: item}, template))]
    return [name] if (name := fill_template(row, template)) else []
