"""JATS articles -> their figures: label, caption, images, the sentences and paragraphs that speak of each, licence.

In: the bytes of an article's XML. Out: an Article with Figures, read in one pass over the tree, or BadArticle with a
reason short enough to be counted. Nothing is fetched, no entity is expanded: a file that declares any is refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lxml import etree

from qilin.pipeline.pubmed.jats_text import Paragraph, paragraph, plain

PARSER = etree.XMLParser(
    resolve_entities=False, no_network=True, load_dtd=False, collect_ids=False, remove_comments=True, remove_pis=True
)
POINTERS = etree.XPath("//xref[@ref-type='fig']")
HREF = "{http://www.w3.org/1999/xlink}href"
UNREAD = (b"ref-list", b"table-wrap")  # not read: what points to a figure from there is no sentence
PARAGRAPHS = frozenset(("p", "title", "disp-quote", "td", "th"))
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "gif", "tif", "tiff", "bmp", "webp")


class BadArticle(ValueError):
    """A file that is no usable article. `reason` is the same for the same fault; `detail` says where."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Figure:
    """One figure as its article prints it. Each image is the names of its forms, the most usable first."""

    figure_id: str  # the article's own id; "fig-3" (its place) where it has none
    label: str
    caption: str
    group: str  # the label and caption that its group shares, "" outside a group
    images: tuple[tuple[str, ...], ...]
    mentions: tuple[str, ...]  # sentences that name it
    context: tuple[str, ...]  # whole paragraphs that name it
    licence: str | None  # its own, where the figure says one
    credit: str | None  # words of permission or origin: the figure is somebody else's


@dataclass(frozen=True)
class Article:
    """What an article says of itself, and its figures in printed order."""

    ids: dict[str, str]  # pmc, pmid, doi, publisher-id: those there are
    title: str
    journal: str
    kind: str  # research-article, case-report, retraction, ...
    licence: str | None
    figures: tuple[Figure, ...]


def read_article(data: bytes) -> Article:
    """Raises BadArticle for what is empty, malformed, in a wrong encoding, no article, or declares entities."""
    root = parse(data)
    figures = list(root.iter("fig"))
    front = root.find("front")
    meta = front.find("article-meta") if front is not None else None
    if meta is None:
        raise BadArticle("no article-meta", f"the root is {root.tag}")
    names = [figure.get("id") or f"fig-{place}" for place, figure in enumerate(figures, start=1)]
    labels = [plain(found) if (found := figure.find("label")) is not None else "" for figure in figures]
    spoken = paragraphs_of(root, names, numbered(names, labels)) if figures else []
    title = meta.find("title-group/article-title")
    journal = front.find(".//journal-title") if front is not None else None
    return Article(
        ids=ids_of(meta),
        title=plain(title) if title is not None else "",
        journal=plain(journal) if journal is not None else "",
        kind=root.get("article-type") or "",
        licence=licence_of(meta),
        figures=tuple(read_figure(*row, spoken) for row in zip(figures, names, labels, strict=True)),
    )


def parse(data: bytes) -> Any:
    """Bytes -> the root element `article`, its namespace (if any) taken off. Raises BadArticle."""
    if not data or data.isspace():
        raise BadArticle("file is empty")
    short = without(data, *UNREAD, *(() if b"<fig" in data else (b"body",)))
    try:
        root = tree(short)
    except BadArticle:
        if len(short) == len(data):
            raise
        root = tree(data)  # such elements inside each other, or words that only look like their tags
    declared = root.getroottree().docinfo.internalDTD
    if declared is not None and next(iter(declared.iterentities()), None) is not None:
        raise BadArticle("declares entities", "an article needs none; they are how files of one line fill a memory")
    if etree.QName(root).namespace or root.tag == "pmc-articleset":
        root = unwrapped(root)
    if root.tag != "article":
        raise BadArticle("not an article", f"the root element is {root.tag}")
    return root


def tree(data: bytes) -> Any:
    try:
        return etree.fromstring(data, PARSER)
    except (etree.XMLSyntaxError, ValueError) as error:  # ValueError: a NUL byte and the like
        raise BadArticle(syntax_reason(str(error)), str(error)) from None


def without(data: bytes, *names: bytes) -> bytes:
    """The file less these elements, which hold no figure and are half of the nodes to be built."""
    for name in names:
        kept, start, opening, closing = [], 0, b"<" + name, b"</" + name + b">"
        while (begin := data.find(opening, start)) >= 0 and (end := data.find(closing, begin)) >= 0:
            if data[begin + len(opening)] not in b" >\t\r\n":  # a longer name: table-wrap-group
                kept.append(data[start : begin + len(opening)])
                start = begin + len(opening)
                continue
            kept.append(data[start:begin])
            start = end + len(closing)
        data = b"".join([*kept, data[start:]]) if kept else data
    return data


def unwrapped(root: Any) -> Any:
    """An article inside OAI-PMH's or efetch's envelope, or under a default namespace -> the bare article."""
    for element in root.iter("{*}*"):
        if isinstance(element.tag, str) and element.tag.startswith("{") and "MathML" not in element.tag:
            element.tag = etree.QName(element).localname
    found = root if root.tag == "article" else next(root.iter("article"), None)
    return root if found is None else found


def syntax_reason(words: str) -> str:
    lowered = words.lower()
    if "entity" in lowered and ("loop" in lowered or "amplification" in lowered or "reference" in lowered):
        return "declares entities"
    if "encoding" in lowered or "not proper utf" in lowered or "invalid bytes" in lowered:
        return "text is not in the encoding its header names"
    return "malformed XML"


def ids_of(meta: Any) -> dict[str, str]:
    """The article's names. PMC writes its own with and without its letters, under two types."""
    found: dict[str, str] = {}
    for element in meta.iterfind("article-id"):
        kind, value = element.get("pub-id-type") or "other", (element.text or "").strip()
        kind = "pmc" if kind in ("pmcid", "pmc") else kind
        if value:
            found.setdefault(kind, value)
    if "pmc" in found and found["pmc"].isdigit():
        found["pmc"] = f"PMC{found['pmc']}"
    return found


def numbered(names: list[str], labels: list[str]) -> dict[int, str]:
    """Figure number -> id, for labels that are "Figure 3", "Fig. 3." or "3"; the first of a number counts."""
    found: dict[int, str] = {}
    for name, label in zip(names, labels, strict=True):
        match = re.fullmatch(r"(?:fig(?:ure|\.)?\s*)?(\d{1,3})[.:]?", label.strip(), re.IGNORECASE)
        if match:
            found.setdefault(int(match.group(1)), name)
    return found


def paragraphs_of(root: Any, names: list[str], numbers: dict[int, str]) -> list[Paragraph]:
    """Every paragraph that points to a figure, once, in printed order; captions do not speak of themselves."""
    found: dict[Any, Any] = {}
    for xref in POINTERS(root):
        home, inside = enclosing(xref)
        if home is not None and not inside:
            found.setdefault(home, None)
    return [paragraph(element, names, numbers) for element in found]


def enclosing(xref: Any) -> tuple[Any, bool]:
    """(the outermost paragraph-like element that holds a pointer, whether it lies in a figure, a table or a note)"""
    home = None
    for element in xref.iterancestors():
        if element.tag in PARAGRAPHS:
            home = element
        elif element.tag in ("fig", "fig-group", "table-wrap", "ref-list", "fn-group", "supplementary-material"):
            return home, True
        elif element.tag in ("sec", "body", "abstract"):
            break
    return home, False


def read_figure(figure: Any, name: str, label: str, spoken: list[Paragraph]) -> Figure:
    found = figure.find("caption")
    caption = plain(found) if found is not None else ""
    about = [row for row in spoken if any(name in ids for _, ids in row.sentences)]
    return Figure(
        figure_id=name,
        label=label,
        caption=caption,
        group=group_of(figure),
        images=tuple(images_of(figure)),
        mentions=tuple(dict.fromkeys(text for row in about for text, ids in row.sentences if name in ids)),
        context=tuple(dict.fromkeys(row.text for row in about)),
        licence=licence_of(figure),
        credit=credit_of(figure, caption),
    )


def group_of(figure: Any) -> str:
    """What the group around a figure says for all its members."""
    group = figure.getparent()
    if group is None or group.tag != "fig-group":
        return ""
    parts = [plain(found) for found in (group.find("label"), group.find("caption")) if found is not None]
    return " ".join(part for part in parts if part)


def images_of(figure: Any) -> Iterator[tuple[str, ...]]:
    """Each image of a figure; forms of one image (alternatives) together, the one a model can read first."""
    met: set[Any] = set()
    for graphic in figure.iter("graphic"):
        home = graphic.getparent()
        if home.tag == "alternatives":
            if home in met:
                continue
            met.add(home)
            forms = [name for form in home.iter("graphic") if (name := href(form))]
            forms.sort(key=lambda name: name.lower().rpartition(".")[2] not in IMAGE_ENDINGS)  # stable
            if forms:
                yield tuple(dict.fromkeys(forms))
        elif name := href(graphic):
            yield (name,)


def href(graphic: Any) -> str:
    """The name of an image's file: the xlink attribute whatever its prefix, not whichever comes first."""
    found = graphic.get(HREF) or next((v for k, v in graphic.items() if k.rpartition("}")[2] == "href"), "")
    return str(found).strip()


PERMISSION = re.compile(
    r"permission|copyright|©|courtesy|rights reserved|(?:re(?:printed|produced|published|drawn)|adapted|modified) from"
)


def credit_of(figure: Any, caption: str) -> str | None:
    """Words that say the figure is another's: its own permissions and attributions, or a sentence of its caption."""
    said = [plain(found) for found in (*figure.iter("attrib"), *figure.iter("copyright-statement"))]
    if PERMISSION.search(caption.lower()):
        said += [clause for clause in re.split(r"(?<=[.;])\s", caption) if PERMISSION.search(clause.lower())]
    words = "; ".join(dict.fromkeys(text for text in said if text))
    return words[:500] or None


CC_URL = re.compile(r"creativecommons\.org/(?:licenses/(by(?:-[a-z]+)*)|publicdomain/(zero|mark))(?:/(\d\.\d))?", re.I)
CC_WORDS = re.compile(r"creative commons\s+(?:cc0|attribution|public domain)[\w\s,–-]{0,60}", re.IGNORECASE)


def licence_of(home: Any) -> str | None:
    """The licence that an article or a figure states: "CC BY-NC 3.0" where it is one of those, else its own words."""
    place = home.find("permissions")
    place = home if place is None else place  # before version 2.3 of the tag set both stand in the metadata itself
    said = list(place.iterfind("license")) or list(place.iterfind("copyright-statement"))
    for element in said:
        links = [value for part in element.iter() if isinstance(part.tag, str) for value in part.values()]
        words = " ".join("".join(element.itertext()).split())
        for text in (*links, words):
            if named := creative_commons(text):
                return named
        if element.tag == "license" and (words or element.get("license-type")):
            return words[:300] or element.get("license-type")
    return None


def creative_commons(text: str) -> str | None:
    """A Creative Commons licence named by its address or in words, in the short form; None where it is none."""
    match = CC_URL.search(text)
    if match:
        kind, dedication, version = match.groups()
        if dedication:
            return "CC0 1.0" if dedication.lower() == "zero" else "public domain"
        return f"CC {kind.upper()}" + (f" {version}" if version else "")
    match = CC_WORDS.search(text)
    if not match:
        return None
    words = re.sub(r"[\s,–-]+", " ", match.group().lower())
    if "cc0" in words or "public domain" in words:
        return "CC0 1.0"
    parts = (("NC", r"non ?commercial"), ("ND", r"no ?deriv"), ("SA", r"share ?alike"))
    return "-".join(["CC BY", *(short for short, pattern in parts if re.search(pattern, words))])
