"""Splits the caption of a compound figure at its panel letters: (A) …, (B) …; … (A) and … (B); Left: …, Right: ….

In: a caption. Out: a `SplitCaption` with the panels, or with the reason why the caption stays whole. A caption is split
only if every letter from A on has a text of its own: a wrong text for a panel is worse than none.
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
COLON_LETTERS = re.compile(rf"(?:^|(?<=\s))({LETTERS}):\s+")  # A: axial view B: coronal view
SIDES = (("left", "right"), ("top", "bottom"), ("upper", "lower"))
SIDE_OPENINGS = re.compile(
    r"(?:^|(?<=[.;:,]\s))(left|right|top|bottom|upper|lower)(?:\s+(?:panel|image|figure|picture|row))?\s*:\s*", re.I
)
BODY_SIDE = re.compile(r"\b(?:left|right|upper|lower)\b(?!\s*(?:panel|image|figure|picture|row)?\s*:)", re.IGNORECASE)
# words that name a kind of image or a view, and what may stand between them: "axial" stands for "axial CT"
VIEW = (
    r"(?:(?:contrast-)?enhanced|non-?contrast|unenhanced|post-?contrast|pre-?contrast|axial|coronal|sagittal|transverse"
    r"|longitudinal|frontal|lateral|oblique|anteroposterior|posteroanterior|AP|PA|CT|MRI?|PET(?:[-/]CT)?|SPECT|T[12]\*?"
    r"(?:[- ]?weighted|WI?)?|weighted|FLAIR|DWI|ADC|STIR|radiographs?|x-?rays?|ultraso(?:und|nography|nogram)"
    r"|sonogra(?:m|phy)|angiogra(?:m|phy)|arterial|venous|portal|delayed|phase|scans?|images?|views?|sections?|slices?|reconstructions?"
    r"|maps?|planes?|gross|histolog(?:y|ical)|H&E|fundus|OCT|photographs?|endoscop(?:y|ic)|sequences?)"
)
ONLY_VIEWS = re.compile(rf"{VIEW}(?:[\s/-]+{VIEW})*", re.IGNORECASE)
LAST_VIEWS = re.compile(rf"(?:^|(?<=\s)){VIEW}(?:[\s/-]+{VIEW})*$", re.IGNORECASE)
SEPARATOR = re.compile(r"\s*(?:[,;]\s*(?:and\b|or\b)?|and\b|or\b)")
SHARED_TAIL = re.compile(rf"(?:{VIEW}|of|through|at|in|from|after|before)\b", re.IGNORECASE)
NAMES_VIEW = re.compile(rf"\b{VIEW}(?!\w)", re.IGNORECASE)
FULL_WIDTH = str.maketrans("（）：，；", "():,;")
NO_LETTERS = "no panel letters"
NOT_LEADING = "letters do not start the text of a panel"
NOT_IN_ORDER = "letters are not A, B, C in order"
MIN_PANEL_TEXT = 8  # characters; with fewer, something other than a panel was lettered


@dataclass(frozen=True)
class SplitCaption:
    """`panels` are (letter, text) pairs after the text that all share; or the reason why the caption stays whole."""

    lead: str = ""
    panels: tuple[tuple[str, str], ...] = ()
    reason_not_split: str | None = None


def split_caption(caption: str) -> SplitCaption:
    """The panels of a caption whose letters run from A on, once each, and are next to the text of their panel."""
    text = caption.translate(FULL_WIDTH)
    split = split_at_openings(caption, text, LEADING_LETTERS)
    if split.reason_not_split in (NO_LETTERS, NOT_IN_ORDER):
        with_colons = split_at_openings(caption, text, COLON_LETTERS)
        split = split if with_colons.reason_not_split else with_colons
    if split.reason_not_split == NOT_LEADING:
        return split_before_letters(text) or split
    if split.reason_not_split == NO_LETTERS:
        return split_at_sides(caption, text) or split
    return split


def split_at_openings(caption: str, text: str, pattern: re.Pattern[str]) -> SplitCaption:
    """Panels whose letters come before their text; "(A, C) …. (B, D) …" gives two panels the same text."""
    openings = [(m.start(), m.end(), parse_letters(next(filter(None, m.groups())))) for m in pattern.finditer(text)]
    mentioned = {letter for m in LETTERS_IN_PARENTHESES.finditer(text) for letter in parse_letters(m.group(1))}
    if len(openings) < 2 or not any(letters for *_, letters in openings):
        return SplitCaption(reason_not_split=NOT_LEADING if len(mentioned) > 1 else NO_LETTERS)
    letters = [letter for *_, group in openings for letter in group]
    if not run_from_a(letters):
        return SplitCaption(reason_not_split=NOT_IN_ORDER)
    if mentioned - set(letters):
        return SplitCaption(reason_not_split="a letter is mentioned that starts no text")
    ends = [start for start, *_ in openings[1:]] + [len(caption)]
    texts = [caption[start:end].strip(" ;,") for (_, start, _), end in zip(openings, ends, strict=True)]
    if min(map(len, texts)) < MIN_PANEL_TEXT:
        return SplitCaption(reason_not_split="a panel has no text of its own")
    panels = [(letter.upper(), text) for (*_, group), text in zip(openings, texts, strict=True) for letter in group]
    return SplitCaption(caption[: openings[0][0]].strip(), tuple(sorted(panels, key=lambda panel: panel[0])))


def run_from_a(letters: Sequence[str]) -> bool:
    """Whether the letters are A, B, C … or a, b, c …, once each, in any order of their groups."""
    first = min(letters)
    return first in ("A", "a") and sorted(letters) == [chr(ord(first) + n) for n in range(len(letters))]


def split_before_letters(text: str) -> SplitCaption | None:
    """Panels whose letters come after their text, in one sentence: "Brain CT (A) and MR (B, C)."

    Split if each text names a kind of image or a view. A text that is nothing else shares the words before the first
    one's ("Brain CT", "Brain MR"), or those after the last letter ("Axial (A) and coronal (B) CT of the knee").
    """
    groups = list(LETTERS_IN_PARENTHESES.finditer(text))
    letters = [parse_letters(group.group(1)) for group in groups]
    flat = [letter for group in letters for letter in group]
    if len(groups) < 2 or not run_from_a(flat) or flat != sorted(flat):
        return None
    pieces = re.split(r"\s*\((?:" + LETTERS + r")\)", text)
    if not all(SEPARATOR.match(piece) for piece in pieces[1:-1]):
        return None
    phrases, tail = [SEPARATOR.sub("", piece, count=1).strip() for piece in pieces[:-1]], pieces[-1].strip()
    phrases[0] = pieces[0].strip()
    if not phrases[0] or any(re.search(r"[.;]\s", phrase) for phrase in phrases):
        return None
    are_views = [bool(ONLY_VIEWS.fullmatch(phrase)) for phrase in phrases]
    if not all(NAMES_VIEW.search(phrase) for phrase in phrases):
        return None
    if re.match(r"[.;]?$|\.\s", tail):
        shared = LAST_VIEWS.search(phrases[0])
        if all(are_views[1:]) and shared and not are_views[0]:
            lead, phrases[0] = phrases[0][: shared.start()].strip(), shared.group()
            return joined_panels(lead, phrases, letters, "")
        if any(are_views[1:]) or min(map(len, phrases[1:])) < MIN_PANEL_TEXT:
            return None
        return joined_panels("", phrases, letters, "")
    if all(are_views) and SHARED_TAIL.match(tail) and not re.search(r"[.;:]\s", tail):
        return joined_panels("", phrases, letters, f" {tail}")
    return None


def joined_panels(lead: str, phrases: Sequence[str], letters: Sequence[Sequence[str]], tail: str) -> SplitCaption:
    panels = [
        (letter.upper(), phrase + tail) for phrase, group in zip(phrases, letters, strict=True) for letter in group
    ]
    return SplitCaption(lead, tuple(panels))


def split_at_sides(caption: str, text: str) -> SplitCaption | None:
    """ "Left: …. Right: …", unless left and right could be sides of the body."""
    openings = list(SIDE_OPENINGS.finditer(text))
    names = tuple(opening.group(1).lower() for opening in openings)
    if names not in SIDES or BODY_SIDE.search(text):
        return None
    first, second = openings
    texts = (caption[first.end() : second.start()].strip(" ;,"), caption[second.end() :].strip(" ;,"))
    if min(map(len, texts)) < MIN_PANEL_TEXT:
        return None
    return SplitCaption(caption[: first.start()].strip(), tuple(zip(names, texts, strict=True)))


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
    names = tuple(name for name, _ in caption.panels)
    if names in SIDES:
        (left, top, right, bottom), second = boxes
        if not (right <= second[0] if names == SIDES[0] else bottom <= second[1]):
            return f"the tiles are not {' and '.join(names)}"
    return None
