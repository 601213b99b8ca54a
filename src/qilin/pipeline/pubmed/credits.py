"""Licenses of articles and figures, and statements that a figure comes from somebody else.

In: lxml elements and captions. Out: "CC BY-NC 3.0" or the license's own words; a credit, or None for a figure that is
the authors' own. Consent of a patient is no credit, and neither is a source that names the authors.
"""

import re
from collections.abc import Sequence
from typing import Any

from qilin.pipeline.pubmed.jats_text import plain_text

CREDIT = re.compile(
    r"permission|copyright|©|courtesy|rights reserved"
    r"|(?:re-?(?:printed|produced|published|drawn|used)|adapted|modified|adopted|borrowed) from"
    r"|\b(?:image|photo(?:graph)?|figure|picture|illustration) credits?\b|(?:^|[.;(]\s?)source ?:"
    r"|经.{0,12}许可|转载|版权|授权"
)
CREDIT_WORDS = (
    "permission",
    "right",
    "©",
    "courtesy",
    " from",
    "credit",
    "source",
    "许可",
    "转载",
    "版权",
    "授权",
)  # faster
# "with the patient's permission", "permission was obtained from the parents": consent, not a license
PERSON = (
    r"(?:patients?|parents?|mothers?|fathers?|famil(?:y|ies)|guardians?|relatives?|participants?|subjects?|individuals?"
    r"|volunteers?|next of kin|spouse|wife|husband|son|daughter|child(?:ren)?|owners?|donors?|患者|家属)"
)
CONSENT = re.compile(
    rf"\b{PERSON}['’]?s?['’]?\s+(?:(?:written|verbal|oral|informed|full|kind|explicit|and|or|consent|legal|own)\s+)*"
    rf"permission|permission (?:\w+ ){{0,6}}(?:from|of|by) (?:(?!and )\w+['’]?s?['’]? ){{0,4}}?{PERSON}\b"
    rf"|{PERSON} (?:\w+ ){{0,4}}(?:gave|granted|provided|signed|has given|have given) (?:\w+ ){{0,4}}permission"
    rf"|courtesy of (?:the |our |his |her |this )?{PERSON}\b|(?:患者|家属).{{0,8}}(?:许可|授权|同意)"
    r"|permission (?:\w+ ){0,4}(?:ethic|institutional review|review board|irb)"
)
# "modified from the usual protocol": a method, not a picture
METHOD = re.compile(
    r"(?:adapted|modified|adopted) from (?:\w+['’]?s? ){0,4}?"
    r"(?:protocols?|methods?|procedures?|techniques?|recipes?|settings?|instructions?|sequences?)\b"
)
THIRD_PARTY = re.compile(
    r"elsevier|springer|wiley|publish(?:er|ing)|published (?:by|in)|journal of|\bpress\b|©|copyright|rights reserved"
    r"|et al\b|\bre-?(?:printed|produced|published)"
)
AUTHORS = (
    r"(?:the |this |our )*(?:first |senior |corresponding |present )?(?:authors?\b['’]?s?['’]?(?: own)?|own\b|own work"
    r"|our (?:own|hospital|institution|department|clinic|patient|case)|autor(?:es|as|a)?\b|elaboraci[oó]n propia"
    r"|elabora[cç][aã]o pr[oó]pria|本文作者|作者)"
)
OWN_SOURCE = re.compile(
    r"^\W*(?:(?:(?:image|photo(?:graph)?|figure|picture)s? )?(?:source|credits?|fuente|fonte|来源)s? ?[:：]"
    r"|courtesy of|(?:elaborated|created|prepared|drawn|developed|produced|made|compiled|taken|photographed?|photo"
    rf"|image|figure|illustration)s? (?:by|of|from))\s*{AUTHORS}"
    r"|elaboraci[oó]n propia|elabora[cç][aã]o pr[oó]pria|\bauthors?['’]?s?['’]? own\b|^\W*(?:the )?authors?\W*$"
    r"|(?:©|copyright)[\s\d,–-]*(?:by )?(?:the )?authors?\b(?:\(s\))?"
)
MAX_CREDIT = 500  # characters


def credit_of(figure: Any, caption: str, article_copyright: Sequence[str] = ()) -> str | None:
    """Statements that the figure comes from somebody else: its permissions, attributions, or caption sentences.

    A copyright statement that repeats the article's, `article_copyright`, is none.
    """
    elements = [*figure.iter("attrib", "copyright-statement")]
    for group in figure.iterancestors("fig-group", "fig"):
        elements += [*group.iterfind("attrib"), *group.iterfind("permissions/copyright-statement")]
    statements = [text for element in elements if (text := plain_text(element)) not in article_copyright]
    lowered = caption.lower()
    if any(word in lowered for word in CREDIT_WORDS) and CREDIT.search(lowered):
        statements += [
            clause for clause in re.split(r"(?<=[.;。；])\s*(?=\S)", caption) if CREDIT.search(clause.lower())
        ]
    credit = "; ".join(dict.fromkeys(text for text in statements if text and not is_own(text)))
    return credit[:MAX_CREDIT] or None


def is_own(statement: str) -> bool:
    """Whether a statement with a word of CREDIT says that a patient agreed, or that the authors made the figure."""
    text = " ".join(statement.lower().split())
    remaining = METHOD.sub(" ", CONSENT.sub(" ", text))
    if THIRD_PARTY.search(OWN_SOURCE.sub(" ", text)):
        return False
    if OWN_SOURCE.search(text):
        return True
    return remaining != text and not CREDIT.search(remaining)


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
