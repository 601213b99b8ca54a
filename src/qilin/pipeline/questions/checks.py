"""Checks of a question made from a text that need no model.

In: a Chinese text about an image, and a question with its answer and the quotation that supports it. Out: the failed
checks with what each one found. A failed check raises a doubt, it is not proof: bench/results/questions.json has the
rates of false alarms and of missed faults. What a check reports is part of the retry prompt, and so of cache keys.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from qilin.pipeline.translation.checks import (
    CHINESE_NUMBER,
    ENGLISH_RUN,
    NUMBER,
    REFUSALS,
    compare_endless_numbers,
    parse_numbers,
    rescaled,
)
from qilin.pipeline.translation.negation_scope import extend_chinese_negation_scope, negation_by_finding
from qilin.text import yes_no
from qilin.text.facts import extract_facts
from qilin.text.laterality import named_sides, sides_conflict
from qilin.text.negation import count_negations, is_negated
from qilin.text.normalize import (
    detect_language,
    has_chinese,
    normalize_text,
    to_halfwidth,
    to_halfwidth_letters,
    to_simplified,
)
from qilin.text.numbers import counts_to_digits, find_measurements, parse_count
from qilin.text.polarity import polarity
from qilin.text.vocabulary import categories

ABOUT = ("Modality", "Plane", "Organ", "Abnormality", "Position", "Size", "Quantity", "Shape", "Color")  # SLAKE's names
LETTERS = "ABCDEFGH"
YES, NO = "是", "否"
MAX_CHARACTERS = 120  # of a question, and of an answer
MAX_LENGTH_RATIO = 1.5  # of the right option to the longest wrong one; beyond, it is guessed without the image
MIN_OVERLAP = 0.5  # share of an answer's character pairs that its evidence must contain

# references to the source text, which whoever answers does not see
_SOURCE_TEXT = re.compile(
    r"图注|图说|图题|标题|文[中字本]|原文|[上下]文|段落|句子|所述|提[到及]|作者|报告|病历|描述[中里]|[按根]据[^,，图]{0,6}描述"
    r"|\bcaption\b|\btext\b|\breport\b",
    re.IGNORECASE,
)
# what no image shows, including redacted words of a report (XXXX)
_NOT_VISIBLE = re.compile(
    r"年龄|多大年纪|几岁|岁数|\d岁|病史|既往|主诉|家族|症状|疼痛|发热|咳嗽|化验|实验室|血压|体温|心率|治疗|用药|药物|预后|随访|复查"
    r"|病因|原因|为什么|建议|姓名|(?:与|和|较|比)(?:上次|之前|先前|以前|前次|既往)|上次|X{3,}",
)
_COUNT = re.compile(rf"(?<![A-Za-z]){NUMBER.pattern}")  # T2 and C7 are names
_LEADING = re.compile(r"难道|不是吗|对吧|是吧|对不对呢")
# sides, location words and sentence frames, which other checks cover
_FRAME = re.compile(
    r"[左右双两]侧?|图像|图中|[部侧边面]|位于|呈|为|可见|存在|一[个处枚种]|[的了在]|是否|有无|有没有|[是吗么?有里中上]|这张?|图片"
    r"|包[含括]|出现|显示|病人|患者|任何"
)
_SENTENCE = re.compile(r"[^。;；!?！？\n]+[。;；!?！？\n]?")


@dataclass(frozen=True)
class Question:
    """A question, its answer (是 or 否; one of `options`; a few words) and the quotation that supports it.

    The field names are recorded in dropped.jsonl.
    """

    kind: Literal["open", "choice", "yes_no"]
    question: str
    answer: str
    evidence: str
    options: tuple[str, ...] = ()
    about: str | None = None


def read_question(row: Any) -> Question | str:
    """A row of a service's reply as a Question in simplified half-width characters; or what is wrong with its form."""
    if not isinstance(row, dict):
        return "not an object"
    fields = {name: row.get(name) for name in ("type", "question", "answer", "evidence")}
    missing = [name for name, value in fields.items() if not isinstance(value, str) or not value.strip()]
    if missing:
        return f"{missing[0]} is missing or not a text"
    raw_options = row.get("options") or []
    if not isinstance(raw_options, list) or not all(isinstance(option, str) for option in raw_options):
        return "options is not a list of texts"
    kind, question, answer, evidence = (tidy(str(value)) for value in fields.values())
    about = next((name for name in ABOUT if name.lower() == str(row.get("about")).lower()), None)
    options = tuple(re.sub(r"^[A-Ha-h][.、:：]\s*", "", tidy(option)) for option in raw_options)
    answer = answer.rstrip("。.")
    if kind == "choice":
        if answer.upper() in LETTERS[: len(options)]:
            answer = options[LETTERS.index(answer.upper())].rstrip("。.")
        return Question("choice", question, answer, evidence, tuple(option.rstrip("。.") for option in options), about)
    if kind == "open":
        return Question("open", question, answer, evidence, (), about)
    if kind == "yes_no":
        return Question("yes_no", question, answer, evidence, (), about)
    return f"type is {kind!r}, expected open, choice or yes_no"


def tidy(text: str) -> str:
    """Simplified characters, half-width letters, single spaces."""
    return re.sub(r"\s+", " ", to_simplified(to_halfwidth_letters(text))).strip()


def check_question(text: str, question: Question) -> dict[str, str]:
    """{check: what it found} for each failed check; {} if all pass."""
    evidence = evidence_sentences(text, question.evidence)
    doubts = {name: doubt for name, check in CHECKS.items() if (doubt := check(evidence or "", question))}
    if evidence:
        return doubts
    not_quoted = {"evidence": f"not in the text: {question.evidence[:40]}"}
    return {name: doubts[name] for name in FORM_CHECKS if name in doubts} | not_quoted


def evidence_sentences(text: str, quotation: str) -> str | None:
    """The full sentences that a quotation comes from, so that no negation is cut off; None: not in the text."""
    quoted = alphanumeric(quotation)
    sentences = [match.group() for match in _SENTENCE.finditer(text)]
    reduced = [alphanumeric(sentence) for sentence in sentences]
    start = "".join(reduced).find(quoted) if len(quoted) > 1 else -1
    if start < 0:
        return None
    selected, offset = [], 0
    for sentence, letters in zip(sentences, reduced, strict=True):
        if offset < start + len(quoted) and start < offset + len(letters):
            selected.append(sentence)
        offset += len(letters)
    return "".join(selected)


def alphanumeric(text: str) -> str:
    """Letters, digits, % and decimal points: what a quotation must share with its text."""
    return re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w.%]|_", "", normalize_text(text))


# --- checks of the form; `evidence` is the full sentences that the quotation comes from, "" if there are none --------


def check_form(evidence: str, question: Question) -> str | None:
    if not 4 <= len(question.question) <= MAX_CHARACTERS or len(question.answer) > MAX_CHARACTERS:
        return f"question or answer is too short or longer than {MAX_CHARACTERS} characters"
    asks_yes_no = yes_no.is_yes_no_question(normalize_text(question.question))
    if question.kind == "yes_no":
        if question.answer not in (YES, NO):
            return f"the answer is {question.answer!r}, expected 是 or 否"
        return None if asks_yes_no else "it does not ask for yes or no"
    return "it asks for yes or no" if asks_yes_no else None


def check_options(evidence: str, question: Question) -> str | None:
    if question.kind != "choice":
        return None
    options, answer = [normalize_text(option) for option in question.options], normalize_text(question.answer)
    if not 3 <= len(options) <= len(LETTERS) or len(set(options)) < len(options) or not all(options):
        return "expected three to eight different options"
    if options.count(answer) != 1:
        return "the answer is none of the options"
    wrong = [option for option in options if option != answer]
    longest = max(map(len, wrong))
    if len(answer) > max(MAX_LENGTH_RATIO * longest, longest + 3):
        return "the right option stands out by its length"
    text = normalize_text(evidence)
    also_true = [option for option in wrong if len(option) > 1 and affirms(text, option) and option not in answer]
    return f"another option is true too: {also_true[0]}" if also_true else None


def affirms(text: str, term: str) -> bool:
    """Whether a text contains a term that is not negated."""
    return any(not is_negated(text, *match.span()) for match in re.finditer(re.escape(term), text))


def check_language(evidence: str, question: Question) -> str | None:
    if not has_chinese(question.question) or detect_language(question.question) != "zh":
        return "the question is not Chinese"
    for text in (question.question, question.answer, *question.options):
        if detect_language(text) == "other" or ENGLISH_RUN.search(text.lower()):
            return f"another language: {text[:40]}"
        if REFUSALS.search(text):
            return f"the model talks about itself: {text[:40]}"
    return None


def check_source_text(evidence: str, question: Question) -> str | None:
    """The question does not refer to the text it was made from."""
    match = search_all(_SOURCE_TEXT, question)
    return f"refers to the text: {match.group()}" if match else None


def check_visible(evidence: str, question: Question) -> str | None:
    """The question does not ask for what no image shows."""
    match = search_all(_NOT_VISIBLE, question)
    return f"no image shows it: {match.group()}" if match else None


def search_all(pattern: re.Pattern[str], question: Question) -> re.Match[str] | None:
    """The first match in the question, its answer and its options."""
    return next(filter(None, map(pattern.search, (question.question, question.answer, *question.options))), None)


def check_leaks_answer(evidence: str, question: Question) -> str | None:
    """The question neither contains its answer nor leads to it."""
    if match := _LEADING.search(question.question):
        return f"leading question: {match.group()}"
    if question.kind == "yes_no":
        return None
    answer, text = normalize_text(question.answer), normalize_text(question.question)
    pattern = rf"(?<![a-z0-9]){re.escape(answer)}(?![a-z0-9])" if answer.isascii() else re.escape(answer)
    return f"the question names its answer: {answer}" if answer and re.search(pattern, text) else None


# --- checks against the evidence ------------------------------------------------------------------------------------


def check_numbers(evidence: str, question: Question) -> str | None:
    """No number and no measurement that the evidence lacks; a question answered by 否 may name another one."""
    is_yes_no = question.kind == "yes_no"
    stated = (
        f"{'' if is_yes_no and question.answer == NO else question.question} {'' if is_yes_no else question.answer}"
    )
    allowed = parse_numbers(NUMBER, to_halfwidth(evidence)) | parse_numbers(CHINESE_NUMBER, to_halfwidth(evidence))
    allowed |= {Fraction(0)} if count_negations(evidence) else set()  # 未见肾脏 means 0 of them, 双肺 2
    allowed |= {Fraction(2)} if "both" in named_sides(evidence) else set()
    added = parse_numbers(_COUNT, counts_to_digits(to_halfwidth(stated))) - allowed - rescaled(allowed)
    if added:
        return f"not in its sentence: {', '.join(f'{float(number):g}' for number in sorted(added))}"
    if doubt := compare_endless_numbers(f"{stated} {evidence}", evidence):
        return f"not in its sentence: {doubt.removeprefix('lost ')}"
    measured, in_evidence = ({(m.quantity, m.value) for m in find_measurements(t)} for t in (stated, evidence))
    wrong = ", ".join(f"{quantity} {float(value):g}" for quantity, value in sorted(measured - in_evidence))
    return f"not in its sentence: {wrong}" if wrong else None


def check_laterality(evidence: str, question: Question) -> str | None:
    """No side that the evidence does not name, and no side other than the finding's own."""
    if question.kind == "yes_no" and question.answer == NO:
        return None
    stated = named_sides(f"{question.question} {question.answer if question.kind != 'yes_no' else ''}")
    in_evidence = named_sides(evidence)
    pair = {"left", "right"}
    single = stated - {"both"}
    evidence_has_both = "both" in in_evidence or pair <= in_evidence
    added = set() if evidence_has_both and single == pair else single - in_evidence
    if "both" in stated and not evidence_has_both:
        added = added | {"both"}
    if added:
        return f"not in its sentence: {' and '.join(sorted(added))}"
    if doubt := wrong_side(question.answer, evidence):
        return doubt
    if len(single) != 1:
        return None
    facts = extract_facts(evidence)
    stated_side = "左" if single == {"left"} else "右"
    for finding in negation_by_finding(question.question) | negation_by_finding(question.answer):
        sides = sides_of(finding, facts)
        if sides and all(sides_conflict(side, stated_side) for side in sides):
            return f"{finding} is on another side: {'、'.join(sorted(sides))}"
    return None


def wrong_side(answer: str, evidence: str) -> str | None:
    """左肺 is wrong if the evidence has 右肺 only, even if that is on the left of the image (图像左侧)."""
    for side, organ in re.findall(r"([左右])侧?([\u4e00-\u9fff])", answer):
        sides = re.findall(rf"([左右])侧?{organ}", evidence)
        if sides and side not in sides:
            return f"{''.join(set(sides))}{organ} in its sentence"
    return None


def sides_of(finding: str, facts: frozenset[str]) -> set[str]:
    return {fact.rpartition("=")[2] for fact in facts if fact.startswith(f"{finding}|side=")}


def check_negation(evidence: str, question: Question) -> str | None:
    """The answer affirms nothing that the evidence negates, and vice versa; 是 and 否 agree with the evidence."""
    if question.kind == "yes_no":
        implied = implied_answer(evidence, question.question)
        if implied is None:
            return "its sentence implies neither 是 nor 否"
        return None if implied is (question.answer == YES) else f"its sentence says {YES if implied else NO}"
    text, answer = normalize_text(evidence), normalize_text(question.answer)
    if answer in text and not affirms(text, answer) and not count_negations(answer):
        return f"negated in its sentence: {answer}"
    in_evidence = negation_by_finding(extend_chinese_negation_scope(text))
    in_answer = negation_by_finding(extend_chinese_negation_scope(answer))
    flipped = [name for name in in_answer if name in in_evidence and not in_answer[name] & in_evidence[name]]
    return f"reversed: {', '.join(sorted(flipped))}" if flipped else None


def implied_answer(evidence: str, question: str) -> bool | None:
    """The answer that a text implies to a yes/no question, None if undecided: by the findings that both name, otherwise
    as the scorer reads a free-text answer."""
    text, question = normalize_text(evidence), normalize_text(question)
    in_question, in_text = negation_by_finding(question), negation_by_finding(extend_chinese_negation_scope(text))
    pairs = [(a, b) for a in in_question for b in in_text if a.endswith(b) or b.endswith(a)]
    if pairs:
        facts = extract_facts(evidence)
        has_one_side = len(named_sides(question) & {"left", "right"}) == 1
        implied = set()
        for finding, text_finding in pairs:
            sides = sides_of(text_finding, facts)
            is_elsewhere = has_one_side and sides and all(sides_conflict(side, question) for side in sides)
            if is_elsewhere or len(in_text[text_finding]) == 1:
                implied.add(False if is_elsewhere else in_text[text_finding] == in_question[finding])
        return implied.pop() if len(implied) == 1 else None
    polarities = {polarity(normalize_text(clause), question) for clause in _SENTENCE.findall(evidence)} - {None}
    if len(polarities) != 1:
        return None
    answer = polarities.pop()
    if yes_no.question_normality(question) is not None:
        return None if answer and yes_no.normality(text) is None else answer
    terms = [(yes_no.named_terms(question, category), yes_no.named_terms(text, category)) for category in categories()]
    is_mentioned = overlap_share(question, text) >= MIN_OVERLAP or any(map(all, terms))
    if answer:  # needs every term of the question: 核磁共振 does not imply T1
        has_all_terms = all(question_terms <= text_terms for question_terms, text_terms in terms)
        return True if has_all_terms and is_mentioned else None
    return False if is_mentioned else None


def check_overlap(evidence: str, question: Question) -> str | None:
    """A free-text answer takes most of its characters from the evidence, or names the same thing by a synonym."""
    if question.kind == "yes_no" or parse_count(question.answer):
        return None
    answer, text = normalize_text(question.answer), normalize_text(evidence)
    if any(yes_no.named_terms(answer, category) & yes_no.named_terms(text, category) for category in categories()):
        return None
    share = overlap_share(answer, text)
    return None if share >= MIN_OVERLAP else f"{share:.0%} of the answer's words stand in its sentence"


def overlap_share(phrase: str, text: str) -> float:
    """The share of a phrase's character pairs, sentence frames excluded, that a text contains; 1 if it has none."""
    pairs = [pair for part in re.split(r"[^\w]+", _FRAME.sub("", phrase)) for pair in character_pairs(part)]
    return sum(pair in text for pair in pairs) / len(pairs) if pairs else 1.0


def character_pairs(text: str) -> list[str]:
    """Adjacent Chinese characters in pairs, Latin words and numbers undivided."""
    pairs = []
    for run in re.findall(r"[a-z0-9.%-]+|[^a-z0-9.%-]+", text):
        pairs += [run] if run.isascii() or len(run) == 1 else [run[n : n + 2] for n in range(len(run) - 1)]
    return pairs


# the names are recorded in dropped.jsonl
CHECKS: dict[str, Callable[[str, Question], str | None]] = {
    "form": check_form,
    "options": check_options,
    "language": check_language,
    "refers": check_source_text,
    "unseen": check_visible,
    "gives away": check_leaks_answer,
    "numbers": check_numbers,
    "laterality": check_laterality,
    "negation": check_negation,
    "words": check_overlap,
}
FORM_CHECKS = ("form", "language", "refers", "unseen", "gives away")  # these need no evidence
