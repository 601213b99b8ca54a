"""What the readers of published data sets share: finding tables and images, and building rows of captions and choices.

In: names and texts as a data set writes them. Out: paths, ImageFile and ImportRow objects.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from qilin.core.errors import UserError
from qilin.dataset.import_rows import CAPTION_INSTRUCTION, ImageFile, ImportRow, RejectedRow
from qilin.dataset.schema import assistant, user
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.table_files import TEXT_SUFFIXES
from qilin.pipeline.pubmed.image_lookup import resolve
from qilin.text.normalize import has_chinese

LETTERS = "ABCDEFGH"
ARTICLE_ID = re.compile(r"(PMC\d+)_")
CaptionKind = Literal["caption", "context", "inline", "report"]

SPLIT_NAMES = {"train": "train", "validation": "validation", "test": "test"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validate", "dev"), "validation")


def find_tables(config: ImportConfig, patterns: Sequence[str], expected: str) -> list[Path]:
    """The source if it is a table, else the files of these patterns below it. Raises UserError if there is none."""
    if config.source.is_file():
        if config.source.suffix.lower() not in (*TEXT_SUFFIXES, ".parquet"):
            raise UserError(f"{config.source}: unknown file type; expected {expected}")
        return [config.source]
    paths = sorted({path for pattern in patterns for path in config.source.rglob(pattern) if path.is_file()})
    if not paths:
        raise UserError(f"{config.source}: contains no {' or '.join(patterns)}; expected {expected}")
    return paths


def image_folders(config: ImportConfig, folder: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """The folders to search for images: --images, else the usual ones, relative to the table's folder."""
    return (config.images,) if config.images else tuple(folder / name for name in names)


def find_image(
    name: str, folders: tuple[Path, ...], config: ImportConfig, *,
    modality: str | None = None, body_part: str | None = None, license: str | None = None,
) -> ImageFile:  # fmt: skip
    """An image by its name in the data set: in these folders, their zips, or the folder of `qilin data pmc`."""
    resolved = resolve(name, folders, config.pmc)
    return ImageFile(resolved.path, name, modality, body_part, license, is_whole_figure=resolved.is_whole_figure)


def article_id(image_name: str) -> str:
    """PMC123_Fig1_2.jpg -> PMC123; "" for other names."""
    match = ARTICLE_ID.match(image_name.rpartition("/")[2])
    return match.group(1) if match else ""


def detect_lang(text: str) -> str:
    return "zh" if has_chinese(text) else "en"


def add_choices(question: str, choices: Sequence[str]) -> str:
    """The question with one line per choice: "A. …"."""
    return question + "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def caption_row(
    kind: CaptionKind, sample_id: str, images: tuple[ImageFile, ...], text: str, *,
    group: str, license: str | None, split: str | None = None,
) -> ImportRow:  # fmt: skip
    """A text about images, asked for by CAPTION_INSTRUCTION."""
    messages: tuple[dict[str, Any], ...] = (user(CAPTION_INSTRUCTION, len(images)), assistant(text.strip()))
    return ImportRow(
        sample_id, kind, images, messages, lang=detect_lang(text), group=group, split=split, license=license
    )


def caption_from_names(
    kind: CaptionKind, sample_id: str, image_names: Sequence[str], text: str, config: ImportConfig,
    folders: tuple[Path, ...], *, group: str = "", split: str | None = None, license: str | None = None,
) -> ImportRow | RejectedRow:  # fmt: skip
    """`caption_row` of named images. `license`: that of the row. Default group: the article of the first image."""
    if not text.strip():
        return RejectedRow({"id": sample_id, "images": list(image_names)}, "empty text")
    license = license or config.license
    images = tuple(find_image(name, folders, config, license=license) for name in image_names)
    group = group or article_id(image_names[0])
    return caption_row(kind, sample_id, images, text, group=group, license=license, split=split)
