"""`qilin data figures`: a folder of JATS articles -> one row a figure, in numbered pieces, by many processes.

In: article files (.xml, .nxml), as `qilin data pmc` lays them out or any other way. Out: rows as JSON lines with
caption, images' names, mentions, context, licence, panels and what kind of image it is; what is no usable figure is
refused with its reason.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.progress import ProgressBars, refusals
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.licenses import tier
from qilin.imaging.panel_captions import split_caption
from qilin.pipeline.execution.sharded_map import read_shards, run_sharded
from qilin.pipeline.execution.workers import make_workers
from qilin.pipeline.pubmed.caption_classifier import judge
from qilin.pipeline.pubmed.jats import Article, BadArticle, Figure, read_article

ENDINGS = (".xml", ".nxml")
ARTICLES_A_PIECE = 256
LARGEST = 200 << 20  # bytes of an article's file; the largest known have some 30 MB
RETRACTED = ("retraction", "retracted-article", "partial-retraction", "expression-of-concern")


@config_class
class FiguresConfig:
    """Which articles, where to, and which figures to keep."""

    source: Path = option(help="the folder of articles: .xml or .nxml files, at any depth")
    out: Path = option(help="the folder of rows to make; an interrupted one is gone on with")
    every: bool = option(default=False, help="keep figures that are no medical images by their captions, too")
    workers: int = option(default=0, help="processes; 0 is one a core, 1 works in this one")
    cluster: str | None = option(default=None, help="a dask scheduler whose workers do it, such as tcp://10.0.0.1:8786")
    json: bool = option(default=False, help="print the summary as JSON")


def figures(given: FiguresConfig) -> None:
    """Make the rows, or say that they are there. Raises UserError where there are no articles."""
    names = list_articles(given.source)
    pieces = [names[start : start + ARTICLES_A_PIECE] for start in range(0, len(names), ARTICLES_A_PIECE)]
    listing = hashlib.sha256("\n".join(f"{name} {size_of(given.source / name)}" for name in names).encode())
    made_by = {
        "step": "figures",
        "articles": len(names),
        "listing": listing.hexdigest(),
        "every": given.every,
        "articles_a_piece": ARTICLES_A_PIECE,
    }
    work = partial(read_files, given.source.resolve(), given.every)
    workers = make_workers(given.workers, given.cluster, most=len(pieces))
    with ProgressBars(transient=True) as progress:
        task = progress.add_task("reading articles", total=len(pieces))
        counts = run_sharded(work, pieces, given.out, made_by, workers, lambda number: progress.advance(task))
    tell(given, len(names), counts)


def list_articles(source: Path) -> list[str]:
    """The article files below a folder, in an order of their own names. Raises UserError where there are none."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; expected one with articles ({', '.join(ENDINGS)})")
    found = []
    for folder, inner, files in os.walk(source):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        found += [os.path.relpath(os.path.join(folder, name), source) for name in files if is_article(name)]
    if not found:
        raise UserError(f"{source}: not one file ending in {' or '.join(ENDINGS)} in it or below")
    return sorted(found)


def size_of(path: Path) -> int:
    """Bytes of a file; -1 for a link to nowhere, which is refused when it is read."""
    return path.stat().st_size if path.exists() else -1


def is_article(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def read_files(source: Path, every: bool, names: Iterable[str]) -> Iterator[dict[str, Any] | RejectedRow]:
    """The step: article files -> figure rows."""
    for name in names:
        try:
            article = read_article(read_file(source / name))
        except BadArticle as error:
            yield RejectedRow({"file": name, "detail": error.detail[:300]}, f"article: {error.reason}")
            continue
        about = read_metadata(source / name)
        reason = article_fault(article, about)
        if reason:
            yield RejectedRow(
                {"file": name, "kind": article.kind, "figures": len(article.figures)}, f"article: {reason}"
            )
            continue
        for place, figure in enumerate(article.figures, start=1):
            row = figure_row(article, figure, name, place, about)
            reason = figure_fault(row, every)
            yield RejectedRow(row, f"figure: {reason}") if reason else row


def read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise BadArticle("file is too large for an article", f"the limit is {LARGEST:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise BadArticle("file cannot be read", str(error.strerror)) from None


def read_metadata(path: Path) -> Mapping[str, Any]:
    """What the PMC store says of the article (PMC123.1.json beside PMC123.1.xml); {} where there is no such file."""
    try:
        found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def article_fault(article: Article, about: Mapping[str, Any]) -> str | None:
    if about.get("is_retracted") or article.kind in RETRACTED:
        return "retracted, or a notice of retraction"
    if not article.figures:
        return "has no figures"
    return None


def figure_row(article: Article, figure: Figure, name: str, place: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """One figure as its row: all that later steps need, in plain JSON."""
    own = about.get("license_code")
    licence = figure.licence or (own if isinstance(own, str) and own else article.licence)
    known = figure.licence or not figure.credit
    division = split_caption(figure.caption)
    key = article.ids.get("pmc") or article.ids.get("doi") or Path(name).stem
    return {
        "row_id": f"{key}/{figure.figure_id}",
        "article": key,
        "file": name,
        **{kind: article.ids.get(kind) for kind in ("pmid", "doi")},
        "title": article.title,
        "journal": article.journal,
        "article_type": article.kind,
        "place": place,
        **{k: v for k, v in asdict(figure).items() if k != "licence"},
        "license": licence,
        # somebody else's figure without a licence of its own: the article's does not cover it
        "license_tier": tier(licence) if known else "restricted",
        "panels": {"lead": division.lead, "parts": division.panels, "doubt": division.reason_not_split},
        **asdict(judge(f"{figure.group} {figure.caption}".strip())),
    }


def figure_fault(row: Mapping[str, Any], every: bool) -> str | None:
    if not row["images"]:
        return "names no image"
    if row["medical"] == "no" and not every:
        return row["reason"]
    return None


def tell(given: FiguresConfig, articles: int, counts: Mapping[str, Any]) -> None:
    """What was found and what was refused, and the next command."""
    kinds: Counter[str] = Counter()
    whole = 0
    for row in read_shards(given.out):
        kinds[row["medical"]] += 1
        whole += bool(row["panels"]["parts"])
    facts = {"articles": articles, "figures": counts["rows"], "medical": dict(kinds), "captions_divided": whole}
    if given.json:
        print(json.dumps({"out": str(given.out), **facts, **counts}, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    words = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
    console.print(f"{given.out}: {counts['rows']:,} figures of {articles:,} articles; medical: {words or 'none'}")
    console.print(f"captions divided into panels: {whole:,}")
    if counts["dropped"]:
        console.print(refusals(counts["dropped_reasons"], "refused", f"{given.out}/dropped-*.jsonl"))
