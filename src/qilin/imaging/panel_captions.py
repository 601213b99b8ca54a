"""Splits the caption of a compound figure at its panel letters: (A) …, (B) …; … (A) and … (B); A：…；B：…; Left: ….

In: a caption, English or Chinese. Out: a `SplitCaption` with the panels, or the reason why the caption stays whole.
A caption is split only if every letter from A on has a text of its own: a wrong text for a panel is worse than none.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qilin.imaging.panels import Box

CJK = "\u4e00-\u9fff"
# A; A, B; a–c; A through C; 1A; 图1a; A、B; A～C
LETTER = r"(?<![A-Za-z])(?:(?:[Ff]ig(?:ure|s)?\.?\s*|图\s*)?\d{0,2})[A-Za-z](?![A-Za-z])"
TO = r"[-‐‑–—~～至]|to\b|through\b"
LETTERS = rf"{LETTER}(?:\s*(?:{TO}|[,&/、，]\s*and\b|[,&/、，和与及]|and\b)\s*{LETTER})*"
PANEL = r"(?:[Pp]anels?\s+)?"
# where the text of a panel may begin: at the start, and after a sentence, a clause, or "and" with a parenthesis
START = r"(?:^|(?<=[.;:,]\s)|(?<=[.;:,]\sand\s)|(?<=\sand\s)(?=\()|(?<=[.;:。，])|(?<=[注图]:))"
# (A) …; Panel A: …; A, …; a) …; A, B: …
LEADING_LETTERS = re.compile(
    rf"{START}(?:\({PANEL}({LETTERS})\)|{PANEL}({LETTERS})(?=:)"
    rf"|([A-Z])(?=[,:]\s)|([A-Z](?:\s*(?:[-–—&]|and|to|, and|,)\s*[A-Z])+)(?=[,:]\s(?![A-Z]\b))|([A-Za-z])\))[:.,]?\s*"
)
LETTERS_IN_PARENTHESES = re.compile(rf"\({PANEL}({LETTERS})\)")
COLON_LETTERS = re.compile(rf"(?:^|(?<=\s)){PANEL}({LETTERS}):\s+")  # A: axial view B: coronal view
# A为轴位，B为冠状位; 图A示…; A图：…; A. 平扫; A 平扫, but neither B超 nor A组
NOT_A_PANEL = "(?![超型族线级期组区类淋细肝胎链])"
CHINESE_LETTERS = re.compile(
    rf"(?:^|(?<=[.;:,。，\s])|(?<=[注图]:))({LETTERS})\s*(?:图\s*)?(?:[.:、,]\s*|为|是|系|示|显示)?{NOT_A_PANEL}(?=[{CJK}A-Z])"
)
# a axial CT. b coronal CT; A. Axial CT. B. Coronal CT: the letters alone do not tell, so each text must name a view
BARE_LETTERS = re.compile(rf"(?:^|(?<=[.;]\s))({LETTERS})(?:\.\s+|\s+)(?=[A-Z\d(a-z])")
SIDES = (("left", "right"), ("top", "bottom"), ("upper", "lower"))
SIDE_OPENINGS = re.compile(
    r"(?:^|(?<=[.;:,]\s))(left|right|top|bottom|upper|lower)(?:\s+(?:panel|image|figure|picture|row))?\s*:\s*"
    r"|(?:^|(?<=[.;:,。，]))([左右上下])(?:[侧方边]?[图幅](?::\s*|为|示|是)|:\s*)",
    re.IGNORECASE,
)
CHINESE_SIDES = {"左": "left", "右": "right", "上": "top", "下": "bottom"}
BODY_SIDE = re.compile(
    r"\b(?:left|right|upper|lower)\b(?!\s*(?:panel|image|figure|picture|row)?\s*:)|[左右上下](?![侧方边]?[图幅]|:)",
    re.IGNORECASE,
)
# words that name a kind of image or a view, and what may stand between them: "axial" stands for "axial CT"
VIEW = (
    r"(?:(?:contrast-)?enhanced|non-?contrast|unenhanced|post-?contrast|pre-?contrast|axial|coronal|sagittal|transverse"
    r"|longitudinal|frontal|lateral|oblique|anteroposterior|posteroanterior|AP|PA|CT|MRI?|PET(?:[-/]CT)?|SPECT"
    r"|T[12]\*?(?:[- ]?weighted|WI?)?|weighted|FLAIR|DWI|ADC|STIR|radiographs?|x-?rays?"
    r"|ultraso(?:und|nography|nogram)|sonogra(?:m|phy)|angiogra(?:m|phy)|arterial|venous|portal|delayed|phase|scans?"
    r"|images?|views?|sections?|slices?|reconstructions?|maps?|planes?|gross|histolog(?:y|ical)|H&E|fundus|OCT"
    r"|photographs?|endoscop(?:y|ic)|sequences?"
    r"|横断[位面]|横?轴位|冠状[位面]|矢状[位面]|正位|侧位|斜位|平扫|增强|门?静脉期|门脉期|动脉期|延迟期|平衡期|皮质期"
    r"|实质期|排泄期|X\s?线|胸片|平片|彩?超声?|B超|造影|病理|镜下|HE染色|免疫组化|大体标本|三维重建|重建|扫描|加权|压脂|弥散"
    r"|内镜|胃镜|肠镜|眼底|成像|序列|照片|图像|图|像|片)"
)
GAP = r"[\s/-]*(?:的[\s/-]*)?"
ONLY_VIEWS = re.compile(rf"{VIEW}(?:{GAP}{VIEW})*", re.IGNORECASE)
LAST_VIEWS = re.compile(rf"(?:^|(?<=\s)|(?<=[{CJK}])){VIEW}(?:{GAP}{VIEW})*$", re.IGNORECASE)
SEPARATOR = re.compile(r"\s*(?:[,;，、]\s*(?:and\b|or\b|和|及|与)?|and\b|or\b|以及|和|及|与)")
SHARED_TAIL = re.compile(rf"(?:{VIEW}|of|through|at|in|from|after|before)(?![A-Za-z])", re.IGNORECASE)
NAMES_VIEW = re.compile(rf"(?<![A-Za-z]){VIEW}(?![A-Za-z])", re.IGNORECASE)
FULL_WIDTH = str.maketrans("（）：；．", "():;.")  # each one character: positions stay
NO_LETTERS = "no panel letters"
NOT_LEADING = "letters do not start the text of a panel"
NOT_IN_ORDER = "letters are not A, B, C in order"
NO_TEXT = "a panel has no text of its own"
MIN_PANEL_TEXT = 8  # characters; with fewer, something other than a panel was lettered
MIN_CHINESE_TEXT = 2  # 平扫


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
    if split.reason_not_split in (NO_LETTERS, NOT_IN_ORDER, NO_TEXT):
        others = [
            split_at_openings(caption, text, COLON_LETTERS, after_sentence=True),
            split_at_openings(caption, text, BARE_LETTERS, needs_views=True),
        ]
        if re.search(f"[{CJK}]", text):
            others.append(split_at_openings(caption, text, CHINESE_LETTERS))
        split = next((other for other in others if other.reason_not_split is None), split)
    if split.reason_not_split == NOT_LEADING:
        return split_before_letters(text) or split
    if split.reason_not_split == NO_LETTERS:
        return split_at_sides(caption, text) or split
    return split


def split_at_openings(
    caption: str, text: str, pattern: re.Pattern[str], needs_views: bool = False, after_sentence: bool = False
) -> SplitCaption:
    """Panels whose letters come before their text; "(A, C) …. (B, D) …" gives two panels the same text.

    With `needs_views` each text must name a kind of image or a view. With `after_sentence` nothing but whole sentences
    comes before the first letter: "Patient A: …. Patient B: …" has no panels.
    """
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
    texts = [trim_panel(caption[start:end]) for (_, start, _), end in zip(openings, ends, strict=True)]
    if not all(map(is_panel_text, texts)) or (needs_views and not all(map(NAMES_VIEW.search, texts))):
        return SplitCaption(reason_not_split=NO_TEXT)
    panels = [(letter.upper(), text) for (*_, group), text in zip(openings, texts, strict=True) for letter in group]
    if after_sentence and not re.search(r"(?:^|[.;:。])\s*$", text[: openings[0][0]]):
        return SplitCaption(reason_not_split=NOT_LEADING if len(mentioned) > 1 else NO_LETTERS)
    lead = re.sub(r"(?:注|\b[Pp]anels?)\s*[:：]?\s*$", "", caption[: openings[0][0]]).strip()
    return SplitCaption(lead, tuple(sorted(panels, key=lambda panel: panel[0])))


def trim_panel(text: str) -> str:
    """Without what joins it to the next panel."""
    return re.sub(r"(?<=[\s,;，；])(?:and|和|及|以及)\s*$", "", text.strip(" ;,，；、")).strip(" ;,，；、")


def is_panel_text(text: str) -> bool:
    is_long = len(text) >= MIN_PANEL_TEXT or len(re.findall(f"[{CJK}]", text)) >= MIN_CHINESE_TEXT
    return is_long or bool(ONLY_VIEWS.fullmatch(text.rstrip(".")))  # CT


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
    edges = [0, *(edge for group in groups for edge in group.span()), len(text)]
    pieces = [text[start:end].strip() for start, end in zip(edges[::2], edges[1::2], strict=True)]
    if not all(SEPARATOR.match(piece) for piece in pieces[1:-1]):
        return None
    phrases, tail = [SEPARATOR.sub("", piece, count=1).strip() for piece in pieces[:-1]], pieces[-1]
    phrases[0] = pieces[0]
    if not phrases[0] or any(re.search(r"[.;]\s|。", phrase) for phrase in phrases):
        return None
    are_views = [bool(ONLY_VIEWS.fullmatch(phrase)) for phrase in phrases]
    if not all(NAMES_VIEW.search(phrase) for phrase in phrases):
        return None
    if re.match(r"[.;。]?$|\.\s|。", tail):
        shared = LAST_VIEWS.search(phrases[0])
        if all(are_views[1:]) and shared and not are_views[0]:
            lead, phrases[0] = phrases[0][: shared.start()].strip(), shared.group()
            return joined_panels(lead, phrases, letters, "")
        if not all(are_views) and (any(are_views[1:]) or not all(map(is_panel_text, phrases[1:]))):
            return None
        return joined_panels("", phrases, letters, "")
    if all(are_views) and SHARED_TAIL.match(tail) and not re.search(r"[.;:]\s|。.", tail):
        is_chinese = re.search(f"[{CJK}]", phrases[0])
        return joined_panels("", phrases, letters, tail if is_chinese else f" {tail}")
    return None


def joined_panels(lead: str, phrases: Sequence[str], letters: Sequence[Sequence[str]], tail: str) -> SplitCaption:
    panels = [
        (letter.upper(), phrase + tail) for phrase, group in zip(phrases, letters, strict=True) for letter in group
    ]
    return SplitCaption(lead, tuple(panels))


def split_at_sides(caption: str, text: str) -> SplitCaption | None:
    """ "Left: …. Right: …", unless left and right could be sides of the body."""
    openings = list(SIDE_OPENINGS.finditer(text))
    names = tuple(
        CHINESE_SIDES[opening.group(2)] if opening.group(2) else opening.group(1).lower() for opening in openings
    )
    if names not in SIDES or BODY_SIDE.search(text):
        return None
    first, second = openings
    texts = (trim_panel(caption[first.end() : second.start()]), trim_panel(caption[second.end() :]))
    if not all(map(is_panel_text, texts)):
        return None
    return SplitCaption(caption[: first.start()].strip(), tuple(zip(names, texts, strict=True)))


def parse_letters(text: str) -> list[str]:
    """ "A" -> [A]; "A, C" -> [A, C]; "A–C" -> [A, B, C]; "1a-1c" -> [a, b, c]."""
    letters: list[str] = []
    for match in re.finditer(rf"(?P<range>{TO})|{LETTER}", text):
        if match.group("range"):
            letters.append("-")
            continue
        letter = match.group()[-1]
        if letters and letters[-1] == "-":
            letters.pop()
            first = ord(letters[-1]) + 1 if letters else ord(letter)
            letters += [chr(code) for code in range(first, ord(letter))]
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
