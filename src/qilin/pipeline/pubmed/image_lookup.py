"""Finds image files by name: in folders, inside zip archives, or in a folder that `qilin data pmc` has filled.

In: a name as published datasets write it (`PMC8253873_Fig6_46.jpg`, `PMC1064097_F1.jpg`,
`PMC3970251_IM2014-93.003.jpg`). Out: a path (possibly into a zip), and whether it is an entire figure although the name
means one panel of it. Names with backslashes, percent signs, decomposed characters or another case are found too.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from qilin.imaging.archive_paths import find_member, is_within, open_zip, path_key
from qilin.pipeline.pubmed.download import article_dir, find_media
from qilin.pipeline.pubmed.jats import Article, ArticleError, number_figures, read_article

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".gif", ".webp", ".bmp")
ANY_IMAGE_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, IMAGE_SUFFIXES))})$", re.IGNORECASE)
ARTICLE_IMAGE = re.compile(r"(?:(PMC)(?=\d)|(?=\d{4}))(\d{1,10})_(.+)", re.IGNORECASE)  # PMC id or PubMed id, then name
PANEL = re.compile(r"Fig(\d+)_\d+", re.IGNORECASE)


@dataclass(frozen=True)
class ResolvedImage:
    """An image's path. `is_whole_figure`: the name means a panel, but the path is that of the figure it is part of.
    `is_outside`: the file exists, but outside the folder; the path is then one that does not exist. `is_missing`: no
    file has this name anywhere."""

    path: Path
    is_whole_figure: bool = False
    is_outside: bool = False
    is_missing: bool = False


def resolve(
    name: str, folders: tuple[Path, ...], pmc_dir: Path | None = None, roots: tuple[Path, ...] = (),
    allow_outside: bool = False,
) -> ResolvedImage:  # fmt: skip
    """Look a name up in the folders, then in their zips, then in the PMC folder.

    A file must be inside one of `roots` (default: the folders searched), unless `allow_outside`. If the image is
    nowhere, returns a path that does not exist: inside a damaged zip if there is one, since that may have contained it.
    """
    is_outside, roots = False, roots or folders
    for path in possible_files(name, folders):
        if allow_outside or any(is_within(root, path) for root in roots):
            return ResolvedImage(path)
        is_outside = True
    base_name, damaged = name.replace("\\", "/").rpartition("/")[2], None
    is_article_image = ARTICLE_IMAGE.fullmatch(ANY_IMAGE_SUFFIX.sub("", base_name))  # unique without its folder
    names = (name, unquote(name), base_name) if is_article_image else (name, unquote(name))
    candidates = dict.fromkeys(name + suffix for suffix in ("", *IMAGE_SUFFIXES) for name in names)
    for folder in folders:
        for archive in zip_files(folder):
            if not allow_outside and not any(is_within(root, archive) for root in roots):
                continue
            damaged = damaged or (archive if open_zip(archive, archive.stat().st_mtime_ns) is None else None)
            for candidate in candidates:
                if member := find_member(archive, candidate):
                    return ResolvedImage(archive / member)
    in_pmc = find_in_pmc(base_name, pmc_dir) if pmc_dir else None
    if in_pmc:
        return in_pmc
    return ResolvedImage((damaged or folders[0]) / base_name, is_outside=is_outside, is_missing=not is_outside)


def possible_files(name: str, folders: tuple[Path, ...]) -> Iterator[Path]:
    """The files that a name may mean: exactly this one, then with one of the usual suffixes, then written otherwise."""
    for folder in folders:
        for suffix in ("", *IMAGE_SUFFIXES):
            if os.path.isfile(path := folder / f"{name}{suffix}"):  # False for names that no file can have
                yield path
    for folder in folders:
        for spelling in dict.fromkeys((name, unquote(name))):
            if actual_path := find_other_spelling(folder, spelling):
                yield actual_path


def find_other_spelling(folder: Path, name: str) -> Path | None:
    """A file below a folder whose name differs in case, slashes, Unicode form or a missing suffix; None for several."""
    *parents, last = path_key(name).split("/")
    for part in parents:
        actual = {"": ".", ".": "."}.get(part) or list_names(folder).get(part)
        if actual is None:
            return None
        folder /= actual
    names = list_names(folder)
    matches = [actual for suffix in ("", *IMAGE_SUFFIXES) if (actual := names.get(last + suffix))]
    return folder / matches[0] if matches and os.path.isfile(folder / matches[0]) else None


def list_names(folder: Path) -> dict[str, str | None]:
    """path_key -> the name in a folder; None where several names differ in spelling only."""
    try:
        return _list_names(folder, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=16)
def _list_names(folder: Path, modified_ns: int) -> dict[str, str | None]:
    names: dict[str, str | None] = {}
    for name in os.listdir(folder):
        key = path_key(name)
        names[key] = None if key in names else name
    return names


@lru_cache(maxsize=64)
def zip_files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.zip"))) if folder.is_dir() else ()


# --- in a folder of PMC articles ------------------------------------------------------------------------------------


def find_in_pmc(name: str, pmc_dir: Path) -> ResolvedImage | None:
    """An image by its article and figure number, or by its article and the publisher's file name."""
    match = ARTICLE_IMAGE.fullmatch(ANY_IMAGE_SUFFIX.sub("", name))
    if not match:
        return None
    number = int(match.group(2)) if match.group(1) else pmc_number_by_pmid(pmc_dir).get(int(match.group(2)))
    folder = downloaded_article_dir(pmc_dir, number) if number is not None else None
    if folder is None:
        return None
    name_in_article = match.group(3)
    panel = PANEL.fullmatch(name_in_article)
    article = read_downloaded_article(folder)
    if article is None:
        return None
    images = figure_images(article)
    if panel:
        path = existing_form(folder, images.get(f"#{int(panel.group(1))}", ()))
    else:
        path = existing_form(folder, images.get(name_in_article, ())) or existing_form(folder, (name_in_article,))
    return ResolvedImage(path, is_whole_figure=bool(panel)) if path else None


def downloaded_article_dir(pmc_dir: Path, number: int) -> Path | None:
    """The folder of the one downloaded version of an article."""
    return next(iter(sorted(article_dir(pmc_dir, number, 0).parent.glob(f"PMC{number}.*"))), None)


@lru_cache(maxsize=256)
def read_downloaded_article(folder: Path) -> Article | None:
    """The article of a folder; cached because table rows about one article are adjacent."""
    try:
        return read_article((folder / f"{folder.name}.xml").read_bytes())
    except (OSError, ArticleError):
        return None


def figure_images(article: Article) -> dict[str, tuple[str, ...]]:
    """Figure id, and "#3" for Figure 3 -> file names of its image; figures with several images are omitted."""
    images = {figure.figure_id: figure.images[0] for figure in article.figures if len(figure.images) == 1}
    by_number = number_figures([f.figure_id for f in article.figures], [f.label for f in article.figures])
    numbered = {f"#{number}": images[figure_id] for number, figure_id in by_number.items() if figure_id in images}
    return images | numbered


def existing_form(folder: Path, forms: tuple[str, ...]) -> Path | None:
    """The first of an image's possible files that is in the folder."""
    name = find_media([path.name for path in folder.iterdir()], forms) if forms else None
    return folder / name if name else None


@lru_cache(maxsize=4)
def pmc_number_by_pmid(pmc_dir: Path) -> dict[int, int]:
    """PubMed id -> PMC id of the downloaded articles; some datasets name images by PubMed id."""
    numbers: dict[int, int] = {}
    for path in (pmc_dir / "articles").glob("*/PMC*/PMC*.json"):
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
            numbers[int(metadata["pmid"])] = int(str(metadata["pmcid"]).removeprefix("PMC"))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return numbers
