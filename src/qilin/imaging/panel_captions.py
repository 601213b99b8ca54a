"""Splits the caption of a compound figure at its panel letters: (A) …, (B) ….

In: a caption. Out: a `SplitCaption` with the panels, or with the reason why the caption stays whole.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qilin.imaging.panels import Box

# (A), (A, B), (a–c); A) or A: or A, at the start of a sentence
LETTERS = r"[A-Za-z](?:\s*(?:[-–—,&/]|and|to)\s*[A-Za-z])*"
LEADING_LETTERS = re.compile(
    rf"(?:^|(?<=[.;:,]\s)|(?<=[.;:,]\sand\s)|(?<=[.;:。]))(?:\(({LETTERS})\)|([A-Z])(?=[,:]\s)|([A-Za-z])\))[:.,]?\s*"
)
LETTERS_IN_PARENTHESES = re.compile(rf"\(({LETTERS})\)")
FULL_WIDTH = str.maketrans("（）：，；", "():,;")
MIN_PANEL_TEXT = 8  # characters; with fewer, something other than a panel was lettered


@dataclass(frozen=True)
class SplitCaption:
    """`panels` are (letter, text) pairs after the text that all share; or the reason why the caption stays whole."""

    lead: str = ""
    panels: tuple[tuple[str, str], ...] = ()
    reason_not_split: str | None = None


def split_caption(caption: str) -> SplitCaption:
    """The panels of a caption whose letters run A, B, C … once each and start the text of their panel."""
    text = caption.translate(FULL_WIDTH)
    openings = [
        (m.start(), m.end(), parse_letters(next(filter(None, m.groups())))) for m in LEADING_LETTERS.finditer(text)
    ]
    mentioned = {letter for m in LETTERS_IN_PARENTHESES.finditer(text) for letter in parse_letters(m.group(1))}
    if len(openings) < 2 or not any(letters for *_, letters in openings):
        several = len(mentioned) > 1
        return SplitCaption(
            reason_not_split="letters do not start the text of a panel" if several else "no panel letters"
        )
    letters = [letter for *_, group in openings for letter in group]
    if letters != [chr(ord(letters[0]) + n) for n in range(len(letters))] or letters[0].upper() != "A":
        return SplitCaption(reason_not_split="letters are not A, B, C in order")
    if mentioned - set(letters):
        return SplitCaption(reason_not_split="a letter is mentioned that starts no text")
    ends = [start for start, *_ in openings[1:]] + [len(caption)]
    texts = [caption[start:end].strip(" ;,") for (_, start, _), end in zip(openings, ends, strict=True)]
    if min(map(len, texts)) < MIN_PANEL_TEXT:
        return SplitCaption(reason_not_split="a panel has no text of its own")
    panels = [(letter.upper(), text) for (*_, group), text in zip(openings, texts, strict=True) for letter in group]
    return SplitCaption(caption[: openings[0][0]].strip(), tuple(panels))


def parse_letters(text: str) -> list[str]:
    """ "A" -> [A]; "A, C" -> [A, C]; "A–C" -> [A, B, C]."""
    parts = re.split(r"\s*([-–—,&/]|and|to)\s*", text)
    letters = [parts[0]]
    for separator, letter in zip(parts[1::2], parts[2::2], strict=True):
        if separator in ("-", "–", "—", "to"):
            letters += [chr(code) for code in range(ord(letters[-1]) + 1, ord(letter) + 1)]
        else:
            letters.append(letter)
    return letters


def panel_mismatch(caption: SplitCaption, boxes: Sequence[Box]) -> str | None:
    """Why a split caption and a split image do not belong together; None where panel n is tile n."""
    if caption.reason_not_split:
        return caption.reason_not_split
    if len(boxes) != len(caption.panels):
        return f"the caption has {len(caption.panels)} panels, the image {len(boxes)} tiles"
    return None
