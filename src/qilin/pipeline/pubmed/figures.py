"""`qilin data extract-figures`: the figures of a folder of JATS articles, one row per figure, in numbered shards.

In: article files (.xml, .nxml), laid out as by `qilin data pmc` or in any other way. Out: rows as JSON lines with
caption, image names, mentions, context, license, panels and the kind of image; unusable figures are rejected with a
reason.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.progress import ProgressBars, refusals
from qilin.core.terminal import make_console, print_json
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.licenses import license_tier
from qilin.imaging.panel_captions import SplitCaption, split_caption
from qilin.pipeline.execution.config import ExecutionConfig
from qilin.pipeline.execution.sharded_map import read_shards, run_sharded
from qilin.pipeline.execution.step_output import command_line
from qilin.pipeline.execution.workers import make_workers
from qilin.pipeline.pubmed.caption_classifier import classify_caption
from qilin.pipeline.pubmed.jats import Article, ArticleError, Figure, read_articles

ARTICLE_SUFFIXES = (".xml", ".nxml")
ARTICLES_PER_SHARD = 256
MAX_ARTICLE_BYTES = 200 << 20  # the largest known articles have some 30 MB


@config_class
class ExtractFiguresConfig:
    """Which articles to read, and which figures to keep."""

    source: Path = option(help="folder of articles: .xml or .nxml files, at any depth")
    out: Path = option(help="folder for the figure rows; an interrupted run continues")
    include_nonmedical: bool = option(
        default=False, help="also keep figures that are not medical images according to their captions"
    )
    execution: ExecutionConfig = option(default=ExecutionConfig(), flatten=True)


def extract_figures(config: ExtractFiguresConfig) -> None:
    """Write the figure rows, unless they are complete already. Raises UserError if there are no articles."""
    names = list_articles(config.source)
    shards = [names[start : start + ARTICLES_PER_SHARD] for start in range(0, len(names), ARTICLES_PER_SHARD)]
    listing = hashlib.sha256("\n".join(f"{name} {file_size(config.source / name)}" for name in names).encode())
    made_by = {
        "step": "extract-figures",
        "command": command_line("data extract-figures", config, ("source", "out")),
        "articles": len(names),
        "listing": listing.hexdigest(),
        "include_nonmedical": config.include_nonmedical,
        "articles_per_shard": ARTICLES_PER_SHARD,
    }
    function = partial(extract_shard, config.source.resolve(), config.include_nonmedical)
    workers = make_workers(config.execution.workers, config.execution.cluster, max_workers=len(shards))
    with ProgressBars(transient=True) as progress:
        task = progress.add_task("reading articles", total=len(shards))
        counts = run_sharded(function, shards, config.out, made_by, workers, lambda number: progress.advance(task))
    print_summary(config, len(names), counts)


def list_articles(source: Path) -> list[str]:
    """The sorted names of the article files below a folder, relative to it. Raises UserError if there are none."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; expected one with articles ({', '.join(ARTICLE_SUFFIXES)})")
    names = []
    for folder, subfolders, files in os.walk(source):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        names += [os.path.relpath(os.path.join(folder, name), source) for name in files if is_article(name)]
    if not names:
        raise UserError(f"{source}: no file that ends in {' or '.join(ARTICLE_SUFFIXES)} in this folder or below")
    return sorted(names)


def file_size(path: Path) -> int:
    """Size in bytes; -1 for a dangling link, which is rejected when it is read."""
    return path.stat().st_size if path.exists() else -1


def is_article(name: str) -> bool:
    return name.lower().endswith(ARTICLE_SUFFIXES) and not name.startswith(".")


# --- one shard ------------------------------------------------------------------------------------------------------


def extract_shard(
    source: Path, include_nonmedical: bool, names: Iterable[str]
) -> Iterator[dict[str, Any] | RejectedRow]:
    """Article files -> figure rows, and rejected articles and figures."""
    for name in names:
        try:
            articles = list(read_articles(read_file(source / name)))
        except ArticleError as error:
            articles = [error]
        image_counts = Counter(image for article in articles for image in image_names(article))
        for number, article in enumerate(articles, start=1):
            article_path = f"{name}#{number}" if len(articles) > 1 else name
            if isinstance(article, ArticleError):
                yield RejectedRow({"file": article_path, "detail": article.detail[:300]}, f"article: {article.reason}")
                continue
            if len(articles) > 1:
                article = name_images_of_set(article, article_name(article, article_path), image_counts)
            metadata = read_metadata(source / name) if len(articles) == 1 else {}
            yield from article_rows(article, name, article_path, metadata, include_nonmedical)


def article_rows(
    article: Article, file_name: str, article_path: str, metadata: Mapping[str, Any], include_nonmedical: bool
) -> Iterator[dict[str, Any] | RejectedRow]:
    """The figure rows of one article. `article_path`: its file, with its number in a file of several."""
    if reason := article_problem(article, metadata):
        facts = {"file": article_path, "kind": article.article_type, "figures": len(article.figures)}
        yield RejectedRow(facts, f"article: {reason}")
        return
    for number, figure in enumerate(article.figures, start=1):
        row = figure_row(article, figure, file_name, number, metadata, article_name(article, article_path))
        reason = figure_problem(row, include_nonmedical)
        yield RejectedRow(row, f"figure: {reason}") if reason else row


def article_name(article: Article, article_path: str) -> str:
    """PMC id, DOI, or the path without the suffix: two folders may both have a fulltext.xml."""
    path, _, number = article_path.partition("#")
    without_suffix = os.path.splitext(path)[0].replace(os.sep, "/")
    return article.ids.get("pmc") or article.ids.get("doi") or without_suffix + (f"#{number}" if number else "")


def image_names(article: Article | ArticleError) -> set[str]:
    """The names of an article's images, each once."""
    figures = () if isinstance(article, ArticleError) else article.figures
    return {name for figure in figures for forms in figure.images for name in forms}


def name_images_of_set(article: Article, name: str, counts: Mapping[str, int]) -> Article:
    """An article of a set, whose images are in a folder with its id; or beside the set, if no other article of it
    names an image so."""

    def forms_in_set(forms: tuple[str, ...]) -> tuple[str, ...]:
        inside = (f"{name.replace('/', '_')}/{form}" for form in forms)
        return tuple(dict.fromkeys((*inside, *(form for form in forms if counts[form] == 1))))

    figures = (replace(figure, images=tuple(map(forms_in_set, figure.images))) for figure in article.figures)
    return replace(article, figures=tuple(figures))


def read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_ARTICLE_BYTES:
            raise ArticleError("file is too large for an article", f"the limit is {MAX_ARTICLE_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ArticleError("file cannot be read", str(error.strerror)) from None


def read_metadata(path: Path) -> Mapping[str, Any]:
    """The PMC store's metadata of an article (PMC123.1.json next to PMC123.1.xml); {} if there is no such file."""
    try:
        metadata = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def article_problem(article: Article, metadata: Mapping[str, Any]) -> str | None:
    if metadata.get("is_retracted") or article.is_retracted:
        return "retracted, or a notice of retraction"
    return None if article.figures else "has no figures"


def figure_row(
    article: Article, figure: Figure, file_name: str, number: int, metadata: Mapping[str, Any], article_id: str
) -> dict[str, Any]:
    """A figure as a JSON row with everything that later steps need. `number` counts from 1 in printed order."""
    metadata_license = metadata.get("license_code")
    article_license = metadata_license if isinstance(metadata_license, str) and metadata_license else article.license
    license = figure.license or article_license
    several = figure.shared_caption or len(figure.images) > 1
    panels = split_caption(figure.caption) if not several else SplitCaption(reason_not_split="several images share it")
    # the article's license does not cover a figure that is credited to somebody else
    is_covered = figure.license or not figure.credit
    return {
        "row_id": f"{article_id}/{figure.figure_id}",
        "article": article_id,
        "file": file_name,
        **{id_type: article.ids.get(id_type) for id_type in ("pmid", "doi")},
        "title": article.title,
        "journal": article.journal,
        "article_type": article.article_type,
        "place": number,
        **{key: value for key, value in asdict(figure).items() if key != "license"},
        "license": license,
        "license_tier": license_tier(license) if is_covered else "restricted",
        "panels": {"lead": panels.lead, "parts": panels.panels, "doubt": panels.reason_not_split},
        **asdict(classify_caption(f"{figure.group} {figure.caption}".strip())),
    }


def figure_problem(row: Mapping[str, Any], include_nonmedical: bool) -> str | None:
    if not row["images"]:
        return "names no image"
    return row["reason"] if row["medical"] == "no" and not include_nonmedical else None


def print_summary(config: ExtractFiguresConfig, articles: int, counts: Mapping[str, Any]) -> None:
    medical: Counter[str] = Counter()
    split_captions = 0
    for row in read_shards(config.out):
        medical[row["medical"]] += 1
        split_captions += bool(row["panels"]["parts"])
    if config.execution.json:
        facts = {"articles": articles, "figures": counts["rows"], "medical": dict(medical)}
        summary = {"out": str(config.out), **facts, "captions_divided": split_captions, **counts}
        print_json(summary, indent=None)
        return
    console = make_console()
    classes = ", ".join(f"{name} {count:,}" for name, count in medical.most_common()) or "none"
    console.print(f"{config.out}: {counts['rows']:,} figures of {articles:,} articles; medical: {classes}")
    console.print(f"captions split into panels: {split_captions:,}")
    if counts["dropped"]:
        console.print(refusals(counts["dropped_reasons"], "rejected", f"{config.out}/dropped-*.jsonl"))
