"""Licences in words -> tiers of what may be done with a thing, and which tier wins where several meet.

In: whatever a source writes ("CC BY-NC 4.0", "MIT", nothing). Out: one of TIERS, from the freest to the strictest.
It sorts for people who must decide; it is no legal advice.
"""

import re
from collections.abc import Iterable

# freest first; unknown is the strictest, since nothing may be presumed
TIERS = ("public", "attribution", "sharealike", "noncommercial", "restricted", "unknown")

# first match wins, so the stricter words of one licence family stand first
NOT_TO_SELL = (
    r"nc|non ?commercial|(no|not for|without) commercial|research use|only for (research|academic)"
    r"|(research|academic|educational)( use| purposes?)? only"
)
NOT_TO_SELL_ZH = re.compile("(?:禁止|不得|不可|不允许|非)(?:用于)?商[用业]|仅[供限]")
PATTERNS = (
    (r"\b(all rights reserved|restricted|data use agreement|dua|credentialed|proprietary)\b", "restricted"),
    (r"\b(nd|no ?deriv\w*)\b", "restricted"),
    (rf"\b({NOT_TO_SELL})\b", "noncommercial"),
    (r"\b(sa|share ?alike|gpl|lgpl|agpl|odbl)\b", "sharealike"),
    (r"\b(cc0|public ?domain|pddl|unlicense|0bsd)\b", "public"),
    (r"\b(cc ?by|cc attribution|mit|bsd|apache|odc by|isc)\b", "attribution"),
)


def tier(licence: str | None) -> str:
    """The tier of one licence as a source words it; "unknown" where nothing, or nothing known, is said."""
    words = re.sub(r"[^a-z0-9]+", " ", NOT_TO_SELL_ZH.sub(" nc ", (licence or "").lower()))
    words = re.sub(r"\bcreative ?commons (org licenses )?", "cc ", words)  # in words or as an address
    words = re.sub(r"\b(l|a)?gpl ?v?\d*\b", "gpl", words)
    for pattern, name in PATTERNS:
        if re.search(pattern, words):
            return name
    return "unknown"


def strictest(tiers: Iterable[str]) -> str:
    """The tier that binds a thing made from several: the strictest; "unknown" for none at all."""
    found = list(tiers)
    unheard = set(found) - set(TIERS)
    assert not unheard, f"not licence tiers: {unheard}; expected some of {TIERS}"
    return max(found, key=TIERS.index, default="unknown")
