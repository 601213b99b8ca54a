"""One width for letters, digits and punctuation, and nothing else.

In: any string. Out: the same words with fullwidth forms and typographic variants made plain.
NFKC is not used on purpose: it turns 10⁻³ into 10−3 and ① into 1, which changes what a medical text says.
"""

from __future__ import annotations

_LETTERS: dict[int, str | int | None] = {ord("０") + i: ord("0") + i for i in range(10)}
_LETTERS |= {ord("Ａ") + i: ord("A") + i for i in range(26)}
_LETTERS |= {ord("ａ") + i: ord("a") + i for i in range(26)}
# Signs that stand inside numbers, units and names: one code point each.
_SIGNS: dict[str, str | None] = {
    "％": "%",
    "＋": "+",
    "－": "-",
    "−": "-",
    "‐": "-",
    "‑": "-",
    "–": "-",
    "＝": "=",
    "＜": "<",
    "＞": ">",
    "／": "/",
    "＊": "*",
    "．": ".",
    "～": "~",
    "〜": "~",
    "µ": "μ",
    "Ω": "Ω",
    "K": "K",
    "\u3000": " ",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
    "\u200b": None,
    "\u200c": None,
    "\u200d": None,
    "\ufeff": None,
    "\u00ad": None,
}
_LETTERS |= {ord(sign): plain for sign, plain in _SIGNS.items()}

_PUNCTUATION = str.maketrans(
    {
        "，": ",",
        "﹐": ",",
        "､": "、",
        "；": ";",
        "：": ":",
        "？": "?",
        "！": "!",
        "（": "(",
        "）": ")",
        "［": "[",
        "］": "]",
        "【": "[",
        "】": "]",
        "｛": "{",
        "｝": "}",
        "“": '"',
        "”": '"',
        "「": '"',
        "」": '"',
        "＂": '"',
        "‘": "'",
        "’": "'",
        "＇": "'",
        "｡": "。",
        "＆": "&",
        "＃": "#",
        "＠": "@",
        "｜": "|",
        "＿": "_",
    }
)


def narrow_letters(text: str) -> str:
    """Fullwidth letters, digits and number signs become ASCII; Chinese punctuation stays as it is."""
    return text.translate(_LETTERS)


def narrow(text: str) -> str:
    """`narrow_letters`, and fullwidth punctuation becomes ASCII too; 。 and 、 have no ASCII twin and stay."""
    return text.translate(_LETTERS).translate(_PUNCTUATION)
