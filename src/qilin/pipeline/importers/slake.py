"""SLAKE (Liu et al., ISBI 2021): radiology images with questions, from its own folder layout.

In: a folder with whichever of train.json, validate.json and test.json are there, and imgs/. Out: rows of questions in
one language, and captions composed of each image's own answers. One language an import: the English half puts other
images into its splits, so mixing the two would let test images into training.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import ImageFile, ImportRow, RejectedRow
from qilin.dataset.schema import assistant, user
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.slake_captions import compose_captions

FILES = {"train": "train.json", "validation": "validate.json", "test": "test.json"}
LICENCE = "CC BY 4.0"  # as the dataset's own page states
ATTRIBUTION = "SLAKE (Liu et al., ISBI 2021); images derive from MSD, CHAOS and NIH ChestX-ray8"
ANSWER_TYPES = {"OPEN": "open", "CLOSED": "closed"}
NEEDED = ("question", "answer", "q_lang")


def inputs(config: ImportConfig) -> list[Path]:
    """The annotation files that are there. Raises UserError where there is none."""
    if not config.source.is_dir():
        raise UserError(f"{config.source}: no such folder; expected SLAKE's, with train.json and imgs/ in it")
    found = [config.source / name for name in FILES.values() if (config.source / name).is_file()]
    if not found:
        raise UserError(f"{config.source}: none of {', '.join(FILES.values())} is there; name SLAKE's own folder")
    return found


def read(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Every question of the chosen language as a `vqa` row, then the captions of its split.

    Raises UserError for a file that is not a JSON list, and where no row is in the chosen language.
    """
    spoken = 0
    for path in inputs(config):
        split = next(split for split, name in FILES.items() if name == path.name)
        by_image: dict[str, list[dict[str, Any]]] = {}
        for found in load(path):
            if isinstance(found, dict) and found.get("q_lang") not in (config.lang, None):
                continue  # the other language is another dataset, not a refused row
            reason = fault(found)
            if reason:
                yield RejectedRow(found if isinstance(found, dict) else {"row": found}, reason)
                continue
            spoken += 1
            yield question(found, split, config)
            by_image.setdefault(image_name(found), []).append(found)
        if config.captions and config.lang == "zh":
            for name, rows in by_image.items():
                yield from captions(name, rows, split, config)
    if not spoken:
        raise UserError(f"{config.source}: no question with q_lang {config.lang!r}; try --lang zh or --lang en")


def load(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of questions, found a {type(rows).__name__}")
    return rows


def fault(row: Any) -> str | None:
    """Why a row cannot be read as a question; None if it can."""
    if not isinstance(row, dict):
        return "row is not an object"
    missing = [field for field in NEEDED if not isinstance(row.get(field), str)]
    if missing:
        return f"{missing[0]} is missing or no text"
    if not image_name(row):
        return "row without image"
    if not row["question"].strip():
        return "empty question"
    return None


def image_name(row: Mapping[str, Any]) -> str:
    """The image's path below the folder: `image` here, `img_name` (below imgs/) as SLAKE is published."""
    if row.get("image"):
        return str(row["image"])
    return f"imgs/{row['img_name']}" if row.get("img_name") else ""


def image_file(row: Mapping[str, Any], config: ImportConfig) -> ImageFile:
    name = image_name(row)
    return ImageFile(
        path=(config.images or config.source) / name,
        name=name,
        modality=row.get("modality"),
        body_part=row.get("location"),
        license=config.license or LICENCE,
        attribution=ATTRIBUTION,
    )


def question(row: Mapping[str, Any], split: str, config: ImportConfig) -> ImportRow:
    return ImportRow(
        sample_id=f"slake-{config.lang}-{row.get('qid', row['question'])}",
        kind="vqa",
        images=(image_file(row, config),),
        messages=(user(row["question"].strip(), images=1), assistant(row["answer"].strip())),
        answer_type=ANSWER_TYPES.get(str(row.get("answer_type", "")).strip().upper()),  # type: ignore[arg-type]
        question_type=row.get("content_type"),
        lang=config.lang,
        split=split,
        license=config.license or LICENCE,
    )


def captions(name: str, rows: list[dict[str, Any]], split: str, config: ImportConfig) -> Iterator[ImportRow]:
    """The captions that one image's own rows of one split make."""
    for variant, instruction, text in compose_captions(rows):
        yield ImportRow(
            sample_id=f"slake-{config.lang}-caption-{variant}-{name}",
            kind="caption",
            images=(image_file(rows[0], config),),
            messages=(user(instruction, images=1), assistant(text)),
            lang=config.lang,
            split=split,
            license=config.license or LICENCE,
        )
