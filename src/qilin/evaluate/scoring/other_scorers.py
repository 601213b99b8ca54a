"""How four published kits would judge the same answers, described and written anew, for `qilin score --as` and
`--compare`.

In: a row of predictions.jsonl. Out: a Mark: what the kit adds to its count of right answers (0, 1, a share where it
would guess by lot, 2 where it counts one answer twice) and why. Nothing here is better than the kit: its mistakes are
the point. Where the kits come from and how far each reading was checked stands in KITS at the foot.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qilin.evaluate.items import is_closed
from qilin.evaluate.scoring.multiple_choice import bare_choice, picked

Row = Mapping[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Mark:
    """`points` that a kit counts for one answer, and the reading that gave them."""

    points: float
    rule: str

    @property
    def correct(self) -> bool | None:
        """True or False as the kit decides; None where it would have thrown a coin."""
        return None if self.rule == "guess" else self.points > 0


@dataclass(frozen=True)
class Kit:
    """One kit: its reading, which version was read, and how the reading was checked against it."""

    mark: Callable[[Row], Mark]
    version: str
    checked: str


# --- CMMMU's reading, which VLMEvalKit, EvalScope and lmms-eval all carry ---------------------------------------------

_AGREES = ("正确", "对", "准确", "肯定", "对的")
_DISAGREES = ("不对", "错误", "不正确", "不准确", "不合适", "否定", "错的", "错")
_UNDECIDED = ("对错", "是否正确", "否正确", "或者", "是否", "正确性", "对不")
_STATEMENT = ("是", "为", "所以", "判断", "陈述", "说法", "表达", "答案", "结果")
_BLANK = ("是", "为", "所以", "等于", "方案", "选择", "正确答案", "因此", "最后", "答案", "结果")


def cmmmu_letters(text: str, choices: Sequence[str]) -> str:
    """The letters CMMMU reads: the commonest of "(A)", else of any A, B, … at all, else of the choices' texts.

    Any capital counts, inside CT and MRI too; equal counts give several letters at once; "" is settled by lot.
    """
    for sign in ",.!?;:'":
        text = text.strip(sign)
    text = f" {text} "
    letters = LETTERS[: len(choices)]
    ways = [
        {letter: text.count(f"({letter})") for letter in letters},
        {letter: text.count(letter) for letter in letters},
        {letter: text.count(choice) if text.strip() else 0 for letter, choice in zip(letters, choices, strict=True)},
    ]
    counts = next((way for way in ways if any(way.values())), {})
    return "".join(letter for letter in counts if counts[letter] == max(counts.values()))


def cmmmu_tails(text: str, signals: Sequence[str], last: Sequence[str] = ()) -> list[str]:
    """What follows the last signal word of each sentence, the shortest of its kind; the whole text where none does."""
    text = text.strip("。").strip()
    sentences = re.split(r"。|\n", text)
    found = []
    for number, sentence in enumerate(sentences):
        shortest = ""
        for signal in (*signals, *(last if number == len(sentences) - 1 else ())):
            if signal in sentence:
                tail = sentence.rsplit(signal, 1)[-1].strip()
                shortest = tail if not shortest or len(tail) < len(shortest) else shortest
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            found.append(shortest)
    return found or [text]


def cmmmu_statement(text: str, reference: str) -> Mark:
    """对 or 错: words of agreement are looked for first, so 不正确 agrees; a tie is settled by lot."""
    tails = {t for t in cmmmu_tails(text, _STATEMENT) if not any(word in t for word in _UNDECIDED)}
    yes = sum(any(word in tail for word in _AGREES) for tail in tails)
    no = sum(not any(word in tail for word in _AGREES) and any(word in tail for word in _DISAGREES) for tail in tails)
    if yes == no:
        return Mark(0.5, "guess")
    return Mark(float(("对" if yes > no else "错") == reference), "statement")


def cmmmu_value(text: str, reference: str) -> list[str | float]:
    """A text as CMMMU compares it: a number to two decimals, else itself; [] where far longer than the reference."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        letters, wanted = (sum(c.isascii() and c.isalpha() for c in t) for t in (text, reference))
        return [] if len(text) > len(reference) + 20 or letters > wanted + 2 else [text]


def cmmmu_numbers(text: str) -> list[str]:
    """Numbers in a text: 1，234 with Chinese commas, 1e3, and plain ones."""
    found = re.findall(r"-?\d{1,3}(?:，\d{3})+", text) + re.findall(r"-?\d+(?:\.\d+)?[eE][+-]?\d+", text)
    return found + re.findall(r"-?(?:\d+\.\d+|\.\d+|\d+)(?![eE][+-]?\d+)(?!，\d)", text)


def cmmmu_blank(text: str, reference: str, once: bool) -> Mark:
    """A blank filled in: the reference inside any tail of the answer, or equal to any number; counted each time it is
    found, unless `once`."""
    tails = cmmmu_tails(text, _BLANK, last=("=",))
    numbers = [number for tail in tails for number in cmmmu_numbers(tail)]
    said = {value for part in (*tails, *numbers) for value in cmmmu_value(part, reference)}
    wanted = cmmmu_value(reference, reference)
    hits = sum(
        any(isinstance(want, str) and want in value for want in wanted) if isinstance(value, str) else value in wanted
        for value in said
    )
    return Mark(float(min(hits, 1) if once else hits), "blank")


def cmmmu(row: Row, once: bool = True) -> Mark | None:
    """A choice question, or a reference of 对 or 错, in CMMMU's way; None for any other row."""
    if row.get("choices"):
        choices = [bare_choice(choice) for choice in row["choices"]]
        wanted = picked(row["reference"], row["choices"])
        letters = "".join(LETTERS[i] for i in sorted(wanted)) if wanted else row["reference"]
        read = cmmmu_letters(row["prediction"], choices)
        if not read:
            return Mark(1 / len(choices) if len(letters) == 1 else 0.0, "guess")
        return Mark(float(read == letters), "choice")
    if row["reference"] in ("对", "错"):
        return cmmmu_statement(row["prediction"], row["reference"])
    return None


# --- the four kits ------------------------------------------------------------------------------------------------


def vlmevalkit(row: Row) -> Mark:
    """Its CMMMU reading; what is neither choice nor 对/错 is read as a blank, each hit counted."""
    return cmmmu(row) or cmmmu_blank(row["prediction"], row["reference"], once=False)


_WIDE_MARKS = "".join(map(chr, (*range(0xFF01, 0xFF0E), 0xFF0F, *range(0xFF1A, 0xFF21), *range(0xFF3B, 0xFF41))))
_WIDE_MARKS += "".join(map(chr, range(0xFF5B, 0xFF5F)))
_PLAIN_MARKS = string.punctuation + _WIDE_MARKS + "。、《》【】"
_TO_SPACE = str.maketrans(dict.fromkeys(_PLAIN_MARKS, " "))
_ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(n) for n, word in enumerate(_ENGLISH)}
_DIGITS |= {"none": "0", "两": "2", "十": "10"} | {word: str(n) for n, word in enumerate("零一二三四五六七八九")}
_YES_EN, _NO_EN = {"yes", "yeah", "yep", "true"}, {"no", "nope", "false"}
_YES_BOTH = {"是", "是的", "有", "包含", "可以", "能", "会"} | _YES_EN
_NO_BOTH = {"否", "不是", "没有", "无", "不包含", "不可以", "不能", "不会", "不正常"} | _NO_EN


def evalscope_plain(text: str) -> str:
    """EvalScope's SLAKE form: brackets and marks gone, number words as digits (两个 too), X光 and yes/no united."""
    text = without_marks(text, "")
    words = []
    for word in text.split():
        bare = word[:-1] if word.endswith("个") and (word[:-1].isdigit() or word[:-1] in _DIGITS) else word
        words.append(_DIGITS.get(bare, bare))
    text = " ".join(word for word in words if word not in ("a", "an", "the"))
    if text in ("x ray", "xray", "x光", "x 光", "x射线", "x 射线"):
        return "xray"
    return one_polarity(text, _YES_BOTH | {"存在"}, _NO_BOTH | {"不存在"})


def evalscope(row: Row) -> Mark:
    """CMMMU's reading for choices and 对/错, else equality in its SLAKE form of what follows the last "ANSWER:"."""
    by_cmmmu = cmmmu(row)
    if by_cmmmu:
        return by_cmmmu
    declared = re.findall(r"ANSWER:\s*(.*)", row["prediction"], flags=re.IGNORECASE)
    said = declared[-1].strip().strip("\"'") if declared else row["prediction"].strip()
    return Mark(float(evalscope_plain(said) == evalscope_plain(row["reference"])), "equal")


def lmms_plain(text: str) -> str:
    """lmms-eval's SLAKE form: brackets and marks gone, x-ray united, 正常 a yes and 异常 a no."""
    text = without_marks(text, "｡")
    text = "xray" if text in ("x ray", "xray") else text
    return one_polarity(text, _YES_BOTH | {"正常"}, _NO_BOTH | {"异常"})


def lmms_eval(row: Row) -> Mark:
    """CMMMU's reading for choices and 对/错, else equality in its SLAKE form."""
    return cmmmu(row) or Mark(float(lmms_plain(row["prediction"]) == lmms_plain(row["reference"])), "equal")


def without_marks(text: str, more: str) -> str:
    """Lower case, what stands in brackets left out, marks as spaces, single spaces."""
    text = re.sub(r"（[^）]*）", " ", re.sub(r"\([^)]*\)", " ", text.strip().lower()))
    return " ".join(text.translate(_TO_SPACE | str.maketrans(dict.fromkeys(more, " "))).split())


def one_polarity(text: str, yes: set[str], no: set[str]) -> str:
    return "yes" if text in yes else "no" if text in no else text


_MEDEVALKIT_SIGNALS = (
    "**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "答案:", "final answer",
    "final answer is",
)  # fmt: skip


def medevalkit(row: Row) -> Mark:
    """Letter for letter in lower case: "." is taken off closed answers, 。 never; yes and no as letters."""
    reference, said = row["reference"], row["prediction"]
    if row.get("choices"):
        return medevalkit_choice(row["choices"], reference, said)
    boxed = in_box(said)
    said = boxed if boxed != "None" else in_tags(said) if "<answer>" in said else said
    said = after_signal(said)
    if not is_closed(row):
        return Mark(float(said == reference.lower()), "equal")
    said = said.replace("\n", "").replace(".", "")
    if reference in ("yes", "no"):
        return Mark(float((("yes" in said) != ("no" in said)) and reference in said), "yes/no")
    return Mark(float(said == reference.lower()), "equal")


def medevalkit_choice(choices: Sequence[str], reference: str, said: str) -> Mark:
    """A letter, else a choice's text, else the choice whose letters are most alike (difflib)."""
    texts = [bare_choice(choice).lower() for choice in choices]
    letters = LETTERS[: len(texts)].lower()
    said, wanted = said.lower(), bare_choice(reference).strip().lower()
    paragraphs = said.split("\n\n")
    if paragraphs[0] and paragraphs[0] in list(letters):
        said = paragraphs[0]
    elif paragraphs[-1].split(".")[0] in list(letters):
        said = paragraphs[-1].split(".")[0]
    said = after_signal(said).strip().replace("\n", "")
    first = said.split(".")[0].split(":")[-1]
    if first == wanted:
        return Mark(1.0, "equal")
    if first in list(letters):
        return Mark(float(texts[letters.index(first)] == wanted), "letter")
    if first in texts:
        return Mark(float(wanted in list(letters) and first == texts[letters.index(wanted)]), "text")
    alike = [difflib.SequenceMatcher(None, text, said).ratio() for text in texts]
    best = alike.index(max(alike))
    return Mark(float(wanted in (letters[best], texts[best])), "most alike")


def after_signal(text: str) -> str:
    """What MedEvalKit takes for the answer: the last box, else the answer tags, then what follows each signal word."""
    text = text.lower()
    if "boxed" in text:
        text = in_box(text)
    elif "<answer>" in text:
        text = in_tags(text)
    for signal in _MEDEVALKIT_SIGNALS:
        text = text.split(signal)[-1]
    return text


def in_box(text: str) -> str:
    r"""The content of the last \boxed{…}, braces balanced; "None" without one."""
    start = text.rfind("\\boxed{")
    depth = 0
    for at in range(start + 7, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth < 0:
            return text[start + 7 : at].strip()
    return "None"


def in_tags(text: str) -> str:
    """All that stands between <answer> and </answer>, joined by spaces; the text itself where that is nothing."""
    return " ".join(re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL)).strip() or text


# Each reading was run beside the kit's own functions on some 4,000 answers (tests/answer_pairs.jsonl, others to SLAKE's
# questions, their noised forms, and answers to choices, blanks and 对/错): all agreed, see bench/results/kits.json.
KITS: dict[str, Kit] = {
    "medevalkit": Kit(
        medevalkit, "utils/utils.py of its public repository, 2025", "against its stored source; it is on no index"
    ),
    "vlmevalkit": Kit(vlmevalkit, "nvidia-vlmeval 26.3, NVIDIA's package of it", "against the package"),
    "evalscope": Kit(evalscope, "1.14.1", "against the package"),
    "lmms-eval": Kit(lmms_eval, "0.7.3", "against the package"),
}


def count_points(rows: Sequence[Row], marks: Sequence[Mark]) -> dict[str, dict[str, Any]]:
    """{"all"|"closed"|"open"|"choice": {"n", "accuracy", "guessed"}} as the kit sums up (guesses at their mean)."""
    found = {}
    for name in ("all", "closed", "open", "choice"):
        mine = [mark for row, mark in zip(rows, marks, strict=True) if name in ("all", kind_of(row))]
        points = sum(mark.points for mark in mine)
        guessed = sum(mark.rule == "guess" for mark in mine)
        found[name] = {"n": len(mine), "accuracy": points / len(mine) if mine else None, "guessed": guessed}
    return found


def kind_of(row: Row) -> str:
    """choice, closed or open: each row in one of them."""
    return "choice" if row.get("choices") else "closed" if is_closed(row) else "open"


def count_rules(marks: Sequence[Mark]) -> dict[str, int]:
    """How often each reading decided."""
    return dict(Counter(mark.rule for mark in marks))
