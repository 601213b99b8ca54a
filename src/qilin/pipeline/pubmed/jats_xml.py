"""The XML of JATS files: bytes to `article` elements without a namespace.

In: the bytes of a file. Out: its articles, or ArticleError. Nothing else is opened: not the DTD that a DOCTYPE names,
not an entity's file, not an XInclude. A file that declares entities is rejected.
"""

import re
from collections.abc import Iterator
from typing import Any

from lxml import etree

SKIPPED_TAGS = (b"ref-list", b"table-wrap")  # half of the nodes; cross-references from there are not in sentences

NAMESPACES = {
    "xlink": "http://www.w3.org/1999/xlink",
    "mml": "http://www.w3.org/1998/Math/MathML",
    "xsi": "http://www.w3.org/2001/XMLSchema-instance",
    "ali": "http://www.niso.org/schemas/ali/1.0/",
    "oasis": "http://www.niso.org/standards/z39-96/ns/oasis-exchange/table",
}
UNDECLARED = re.compile(r"Namespace prefix ([\w.-]+) (?:for \S+ )?on \S+ is not defined")
ROOT = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\s|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>\[]*(?:\[[^\]]*\]\s*)?>)*<[\w.:-]+", re.DOTALL
)
MAX_PREFIXES = 20


class ArticleError(ValueError):
    """A file that is not a usable article. `reason` is the same for the same fault; `detail` locates it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class NothingElse(etree.Resolver):
    """Answers every request for a file or an address with an empty document.

    libxml2 loads the DTD of a DOCTYPE as soon as attributes get defaults or ids are not collected, whatever load_dtd
    says, and refuses the whole file if that DTD is an http address.
    """

    def resolve(self, system_url: str | None, public_id: str | None, context: Any) -> Any:
        return self.resolve_string("", context)  # resolve_empty leaves libxml2's own complaint


# collect_ids=False: real articles have an id twice, which is an error where the ids are collected
PARSER = etree.XMLParser(
    resolve_entities=False, no_network=True, load_dtd=False, collect_ids=False, remove_comments=True, remove_pis=True
)
PARSER.resolvers.add(NothingElse())


def parse_articles(data: bytes) -> list[Any]:
    """Bytes -> the `article` elements. Raises ArticleError."""
    if not data or data.isspace():
        raise ArticleError("file is empty")
    is_utf16 = b"\x00" in data[:4]
    has_figures = is_utf16 or b"fig" in data or b"graphic" in data
    stripped = strip_elements(data, *SKIPPED_TAGS, *(() if has_figures else (b"body",)))
    try:
        root = parse_xml(stripped)
    except ArticleError:
        if len(stripped) == len(data):
            raise
        root = parse_xml(data)  # text that only looks like their tags
    declared = root.getroottree().docinfo.internalDTD
    if declared is not None and next(iter(declared.iterentities()), None) is not None:
        raise ArticleError("declares entities", "an article needs none, and a one-line file can expand to fill memory")
    if etree.QName(root).namespace or root.tag != "article":
        root = remove_namespaces(root)
    articles = [root] if root.tag == "article" else list(root.iter("article"))
    if not articles:
        raise ArticleError("not an article", f"the root element is {root.tag}")
    return articles


def parse_xml(data: bytes) -> Any:
    """The root element. A prefix that an article uses and does not declare (an excerpt of a set) gets its namespace."""
    for _ in range(MAX_PREFIXES):
        try:
            return etree.fromstring(data, PARSER)
        except (etree.XMLSyntaxError, ValueError) as error:  # ValueError: a NUL byte and the like
            undeclared, root = UNDECLARED.search(str(error)), ROOT.match(data)
            if undeclared is None or root is None:
                raise ArticleError(syntax_reason(str(error)), str(error)) from None
            prefix = undeclared.group(1)
            namespace = NAMESPACES.get(prefix, f"urn:undeclared:{prefix}")
            data = data[: root.end()] + f' xmlns:{prefix}="{namespace}"'.encode() + data[root.end() :]
    raise ArticleError("malformed XML", f"more than {MAX_PREFIXES} prefixes are undeclared")


def strip_elements(data: bytes, *names: bytes) -> bytes:
    """The file without these elements, except those that contain figures."""
    for name in names:
        chunks, start = [], 0
        for begin, end in element_spans(data, name):
            if data.find(b"<fig", begin, end) < 0:
                chunks.append(data[start:begin])
                start = end
        data = b"".join([*chunks, data[start:]]) if chunks else data
    return data


def element_spans(data: bytes, name: bytes) -> Iterator[tuple[int, int]]:
    """The outermost elements of a name, in one pass: 7 MB of nested lists are read once."""
    opening, closing = b"<" + name, b"</" + name + b">"
    begin = depth = 0
    opened = data.find(opening)
    closed = data.find(closing, opened) if opened >= 0 else -1
    while closed >= 0:
        if 0 <= opened < closed:
            after = opened + len(opening)
            tag_end = data.find(b">", after)
            if data[after] in b" >\t\r\n" and data[tag_end - 1] != ord("/"):  # not table-wrap-foot, not <ref-list/>
                begin = begin if depth else opened
                depth += 1
            opened = data.find(opening, after)
        else:
            depth -= 1
            end = closed + len(closing)
            if depth == 0:
                yield begin, end
            depth = max(depth, 0)
            if depth == 0 and opened < 0:
                return
            closed = data.find(closing, end)


def remove_namespaces(root: Any) -> Any:
    """OAI-PMH's envelope and its article, or an article under a default namespace, without the namespace."""
    for element in root.iter("{*}*"):
        if isinstance(element.tag, str) and element.tag.startswith("{") and "MathML" not in element.tag:
            element.tag = etree.QName(element).localname
    return root


def syntax_reason(message: str) -> str:
    lowered = message.lower()
    if "entity" in lowered and ("loop" in lowered or "amplification" in lowered or "reference" in lowered):
        return "declares entities"
    if "encoding" in lowered or "not proper utf" in lowered or "invalid bytes" in lowered:
        return "text is not in the encoding its header names"
    if "excessive depth" in lowered or "too long" in lowered or "huge" in lowered:
        return "larger or more deeply nested than an article"
    return "malformed XML"
