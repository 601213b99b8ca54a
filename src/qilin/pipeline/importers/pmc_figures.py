"""Figures of PubMed Central articles: the output of `qilin data extract-figures`, and PMC-Inline.

In: the folder of figure rows, or PMC-Inline's JSON files. Out: `caption`, `inline` and `context` rows; a figure whose
caption and image split into the same panels also gives one caption per panel.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import ImageFile, ImportRow, RejectedRow
from qilin.imaging.archive_paths import crop_path, read_path_or_member
from qilin.imaging.decode import ImageError, to_rgb
from qilin.imaging.panel_captions import SplitCaption, panel_mismatch
from qilin.imaging.panels import split_image
from qilin.pipeline.execution.sharded_map import STEP_FILE, read_shards, shard_paths
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.rows import CaptionKind, caption_from_names, caption_row, find_tables, image_folders
from qilin.pipeline.importers.table_files import read_rows
from qilin.pipeline.pubmed.image_lookup import resolve


def figures_inputs(config: ImportConfig) -> list[Path]:
    """The step record and the shards of `qilin data extract-figures`."""
    return [config.source / STEP_FILE, *shard_paths(config.source)]


def read_figures(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Figures as captions, panels, mentions and contexts; unsure figures only with --include-unsure."""
    if config.images is None:
        raise UserError("--images is required: the folder of articles from which the figures were extracted")
    for row in read_shards(config.source):
        if row["medical"] == "unsure" and not config.include_unsure:
            yield RejectedRow(row, f"unsure whether it is medical (--include-unsure imports it): {row['reason']}")
        else:
            yield from figure_rows(row, config.images, config)


def figure_rows(row: Mapping[str, Any], articles: Path, config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """The rows of one figure. `articles`: the folder that its file path is relative to."""
    has_credit = row["license_tier"] == "restricted" and row["credit"]  # reprinted by permission of somebody else
    license = f"restricted: {row['credit']}" if has_credit else row["license"] or config.license
    group = row["article"]
    folder = articles / Path(row["file"]).parent
    images = tuple(
        ImageFile(
            find_figure_image(folder, forms), f"{group}/{forms[0]}", row["modality"], row["body_part"], license,
            url=f"https://doi.org/{row['doi']}" if row["doi"] else None,
            attribution=f"{row['title']}, {row['journal']}",
        )
        for forms in row["images"]
    )  # fmt: skip
    texts: dict[CaptionKind, str] = {
        "caption": row["caption"],
        "inline": " ".join(row["mentions"]),
        "context": "\n".join(row["context"]),
    }
    for kind, text in texts.items():
        if text:
            yield caption_row(kind, f"{row['row_id']}-{kind}", images, text, group=group, license=license)
    for letter, text, panel in split_panels(row, images):
        yield caption_row("caption", f"{row['row_id']}-{letter}", (panel,), text, group=group, license=license)
    if not any(texts.values()):
        yield RejectedRow(row, "has neither caption nor mention")


def find_figure_image(folder: Path, forms: list[str]) -> Path:
    """The file of an image that has several possible names; a path that does not exist if there is none."""
    paths = (resolve(form, (folder,)).path for form in forms)
    return next((path for path in paths if path.exists()), folder / forms[0])


def split_panels(row: Mapping[str, Any], images: tuple[ImageFile, ...]) -> Iterator[tuple[str, str, ImageFile]]:
    """(letter, text, crop of the image) of each panel, if caption and image split into the same number of panels."""
    panels = row["panels"]
    caption = SplitCaption(panels["lead"], tuple(map(tuple, panels["parts"])), panels["doubt"])
    if caption.reason_not_split or len(images) != 1:
        return
    (image,) = images
    try:
        boxes = split_image(to_rgb(read_path_or_member(image.path)))
    except ImageError:
        return  # the rows of the whole figure are rejected for this reason
    if panel_mismatch(caption, boxes) is None:
        for (letter, text), box in zip(caption.panels, boxes, strict=True):
            panel = dataclasses.replace(image, path=crop_path(image.path, box), name=f"{image.name}#{letter}")
            yield letter, f"{caption.lead} {text}".strip(), panel


def pmc_inline_inputs(config: ImportConfig) -> list[Path]:
    return find_tables(config, ("PMC*.json", "*/PMC*.json"), "PMC-Inline's files, one per paper (PMC123.json)")


def read_pmc_inline(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Each sentence that mentions figures, with their images."""
    for path in pmc_inline_inputs(config):
        folders = image_folders(config, path.parent, ("", "../figures", "../images"))
        for number, row in read_rows(path):
            if isinstance(row, RejectedRow):
                yield row
            elif row.get("img_ref"):
                names = [f"{path.stem}_{reference}.jpg" for reference in row["img_ref"]]
                text = str(row.get("text") or "")
                yield caption_from_names("inline", f"{path.stem}-{number}", names, text, config, folders)
