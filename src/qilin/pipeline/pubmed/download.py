"""`qilin data pmc`: download articles and the images of their figures from PubMed Central's open-access store.

In: a list of ids, a search query, or the store's inventory, and which licenses, types and versions to accept. Out:
article folders that `qilin data extract-figures` reads, and a ledger of what was downloaded, rejected, missing or
replaced. An interrupted run continues; files already here are not downloaded again.
"""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import httpx2

from qilin import __version__
from qilin.core.config import config_class, option
from qilin.core.errors import RunError, UserError
from qilin.core.files import read_text
from qilin.core.llm_client import run_workers
from qilin.core.output_dir import lock_dir
from qilin.core.progress import ProgressBars
from qilin.core.terminal import make_console, print_json
from qilin.dataset.licenses import TIERS, license_tier
from qilin.pipeline.pubmed.caption_classifier import classify_caption
from qilin.pipeline.pubmed.download_state import (
    ArticleOutcome,
    FileOutcome,
    Ledger,
    State,
    format_counts,
    open_ledger,
)
from qilin.pipeline.pubmed.jats import Article, ArticleError, read_article
from qilin.pipeline.pubmed.object_store import ArticleStore, RateLimiter, StoreError, key_of

BASE_URL = "https://pmc-oa-opendata.s3.amazonaws.com"
SEARCH_URL = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils/esearch.fcgi"
LEDGER = "ledger.sqlite"
IDS_PER_PAGE = 9_999  # of search results
# --license -> the strictest license tier that is accepted
ALLOWED = {"commercial": "sharealike", "noncommercial": "noncommercial", "any": "unknown"}
MAX_CONSECUTIVE_FAILURES = 20  # articles, before the store is considered unreachable
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff")


@config_class
class PmcConfig:
    """Which articles to download, and how fast."""

    out: Path = option(help="folder for the articles and the record of the downloads; name it again to continue")
    ids: Path | None = option(
        default=None, help="text file with one id per line: PMC123, 123, or PMC123.2 for one version"
    )
    query: str | None = option(default=None, help="PubMed Central search query, such as 'case report AND chest CT'")
    inventory: bool = option(default=False, help="all articles of the newest inventory (millions; see --limit)")
    date: str | None = option(
        default=None, help="with --inventory: the inventory of this date, such as 2026-11-01T01-00Z"
    )
    license: Literal["commercial", "noncommercial", "any"] = option(
        default="noncommercial",
        help="intended use, which the license must permit; commercial excludes NC and ND, noncommercial ND",
    )
    article_types: tuple[str, ...] = option(
        default=(), help="only articles of these types, such as case-report (default: all)"
    )
    manuscripts: bool = option(default=False, help="include author manuscripts")
    images: Literal["medical", "figures", "none"] = option(
        default="medical", help="images to download: of figures whose captions may be medical, of all figures, or none"
    )
    limit: int | None = option(default=None, help="stop after this many articles; run the command again to continue")
    strict: bool = option(default=False, help="exit with an error if any article failed, after processing the others")
    refresh: bool = option(default=False, help="check recorded articles again for new versions and missing files")
    rate: float = option(default=10.0, help="requests per second, over all connections")
    concurrency: int = option(default=8, help="number of articles processed at the same time")
    retries: int = option(
        default=5, help="retries after broken connections, 429 and 5xx, with exponentially growing waits"
    )
    timeout: float = option(default=60.0, help="seconds to wait for the next byte")
    base: str = option(default=BASE_URL, help="base URL of the article store or a mirror of it")
    search: str = option(default=SEARCH_URL, help="URL of the search service, for --query")
    json: bool = option(default=False, help="print the summary as JSON")

    def __post_init__(self) -> None:
        sources = [name for name in ("ids", "query", "inventory") if getattr(self, name)]
        if len(sources) != 1:
            raise ValueError(f"expected exactly one of --ids, --query, --inventory; got {', '.join(sources) or 'none'}")
        if self.date and not self.inventory:
            raise ValueError("--date needs --inventory")
        if self.rate <= 0 or self.concurrency < 1 or self.retries < 0:
            raise ValueError(
                f"rate is {self.rate:g}, concurrency {self.concurrency}, retries {self.retries}; expected rate above "
                "0, concurrency at least 1, retries at least 0"
            )
        if self.timeout <= 0 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                f"timeout is {self.timeout:g} and limit {self.limit}; expected timeout above 0 and limit at least 1"
            )
        for name in ("base", "search"):
            if not getattr(self, name).startswith(("http://", "https://")):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a URL that starts with https://")


def download_articles(config: PmcConfig) -> None:
    """Download the selected articles that are not here yet.

    Raises RunError if the store cannot be reached, UserError if the folder contains anything else.
    """
    with lock_dir(config.out):
        download_to_locked_folder(config)


def download_to_locked_folder(config: PmcConfig) -> None:
    """`download_articles` where this process holds the lock of the folder."""
    if config.out.is_dir() and any(config.out.iterdir()) and not (config.out / LEDGER).is_file():
        raise UserError(f"{config.out}: not empty and without a {LEDGER}; choose a new or empty folder")
    config.out.mkdir(parents=True, exist_ok=True)
    rules = json.dumps([config.license, sorted(config.article_types), config.manuscripts, config.images])
    with open_ledger(config.out / LEDGER, rules) as ledger:
        processed = asyncio.run(download_all(config, ledger))
        print_summary(config, ledger, processed)
        failed, downloaded = ledger.count_articles("failed"), ledger.count_articles("have")
    if failed and (config.strict or not downloaded):
        raise RunError(f"{config.out}: {failed:,} articles failed; run the same command again to retry them")


async def download_all(config: PmcConfig, ledger: Ledger) -> int:
    """Select and process the articles of this run; returns how many were processed."""
    timeout = httpx2.Timeout(config.timeout, connect=min(config.timeout, 30))
    headers = {"User-Agent": f"qilin-med/{__version__} (dataset builder)"}
    async with httpx2.AsyncClient(timeout=timeout, headers=headers, follow_redirects=True) as client:
        store = ArticleStore(client, config.base, RateLimiter(config.rate), config.retries)
        try:
            await select_articles(config, store, ledger)
        except StoreError as error:
            url = config.search if config.query else config.base
            raise RunError(f"{url}: cannot list the articles to download: {error.reason}") from None
        return await process_all(config, store, ledger)


# --- selecting articles ---------------------------------------------------------------------------------------------


async def select_articles(config: PmcConfig, store: ArticleStore, ledger: Ledger) -> None:
    """Record in the ledger which articles this run is about."""
    ledger.clear_wanted()
    if config.ids:
        ledger.add_wanted(read_ids(config.ids))
    elif config.query:
        ledger.add_wanted([(number, 0) for number in await search_ids(config, store)])
    else:
        async for articles in store.inventory(config.date):
            ledger.add_wanted(articles)
    if not ledger.count_wanted():
        raise UserError("nothing to download: the list, query or inventory contains no article")


def read_ids(path: Path) -> Iterator[tuple[int, int]]:
    """(number, version or 0) of each line. Raises UserError for a line that is not an id."""
    for line_number, line in enumerate(read_text(path, "one PMC id per line").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"(?:PMC)?(\d{1,10})(?:\.(\d{1,3}))?", line.strip(), re.IGNORECASE)
        if not match:
            raise UserError(
                f"{path}: line {line_number} is {line.strip()[:60]!r}; expected an id such as PMC123 or PMC123.2"
            )
        yield int(match.group(1)), int(match.group(2) or 0)


async def search_ids(config: PmcConfig, store: ArticleStore) -> list[int]:
    """The ids that match the query. Raises StoreError."""
    search = ArticleStore(store.client, config.search, store.limiter, store.retries)
    numbers: list[int] = []
    while True:
        query = {"db": "pmc", "term": config.query or "", "retmode": "json", "retmax": str(IDS_PER_PAGE)}
        body = await search.get("", **query, retstart=str(len(numbers)))
        try:
            result = json.loads(body)["esearchresult"]
            page, count = [int(number) for number in result["idlist"]], int(result["count"])
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"unexpected search response {body[:80]!r}", permanent=False) from None
        numbers += page
        if not page or len(numbers) >= count:
            return numbers


# --- downloading articles -------------------------------------------------------------------------------------------


async def process_all(config: PmcConfig, store: ArticleStore, ledger: Ledger) -> int:
    """Process articles concurrently and record each in the ledger when it is done; returns how many were processed.

    Raises RunError when so many articles fail in a row that the store must be unreachable.
    """
    pending = ledger.pending(config.refresh, config.limit)
    processed = failures = 0
    with ProgressBars(transient=True) as progress:
        task = progress.add_task("downloading articles", total=config.limit or ledger.count_wanted())

        async def process_pending() -> None:
            nonlocal processed, failures
            for number, version in pending:
                outcome = await process_article(config, store, ledger, number, version)
                ledger.record(outcome)
                processed += 1
                failures = failures + 1 if outcome.state == "failed" else 0
                progress.advance(task)
                all_failed = failures == processed and failures >= config.concurrency
                if failures >= MAX_CONSECUTIVE_FAILURES or all_failed:
                    raise RunError(
                        f"{config.base}: {failures} articles in a row failed ({outcome.detail}); run the same command "
                        "again to continue"
                    )

        await run_workers(process_pending, config.concurrency)
    return processed


async def process_article(
    config: PmcConfig, store: ArticleStore, ledger: Ledger, number: int, version: int
) -> ArticleOutcome:
    """Choose the article's version (0: the newest), check it against the rules, download its XML and its images."""
    try:
        if not version or config.refresh:
            versions = await store.versions(number)
            if not versions or (version and version not in versions):
                return ArticleOutcome(number, version, "missing", "not in the store")
            version = version or versions[-1]
        metadata = await store.metadata(number, version)
        license = str(metadata.get("license_code") or "")
        if reason := rejection_reason(config, metadata):
            return ArticleOutcome(number, version, "refused", reason, license)
        folder = article_dir(config.out, number, version)
        folder.mkdir(parents=True, exist_ok=True)
        md5_of = ledger.downloaded_files(number, version)
        xml = await fetch_file(store, str(metadata.get("xml_url") or ""), folder, md5_of)
        if xml.state != "have":
            return ArticleOutcome(number, version, xml.state, f"XML: {xml.detail}", license, files=(xml,))
        (folder / f"PMC{number}.{version}.json").write_text(json.dumps(metadata, ensure_ascii=False), encoding="utf-8")
        article = read_article((folder / xml.name).read_bytes())
    except StoreError as error:
        return ArticleOutcome(number, version, "missing" if error.permanent else "failed", error.reason)
    except ArticleError as error:
        return ArticleOutcome(number, version, "refused", f"XML: {error.reason}", license, files=(xml,))
    if config.article_types and article.article_type not in config.article_types:
        reason = f"article type {article.article_type or 'unknown'}"
        return ArticleOutcome(number, version, "refused", reason, license, article.article_type)
    files = [xml]
    for forms in images_to_fetch(article, config.images):
        url = find_media(metadata.get("media_urls") or (), forms)
        missing = FileOutcome(forms[0], "missing", "in the article but not in the store")
        files.append(await fetch_file(store, url, folder, md5_of) if url else missing)
    archive_old_versions(config.out, number, version)
    has_failed = any(file.state == "failed" for file in files)
    state: State = "failed" if has_failed else "have"
    detail = "an image" if has_failed else ""
    return ArticleOutcome(number, version, state, detail, license, article.article_type, tuple(files))


def rejection_reason(config: PmcConfig, metadata: Mapping[str, Any]) -> str | None:
    """Why the store's metadata rules an article out; None if it does not."""
    if metadata.get("is_retracted"):
        return "retracted"
    if metadata.get("is_manuscript") and not config.manuscripts:
        return "author manuscript"
    license = str(metadata.get("license_code") or "")
    if TIERS.index(license_tier(license)) > TIERS.index(ALLOWED[config.license]):
        return f"license {license or 'not stated'}"
    return None


def images_to_fetch(article: Article, selection: str) -> list[tuple[str, ...]]:
    """The distinct images of the selected figures ("medical", "figures" or "none"), each as its possible file names."""
    images = [
        forms
        for figure in article.figures
        if selection == "figures"
        or (selection == "medical" and classify_caption(f"{figure.group} {figure.caption}").medical != "no")
        for forms in figure.images
    ]
    return list(dict.fromkeys(images))


def archive_old_versions(out: Path, number: int, version: int) -> None:
    """Move the folders of other versions to `moved`, so that no figure is read twice."""
    for folder in article_dir(out, number, version).parent.glob(f"PMC{number}.*"):
        if folder.name != f"PMC{number}.{version}":
            (out / "moved").mkdir(exist_ok=True)
            folder.replace(out / "moved" / folder.name)


def article_dir(out: Path, number: int, version: int) -> Path:
    """An article's folder, in one of 1000 parents: a single folder of millions is slow on every file system."""
    return out / "articles" / f"{number % 1000:03d}" / f"PMC{number}.{version}"


def find_media(urls: Any, forms: tuple[str, ...]) -> str | None:
    """The URL of an image, by its possible file names in order of preference.

    Articles often omit the suffix or give another one; small formats are then preferred.
    """
    by_name = {key_of(str(url)).rpartition("/")[2].lower(): str(url) for url in urls}
    for form in forms:
        name = form.rpartition("/")[2].lower()
        stems = [name, *([name.rpartition(".")[0]] if name.endswith(IMAGE_SUFFIXES) else [])]
        candidates = [name, *(stem + suffix for stem in stems if stem for suffix in IMAGE_SUFFIXES)]
        if match := next((candidate for candidate in candidates if candidate in by_name), None):
            return by_name[match]
    return None


async def fetch_file(store: ArticleStore, url: str, folder: Path, md5_of: Mapping[str, str]) -> FileOutcome:
    """Download a file, unless it is on disk and in `md5_of` (the ledger's file name -> md5)."""
    name = key_of(url).rpartition("/")[2]
    if not name or name.startswith(".") or "\\" in name or "\0" in name:
        return FileOutcome(name, "missing", "no usable name")
    path = folder / name
    if name in md5_of and path.is_file():
        return FileOutcome(name, "have", "", md5_of[name], path.stat().st_size)
    try:
        md5, size = await store.download(url, path)
    except StoreError as error:
        return FileOutcome(name, "missing" if error.permanent else "failed", error.reason)
    return FileOutcome(name, "have", "", md5, size)


def print_summary(config: PmcConfig, ledger: Ledger, processed: int) -> None:
    """Print the counts of the entire ledger, and the next command."""
    counts = ledger.counts()
    if config.json:
        tables = {table: [{"state": s, "detail": d, "count": n} for s, d, n in rows] for table, rows in counts.items()}
        summary = {"out": str(config.out), "done": processed, "bytes": ledger.total_bytes(), **tables}
        print_json(summary, indent=None)
        return
    console = make_console()
    console.print(
        f"{config.out}: {processed:,} articles processed in this run; {ledger.total_bytes() / 1e6:,.1f} MB in total"
    )
    for table, rows in counts.items():
        if rows:
            console.print(f"{table}: {format_counts(rows)}")
    if ledger.count_articles("failed"):
        console.print("some articles failed: run the same command again to retry them")
    if ledger.count_articles("have"):
        console.print(f"next: qilin data extract-figures {config.out / 'articles'} figures")
