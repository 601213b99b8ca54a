"""`qilin data pmc`: articles of PubMed Central's open store, with the images of their figures, onto this machine.

In: a list of ids, a query, or the store's inventory; what licence, kind and version is wanted. Out: article folders
that `qilin data figures` reads, and a ledger of what is here, refused, missing, moved. Interrupted, it goes on; what is
here is not fetched again.
"""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import httpx2
from rich.console import Console

from qilin import __version__
from qilin.core.config import config_class, option
from qilin.core.errors import RunError, UserError
from qilin.core.llm_client import together
from qilin.core.progress import ProgressBars
from qilin.dataset.licenses import TIERS, tier
from qilin.pipeline.pubmed.caption_classifier import judge
from qilin.pipeline.pubmed.download_state import FileOutcome, Ledger, Outcome, State, as_text, open_ledger
from qilin.pipeline.pubmed.jats import Article, BadArticle, read_article
from qilin.pipeline.pubmed.object_store import Pace, Store, StoreFault, key_of

BASE = "https://pmc-oa-opendata.s3.amazonaws.com"
SEARCH = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils/esearch.fcgi"
LEDGER = "ledger.sqlite"
SEARCH_PAGE = 9_999  # ids an answer
# the strictest tier that may be taken
ALLOWED = {"commercial": "sharealike", "noncommercial": "noncommercial", "any": "unknown"}
FAILED_IN_A_ROW = 20
IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff")


@config_class
class PmcConfig:
    """Which articles to fetch, and how gently."""

    out: Path = option(help="the folder of articles and their ledger; used again, it goes on")
    ids: Path | None = option(default=None, help="a file of ids: PMC123, 123, or PMC123.2 for one version")
    query: str | None = option(default=None, help="a search of PubMed Central, such as 'case report AND chest CT'")
    inventory: bool = option(default=False, help="all that the newest inventory lists (millions; see --limit)")
    date: str | None = option(default=None, help="with --inventory: that of a date, as the store writes it")
    license: Literal["commercial", "noncommercial", "any"] = option(
        default="noncommercial", help="what must be allowed; commercial leaves out NC and ND, noncommercial only ND"
    )
    article_types: tuple[str, ...] = option(default=(), help="only these, such as case-report (default: all)")
    manuscripts: bool = option(default=False, help="take author manuscripts, too")
    images: Literal["medical", "figures", "none"] = option(
        default="medical", help="images of figures that are medical by their captions, of all figures, or none"
    )
    limit: int | None = option(default=None, help="stop after this many articles; the same command goes on")
    strict: bool = option(default=False, help="end with an error where articles failed, after all others are here")
    refresh: bool = option(default=False, help="ask again for articles that are settled: new versions, lost files")
    rate: float = option(default=10.0, help="requests a second, over all connections")
    concurrency: int = option(default=8, help="articles at a time")
    retries: int = option(default=5, help="of cut connections, 429 and 5xx, waiting longer each time")
    timeout: float = option(default=60.0, help="seconds without a byte")
    base: str = option(default=BASE, help="the store's address: a mirror's, where there is one")
    search: str = option(default=SEARCH, help="the search's address, for --query")
    json: bool = option(default=False, help="print the summary as JSON")

    def __post_init__(self) -> None:
        given = [name for name in ("ids", "query", "inventory") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"one of --ids, --query, --inventory is needed; given: {', '.join(given) or 'none'}")
        if self.date and not self.inventory:
            raise ValueError("--date is for --inventory")
        if self.rate <= 0 or self.concurrency < 1 or self.retries < 0:
            raise ValueError("rate must be above 0, concurrency at least 1, retries at least 0")
        if self.timeout <= 0 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"timeout is {self.timeout:g} and limit {self.limit}; expected more than 0, at least 1")
        for name in ("base", "search"):
            if not getattr(self, name).startswith(("http://", "https://")):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected an address that begins with https://")


def pmc(given: PmcConfig) -> None:
    """Fetch what is wanted and not here yet. Raises RunError where the store cannot be reached, UserError for a folder
    that holds other things."""
    if given.out.is_dir() and any(given.out.iterdir()) and not (given.out / LEDGER).is_file():
        raise UserError(f"{given.out}: already holds something, and no articles; name an empty or new folder")
    given.out.mkdir(parents=True, exist_ok=True)
    rules = json.dumps([given.license, sorted(given.article_types), given.manuscripts, given.images])
    with open_ledger(given.out / LEDGER, rules) as ledger:
        done = asyncio.run(fetch_all(given, ledger))
        tell(given, ledger, done)
        failed, here = ledger.count_articles("failed"), ledger.count_articles("have")
    if failed and (given.strict or not here):
        raise RunError(f"{given.out}: {failed:,} articles failed; the same command tries them again")


async def fetch_all(given: PmcConfig, ledger: Ledger) -> int:
    """Settle what the run wants; the number of articles that were looked at."""
    timeout = httpx2.Timeout(given.timeout, connect=min(given.timeout, 30))
    agent = {"User-Agent": f"qilin-med/{__version__} (dataset builder)"}
    async with httpx2.AsyncClient(timeout=timeout, headers=agent, follow_redirects=True) as client:
        store = Store(client, given.base, Pace(given.rate), given.retries)
        try:
            await list_wanted(given, store, ledger)
        except StoreFault as error:
            asked = given.search if given.query else given.base
            raise RunError(f"{asked}: cannot list what is wanted: {error.reason}") from None
        return await work_through(given, store, ledger)


async def list_wanted(given: PmcConfig, store: Store, ledger: Ledger) -> None:
    ledger.want_nothing()
    if given.ids:
        ledger.want(read_ids(given.ids))
    elif given.query:
        ledger.want([(number, 0) for number in await ask_search(given, store)])
    else:
        async for rows in store.inventory(given.date):
            ledger.want(rows)
    if not ledger.count_wanted():
        raise UserError("nothing is wanted: the list, the query or the inventory names no article")


def read_ids(path: Path) -> Iterator[tuple[int, int]]:
    """(number, version or 0) of each line. Raises UserError for a line that is no id."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected one PMC id a line") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text; expected one PMC id a line") from None
    for place, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"(?:PMC)?(\d{1,10})(?:\.(\d{1,3}))?", line.strip(), re.IGNORECASE)
        if not match:
            raise UserError(f"{path}: line {place} is {line.strip()[:60]!r}; expected an id such as PMC123 or PMC123.2")
        yield int(match.group(1)), int(match.group(2) or 0)


async def ask_search(given: PmcConfig, store: Store) -> list[int]:
    """The ids that a query finds."""
    search = Store(store.client, given.search, store.pace, store.retries)
    found: list[int] = []
    while True:
        query = {"db": "pmc", "term": given.query or "", "retmode": "json", "retmax": str(SEARCH_PAGE)}
        page = await search.get("", **query, retstart=str(len(found)))
        try:
            answer = json.loads(page)["esearchresult"]
            ids, count = [int(number) for number in answer["idlist"]], int(answer["count"])
        except (ValueError, KeyError, TypeError):
            raise StoreFault(f"the search answers {page[:80]!r}", lasting=False) from None
        found += ids
        if not ids or len(found) >= count:
            return found


async def work_through(given: PmcConfig, store: Store, ledger: Ledger) -> int:
    """Articles at a time, each settled in the ledger the moment it is; a store that is gone stops the run."""
    todo = ledger.left(given.refresh, given.limit)
    done = failed = 0
    with ProgressBars(transient=True) as progress:
        task = progress.add_task("fetching articles", total=given.limit or ledger.count_wanted())

        async def work() -> None:
            nonlocal done, failed
            for number, version in todo:
                outcome = await settle(given, store, ledger, number, version)
                ledger.write(outcome)
                done += 1
                failed = failed + 1 if outcome.state == "failed" else 0
                progress.advance(task)
                if failed >= FAILED_IN_A_ROW or (failed == done and failed >= given.concurrency):
                    raise RunError(
                        f"{given.base}: {failed} articles in a row failed ({outcome.detail}); the same command goes on"
                    )

        await together(work, given.concurrency)
    return done


async def settle(given: PmcConfig, store: Store, ledger: Ledger, number: int, version: int) -> Outcome:
    """One article: choose its version, judge it, fetch its XML and its images."""
    try:
        if not version or given.refresh:
            versions = await store.versions(number)
            if not versions or (version and version not in versions):
                return Outcome(number, version, "missing", "not in the store")
            version = version or versions[-1]
        about = await store.metadata(number, version)
        licence = str(about.get("license_code") or "")
        if reason := refusal(given, about):
            return Outcome(number, version, "refused", reason, licence)
        folder = folder_of(given.out, number, version)
        folder.mkdir(parents=True, exist_ok=True)
        had = ledger.files(number, version)
        xml = await one_file(store, str(about.get("xml_url") or ""), folder, had)
        if xml.state != "have":
            return Outcome(number, version, xml.state, f"XML: {xml.detail}", licence, files=(xml,))
        (folder / f"PMC{number}.{version}.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        article = read_article((folder / xml.name).read_bytes())
    except StoreFault as error:
        return Outcome(number, version, "missing" if error.lasting else "failed", error.reason)
    except BadArticle as error:
        return Outcome(number, version, "refused", f"XML: {error.reason}", licence, files=(xml,))
    if given.article_types and article.kind not in given.article_types:
        return Outcome(number, version, "refused", f"article type {article.kind or 'unknown'}", licence, article.kind)
    files = [xml]
    for forms in wanted_images(article, given.images):
        url = find_media(about.get("media_urls") or (), forms)
        missing = FileOutcome(forms[0], "missing", "the article names it, the store does not")
        files.append(await one_file(store, url, folder, had) if url else missing)
    set_aside(given.out, number, version)
    again = any(file.state == "failed" for file in files)
    state: State = "failed" if again else "have"
    return Outcome(number, version, state, "an image" if again else "", licence, article.kind, tuple(files))


def wanted_images(article: Article, which: str) -> list[tuple[str, ...]]:
    """The images to fetch, each as the names of its forms, once."""
    wanted = [
        forms
        for figure in article.figures
        if which == "figures" or (which == "medical" and judge(f"{figure.group} {figure.caption}").medical != "no")
        for forms in figure.images
    ]
    return list(dict.fromkeys(wanted))


def set_aside(out: Path, number: int, version: int) -> None:
    """Move the folders of other versions out of `articles`, so that no figure is read twice."""
    for other in folder_of(out, number, version).parent.glob(f"PMC{number}.*"):
        if other.name != f"PMC{number}.{version}":
            (out / "moved").mkdir(exist_ok=True)
            other.replace(out / "moved" / other.name)


def refusal(given: PmcConfig, about: Mapping[str, Any]) -> str | None:
    """Why an article is not wanted, by what the store says of it."""
    if about.get("is_retracted"):
        return "retracted"
    if about.get("is_manuscript") and not given.manuscripts:
        return "author manuscript"
    licence = str(about.get("license_code") or "")
    if TIERS.index(tier(licence)) > TIERS.index(ALLOWED[given.license]):
        return f"licence {licence or 'not said'}"
    return None


def folder_of(out: Path, number: int, version: int) -> Path:
    """A thousand folders of articles: a folder of millions is slow on every file system."""
    return out / "articles" / f"{number % 1000:03d}" / f"PMC{number}.{version}"


def find_media(urls: Any, forms: tuple[str, ...]) -> str | None:
    """The address of an image: articles often leave the ending off its name. The smaller kinds of file come first."""
    by_name = {key_of(str(url)).rpartition("/")[2].lower(): str(url) for url in urls}
    for form in forms:
        name = form.rpartition("/")[2].lower()
        found = [name] if name in by_name else [name + ending for ending in IMAGES if name + ending in by_name]
        stem = name.rpartition(".")[0] if name.endswith(IMAGES) else ""
        found += [stem + ending for ending in IMAGES if stem and stem + ending in by_name]
        if found:
            return by_name[found[0]]
    return None


async def one_file(store: Store, url: str, folder: Path, had: Mapping[str, str]) -> FileOutcome:
    """Fetch a file, or find that it is here: known to the ledger and on disk."""
    name = key_of(url).rpartition("/")[2]
    if not name or name.startswith(".") or "\\" in name or "\0" in name:
        return FileOutcome(name, "missing", "no usable name")
    path = folder / name
    if name in had and path.is_file():
        return FileOutcome(name, "have", "", had[name], path.stat().st_size)
    try:
        md5, size = await store.download(url, path)
    except StoreFault as error:
        return FileOutcome(name, "missing" if error.lasting else "failed", error.reason)
    return FileOutcome(name, "have", "", md5, size)


def tell(given: PmcConfig, ledger: Ledger, done: int) -> None:
    """What the ledger knows, and the next command."""
    counts = ledger.counts()
    if given.json:
        states = {table: [{"state": s, "detail": d, "count": n} for s, d, n in rows] for table, rows in counts.items()}
        print(json.dumps({"out": str(given.out), "done": done, "bytes": ledger.bytes(), **states}, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{given.out}: {done:,} articles asked for now; {ledger.bytes() / 1e6:,.1f} MB here")
    for table, rows in counts.items():
        if rows:
            console.print(f"{table}: " + "; ".join(as_text(rows)))
    if ledger.count_articles("failed"):
        console.print("some failed: the same command tries them again")
    if ledger.count_articles("have"):
        console.print(f"next: qilin data figures {given.out / 'articles'} figures")
