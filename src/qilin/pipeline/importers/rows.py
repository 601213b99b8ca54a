"""What the readers of published data sets share: finding tables and images, and building rows of captions and choices.

In: names and texts as a data set writes them. Out: paths, ImageFile and ImportRow objects.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from qilin.core.errors import UserError
from qilin.dataset.import_rows import CAPTION_INSTRUCTION, ImageFile, ImportRow, RejectedRow
from qilin.dataset.schema import assistant, user
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.table_files import TEXT_SUFFIXES, read_rows
from qilin.pipeline.pubmed.image_lookup import resolve
from qilin.text.normalize import has_chinese

LETTERS = "ABCDEFGH"
ARTICLE_ID = re.compile(r"(PMC\d+)_")
CaptionKind = Literal["caption", "context", "inline", "report"]

SPLIT_NAMES = {"train": "train", "validation": "validation", "test": "test"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validate", "dev", "验证", "验证集", "开发集"), "validation")
SPLIT_NAMES |= dict.fromkeys(("训练", "训练集"), "train") | dict.fromkeys(("测试", "测试集"), "test")


# what a row with values of other types or sizes than expected raises in the code that reads it
ROW_FAULTS = (TypeError, ValueError, LookupError, AttributeError, OSError, RecursionError, OverflowError)
OUTSIDE = "image is outside the source's folder (--allow-outside reads it)"
ADDRESS = re.compile(r"(https?|ftp|s3|gs|data):", re.IGNORECASE)
IMAGE_FOLDERS = ("images", "imgs", "image", "img", "pictures", "图片", "图像", "影像")
ABSOLUTE_PATH = re.compile(r"(file://)?(/[^/\s]+/|[A-Za-z]:[\\/]|\\\\)")
MAX_REJECTED_TEXT = 1 << 16  # characters of one text in dropped.jsonl; more is an image in base64


class RowError(Exception):
    """Why one row cannot be used: short, and constant per problem, so that it can be counted."""


def convert_rows(
    path: Path, config: ImportConfig, convert: Callable[[Mapping[str, Any], int], Iterable[ImportRow | RejectedRow]]
) -> Iterator[ImportRow | RejectedRow]:
    """The rows of a table as `convert(row, number)` makes them; one for which it raises is rejected alone."""
    for number, row in read_rows(path, config.encoding):
        if isinstance(row, RejectedRow):
            yield row
        else:
            yield from convert_row(row, lambda row=row, number=number: convert(row, number))  # type: ignore[misc]


def convert_row(
    row: Mapping[str, Any], convert: Callable[[], Iterable[ImportRow | RejectedRow]]
) -> Sequence[ImportRow | RejectedRow]:
    """What `convert` makes of a row, or its rejection."""
    try:
        return list(convert())
    except RowError as error:
        return [RejectedRow(row, str(error))]
    except UserError:  # about the whole source
        raise
    except ROW_FAULTS as error:
        return [RejectedRow(row, f"a value of another type than expected ({type(error).__name__})")]


def find_tables(config: ImportConfig, patterns: Sequence[str], expected: str) -> list[Path]:
    """The source if it is a table, else the files of these patterns below it. Raises UserError if there is none."""
    if config.source.is_file():
        if config.source.suffix.lower() not in (*TEXT_SUFFIXES, ".parquet"):
            raise UserError(f"{config.source}: unknown file type; expected {expected}")
        return [config.source]
    paths = sorted({path for pattern in patterns for path in config.source.rglob(pattern) if os.path.isfile(path)})
    if not paths:
        raise UserError(f"{config.source}: contains no {' or '.join(patterns)}; expected {expected}")
    return paths


def image_folders(config: ImportConfig, folder: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """The folders to search for images: --images, else the usual ones, relative to the table's folder."""
    return (config.images,) if config.images else tuple(folder / name for name in names)


def table_image_folders(config: ImportConfig, table: Path) -> tuple[Path, ...]:
    """The folders to search for the images of a table: --images, else its own, the source's, and the usual ones."""
    if config.images:
        return (config.images,)
    folders = dict.fromkeys((table.parent, source_folder(config)))
    usual = (folder / name for folder in folders for name in IMAGE_FOLDERS if (folder / name).is_dir())
    return (*folders, *dict.fromkeys(usual))


def find_image(
    name: str, folders: tuple[Path, ...], config: ImportConfig, *,
    modality: str | None = None, body_part: str | None = None, license: str | None = None,
    url: str | None = None, attribution: str | None = None,
) -> ImageFile:  # fmt: skip
    """An image by its name in the data set: in these folders, their zips, or the folder of `qilin data pmc`.

    Where no file has the name, its leading folders are left out one by one: /mnt/other/machine/imgs/1.png is imgs/1.png
    here. The file name alone is enough only with --images. Raises RowError for an address, and for a file outside the
    folder of the source unless --allow-outside is given.
    """
    name = name.removeprefix("file://")
    if ADDRESS.match(name):
        raise RowError("image is an address; download it first")
    roots = (config.images or source_folder(config), *(folder for folder in folders if ".." in folder.parts))
    resolved = resolve(name, folders, config.pmc, roots, config.allow_outside)
    if resolved.is_missing:
        for ending in name_endings(name, with_file_name=config.images is not None):
            other = resolve(ending, folders, None, roots, config.allow_outside)
            if not other.is_missing and not other.is_outside:
                resolved = other
                break
    if resolved.is_outside:
        raise RowError(OUTSIDE)
    name = public_name(name, roots)
    return ImageFile(resolved.path, name, modality, body_part, license, url, attribution, resolved.is_whole_figure)


def name_endings(name: str, with_file_name: bool) -> Iterator[str]:
    """A path without its first folder, without its first two, …; the file name alone only if asked for."""
    parts = [part for part in name.replace("\\", "/").split("/") if part and part != "."]
    if ".." in parts:
        return
    for start in range(1, len(parts) - (0 if with_file_name else 1)):
        yield "/".join(parts[start:])


def public_name(name: str, roots: Sequence[Path]) -> str:
    """The name of an image as a dataset records it: an absolute path of this or another machine becomes a relative one,
    below the folder of the source if it is there, else the file name with its folder."""
    if not ABSOLUTE_PATH.match(name):
        return name
    for root in roots:
        if Path(name).is_relative_to(root.absolute()):
            return Path(name).relative_to(root.absolute()).as_posix()
    return "/".join(name.replace("\\", "/").split("/")[-2:]).removeprefix("/")


def without_local_paths(value: Any, roots: Sequence[Path]) -> Any:
    """A rejected row with its absolute paths as `public_name` writes them, at any depth, and long texts cut."""
    if isinstance(value, Mapping):
        return {name: without_local_paths(item, roots) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_local_paths(item, roots) for item in value]
    if isinstance(value, str) and len(value) < 4096 and ABSOLUTE_PATH.match(value) and "\n" not in value:
        return public_name(value.removeprefix("file://"), roots)
    if isinstance(value, str) and len(value) > MAX_REJECTED_TEXT:
        return value[:MAX_REJECTED_TEXT] + "…"
    return value


def file_name(path: str) -> str:
    """The last part of a path of any system."""
    return path.replace("\\", "/").rpartition("/")[2]


def work_folder(config: ImportConfig) -> Path:
    """The folder beside the output in which an import keeps its index and decoded images until it is complete."""
    return config.out.with_name(f".{config.out.name}.import")


def source_folder(config: ImportConfig) -> Path:
    """The folder that the images of a source are in, unless --images names another."""
    return config.source if config.source.is_dir() else config.source.parent


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
    row = {"id": sample_id, "images": list(image_names)}
    if not text.strip():
        return RejectedRow(row, "empty text")
    license = license or config.license
    try:
        images = tuple(find_image(name, folders, config, license=license) for name in image_names)
    except RowError as error:
        return RejectedRow(row, str(error))
    group = group or article_id(image_names[0])
    return caption_row(kind, sample_id, images, text, group=group, license=license, split=split)
