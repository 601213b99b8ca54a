"""JATS articles to figures: label, caption, images, mentioning sentences and paragraphs, license.

In: the bytes of one article, or of several in an efetch or OAI-PMH answer. Out: Articles with their Figures, or
ArticleErrors with a reason short enough to count. No other file or address is opened and no entity is expanded: a file
that declares any is rejected. Limits: 256 nested elements and 10 MB in one text (libxml2's), MAX_REPEATED_TEXT.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from qilin.pipeline.pubmed.credits import credit_of, license_of
from qilin.pipeline.pubmed.jats_mentions import (
    MAX_REPEATED_TEXT,
    XML_LANG,
    find_mentions,
    language_of,
    number_figures,
)
from qilin.pipeline.pubmed.jats_text import plain_text
from qilin.pipeline.pubmed.jats_xml import ArticleError, parse_articles

__all__ = ["Article", "ArticleError", "Figure", "number_figures", "read_article", "read_articles"]

HREF = "{http://www.w3.org/1999/xlink}href"
# what a graphic belongs to; one in a formula or a table is no figure
OWNER_TAGS = frozenset(
    ("fig", "fig-group", "boxed-text", "table-wrap", "supplementary-material", "disp-formula", "inline-formula")
    + ("disp-formula-group", "chem-struct", "chem-struct-wrap", "license", "license-p", "permissions", "body", "sec")
)
FIGURE_TAGS = ("fig", "fig-group", "boxed-text", "graphic")
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "gif", "tif", "tiff", "bmp", "webp")
RETRACTION_TYPES = ("retraction", "retracted-article", "partial-retraction", "expression-of-concern", "withdrawal")
RETRACTED_TITLE = re.compile(  # and not "Retraction of the eyelid"
    r"\W*(?:retracted|withdrawn|removed)(?: (?:article|paper|chapter|manuscript))?(?:\s*[:\])]|\s+[–—-]\s|\.\s|$)"
    r"|\W*(?:retraction|expression of concern)\s*[:\]]"
    r"|\W*(?:retraction|expression of concern):?\s+(?:of|to|for)\s*[:\"“'‘]"
    r"|\W*retraction (?:note|notice|statement)\b|.*[\[(]\s*(?:retracted|withdrawn)(?: article)?\s*[\])]\W*$"
    r"|\W*(?:撤稿|已撤回)",
    re.IGNORECASE,
)
RETRACTION_LINKS = ("retracted-article", "retraction-forward", "retracted", "retraction")


@dataclass(frozen=True)
class Figure:
    """One figure. Each of its images is a tuple of file names, one per available format, the most usable first."""

    figure_id: str  # from the article, with "-2" if it has that id twice; "fig-3" (by position) if it has none
    label: str
    caption: str  # its own, or that of its group if it has none
    group: str  # the label and caption of its figure group, "" outside a group
    images: tuple[tuple[str, ...], ...]
    mentions: tuple[str, ...]  # sentences that name it
    context: tuple[str, ...]  # full paragraphs that name it
    license: str | None  # the figure's own license, if it states one
    credit: str | None  # a permission or origin statement: the figure comes from somebody else
    language: str = ""  # of its caption and mentions, as xml:lang says; "" if nothing says it
    shared_caption: str = ""  # the id of the group whose caption it has, because it has none itself
    translations: dict[str, str] = field(default_factory=dict)  # language -> the same caption in it


@dataclass(frozen=True)
class Article:
    """An article's metadata, and its figures in printed order."""

    ids: dict[str, str]  # those available of pmc, pmid, doi, publisher-id
    title: str
    journal: str
    article_type: str  # research-article, case-report, retraction, ...
    license: str | None
    figures: tuple[Figure, ...]
    is_retracted: bool = False  # by its type, its title or its links; a notice of retraction counts


def read_article(data: bytes) -> Article:
    """The first article of a file. Raises ArticleError for data that is empty, malformed, wrongly encoded, not an
    article, or that declares entities."""
    article = next(read_articles(data))
    if isinstance(article, ArticleError):
        raise article
    return article


def read_articles(data: bytes) -> Iterator[Article | ArticleError]:
    """All articles of a file, or the reason why one cannot be read; one bad article costs only itself."""
    try:
        roots = parse_articles(data)
    except ArticleError as error:
        yield error
        return
    for root in roots:
        try:
            yield build_article(root)
        except ArticleError as error:
            yield error
        except RecursionError:
            yield ArticleError("elements are nested too deeply")


def build_article(root: Any) -> Article:
    front = root.find("front")
    meta = front.find("article-meta") if front is not None else None
    if meta is None:
        raise ArticleError("no article-meta", f"the root is {root.tag}")
    title = text_or_empty(meta.find("title-group/article-title"))
    links = {element.get("related-article-type") for element in meta.iterfind("related-article")}
    article_type = root.get("article-type") or ""
    return Article(
        ids=article_ids(meta),
        title=title,
        journal=text_or_empty(front.find(".//journal-title")),
        article_type=article_type,
        license=license_of(meta),
        figures=read_figures(root, [plain_text(element) for element in meta.iter("copyright-statement")]),
        is_retracted=article_type in RETRACTION_TYPES
        or bool(links.intersection(RETRACTION_LINKS))
        or bool(RETRACTED_TITLE.match(title))
        or (re.match(r"\W*RETRACTED\b", title) is not None and not title.isupper()),
    )


def text_or_empty(element: Any) -> str:
    return plain_text(element) if element is not None else ""


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


# --- figures --------------------------------------------------------------------------------------------------------


def read_figures(root: Any, article_copyright: list[str]) -> tuple[Figure, ...]:
    """The figures of an article in printed order. Raises ArticleError if their texts add up to too much."""
    graphics = own_graphics(root)
    elements = [element for element in root.iter(*FIGURE_TAGS) if is_figure(element, graphics)]
    if not elements:
        return ()
    group_texts: dict[Any, tuple[str, str]] = {}
    figures = [
        read_figure(element, figure_id, graphics, group_texts, article_copyright)
        for element, figure_id in zip(elements, unique_ids(elements), strict=True)
    ]
    if sum(len(figure.group) + len(figure.caption) for figure in figures) > MAX_REPEATED_TEXT:
        raise ArticleError("its figures repeat too much text", f"the limit is {MAX_REPEATED_TEXT:,} characters")
    labels, languages = [figure.label for figure in figures], [figure.language for figure in figures]
    texts = find_mentions(root, elements, labels, languages, graphics)
    figures = [
        replace(figure, mentions=mentions, context=context)
        for figure, (mentions, context) in zip(figures, texts, strict=True)
    ]
    return tuple(add_base_names(figures))


def own_graphics(root: Any) -> dict[Any, list[Any]]:
    """Element -> the graphics that belong to it and to nothing inside it."""
    graphics: dict[Any, list[Any]] = defaultdict(list)
    in_caption: dict[Any, list[Any]] = defaultdict(list)
    for graphic in root.iter("graphic", "inline-graphic", "media"):
        is_inside = graphic.tag == "inline-graphic"
        if graphic.tag == "media" and not (graphic.get("mimetype") or "").lower().startswith("image"):
            continue
        for ancestor in graphic.iterancestors():
            if ancestor.tag in OWNER_TAGS:
                (in_caption if is_inside else graphics)[ancestor].append(graphic)
                break
            is_inside = is_inside or ancestor.tag == "caption"
    for owner, others in in_caption.items():  # only where there is nothing else
        if owner not in graphics and owner.tag == "fig":
            graphics[owner] = others
    return graphics


def is_figure(element: Any, graphics: dict[Any, list[Any]]) -> bool:
    """Whether an element is a figure of its own: every `fig` except those that only group others, a `fig-group` or a
    box with an image of its own, and an image with a caption outside all of these."""
    if element.tag == "fig":
        return element in graphics or next(element.iterdescendants("fig"), None) is None
    if element.tag == "fig-group":
        return element in graphics
    has_caption = element.find("caption") is not None
    if element.tag == "boxed-text":
        return element in graphics and (has_caption or element.find("label") is not None)
    owner = next((ancestor.tag for ancestor in element.iterancestors() if ancestor.tag in OWNER_TAGS), None)
    return has_caption and owner in ("body", "sec", None)


def unique_ids(elements: list[Any]) -> list[str]:
    ids: list[str] = []
    used: set[str] = set()
    for number, element in enumerate(elements, start=1):
        figure_id = wanted = element.get("id") or f"fig-{number}"
        count = 1
        while figure_id in used:
            count += 1
            figure_id = f"{wanted}-{count}" if count < 9 else f"{wanted}-at-{number}"
        used.add(figure_id)
        ids.append(figure_id)
    return ids


def read_figure(
    element: Any, figure_id: str, graphics: dict[Any, list[Any]], group_texts: dict[Any, tuple[str, str]],
    article_copyright: list[str],
) -> Figure:  # fmt: skip
    """A figure without its mentions."""
    language = language_of(element)
    captions = captions_of(element, language)
    if captions and language not in captions:
        language = next(iter(captions))
    caption = captions.pop(language, "")
    if element.tag in ("fig-group", "fig"):  # the captions of members that have no image of their own
        members = [e for e in element.iterdescendants("fig") if e not in graphics] if element.tag == "fig-group" else []
        caption = " ".join(filter(None, (caption, *map(label_and_caption, members))))
    if not caption and element.find("caption") is None:
        caption = loose_text(element)
    group = enclosing_group(element)
    if group is not None and group not in group_texts:
        group_texts[group] = (label_and_caption(group), text_or_empty(group.find("caption")))
    group_text, group_caption = group_texts[group] if group is not None else ("", "")
    is_shared = not caption and bool(group_caption)
    own_license = license_of(element) or (license_of(group) if group is not None else None)
    images = [element] if element.tag == "graphic" else graphics.get(element, [])
    return Figure(
        figure_id=figure_id,
        label=text_or_empty(element.find("label")),
        caption=group_caption if is_shared else caption,
        group=group_text,
        images=tuple(image_names(images)),
        mentions=(),
        context=(),
        license=own_license,
        credit=credit_of(element, group_caption if is_shared else caption, article_copyright),
        language=language,
        shared_caption=(group.get("id") or f"group of {figure_id}") if is_shared and group is not None else "",
        translations=captions,
    )


def loose_text(element: Any) -> str:
    """Text directly in a figure, where converters from Word leave captions, without the label; "" for marks."""
    text = plain_text(element).removeprefix(text_or_empty(element.find("label"))).strip()
    return text if any(character.isalpha() for character in text) else ""


def enclosing_group(figure: Any) -> Any:
    """The figure group around a figure, or the figure that it is a part of; None outside of both."""
    for ancestor in figure.iterancestors():
        if ancestor.tag in ("fig-group", "fig"):
            return ancestor
        if ancestor.tag in ("sec", "body", "floats-group", "p"):
            return None
    return None


def label_and_caption(element: Any) -> str:
    return " ".join(filter(None, (text_or_empty(element.find(tag)) for tag in ("label", "caption"))))


def captions_of(figure: Any, language: str) -> dict[str, str]:
    """Language -> caption. Most figures have one; bilingual ones have one per language, or mark its paragraphs."""
    captions: dict[str, str] = {}
    for caption in figure.iterfind("caption"):
        marked = [child for child in caption if child.get(XML_LANG)]
        caption_language = language_of(caption) if caption.get(XML_LANG) else language
        if not marked:
            captions.setdefault(caption_language, plain_text(caption))
            continue
        texts: dict[str, list[str]] = defaultdict(list)
        for child in caption:
            texts[language_of(child) if child.get(XML_LANG) else caption_language].append(plain_text(child))
        for name, parts in texts.items():
            captions.setdefault(name, " ".join(filter(None, parts)))
    return {name: text for name, text in captions.items() if text}


# --- images ---------------------------------------------------------------------------------------------------------


def image_names(graphics: list[Any]) -> Iterator[tuple[str, ...]]:
    """Each image of a figure as its file names: alternative formats together, formats Pillow reads first."""
    visited: set[Any] = set()
    for graphic in graphics:
        parent = graphic.getparent()
        if parent.tag == "alternatives":
            if parent in visited:
                continue
            visited.add(parent)
            forms = [name for form in parent.iter("graphic", "media") if (name := image_name(form))]
            forms.sort(key=lambda name: name.lower().rpartition(".")[2] not in IMAGE_EXTENSIONS)  # stable
            if forms:
                yield tuple(dict.fromkeys(forms))
        elif name := image_name(graphic):
            yield (name,)


def image_name(graphic: Any) -> str:
    """The file name in a graphic's xlink:href, whatever the prefix; not in whichever attribute comes first."""
    href = graphic.get(HREF) or next((v for k, v in graphic.items() if re.split("[}:]", k)[-1] == "href"), "")
    return str(href).strip()


def add_base_names(figures: list[Figure]) -> list[Figure]:
    """With "f3" after "images/f3" or an address that ends in it, where no other image of the article ends so."""
    names = {name for figure in figures for forms in figure.images for name in forms}
    if not any("/" in name for name in names):
        return figures
    counts = Counter(map(base_name, names))

    def with_base(forms: tuple[str, ...]) -> tuple[str, ...]:
        bases = (base_name(name) for name in forms if "/" in name)
        return tuple(dict.fromkeys((*forms, *(base for base in bases if base and counts[base] == 1))))

    return [replace(figure, images=tuple(map(with_base, figure.images))) for figure in figures]


def base_name(href: str) -> str:
    """The last part of a path, of an address, or of info:doi/10.1371/journal.pone.0000001.g001."""
    is_address = "://" in href or href.startswith("//")
    return (unquote(urlsplit(href).path) if is_address else href).rpartition("/")[2]
