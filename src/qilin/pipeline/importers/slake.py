"""SLAKE (Liu et al., ISBI 2021): radiology images with questions, in the layout of its own folder.

In: a folder with any of train.json, validate.json and test.json, and imgs/. Out: questions in one language, and
captions composed from each image's own answers. An import reads one language: the English half assigns images to other
splits, so a mixture would put test images into training.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import ImageFile, ImportRow, RejectedRow
from qilin.dataset.schema import assistant, user
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.rows import convert_row, find_image
from qilin.pipeline.importers.slake_captions import compose_captions
from qilin.pipeline.importers.table_files import check_file, read_rows

# names of each split's file: of the published archive, and of the hub's copy
SPLIT_FILES = {"train": ("train.json",), "validation": ("validate.json", "validation.json"), "test": ("test.json",)}
LICENSE = "CC BY 4.0"  # stated on the data set's page
# stored with every image, so another wording would change the hash of every SLAKE dataset
ATTRIBUTION = "SLAKE (Liu et al., ISBI 2021); pictures derive from MSD, CHAOS and NIH ChestX-ray8"
ANSWER_TYPES = {"OPEN": "open", "CLOSED": "closed"}
REQUIRED_FIELDS = ("question", "answer", "q_lang")


def inputs(config: ImportConfig) -> list[Path]:
    """The annotation files that exist. Raises UserError if there is none."""
    if not config.source.is_dir():
        raise UserError(f"{config.source}: no such folder; expected SLAKE's folder with train.json and imgs/")
    paths = []
    for names in SPLIT_FILES.values():
        files = [path for name in names if (path := config.source / name).exists()]
        if len(files) > 1:
            raise UserError(
                f"{config.source}: contains {' and '.join(path.name for path in files)}; remove one of them"
            )
        paths += files
    if not paths:
        expected = ", ".join(name for names in SPLIT_FILES.values() for name in names)
        raise UserError(f"{config.source}: contains none of {expected}; name SLAKE's folder")
    return paths


def read(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Per split: every question of the chosen language as a `vqa` row, then the captions.

    Raises UserError for a file that is not a JSON list, and if no question is in the chosen language.
    """
    question_count = 0
    for path in inputs(config):
        split = next(split for split, names in SPLIT_FILES.items() if path.name in names)
        rows_by_image: dict[str, list[dict[str, Any]]] = {}
        for _, row in read_rows(check_file(path, "SLAKE's questions"), config.encoding):
            if isinstance(row, RejectedRow):
                yield row
                continue
            if isinstance(row.get("q_lang"), str) and row["q_lang"] != config.lang:
                continue  # the other language is another data set, not a rejected row
            if problem := row_problem(row):
                yield RejectedRow(row, problem)
                continue
            question_count += 1
            (converted,) = convert_row(row, lambda row=row, split=split: [question_row(row, split, config)])  # type: ignore[misc]
            yield converted
            if isinstance(converted, ImportRow):
                rows_by_image.setdefault(image_name(row), []).append(row)
        if config.captions and config.lang == "zh":
            for name, rows in rows_by_image.items():
                source = {"image": name, "questions": len(rows)}
                yield from convert_row(
                    source, lambda name=name, rows=rows, split=split: caption_rows(name, rows, split, config)  # type: ignore[misc]
                )  # fmt: skip
    if not question_count:
        raise UserError(f"{config.source}: no question with q_lang {config.lang!r}; try --lang zh or --lang en")


def row_problem(row: Mapping[str, Any]) -> str | None:
    """Why a row cannot be read as a question; None if it can."""
    missing = [field for field in REQUIRED_FIELDS if not isinstance(row.get(field), str)]
    if missing:
        return f"{missing[0]} is missing or not a text"
    if not image_name(row):
        return "row without image"
    if not row["question"].strip():
        return "empty question"
    return None


def image_name(row: Mapping[str, Any]) -> str:
    """The image's path below the folder, from `image`, or from `img_name` (below imgs/) as SLAKE was published."""
    if row.get("image"):
        return str(row["image"])
    return f"imgs/{row['img_name']}" if row.get("img_name") else ""


def image_file(row: Mapping[str, Any], config: ImportConfig) -> ImageFile:
    name = image_name(row)
    return find_image(
        name, (config.images or config.source,), config,
        modality=row.get("modality"),
        body_part=row.get("location"),
        license=config.license or LICENSE,
        attribution=ATTRIBUTION,
    )  # fmt: skip


def question_row(row: Mapping[str, Any], split: str, config: ImportConfig) -> ImportRow:
    return ImportRow(
        sample_id=f"slake-{config.lang}-{row.get('qid', row['question'])}",
        kind="vqa",
        images=(image_file(row, config),),
        messages=(user(row["question"].strip(), images=1), assistant(row["answer"].strip())),
        answer_type=ANSWER_TYPES.get(str(row.get("answer_type", "")).strip().upper()),  # type: ignore[arg-type]
        question_type=row.get("content_type"),
        lang=config.lang,
        split=split,
        license=config.license or LICENSE,
    )


def caption_rows(name: str, rows: list[dict[str, Any]], split: str, config: ImportConfig) -> Iterator[ImportRow]:
    """The captions composed from one image's own rows of one split."""
    for variant, instruction, text in compose_captions(rows):
        yield ImportRow(
            sample_id=f"slake-{config.lang}-caption-{variant}-{name}",
            kind="caption",
            images=(image_file(rows[0], config),),
            messages=(user(instruction, images=1), assistant(text)),
            lang=config.lang,
            split=split,
            license=config.license or LICENSE,
        )
