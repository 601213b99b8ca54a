"""Figures of PubMed Central articles: the output of `qilin data extract-figures`, and PMC-Inline.

In: the folder of figure rows, or PMC-Inline's JSON files. Out: `caption`, `inline` and `context` rows; a figure whose
caption and image split into the same panels also gives one caption per panel.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import ImageFile, ImportRow, RejectedRow
from qilin.imaging.archive_paths import crop_path, read_path_or_member
from qilin.imaging.decode import to_rgb
from qilin.imaging.errors import ImageError
from qilin.imaging.panel_captions import SplitCaption, panel_mismatch
from qilin.imaging.panels import split_image
from qilin.pipeline.execution.sharded_map import STEP_FILE, read_shards, shard_paths
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.rows import CaptionKind, caption_from_names, caption_row, find_tables, image_folders
from qilin.pipeline.importers.table_files import read_rows
from qilin.pipeline.pubmed.image_lookup import ANY_IMAGE_SUFFIX, resolve


def figures_inputs(config: ImportConfig) -> list[Path]:
    """The step record and the shards of `qilin data extract-figures`."""
    return [config.source / STEP_FILE, *shard_paths(config.source)]


def read_figures(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Figures as captions, panels, mentions and contexts; unsure figures only with --include-unsure."""
    if config.images is None:
        raise UserError("--images is required: the folder of articles from which the figures were extracted")
    for shared, members in groupby(read_shards(config.source), shared_caption_id):
        usable = []
        for row in members:
            if row["medical"] == "unsure" and not config.include_unsure:
                yield RejectedRow(row, f"unsure whether it is medical (--include-unsure imports it): {row['reason']}")
            elif shared:
                usable.append(row)
            else:
                yield from figure_rows(row, config.images, config)
        if usable:
            yield from figure_rows(join_members(usable), config.images, config)


def shared_caption_id(row: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """What the members of a figure group without captions of their own have in common; None for other figures."""
    return (row["file"], row["article"], row["shared_caption"]) if row.get("shared_caption") else None


def join_members(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One figure with all images of a group whose caption is about all of them."""
    first = rows[0]
    credited = next((row for row in rows if row["license_tier"] == "restricted"), first)
    texts = {key: list(dict.fromkeys(text for row in rows for text in row[key])) for key in ("mentions", "context")}
    return {
        **first,
        **texts,
        **{key: credited[key] for key in ("license", "license_tier", "credit")},
        "row_id": f"{first['article']}/{first['shared_caption']}",
        "images": [forms for row in rows for forms in row["images"]],
    }


def figure_rows(row: Mapping[str, Any], articles: Path, config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """The rows of one figure. `articles`: the folder that its file path is relative to."""
    has_credit = row["license_tier"] == "restricted" and row["credit"]  # reprinted by permission of somebody else
    license = f"restricted: {row['credit']}" if has_credit else row["license"] or config.license
    group = row["article"]
    images = tuple(
        ImageFile(
            find_figure_image(articles, row["file"], forms, config.allow_outside), f"{group}/{forms[0]}",
            row["modality"], row["body_part"], license,
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

    def text_row(kind: CaptionKind, name: str, images: tuple[ImageFile, ...], text: str, lang: str) -> ImportRow:
        sample = caption_row(kind, f"{row['row_id']}-{name}", images, text, group=group, license=license)
        return sample if lang in ("", "en", "zh") else dataclasses.replace(sample, lang=lang)

    language = row.get("language") or ""
    for kind, text in texts.items():
        if text:
            yield text_row(kind, kind, images, text, language)
    for translation, text in (row.get("translations") or {}).items():
        yield text_row("caption", f"caption-{translation or 'other'}", images, text, translation)
    for letter, text, panel in split_panels(row, images):
        yield text_row("caption", letter, (panel,), text, language)
    if not any(texts.values()):
        yield RejectedRow(row, "has neither caption nor mention")


def find_figure_image(articles: Path, file_name: str, forms: list[str], allow_outside: bool = False) -> Path:
    """The file of an image that has several possible names; a path that does not exist if there is none.

    Articles often give a suffix that the published file does not have: F4.tif is there as F4.jpg.
    """
    folder = articles / Path(file_name).parent
    stems = (ANY_IMAGE_SUFFIX.sub("", form) for form in forms)
    for name in dict.fromkeys((*forms, *stems)):
        resolved = resolve(name, (folder,), None, (articles,), allow_outside)
        if resolved.path.exists():
            return resolved.path
    return folder / forms[0]


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
