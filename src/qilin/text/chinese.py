"""Traditional to simplified characters, and what counts as Chinese.

In: any string. Out: simplified text, or a yes or no about its letters.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources
from typing import Any

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


@lru_cache(maxsize=1)
def _converter() -> Any:
    # Reading the opencc tables takes some 50 ms, so they are read when first needed.
    from opencc import OpenCC

    return OpenCC("t2s")


@lru_cache(maxsize=1)
def _changing() -> re.Pattern[str]:
    """The characters that t2s may change, from its own tables. Asking for them first takes a text without any from 80
    to 1 microsecond: opencc looks for phrases at every character."""
    tables = resources.files("opencc") / "dictionary"
    found: set[str] = set()
    for name in ("TSCharacters.txt", "TSPhrases.txt"):
        for line in (tables / name).read_text(encoding="utf-8").splitlines():
            before, _, after = line.partition("\t")
            after = after.split(" ")[0]
            pairs = zip(before, after, strict=True) if len(before) == len(after) else ((c, "") for c in before)
            found.update(a for a, b in pairs if a != b)
    return re.compile(f"[{re.escape(''.join(sorted(found)))}]")


def simplified(text: str) -> str:
    """Traditional characters become simplified ones (opencc t2s); everything else stays."""
    return _converted(text) if _changing().search(text) else text


@lru_cache(maxsize=20_000)
def _converted(text: str) -> str:
    """Kept only where there was something to do: 20,000 long texts kept for nothing take 20 MB."""
    return str(_converter().convert(text))


def has_chinese(text: str) -> bool:
    """Whether at least one Han character stands in the text."""
    return _HAN.search(text) is not None


def chinese_share(text: str) -> float:
    """Han characters as a share of all characters that are not spaces; 0.0 for an empty text."""
    visible = [c for c in text if not c.isspace()]
    return len(_HAN.findall(text)) / len(visible) if visible else 0.0
