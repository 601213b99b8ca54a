"""JATS articles to figures: label, caption, images, mentioning sentences and paragraphs, license.

In: the bytes of an article's XML. Out: an Article with its Figures, read in one pass over the tree, or ArticleError
with a reason short enough to count. Nothing is fetched and no entity is expanded: a file that declares any is rejected.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lxml import etree

from qilin.pipeline.pubmed.jats_text import Paragraph, plain_text, read_paragraph

PARSER = etree.XMLParser(
    resolve_entities=False, no_network=True, load_dtd=False, collect_ids=False, remove_comments=True, remove_pis=True
)
FIGURE_XREFS = etree.XPath("//xref[@ref-type='fig']")
HREF = "{http://www.w3.org/1999/xlink}href"
SKIPPED_TAGS = (b"ref-list", b"table-wrap")  # cross-references from there are not in sentences
PARAGRAPH_TAGS = frozenset(("p", "title", "disp-quote", "td", "th"))
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "gif", "tif", "tiff", "bmp", "webp")


class ArticleError(ValueError):
    """A file that is not a usable article. `reason` is the same for the same fault; `detail` locates it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Figure:
    """One figure. Each of its images is a tuple of file names, one per available format, the most usable first."""

    figure_id: str  # from the article; "fig-3" (by position) if it has none
    label: str
    caption: str
    group: str  # the label and caption of its figure group, "" outside a group
    images: tuple[tuple[str, ...], ...]
    mentions: tuple[str, ...]  # sentences that name it
    context: tuple[str, ...]  # full paragraphs that name it
    license: str | None  # the figure's own license, if it states one
    credit: str | None  # a permission or origin statement: the figure comes from somebody else


@dataclass(frozen=True)
class Article:
    """An article's metadata, and its figures in printed order."""

    ids: dict[str, str]  # those available of pmc, pmid, doi, publisher-id
    title: str
    journal: str
    article_type: str  # research-article, case-report, retraction, ...
    license: str | None
    figures: tuple[Figure, ...]


def read_article(data: bytes) -> Article:
    """Parse an article. Raises ArticleError for data that is empty, malformed, wrongly encoded, not an article, or
    that declares entities."""
    root = parse(data)
    elements = list(root.iter("fig"))
    front = root.find("front")
    meta = front.find("article-meta") if front is not None else None
    if meta is None:
        raise ArticleError("no article-meta", f"the root is {root.tag}")
    figure_ids = [element.get("id") or f"fig-{number}" for number, element in enumerate(elements, start=1)]
    labels = [text_or_empty(element.find("label")) for element in elements]
    paragraphs = mentioning_paragraphs(root, figure_ids, number_figures(figure_ids, labels)) if elements else []
    return Article(
        ids=article_ids(meta),
        title=text_or_empty(meta.find("title-group/article-title")),
        journal=text_or_empty(front.find(".//journal-title") if front is not None else None),
        article_type=root.get("article-type") or "",
        license=license_of(meta),
        figures=tuple(read_figure(*row, paragraphs) for row in zip(elements, figure_ids, labels, strict=True)),
    )


def text_or_empty(element: Any) -> str:
    return plain_text(element) if element is not None else ""


def parse(data: bytes) -> Any:
    """Bytes -> the root element `article` without a namespace. Raises ArticleError."""
    if not data or data.isspace():
        raise ArticleError("file is empty")
    stripped = strip_elements(data, *SKIPPED_TAGS, *(() if b"<fig" in data else (b"body",)))
    try:
        root = parse_xml(stripped)
    except ArticleError:
        if len(stripped) == len(data):
            raise
        root = parse_xml(data)  # nested elements, or text that only looks like their tags
    declared = root.getroottree().docinfo.internalDTD
    if declared is not None and next(iter(declared.iterentities()), None) is not None:
        raise ArticleError("declares entities", "an article needs none, and a one-line file can expand to fill memory")
    if etree.QName(root).namespace or root.tag == "pmc-articleset":
        root = unwrap_envelope(root)
    if root.tag != "article":
        raise ArticleError("not an article", f"the root element is {root.tag}")
    return root


def parse_xml(data: bytes) -> Any:
    try:
        return etree.fromstring(data, PARSER)
    except (etree.XMLSyntaxError, ValueError) as error:  # ValueError: a NUL byte and the like
        raise ArticleError(syntax_reason(str(error)), str(error)) from None


def strip_elements(data: bytes, *names: bytes) -> bytes:
    """The file without these elements, which contain no figures and make up half of the nodes."""
    for name in names:
        chunks, start, opening, closing = [], 0, b"<" + name, b"</" + name + b">"
        while (begin := data.find(opening, start)) >= 0 and (end := data.find(closing, begin)) >= 0:
            if data[begin + len(opening)] not in b" >\t\r\n":  # a longer name: table-wrap-group
                chunks.append(data[start : begin + len(opening)])
                start = begin + len(opening)
                continue
            chunks.append(data[start:begin])
            start = end + len(closing)
        data = b"".join([*chunks, data[start:]]) if chunks else data
    return data


def unwrap_envelope(root: Any) -> Any:
    """An article inside OAI-PMH's or efetch's envelope, or under a default namespace -> the bare article."""
    for element in root.iter("{*}*"):
        if isinstance(element.tag, str) and element.tag.startswith("{") and "MathML" not in element.tag:
            element.tag = etree.QName(element).localname
    article = root if root.tag == "article" else next(root.iter("article"), None)
    return root if article is None else article


def syntax_reason(message: str) -> str:
    lowered = message.lower()
    if "entity" in lowered and ("loop" in lowered or "amplification" in lowered or "reference" in lowered):
        return "declares entities"
    if "encoding" in lowered or "not proper utf" in lowered or "invalid bytes" in lowered:
        return "text is not in the encoding its header names"
    return "malformed XML"


def article_ids(meta: Any) -> dict[str, str]:
    """The article's ids by type. PMC writes its own id with and without the prefix, under two types."""
    ids: dict[str, str] = {}
    for element in meta.iterfind("article-id"):
        id_type, value = element.get("pub-id-type") or "other", (element.text or "").strip()
        id_type = "pmc" if id_type in ("pmcid", "pmc") else id_type
        if value:
            ids.setdefault(id_type, value)
    if "pmc" in ids and ids["pmc"].isdigit():
        ids["pmc"] = f"PMC{ids['pmc']}"
    return ids


# --- figures and the paragraphs that mention them -------------------------------------------------------------------


def number_figures(figure_ids: list[str], labels: list[str]) -> dict[int, str]:
    """Figure number -> id, for labels such as "Figure 3", "Fig. 3." or "3"; the first figure of a number wins."""
    by_number: dict[int, str] = {}
    for figure_id, label in zip(figure_ids, labels, strict=True):
        match = re.fullmatch(r"(?:fig(?:ure|\.)?\s*)?(\d{1,3})[.:]?", label.strip(), re.IGNORECASE)
        if match:
            by_number.setdefault(int(match.group(1)), figure_id)
    return by_number


def mentioning_paragraphs(root: Any, figure_ids: list[str], by_number: dict[int, str]) -> list[Paragraph]:
    """Every paragraph outside captions that points to a figure, once, in printed order."""
    paragraphs: dict[Any, None] = {}
    for xref in FIGURE_XREFS(root):
        paragraph, is_excluded = enclosing_paragraph(xref)
        if paragraph is not None and not is_excluded:
            paragraphs.setdefault(paragraph)
    return [read_paragraph(element, figure_ids, by_number) for element in paragraphs]


def enclosing_paragraph(xref: Any) -> tuple[Any, bool]:
    """(the outermost paragraph-like element around a cross-reference, whether it is in a figure, table or note)"""
    paragraph = None
    for element in xref.iterancestors():
        if element.tag in PARAGRAPH_TAGS:
            paragraph = element
        elif element.tag in ("fig", "fig-group", "table-wrap", "ref-list", "fn-group", "supplementary-material"):
            return paragraph, True
        elif element.tag in ("sec", "body", "abstract"):
            break
    return paragraph, False


def read_figure(element: Any, figure_id: str, label: str, paragraphs: list[Paragraph]) -> Figure:
    caption = text_or_empty(element.find("caption"))
    mentioning = [row for row in paragraphs if any(figure_id in ids for _, ids in row.sentences)]
    sentences = (text for row in mentioning for text, ids in row.sentences if figure_id in ids)
    return Figure(
        figure_id=figure_id,
        label=label,
        caption=caption,
        group=group_text(element),
        images=tuple(image_names(element)),
        mentions=tuple(dict.fromkeys(sentences)),
        context=tuple(dict.fromkeys(row.text for row in mentioning)),
        license=license_of(element),
        credit=credit_of(element, caption),
    )


def group_text(figure: Any) -> str:
    """The label and caption that the members of a figure group share."""
    group = figure.getparent()
    if group is None or group.tag != "fig-group":
        return ""
    return " ".join(filter(None, (text_or_empty(group.find(tag)) for tag in ("label", "caption"))))


def image_names(figure: Any) -> Iterator[tuple[str, ...]]:
    """Each image of a figure as its file names: alternative formats together, formats Pillow reads first."""
    visited: set[Any] = set()
    for graphic in figure.iter("graphic"):
        parent = graphic.getparent()
        if parent.tag == "alternatives":
            if parent in visited:
                continue
            visited.add(parent)
            forms = [name for form in parent.iter("graphic") if (name := image_name(form))]
            forms.sort(key=lambda name: name.lower().rpartition(".")[2] not in IMAGE_EXTENSIONS)  # stable
            if forms:
                yield tuple(dict.fromkeys(forms))
        elif name := image_name(graphic):
            yield (name,)


def image_name(graphic: Any) -> str:
    """The file name in a graphic's xlink:href, whatever the prefix; not in whichever attribute comes first."""
    href = graphic.get(HREF) or next((v for k, v in graphic.items() if k.rpartition("}")[2] == "href"), "")
    return str(href).strip()


# --- credits and licenses -------------------------------------------------------------------------------------------

PERMISSION = re.compile(
    r"permission|copyright|©|courtesy|rights reserved|(?:re(?:printed|produced|published|drawn)|adapted|modified) from"
)


def credit_of(figure: Any, caption: str) -> str | None:
    """Statements that the figure comes from somebody else: its permissions, attributions, or caption sentences."""
    statements = [plain_text(element) for element in (*figure.iter("attrib"), *figure.iter("copyright-statement"))]
    if PERMISSION.search(caption.lower()):
        statements += [clause for clause in re.split(r"(?<=[.;])\s", caption) if PERMISSION.search(clause.lower())]
    credit = "; ".join(dict.fromkeys(text for text in statements if text))
    return credit[:500] or None


CC_URL = re.compile(r"creativecommons\.org/(?:licenses/(by(?:-[a-z]+)*)|publicdomain/(zero|mark))(?:/(\d\.\d))?", re.I)
CC_NAME = re.compile(r"creative commons\s+(?:cc0|attribution|public domain)[\w\s,–-]{0,60}", re.IGNORECASE)


def license_of(parent: Any) -> str | None:
    """The license that an article or figure states: "CC BY-NC 3.0" for Creative Commons, otherwise its own text."""
    permissions = parent.find("permissions")
    if permissions is None:  # before version 2.3 of the tag set, both elements are in the metadata itself
        permissions = parent
    elements = list(permissions.iterfind("license")) or list(permissions.iterfind("copyright-statement"))
    for element in elements:
        links = [value for part in element.iter() if isinstance(part.tag, str) for value in part.values()]
        text = " ".join("".join(element.itertext()).split())
        for candidate in (*links, text):
            if name := creative_commons(candidate):
                return name
        if element.tag == "license" and (text or element.get("license-type")):
            return text[:300] or element.get("license-type")
    return None


def creative_commons(text: str) -> str | None:
    """The short name of a Creative Commons license given by URL or in words; None for anything else."""
    match = CC_URL.search(text)
    if match:
        code, dedication, version = match.groups()
        if dedication:
            return "CC0 1.0" if dedication.lower() == "zero" else "public domain"
        return f"CC {code.upper()}" + (f" {version}" if version else "")
    match = CC_NAME.search(text)
    if not match:
        return None
    name = re.sub(r"[\s,–-]+", " ", match.group().lower())
    if "cc0" in name or "public domain" in name:
        return "CC0 1.0"
    clauses = (("NC", r"non ?commercial"), ("ND", r"no ?deriv"), ("SA", r"share ?alike"))
    return "-".join(["CC BY", *(code for code, pattern in clauses if re.search(pattern, name))])
