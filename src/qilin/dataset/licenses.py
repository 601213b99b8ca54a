"""License texts -> tiers of permitted use, and which tier applies where several licenses meet.

In: a license as a source writes it ("CC BY-NC 4.0", "MIT", nothing). Out: one of TIERS, from the most permissive to the
strictest. It sorts licenses for people who must decide; it is not legal advice.
"""

import re
from collections.abc import Iterable

# most permissive first; unknown is the strictest, since nothing may be presumed
TIERS = ("public", "attribution", "sharealike", "noncommercial", "restricted", "unknown")

# the first match wins, so the stricter terms of a license family come first
NONCOMMERCIAL = (
    r"nc|non ?commercial|(no|not for|without) commercial|research use|only for (research|academic)"
    r"|(research|academic|educational)( use| purposes?)? only"
)
NONCOMMERCIAL_ZH = re.compile("(?:禁止|不得|不可|不允许|非)(?:用于)?商[用业]|仅[供限]")
PATTERNS = (
    (r"\b(all rights reserved|restricted|data use agreement|dua|credentialed|proprietary)\b", "restricted"),
    (r"\b(nd|no ?deriv\w*)\b", "restricted"),
    (rf"\b({NONCOMMERCIAL})\b", "noncommercial"),
    (r"\b(sa|share ?alike|gpl|lgpl|agpl|odbl)\b", "sharealike"),
    (r"\b(cc0|public ?domain|pddl|unlicense|0bsd)\b", "public"),
    (r"\b(cc ?by|cc attribution|mit|bsd|apache|odc by|isc)\b", "attribution"),
)


def license_tier(license: str | None) -> str:
    """The tier of one license text, or of a tier's own name; "unknown" where it is missing or not recognized."""
    if license in TIERS:
        return license
    text = re.sub(r"[^a-z0-9]+", " ", NONCOMMERCIAL_ZH.sub(" nc ", (license or "").lower()))
    text = re.sub(r"\bcreative ?commons (org licenses )?", "cc ", text)  # the name or the URL
    text = re.sub(r"\b(l|a)?gpl ?v?\d*\b", "gpl", text)
    return next((tier for pattern, tier in PATTERNS if re.search(pattern, text)), "unknown")


def strictest(tiers: Iterable[str]) -> str:
    """The tier of something made from several parts; "unknown" for no parts."""
    all_tiers = list(tiers)
    unknown = set(all_tiers) - set(TIERS)
    assert not unknown, f"not license tiers: {unknown}; expected some of {TIERS}"
    return max(all_tiers, key=TIERS.index, default="unknown")
