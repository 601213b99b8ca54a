"""Names of images -> files: in folders, inside zips, or in a folder that `qilin data pmc` has filled.

In: a name as a data set writes it (`PMC8253873_Fig6_46.jpg`, `PMC1064097_F1.jpg`, `PMC3970251_IM2014-93.003.jpg`). Out:
a path (perhaps through a zip), and whether it is the whole figure where the name means a panel of it.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qilin.imaging.archive_paths import member_names, open_zip
from qilin.pipeline.pubmed.download import find_media, folder_of
from qilin.pipeline.pubmed.jats import Article, BadArticle, numbered, read_article

ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".gif", ".webp", ".bmp")
NAMED = re.compile(r"(?:(PMC)(?=\d)|(?=\d{4}))(\d{1,10})_(.+)", re.IGNORECASE)
FIGURE = re.compile(r"Fig(\d+)_\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """An image's path; `whole`: it is the figure that the named panel is a part of."""

    path: Path
    whole: bool = False


def resolve(name: str, bases: tuple[Path, ...], store: Path | None = None) -> Found:
    """Where a named image is: in the folders, their zips, the store. If nowhere, a path that is not there: in a
    damaged zip where there is one, since it may have held it."""
    for base in bases:
        for ending in ("", *ENDINGS):
            if inside(base, path := base / f"{name}{ending}") and path.is_file():
                return Found(path)
    short, damaged = name.rpartition("/")[2], None
    for base in bases:
        for zipped in zips(base):
            changed = zipped.stat().st_mtime_ns
            damaged = damaged or (zipped if open_zip(zipped, changed) is None else None)
            members = member_names(zipped, changed)
            for wanted in (name, short, *(short + ending for ending in ENDINGS)):
                if wanted in members:
                    return Found(zipped / members[wanted])
    return (store and from_store(short, store)) or Found((damaged or bases[0]) / short)


def inside(base: Path, path: Path) -> bool:
    """Whether a name stays in its folder: tables are strangers' and may say ../../."""
    return path.resolve().is_relative_to(base.resolve())


@lru_cache(maxsize=64)
def zips(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.zip"))) if folder.is_dir() else ()


def from_store(name: str, store: Path) -> Found | None:
    """An image by its article and figure, or by its article and the publisher's file name."""
    match = NAMED.fullmatch(re.sub(rf"({'|'.join(map(re.escape, ENDINGS))})$", "", name, flags=re.IGNORECASE))
    if not match:
        return None
    number = int(match.group(2)) if match.group(1) else pmids(store).get(int(match.group(2)))
    folder = article_folder(store, number) if number is not None else None
    if folder is None:
        return None
    rest = match.group(3)
    panel = FIGURE.fullmatch(rest)
    article = article_in(folder)
    if panel or not article:
        names = figures_by(article, "") if article else {}
        found = on_disk(folder, names.get(f"#{int(panel.group(1))}", ())) if panel else None
    else:
        found = on_disk(folder, figures_by(article, rest).get(rest, ())) or on_disk(folder, (rest,))
    return Found(found, whole=bool(panel)) if found else None


def article_folder(store: Path, number: int) -> Path | None:
    """The folder of an article's one version."""
    return next(iter(sorted(folder_of(store, number, 0).parent.glob(f"PMC{number}.*"))), None)


@lru_cache(maxsize=256)
def article_in(folder: Path) -> Article | None:
    """The article of a folder: rows about it stand together, so it is read once."""
    try:
        return read_article((folder / f"{folder.name}.xml").read_bytes())
    except (OSError, BadArticle):
        return None


def figures_by(article: Article, name: str) -> dict[str, tuple[str, ...]]:
    """Figure id, and "#3" for Figure 3 -> the names of its image; figures of several images are left out."""
    single = {f.figure_id: f.images[0] for f in article.figures if len(f.images) == 1}
    numbers = numbered([f.figure_id for f in article.figures], [f.label for f in article.figures])
    found = dict(single)
    for number, figure_id in numbers.items():
        if figure_id in single:
            found[f"#{number}"] = single[figure_id]
    return found


def on_disk(folder: Path, forms: tuple[str, ...]) -> Path | None:
    names = [path.name for path in folder.iterdir()]
    url = find_media(names, forms) if forms else None
    return folder / url if url else None


@lru_cache(maxsize=4)
def pmids(store: Path) -> dict[int, int]:
    """PubMed id -> PMC id of the articles that are here; some data sets name images by the former."""
    found: dict[int, int] = {}
    for path in (store / "articles").glob("*/PMC*/PMC*.json"):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            found[int(about["pmid"])] = int(str(about["pmcid"]).removeprefix("PMC"))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
