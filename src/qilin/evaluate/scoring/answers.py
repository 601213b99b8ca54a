"""The answer scorer: decides by rules whether a Chinese medical answer agrees with its reference.

Inputs: question, reference, prediction and, if available, the answer type and choices. Output: a Verdict with the rule
that decided. An answer that cannot be parsed has correct = None: it counts as wrong in accuracy, is reported separately
and never guessed. Rules are tried in the order of `judge_answer`; tests/evaluate/answer_pairs.jsonl has examples of
each. Below, q, r and p are the normalized question, reference and prediction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import permutations

from qilin.evaluate.results import Prediction, Verdict
from qilin.evaluate.scoring.anatomy import Location, Meaning, Term, parse_meaning, same_meaning
from qilin.evaluate.scoring.answer_clause import judge_statement
from qilin.evaluate.scoring.entailment import is_about_another_organ
from qilin.evaluate.scoring.final_answer import FinalAnswer, extract_final_answer
from qilin.evaluate.scoring.measures import NOTHING, contradicts_quantities, judge_quantity, without_quantities
from qilin.evaluate.scoring.multiple_choice import choices_in, selected_options, strip_choice_letter
from qilin.evaluate.scoring.which_of import judge_appearance, judge_comparison, judge_state
from qilin.text.abbreviations import stands_for
from qilin.text.abnormality import abnormality
from qilin.text.alternatives import MAX_COMPARISON_CHARACTERS
from qilin.text.clauses import LIST_MARK, split_clauses
from qilin.text.laterality import find_sides, sides_conflict
from qilin.text.negation import count_negations
from qilin.text.normalize import (
    MAX_ANSWER_CHARACTERS,
    is_abstention,
    normalize_answer,
    normalize_text,
    split_list_items,
)
from qilin.text.numbers import parse_number
from qilin.text.polarity import polarity
from qilin.text.quantities import find_quantities
from qilin.text.vocabulary import concept_of, concepts
from qilin.text.yes_no import (
    asks_whether_any,
    is_open_question,
    is_yes_no_question,
    named_terms,
    normality,
    question_normality,
    word_polarity,
)

# 1.1: a caption that contradicts itself is wrong. 1.2: which side, shared ends of lists, both sides as a list; in
# yes/no questions opposites, comparisons, and statements of what a thing is. 2.0: replies of chat models (the final
# answer, the clause that answers), options by position and analysis, numbers with their units, a larger vocabulary.
# Scores of different versions are not comparable: score the predictions again.
SCORER_VERSION = "2.0"


RULE_FAILED = Verdict(None, "failed")  # never expected: a fault of ours, counted in "rules" instead of a traceback
MAX_ITEM_PAIRS = 10_000  # of two lists whose items are compared one by one


def exact_match(prediction: str, reference: str) -> bool:
    """Whether the two texts are equal after normalization: the strict score, without any notion of meaning."""
    return normalize_answer(prediction) == normalize_answer(reference)


def judge_prediction(prediction: Prediction, answer: str | None = None) -> Verdict:
    """The verdict on a prediction, or on a control's `answer` to the same question."""
    text = prediction.prediction if answer is None else answer
    return judge_answer(prediction.question, prediction.reference, text, prediction.answer_type, prediction.choices)


def judge_answer(
    question: str,
    reference: str,
    prediction: str,
    answer_type: str | None = None,
    choices: Sequence[str] | None = None,
) -> Verdict:
    """Whether `prediction` means the same as `reference` in answer to `question`.

    `answer_type` is open, closed, choice or None; `choices` are the options of a choice question, in order.
    """
    return _judge_reply(question, reference, prediction, answer_type, tuple(choices or ()))


@lru_cache(maxsize=20_000)  # controls give the same answer to many rows
def _judge_reply(
    question: str, reference: str, prediction: str, answer_type: str | None, choices: tuple[str, ...]
) -> Verdict:
    if exact_match(prediction, reference):  # whatever a reference looks like, it answers its question
        final_answer = FinalAnswer(prediction)
    else:
        final_answer = extract_final_answer(prediction, question)
    if final_answer.missing:
        return Verdict(None, final_answer.missing)
    prediction = final_answer.text
    if max(map(len, (question, reference, prediction, "".join(choices)))) > MAX_ANSWER_CHARACTERS:
        is_equal = normalize_text(prediction) == normalize_text(reference)
        return Verdict(True, "equal") if is_equal else Verdict(None, "too long")
    try:
        return _judge(question, reference, prediction, answer_type, choices)
    except (
        RecursionError,
        ArithmeticError,
        LookupError,
        ValueError,
    ):  # one row that no rule can read costs only itself
        return RULE_FAILED


def _judge(
    question: str, reference: str, prediction: str, answer_type: str | None, choices: tuple[str, ...]
) -> Verdict:
    q, r, p = normalize_text(question), normalize_answer(reference), normalize_answer(prediction)
    if not p:
        return Verdict(None, "empty")
    if answer_type == "choice" or choices:
        return _by_option(question, reference, prediction, choices)
    if p == r:
        return Verdict(True, "equal")
    marked = _keep_list_marks(prediction)
    if is_abstention(p, q):
        p, marked = _after_reservation(p, q), _after_reservation(marked, q)
        if not p:
            return Verdict(None, "no answer")
    for rule in (
        _by_yes_no,
        _by_normality,
        _by_nothing,
        judge_quantity,
        _by_which_side,
        judge_comparison,
        judge_state,
        judge_appearance,
        _by_abbreviation,
        _by_items,
        _by_sentence,
        _by_clause,
        _by_category,
        _by_side,
    ):
        verdict = rule(q, r, marked if rule in _READ_LISTS else p)
        if verdict is not None:
            return verdict
    return Verdict(False, "different")


_NUMBERED = re.compile(r"(?:^|(?<=[\s;；。，,]))\(?\d{1,2}[.、)）]\s*(?=\D)")


def _keep_list_marks(prediction: str) -> str:
    """normalize_answer with 、 told apart from a comma and lines from words."""
    prediction = _NUMBERED.sub("、", prediction) if _NUMBERED.match(prediction) else prediction
    lines = [line.strip() for line in prediction.splitlines()]
    text = "。".join(line for line in lines if line).replace("、", LIST_MARK)
    return normalize_answer(text).strip(LIST_MARK)


_BUT = re.compile(r"(?:但是?|不过|然而|\bbut\b|\bhowever\b),?(.+)$")


def _after_reservation(text: str, q: str) -> str:
    """What an answer says after a reservation: 虽然无法确定病原体,但诊断为肺炎; "" if it only declines."""
    rest = _BUT.search(text)
    return rest[1] if rest and not is_abstention(rest[1], q) else ""


def _by_clause(q: str, r: str, p: str) -> Verdict | None:
    """The clause that answers entails the reference; a quantity in it has to agree as well."""
    if find_quantities(r):
        if contradicts_quantities(r, p):
            return Verdict(False, "measure")
        r, p = without_quantities(r), without_quantities(p)
    return judge_statement(q, r, p)


def _by_option(question: str, reference: str, prediction: str, choices: tuple[str, ...]) -> Verdict:
    choices = choices or choices_in(question)
    if not choices:  # without any choices the letters can still be compared
        choices = tuple("ABCDEFGH")
    expected, selected = selected_options(reference, choices), selected_options(prediction, choices, question)
    if expected is None:
        is_equal = exact_match(prediction, reference)
        return Verdict(is_equal, "equal" if is_equal else "different")
    if selected is None:  # by meaning: 甲状腺功能亢进 is the option 甲亢
        texts = [strip_choice_letter(choice) for choice in choices]
        unnamed = [i for i, text in enumerate(texts) if normalize_answer(text) not in normalize_answer(prediction)]
        same = [i for i in unnamed if _judge(question, texts[i], prediction, None, ()).correct]
        selected = frozenset(same) if len(same) == 1 else None
    if selected is None:
        return Verdict(None, "unparsable")
    return Verdict(expected == selected, "option")


def _by_yes_no(q: str, r: str, p: str) -> Verdict | None:
    expected = word_polarity(r)
    if is_open_question(q) and not (asks_whether_any(q) and expected is not None):
        return None
    if expected is None and is_yes_no_question(q) and normality(r) is None:
        expected = polarity(r, q)
    if expected is None:
        return None
    answer = polarity(p, q)
    return Verdict(None, "unparsable") if answer is None else Verdict(answer is expected, "yes/no")


def _by_normality(q: str, r: str, p: str) -> Verdict | None:
    """正常 or 不正常 as the reference; 是 and 否 in the prediction are interpreted by the question."""
    if r not in _NORMALITY_WORDS or (is_open_question(q) and normality(r)):
        return None  # 未见异常 in answer to what or which means "nothing": see the next rule
    expected = normality(r)
    answer = normality(p)
    proposed = question_normality(q) if is_yes_no_question(q) else None
    if answer is None and proposed is not None:
        yes = polarity(p, q)
        answer = None if yes is None else (proposed if yes else not proposed)
    return Verdict(None, "unparsable") if answer is None else Verdict(answer is expected, "normal or not")


_NORMALITY_WORDS = frozenset(
    (
        *("正常", "正常的", "健康", "健康的", "未见异常", "无异常", "没有异常", "未见明显异常", "无明显异常", "normal"),
        *("不正常", "不正常的", "异常", "异常的", "不健康", "不健康的", "有异常", "存在异常", "abnormal"),
    )
)


def _by_nothing(q: str, r: str, p: str) -> Verdict | None:
    """无, 没有疾病, 未见异常 as answers to what or which: an answer that only denies, or describes what is normal."""
    reference_is_nothing = NOTHING.fullmatch(r) is not None
    prediction_is_nothing = NOTHING.fullmatch(p) is not None
    if reference_is_nothing and prediction_is_nothing:
        return Verdict(True, "nothing")
    if not (prediction_is_nothing or reference_is_nothing):
        return None
    # "0" against "2" belongs to the counting rule
    if parse_number(r) is not None or parse_number(p) is not None:
        return None
    if reference_is_nothing:
        abnormal = abnormality(p)
        denies = all(clause.role == "denial" for clause in split_clauses(p)) and count_negations(p) > 0
        return Verdict(abnormal is False or (abnormal is None and denies), "nothing")
    return Verdict(False, "nothing")


def _by_side(q: str, r: str, p: str) -> Verdict | None:
    return Verdict(False, "side") if sides_conflict(r, p) else None


_LEFT_OR_RIGHT = re.compile(r"左[^,。?左右]{0,3}还是右|右[^,。?左右]{0,3}还是左")
_WHICH_SIDE = re.compile(r"哪一?[侧边]|左[侧边]?还是右|右[侧边]?还是左")


def _by_which_side(q: str, r: str, p: str) -> Verdict | None:
    """哪一侧 answered with the side and more: 左侧第5肋骨骨折 states 左侧."""
    expected = parse_meaning(r)
    is_side = isinstance(expected, Location) and expected == Location(expected.side)
    is_sided = isinstance(expected, Location) and expected.side and _LEFT_OR_RIGHT.search(q) and not expected.level
    if not ((is_side and _WHICH_SIDE.search(q)) or is_sided):
        return None
    return Verdict(True, "which side") if find_sides(p) == find_sides(r) and not count_negations(p) else None


def _by_abbreviation(q: str, r: str, p: str) -> Verdict | None:
    """DM for 糖尿病 and for 皮肌炎: the whole answer, or the whole reference, is an abbreviation of several terms."""
    return Verdict(True, "synonym") if stands_for(p, r) or stands_for(r, p) else None


_MARKS = re.compile(r"[,;和与及的\s]")


@lru_cache(maxsize=5_000)
def _is_concatenation(text: str, item_list: str) -> bool:
    """Whether the items of the list, joined in some order, are the text: 气胸,右侧 and 右侧气胸."""
    parts = [_MARKS.sub("", item) for item in split_list_items(item_list)]
    if sum(map(len, parts)) > len(text):
        return False
    orders = permutations(parts) if len(parts) <= 3 else (parts,)
    return any("".join(order) == _MARKS.sub("", text) for order in orders)


def _by_items(q: str, r: str, p: str) -> Verdict | None:
    """Both as sets of meanings, regardless of the order of a list; a single item by the synonym table."""
    if _is_concatenation(r, p) or _is_concatenation(p, r):
        return Verdict(True, "punctuation")
    expected, answer = ([parse_meaning(item) for item in split_list_items(text)] for text in (r, p))
    if len(expected) * len(answer) > MAX_ITEM_PAIRS:
        return Verdict(True, "list") if set(expected) == set(answer) else Verdict(None, "too long")
    is_complete = all(any(same_meaning(a, b, q) for b in answer) for a in expected)
    is_correct = all(any(same_meaning(a, b, q) for a in expected) for b in answer)
    is_list = len(expected) > 1 or len(answer) > 1
    if is_complete and is_correct:
        return Verdict(True, "list" if is_list else "synonym")
    if _merge_sides(expected) == _merge_sides(answer) and is_list:
        return Verdict(True, "list")
    for text, other in ((r, p), (p, r)):
        item_list = split_list_items(text)
        distributed = _distribute_ending(item_list)
        other_meanings = {parse_meaning(item) for item in split_list_items(other)}
        if distributed != item_list and {parse_meaning(item) for item in distributed} == other_meanings:
            return Verdict(True, "list")
    return None


def _merge_sides(meanings: Sequence[Meaning]) -> frozenset[Meaning]:
    """The set of meanings, with left and right of the same location merged into both: 左肺,右肺 is 双肺."""
    merged = set(meanings)
    for meaning in meanings:
        if isinstance(meaning, Location) and meaning.side == "left":
            pair: set[Meaning] = {meaning, replace(meaning, side="right")}
            if pair <= merged:
                merged = (merged - pair) | {replace(meaning, side="both")}
    return frozenset(merged)


def _distribute_ending(item_list: tuple[str, ...]) -> tuple[str, ...]:
    """The items, with the last two characters of the last one appended: 手术和药物治疗 is 手术治疗,药物治疗."""
    ending = item_list[-1][-2:] if item_list else ""
    return tuple(item if item.endswith(ending) else item + ending for item in item_list)


_READ_LISTS = (_by_yes_no, _by_normality, _by_nothing, _by_clause)

_FRAME_CHARACTERS = set(
    "这张幅个该此本图像片中影照医学里上内的了是为在位于属显示有可见看到呈现主要最应该可能考虑诊断提示符合倾向一种位置部分所以因此即也其它们,。:()"
)


def _by_sentence(q: str, r: str, p: str) -> Verdict | None:
    """The reference inside a sentence that otherwise only repeats the question: 图中最大的器官是肺, 肺最大."""
    expected = parse_meaning(r)
    if isinstance(expected, Term) and expected.category and len(split_list_items(r)) <= 1:
        words = list(concepts()[expected.name].terms)
    else:
        words = [r]
    is_short = len(p) <= MAX_COMPARISON_CHARACTERS
    compared = _COMPARISON.match(p) if is_short and "比" in p else None
    if compared and compared.group(3) in q:
        return Verdict(same_meaning(parse_meaning(compared.group(1)), expected, q), "comparison")
    for word in sorted(words, key=len, reverse=True):
        start = p.rfind(word)
        if start < 0:
            continue
        around = p[:start] + "," + p[start + len(word) :]
        is_prefixed = start == 1 and p[0] not in _FRAME_CHARACTERS  # 囊实性 is not 实性
        if is_prefixed or _adds_denial(around, q) or not set(around) <= _FRAME_CHARACTERS | set(q):
            continue
        names_another = isinstance(expected, Term) and expected.category and named_terms(around, expected.category)
        if find_sides(around) - find_sides(q) or names_another:
            continue
        return Verdict(True, "sentence")
    return None


_DENIAL = re.compile(r"[不无未没非].{1,2}")
_COMPARISON = re.compile(r"(?:.*,)?(.+?)比(.+?)(?:更|要|还)?([大小高低多少长短亮暗])")


def _adds_denial(text: str, q: str) -> bool:
    """Whether a text denies something beyond repeating the question: 不正常 repeats 不正常 and 异常."""
    repeatable = q + ("不正常不健康" if "异常" in q else "")
    rest = _DENIAL.sub(lambda m: "" if m.group() in repeatable else m.group(), text)
    return count_negations(rest) > 0


def _by_category(q: str, r: str, p: str) -> Verdict | None:
    """One modality, plane, appearance, or one of the options in the question, named in a longer answer."""
    concept = concept_of(r)
    if concept is None:
        return None
    category, name = concept.category, concept.name
    is_offered = name in named_terms(q, category) and not is_yes_no_question(q)
    if category not in ("modality", "sequence", "plane", "appearance") and not is_offered:
        return None
    names = named_terms(p, category)
    if is_offered:
        names = names & (named_terms(q, category) | {name})
        state = question_normality(q)
        if len(names) > 1 and state is not None:  # 心脏异常,肺正常: keep those in the state that the question asks for
            names = frozenset().union(*(named_terms(c, category) for c in p.split(",") if normality(c) is state))
    if len(names) == 1 and not (category == "appearance" and is_about_another_organ(p, q)):
        return Verdict(name in names, "one of its kind")
    if r in p and not names:
        return Verdict(False, "one of its kind")
    if is_offered and p != r and not names and concept_of(p) is None:
        return Verdict(None, "unparsable")
    return None
