"""Which language a text is in, as far as it matters here: Chinese, English, or another one.

In: a text. Out: "zh", "en" or "other". By letters and by the small words of each Latin language; a text too short to
tell (a name, an abbreviation, a number) counts as English.
"""

from __future__ import annotations

import re

from qilin.text.chinese import chinese_share, has_chinese

# Japanese kana, Hangul, Cyrillic, Arabic, Hebrew, Thai, Devanagari; Greek letters are signs in medicine
_OTHER = re.compile(r"[\u3041-\u30ff\uac00-\ud7af\u0400-\u04ff\u0590-\u06ff\u0900-\u097f\u0e00-\u0e7f]")
_SMALL = {
    "en": "the of and in is are with to a for was were on by no at from this that an it as be has shows seen not",
    "de": "der die das und ist mit ein eine des dem den von im zu auf nicht sich bei wurde einer",
    "fr": "le la les des et est une un du dans avec pour au aux sur par qui ne pas cette",
    "es": "el la los las de del y en un una con por para es se que al lo su como",
    "it": "il lo gli della di e un una con per che nel del sono alla dei delle",
    "pt": "o os as do da dos das e em um uma com por para que no na ao",
}  # fmt: skip
_WORDS = {language: frozenset(words.split()) for language, words in _SMALL.items()}


def language_of(text: str) -> str:
    """ "zh" where Chinese stands in it (with English words among it), "en", or "other"."""
    letters = sum(c.isalpha() for c in text)
    if letters and len(_OTHER.findall(text)) > 0.1 * letters:
        return "other"
    if has_chinese(text):
        return "zh" if chinese_share(text) > 0.1 else "other"
    words = re.findall(r"[^\W\d_]+", text.lower())
    counts = {language: sum(word in small for word in words) for language, small in _WORDS.items()}
    best = max(counts, key=lambda language: counts[language])
    return "other" if len(words) >= 6 and best != "en" and counts[best] > counts["en"] else "en"
