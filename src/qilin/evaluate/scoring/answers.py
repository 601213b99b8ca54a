"""The scorer: is a Chinese medical answer right? One versioned function, `judge`, and the plain `exact`.

In: question, reference, prediction, and where known the answer type and choices. Out: a Verdict with the rule that
decided. What cannot be read stays unparsable (correct is None): counted as wrong in accuracy, reported beside it, never
guessed. The rules are tried in the order of `judge`; tests/answer_pairs.jsonl shows each with examples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import permutations

from qilin.evaluate.scoring.anatomy import Named, Place, meaning, same_meaning
from qilin.evaluate.scoring.multiple_choice import choices_in, picked
from qilin.text.laterality import sides, sides_conflict
from qilin.text.negation import negations
from qilin.text.normalize import declines, items, normalise, plain
from qilin.text.numbers import counts_as_digits, measures, parse_count, parse_number, without_measures
from qilin.text.synonyms import KINDS, kind_and_name
from qilin.text.yes_no import (
    asked_normality,
    asks_openly,
    asks_yes_no,
    named,
    normality,
    polarity,
    word_polarity,
)

# 1.1: a caption that contradicts itself is wrong. 1.2: which side, shared ends of lists, both sides as a list; in
# questions of yes or no opposites, comparisons, and what a thing is.
SCORER_VERSION = "1.2"


@dataclass(frozen=True)
class Verdict:
    """`correct` is None where the prediction could not be read; `rule` names what decided."""

    correct: bool | None
    rule: str


def exact(prediction: str, reference: str) -> bool:
    """Whether the two are equal once `normalise`d: the strict score, no meaning involved."""
    return normalise(prediction) == normalise(reference)


def judge(
    question: str,
    reference: str,
    prediction: str,
    answer_type: str | None = None,
    choices: Sequence[str] | None = None,
) -> Verdict:
    """Whether `prediction` says the same as `reference` in answer to `question`.

    `answer_type` is open, closed, choice or None; `choices` are the options of a choice question, in order.
    """
    return _judge(question, reference, prediction, answer_type, tuple(choices or ()))


@lru_cache(maxsize=20_000)  # the controls say much the same of many rows
def _judge(
    question: str, reference: str, prediction: str, answer_type: str | None, choices: tuple[str, ...]
) -> Verdict:
    q, r, p = plain(question), normalise(reference), normalise(prediction)
    if not p:
        return Verdict(None, "empty")
    if answer_type == "choice" or choices:
        return _by_option(question, reference, prediction, choices)
    if p == r:
        return Verdict(True, "equal")
    if declines(p, q):
        return Verdict(None, "no answer")
    for rule in (
        _by_yes_no,
        _by_normality,
        _by_nothing,
        _by_measure,
        _by_count,
        _by_side,
        _by_which_side,
        _by_items,
        _by_sentence,
        _by_kind,
    ):
        verdict = rule(q, r, p)
        if verdict is not None:
            return verdict
    return Verdict(False, "different")


def _by_option(question: str, reference: str, prediction: str, choices: tuple[str, ...]) -> Verdict:
    choices = choices or choices_in(question)
    if not choices:  # nothing to choose from was handed over: letters can still be compared
        choices = tuple("ABCDEFGH")
    right, said = picked(reference, choices), picked(prediction, choices)
    if right is None:
        return Verdict(exact(prediction, reference), "equal" if exact(prediction, reference) else "different")
    if said is None:
        return Verdict(None, "unparsable")
    return Verdict(right == said, "option")


def _by_yes_no(q: str, r: str, p: str) -> Verdict | None:
    if asks_openly(q):
        return None
    truth = word_polarity(r)
    if truth is None and asks_yes_no(q) and normality(r) is None:
        truth = polarity(r, q)
    if truth is None:
        return None
    said = polarity(p, q)
    return Verdict(None, "unparsable") if said is None else Verdict(said is truth, "yes/no")


def _by_normality(q: str, r: str, p: str) -> Verdict | None:
    """正常 or 不正常 as the reference: compared with what the prediction says, 是 and 否 read by the question."""
    if r not in _NORMALITY_WORDS or (asks_openly(q) and normality(r)):
        return None  # 未见异常 in answer to what or which means nothing: the rule after this
    truth = normality(r)
    said = normality(p)
    asked = asked_normality(q) if asks_yes_no(q) else None
    if said is None and asked is not None:
        yes = polarity(p, q)
        said = None if yes is None else (asked if yes else not asked)
    return Verdict(None, "unparsable") if said is None else Verdict(said is truth, "normal or not")


_NORMALITY_WORDS = frozenset(
    [
        "正常",
        "正常的",
        "健康",
        "健康的",
        "未见异常",
        "无异常",
        "没有异常",
        "未见明显异常",
        "无明显异常",
        "不正常",
        "不正常的",
        "异常",
        "异常的",
        "不健康",
        "不健康的",
        "有异常",
        "存在异常",
        "normal",
        "abnormal",
    ]
)
_NOTHING = re.compile(
    r"(?:图中|图片中|图像中|该图中)?(?:无|没有|未见|未发现|不存在|不包含|均无|未见明显|无明显|没有任何|没有发现|没)"
    r"(?:任何|明显)?(?:的)?(?:疾病|异常|病变|病灶|伤害|结节|器官|损害|影响|危害|它|他)?(?:存在|出现)?|none|nothing|正常|无病|健康|0|零"
)


def _by_nothing(q: str, r: str, p: str) -> Verdict | None:
    """无, 没有疾病, 未见异常 as answers to what or which."""
    none_true = _NOTHING.fullmatch(r) is not None
    none_said = _NOTHING.fullmatch(p) is not None
    if none_true and none_said:
        return Verdict(True, "nothing")
    if none_said or none_true:
        # "0" against "2" is for the counting rule; a sentence that denies something is still "nothing".
        if parse_number(r) is not None or parse_number(p) is not None:
            return None
        if none_true and negations(p) and not items(p)[1:]:
            return Verdict(True, "nothing")
        return Verdict(False, "nothing")
    return None


def _by_measure(q: str, r: str, p: str) -> Verdict | None:
    truth = measures(r)
    if not truth:
        return None
    said = measures(p)
    if not said:
        return Verdict(None, "unparsable") if not re.search(r"\d", p) else Verdict(False, "measure")
    if sides_conflict(r, p):
        return Verdict(False, "side")
    return Verdict(Counter(truth) == Counter(said), "measure")


_NUMBER = re.compile(r"(?<![a-z0-9.])\d+(?:\.\d+)?(?![a-z0-9]|\.\d)")
_ENGLISH_NUMBER = re.compile(r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b")
_PAIR = re.compile(r"一对|一双|双侧|两侧|双")
_SINGLE = re.compile(r"单个|单发|单枚|单处|单只|孤立")


def _numbers(text: str) -> set[Fraction]:
    """Every number a normalised text counts with, Chinese numerals before measure words included."""
    whole = parse_number(text)
    if whole is not None:
        return {whole}
    if _PAIR.match(text):
        return {Fraction(2)}
    if _SINGLE.match(text):
        return {Fraction(1)}
    counted = parse_count(text)
    if counted is not None:
        return {counted[0]}
    digits = _ENGLISH_NUMBER.sub(lambda m: str(parse_number(m.group())), counts_as_digits(without_measures(text)))
    found = {Fraction(number) for number in _NUMBER.findall(digits)}
    return found or ({Fraction(2)} if _PAIR.search(text) else set())


def _by_count(q: str, r: str, p: str) -> Verdict | None:
    counted = parse_count(r)
    if counted is None or (counted[1] and counted[1] not in q):
        return None
    said = _numbers(p)
    if not said and (_NOTHING.fullmatch(p) or (negations(p) and polarity(p, q) is not True)):
        said = {Fraction(0)}
    if len(said) != 1:
        return Verdict(None, "unparsable")
    return Verdict(said == {counted[0]}, "count")


def _by_side(q: str, r: str, p: str) -> Verdict | None:
    return Verdict(False, "side") if sides_conflict(r, p) else None


_WHICH_SIDE = re.compile(r"哪一?[侧边]|左[侧边]?还是右|右[侧边]?还是左")


def _by_which_side(q: str, r: str, p: str) -> Verdict | None:
    """哪一侧 answered with the side and more: 左侧第5肋骨骨折 says 左侧."""
    bare = meaning(r)
    if not (isinstance(bare, Place) and bare == Place(bare.side) and _WHICH_SIDE.search(q)):
        return None
    return Verdict(True, "which side") if sides(p) == sides(r) and not negations(p) else None


_MARKS = re.compile(r"[,;和与及的\s]")


def _runs_together(whole: str, parts: str) -> bool:
    """Whether the list items of one answer, in some order, make up the other: 气胸,右侧 and 右侧气胸."""
    pieces = [_MARKS.sub("", item) for item in items(parts)]
    orders = permutations(pieces) if len(pieces) <= 3 else (pieces,)
    return any("".join(order) == _MARKS.sub("", whole) for order in orders)


def _by_items(q: str, r: str, p: str) -> Verdict | None:
    """Both as sets of meanings, the order of a list without weight; a single item by the synonym table."""
    if _runs_together(r, p) or _runs_together(p, r):
        return Verdict(True, "punctuation")
    truth, said = [meaning(item) for item in items(r)], [meaning(item) for item in items(p)]
    covers = all(any(same_meaning(a, b, q) for b in said) for a in truth)
    covered = all(any(same_meaning(a, b, q) for a in truth) for b in said)
    many = len(truth) > 1 or len(said) > 1
    if covers and covered:
        return Verdict(True, "list" if many else "synonym")
    if _both_sides(truth) == _both_sides(said) and many:
        return Verdict(True, "list")
    for a, b in ((r, p), (p, r)):
        whole = _ends_shared(a)
        if whole != items(a) and {meaning(item) for item in whole} == {meaning(item) for item in items(b)}:
            return Verdict(True, "list")
    return None


def _both_sides(meanings: Sequence[Place | Named]) -> frozenset[Place | Named]:
    """The set of meanings, left and right of the same thing as both: 左肺,右肺 is 双肺."""
    found = set(meanings)
    for one in meanings:
        if isinstance(one, Place) and one.side == "left":
            pair = {one, replace(one, side="right")}
            if pair <= found:
                found = (found - pair) | {replace(one, side="both")}
    return frozenset(found)


def _ends_shared(text: str) -> tuple[str, ...]:
    """The list's items, the last two letters put to those without them: 手术和药物治疗 is 手术治疗,药物治疗."""
    found = items(text)
    end = found[-1][-2:] if found else ""
    return tuple(item if item.endswith(end) else item + end for item in found)


_FRAME_LETTERS = set(
    "这张幅个该此本图像片中影照医学里上内的了是为在位于属显示有可见看到呈现主要最应该可能考虑诊断提示符合倾向一种位置部分所以因此即也其它们,。:()"
)


def _by_sentence(q: str, r: str, p: str) -> Verdict | None:
    """The reference stands in a sentence whose other letters only repeat the question: 图中最大的器官是肺, 肺最大."""
    truth = meaning(r)
    if isinstance(truth, Place) or len(items(r)) > 1:
        words = [r]
    else:
        words = list(KINDS[truth.kind][truth.name]) if truth.kind else [r]
    compared = re.match(r"(?:.*,)?(.+?)比(.+?)(?:更|要|还)?([大小高低多少长短亮暗])", p)
    if compared and compared.group(3) in q:
        return Verdict(same_meaning(meaning(compared.group(1)), truth, q), "comparison")
    for word in sorted(words, key=len, reverse=True):
        at = p.rfind(word)
        if at < 0:
            continue
        around = p[:at] + "," + p[at + len(word) :]
        if _new_denial(around, q) or not set(around) <= _FRAME_LETTERS | set(q):
            continue
        if sides(around) - sides(q) or (isinstance(truth, Named) and truth.kind and named(around, truth.kind)):
            continue
        return Verdict(True, "sentence")
    return None


def _new_denial(text: str, q: str) -> bool:
    """Whether a text denies in words that do not only repeat the question: 不正常 repeats 不正常 and 异常."""
    asked = q + ("不正常不健康" if "异常" in q else "")
    rest = re.sub(r"[不无未没非].{1,2}", lambda m: "" if m.group() in asked else m.group(), text)
    return negations(rest) > 0


def _by_kind(q: str, r: str, p: str) -> Verdict | None:
    """One modality, plane, look, or one of the things the question offers, named in a longer answer."""
    truth = kind_and_name(r)
    if truth is None:
        return None
    kind, name = truth
    offered = name in named(q, kind) and not asks_yes_no(q)
    if kind not in ("modality", "plane", "look") and not offered:
        return None
    said = named(p, kind)
    if offered:
        said = said & (named(q, kind) | {name})
        asked = asked_normality(q)
        if len(said) > 1 and asked is not None:  # 心脏异常,肺正常: which one is in the state that was asked for
            said = frozenset().union(*(named(c, kind) for c in p.split(",") if normality(c) is asked))
    if len(said) == 1:
        return Verdict(name in said, "one of its kind")
    if r in p and not said:
        return Verdict(False, "one of its kind")
    if offered and p != r and not said and kind_and_name(p) is None:
        return Verdict(None, "unparsable")
    return None


def token_f1(prediction: str, reference: str, unit: str = "word") -> float:
    """F1 of shared tokens after `normalise`: jieba words (unit "word") or characters (unit "char"); 0 to 1."""
    p, r = tokens(normalise(prediction), unit), tokens(normalise(reference), unit)
    shared = sum((Counter(p) & Counter(r)).values())
    return 2 * shared / (len(p) + len(r)) if shared else float(p == r)


@lru_cache(maxsize=20_000)
def tokens(text: str, unit: str) -> tuple[str, ...]:
    """A normalised text as characters (unit "char") or jieba words, marks and spaces left out."""
    if unit == "char":
        pieces: list[str] = list(text)
    else:
        import jieba

        jieba.setLogLevel(60)  # it prints how it loads its dictionary
        pieces = jieba.lcut(text)
    return tuple(piece for piece in pieces if piece.strip() and not re.fullmatch(r"[\W_]+", piece))
