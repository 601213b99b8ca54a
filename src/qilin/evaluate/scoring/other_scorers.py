"""The scoring rules of four published evaluation kits, reimplemented for `qilin score --scorer KIT` and `--compare`.

Input: a prediction. Output: a KitScore: what the kit adds to its count of correct answers (0 or 1; a fraction where it
would guess at random; 2 where it counts one answer twice) and the rule that decided. The kits' errors are reproduced
on purpose. KITS at the foot names the version of each kit and how the reimplementation was checked.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.multiple_choice import selected_options, strip_choice_letter

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
QUESTION_TYPES = ("closed", "open", "choice")
GUESS = "guess"


@dataclass(frozen=True)
class KitScore:
    """The points that a kit counts for one answer, and the rule that gave them."""

    points: float
    rule: str

    @property
    def correct(self) -> bool | None:
        """The kit's decision; None where it would guess at random."""
        return None if self.rule == GUESS else self.points > 0


TOO_MANY_OPTIONS = KitScore(0.0, "too many options")  # the kits name options by one letter


@dataclass(frozen=True)
class Kit:
    """One kit: its rules, the version they were taken from, and how they were checked against it."""

    score: Callable[[Prediction], KitScore]
    version: str
    checked: str


def option_letters(answer: str, choices: Sequence[str]) -> str | None:
    """The letters of the options that a reference selects, such as "B" or "AC"; None if it selects none."""
    options = selected_options(answer, choices)
    return "".join(LETTERS[i] for i in sorted(options)) if options else None


# --- CMMMU's rules, which VLMEvalKit, EvalScope and lmms-eval share ---------------------------------------------------

_AGREES = ("正确", "对", "准确", "肯定", "对的")
_DISAGREES = ("不对", "错误", "不正确", "不准确", "不合适", "否定", "错的", "错")
_UNDECIDED = ("对错", "是否正确", "否正确", "或者", "是否", "正确性", "对不")
_STATEMENT = ("是", "为", "所以", "判断", "陈述", "说法", "表达", "答案", "结果")
_BLANK = ("是", "为", "所以", "等于", "方案", "选择", "正确答案", "因此", "最后", "答案", "结果")


def cmmmu_letters(text: str, choices: Sequence[str]) -> str:
    """The letters that CMMMU reads: the most frequent "(A)", else any letter A, B, …, else the choices' texts.

    Any capital letter counts, also inside CT and MRI; ties give several letters; "" is resolved by a random guess.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    letters = LETTERS[: len(choices)]
    candidates = [
        {letter: text.count(f"({letter})") for letter in letters},
        {letter: text.count(letter) for letter in letters},
        {letter: text.count(choice) if text.strip() else 0 for letter, choice in zip(letters, choices, strict=True)},
    ]
    counts = next((count for count in candidates if any(count.values())), {})
    return "".join(letter for letter in counts if counts[letter] == max(counts.values()))


def cmmmu_tails(text: str, signals: Sequence[str], last_signals: Sequence[str] = ()) -> list[str]:
    """The shortest text after a signal word, for each sentence; the entire text where no sentence has one.

    `last_signals` count in the last sentence only.
    """
    text = text.strip("。").strip()
    sentences = re.split(r"。|\n", text)
    tails = []
    for number, sentence in enumerate(sentences):
        shortest = ""
        for signal in (*signals, *(last_signals if number == len(sentences) - 1 else ())):
            if signal in sentence:
                tail = sentence.rsplit(signal, 1)[-1].strip()
                shortest = tail if not shortest or len(tail) < len(shortest) else shortest
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            tails.append(shortest)
    return tails or [text]


def cmmmu_statement(text: str, reference: str) -> KitScore:
    """对 or 错: words of agreement are searched first, so 不正确 agrees; ties are resolved by a random guess."""
    tails = {t for t in cmmmu_tails(text, _STATEMENT) if not any(word in t for word in _UNDECIDED)}
    yes = sum(any(word in tail for word in _AGREES) for tail in tails)
    no = sum(not any(word in tail for word in _AGREES) and any(word in tail for word in _DISAGREES) for tail in tails)
    if yes == no:
        return KitScore(0.5, GUESS)
    return KitScore(float(("对" if yes > no else "错") == reference), "statement")


def cmmmu_value(text: str, reference: str) -> list[str | float]:
    """A text as CMMMU compares it: a number to two decimals, else itself; [] if much longer than the reference."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        letters, reference_letters = (sum(c.isascii() and c.isalpha() for c in t) for t in (text, reference))
        return [] if len(text) > len(reference) + 20 or letters > reference_letters + 2 else [text]


def cmmmu_numbers(text: str) -> list[str]:
    """Numbers in a text: 1，234 with Chinese commas, 1e3, and plain ones."""
    # a run of digits is tried from its first digit only, so that a long one takes linear time; the matches are the same
    exponents = re.findall(r"-?(?<!\d)\d++(?:\.\d++)?[eE][+-]?\d+", text)
    numbers = re.findall(r"-?\d{1,3}(?:，\d{3})+", text) + exponents
    return numbers + re.findall(r"-?(?:\d+\.\d+|\.\d+|\d+)(?![eE][+-]?\d+)(?!，\d)", text)


def cmmmu_blank(text: str, reference: str, count_once: bool) -> KitScore:
    """Fill-in-the-blank: counts every tail that contains the reference and every equal number, or one of them."""
    tails = cmmmu_tails(text, _BLANK, last_signals=("=",))
    numbers = [number for tail in tails for number in cmmmu_numbers(tail)]
    values = {value for part in (*tails, *numbers) for value in cmmmu_value(part, reference)}
    expected = cmmmu_value(reference, reference)
    hits = sum(
        any(isinstance(e, str) and e in value for e in expected) if isinstance(value, str) else value in expected
        for value in values
    )
    return KitScore(float(min(hits, 1) if count_once else hits), "blank")


def cmmmu(p: Prediction) -> KitScore | None:
    """CMMMU's rules for a choice question or a reference of 对 or 错; None for any other row."""
    if len(p.choices) > len(LETTERS):
        return TOO_MANY_OPTIONS
    if p.choices:
        letters = option_letters(p.reference, p.choices) or p.reference
        answer = cmmmu_letters(p.prediction, [strip_choice_letter(choice) for choice in p.choices])
        if not answer:
            return KitScore(1 / len(p.choices) if len(letters) == 1 else 0.0, GUESS)
        return KitScore(float(answer == letters), "choice")
    if p.reference in ("对", "错"):
        return cmmmu_statement(p.prediction, p.reference)
    return None


# --- the four kits ------------------------------------------------------------------------------------------------


def vlmevalkit(p: Prediction) -> KitScore:
    """CMMMU's rules; everything that is neither choice nor 对/错 is scored as a blank, with every hit counted."""
    return cmmmu(p) or cmmmu_blank(p.prediction, p.reference, count_once=False)


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


def evalscope_normalize(text: str) -> str:
    """EvalScope's normalization for SLAKE: no brackets or punctuation, number words as digits (两个 too), X光 and
    yes/no unified."""
    words = []
    for word in _strip_marks(text, "").split():
        bare = word[:-1] if word.endswith("个") and (word[:-1].isdigit() or word[:-1] in _DIGITS) else word
        words.append(_DIGITS.get(bare, bare))
    text = " ".join(word for word in words if word not in ("a", "an", "the"))
    if text in ("x ray", "xray", "x光", "x 光", "x射线", "x 射线"):
        return "xray"
    return _unify_polarity(text, _YES_BOTH | {"存在"}, _NO_BOTH | {"不存在"})


def evalscope(p: Prediction) -> KitScore:
    """CMMMU's rules for choices and 对/错, else equality after SLAKE's normalization of the text after "ANSWER:"."""
    score = cmmmu(p)
    if score:
        return score
    declared = re.findall(r"ANSWER:\s*(.*)", p.prediction, flags=re.IGNORECASE)
    answer = declared[-1].strip().strip("\"'") if declared else p.prediction.strip()
    return KitScore(float(evalscope_normalize(answer) == evalscope_normalize(p.reference)), "equal")


def lmms_eval_normalize(text: str) -> str:
    """lmms-eval's normalization for SLAKE: no brackets or punctuation, x-ray unified, 正常 is yes and 异常 is no."""
    text = _strip_marks(text, "｡")
    text = "xray" if text in ("x ray", "xray") else text
    return _unify_polarity(text, _YES_BOTH | {"正常"}, _NO_BOTH | {"异常"})


_LMMS_EVAL_TAGS = (("<think>", "</think>"), ("<analysis>", "</analysis>"))  # its default --reasoning_tags


def lmms_eval_answer(text: str) -> str:
    """A reply as lmms-eval hands it to a task: without closed reasoning blocks, in exactly this spelling.

    A closing tag alone drops what is before it; an unclosed block stays.
    """
    for start_tag, end_tag in _LMMS_EVAL_TAGS:
        parts, position = [], 0
        while (start := text.find(start_tag, position)) >= 0 and (end := text.find(end_tag, start)) >= 0:
            parts.append(text[position:start])
            position = end + len(end_tag)
        text = "".join(parts) + text[position:]
        if end_tag in text and start_tag not in text:
            text = text.rsplit(end_tag, 1)[-1]
    return text.strip()


def lmms_eval(p: Prediction) -> KitScore:
    """Reasoning blocks removed; CMMMU's rules for choices and 对/错, else equality after SLAKE's normalization."""
    p = replace(p, prediction=lmms_eval_answer(p.prediction))
    is_equal = lmms_eval_normalize(p.prediction) == lmms_eval_normalize(p.reference)
    return cmmmu(p) or KitScore(float(is_equal), "equal")


def _strip_marks(text: str, extra_marks: str) -> str:
    """Lower case without bracketed text; punctuation becomes single spaces."""
    text = _without_brackets(_without_brackets(text.strip().lower(), "(", ")"), "（", "）")
    return " ".join(text.translate(_TO_SPACE | str.maketrans(dict.fromkeys(extra_marks, " "))).split())


def _without_brackets(text: str, opening: str, closing: str) -> str:
    r"""As re.sub(r"\([^)]*\)", " ", text), in linear time for a text of opening brackets."""
    *closed, rest = text.split(closing)
    parts = [part.partition(opening) for part in closed]
    return "".join(before + (" " if bracket else closing) for before, bracket, _ in parts) + rest


def _unify_polarity(text: str, yes: set[str], no: set[str]) -> str:
    return "yes" if text in yes else "no" if text in no else text


_MEDEVALKIT_SIGNALS = (
    "**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:", "答案:", "final answer",
    "final answer is",
)  # fmt: skip


def medevalkit(p: Prediction) -> KitScore:
    """String comparison in lower case; closed answers lose "." but not 。; yes and no are searched as substrings."""
    if len(p.choices) > len(LETTERS):
        return TOO_MANY_OPTIONS
    if p.choices:
        return _medevalkit_choice(p.choices, p.reference, p.prediction)
    answer = p.prediction
    boxed = _boxed_text(answer)
    answer = boxed if boxed != "None" else _tagged_text(answer) if "<answer>" in answer else answer
    answer = _after_signal(answer)
    if not p.is_closed:
        return KitScore(float(answer == p.reference.lower()), "equal")
    answer = answer.replace("\n", "").replace(".", "")
    if p.reference in ("yes", "no"):
        return KitScore(float((("yes" in answer) != ("no" in answer)) and p.reference in answer), "yes/no")
    return KitScore(float(answer == p.reference.lower()), "equal")


def _medevalkit_choice(choices: Sequence[str], reference: str, prediction: str) -> KitScore:
    """A letter, else a choice's text, else the choice that is most similar as a string (difflib)."""
    texts = [strip_choice_letter(choice).lower() for choice in choices]
    letters = LETTERS[: len(texts)].lower()
    answer, expected = prediction.lower(), strip_choice_letter(reference).strip().lower()
    paragraphs = answer.split("\n\n")
    if paragraphs[0] and paragraphs[0] in list(letters):
        answer = paragraphs[0]
    elif paragraphs[-1].split(".")[0] in list(letters):
        answer = paragraphs[-1].split(".")[0]
    answer = _after_signal(answer).strip().replace("\n", "")
    first = answer.split(".")[0].split(":")[-1]
    if first == expected:
        return KitScore(1.0, "equal")
    if first in list(letters):
        return KitScore(float(texts[letters.index(first)] == expected), "letter")
    if first in texts:
        return KitScore(float(expected in list(letters) and first == texts[letters.index(expected)]), "text")
    similarities = [difflib.SequenceMatcher(None, text, answer).ratio() for text in texts]
    best = similarities.index(max(similarities))
    return KitScore(float(expected in (letters[best], texts[best])), "most alike")


def _after_signal(text: str) -> str:
    """What MedEvalKit takes as the answer: the last box, else the answer tags, then what follows each signal word."""
    text = text.lower()
    if "boxed" in text:
        text = _boxed_text(text)
    elif "<answer>" in text:
        text = _tagged_text(text)
    for signal in _MEDEVALKIT_SIGNALS:
        text = text.split(signal)[-1]
    return text


def _boxed_text(text: str) -> str:
    r"""The content of the last \boxed{…} with balanced braces; "None" without one."""
    start = text.rfind("\\boxed{")
    depth = 0
    for index in range(start + 7, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth < 0:
            return text[start + 7 : index].strip()
    return "None"


def _tagged_text(text: str) -> str:
    """Everything between <answer> and </answer>, joined by spaces; the text itself where that is empty."""
    parts = [part.partition("<answer>") for part in text.split("</answer>")[:-1]]
    return " ".join(answer for _, tag, answer in parts if tag).strip() or text


# Each reimplementation was compared with the kit's own functions on about 4,000 answers (tests/evaluate/
# answer_pairs.jsonl, answers to SLAKE's questions, noised forms of both, choices, blanks and 对/错): all agreed, see
# bench/results/kits.json.
KITS: dict[str, Kit] = {
    "medevalkit": Kit(
        medevalkit, "utils/utils.py of its public repository, 2025", "against its stored source; it is on no index"
    ),
    "vlmevalkit": Kit(vlmevalkit, "nvidia-vlmeval 26.3, NVIDIA's package of it", "against the package"),
    "evalscope": Kit(evalscope, "1.14.1", "against the package"),
    "lmms-eval": Kit(lmms_eval, "0.7.3", "against the package"),
}


def total_points(predictions: Sequence[Prediction], scores: Sequence[KitScore]) -> dict[str, dict[str, Any]]:
    """{"all"|"closed"|"open"|"choice": {"n", "accuracy", "guessed"}} as the kit computes it (guesses at their mean)."""
    totals = {}
    for name in ("all", *QUESTION_TYPES):
        subset = [s for p, s in zip(predictions, scores, strict=True) if name in ("all", question_type(p))]
        points = sum(score.points for score in subset)
        guessed = sum(score.rule == GUESS for score in subset)
        totals[name] = {"n": len(subset), "accuracy": points / len(subset) if subset else None, "guessed": guessed}
    return totals


def question_type(p: Prediction) -> str:
    """choice, closed or open: each row is in exactly one of them."""
    return "choice" if p.choices else "closed" if p.is_closed else "open"


def count_rules(scores: Sequence[KitScore]) -> dict[str, int]:
    """How often each rule decided."""
    return dict(Counter(score.rule for score in scores))
