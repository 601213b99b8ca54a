"""Is a question made from a text sound: checks that need no model, each with its reason in words.

In: a Chinese text about an image and a question with its answer and the words of the text that support it. Out: the
names of the checks that fail, with what they found. A failed check is a doubt, not a proof: how often sound questions
fail and planted faults pass is in bench/results/questions.json.
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
    polarity,
    reaching_chinese,
    scaled,
    values,
)
from qilin.text import yes_no as yesno
from qilin.text.facts import facts_of_text
from qilin.text.laterality import named_sides, sides_conflict
from qilin.text.negation import is_denied, negations
from qilin.text.normalize import has_chinese, language_of, narrow, narrow_letters, plain, simplified
from qilin.text.numbers import counts_as_digits, measures, parse_count
from qilin.text.synonyms import KINDS

ABOUT = ("Modality", "Plane", "Organ", "Abnormality", "Position", "Size", "Quantity", "Shape", "Color")  # SLAKE's names
LETTERS = "ABCDEFGH"
YES, NO = "是", "否"
LONGEST = 120  # characters of a question, and of an answer
STANDS_OUT = 1.5  # times the longest wrong option: a right one that long is found without the image
ALIKE = 0.5  # share of an answer's letter pairs that its sentence must hold

# what speaks of the text that the question was made from, which whoever is asked does not see
_REFERS = re.compile(
    r"图注|图说|图题|标题|文[中字本]|原文|[上下]文|段落|句子|所述|提[到及]|作者|报告|病历|描述[中里]|[按根]据[^,，图]{0,6}描述"
    r"|\bcaption\b|\btext\b|\breport\b",
    re.IGNORECASE,
)
# what no image shows; a blacked-out word of a report (XXXX) among it
_UNSEEN = re.compile(
    r"年龄|多大年纪|几岁|岁数|\d岁|病史|既往|主诉|家族|症状|疼痛|发热|咳嗽|化验|实验室|血压|体温|心率|治疗|用药|药物|预后|随访|复查"
    r"|病因|原因|为什么|建议|姓名|(?:与|和|较|比)(?:上次|之前|先前|以前|前次|既往)|上次|X{3,}",
)
_COUNTS = re.compile(rf"(?<![A-Za-z]){NUMBER.pattern}")  # T2 and C7 are names
_LEADS_ON = re.compile(r"难道|不是吗|对吧|是吧|对不对呢")
# words of a side, of a place's kind and of a frame: other checks look at them
_FRAME = re.compile(
    r"[左右双两]侧?|图像|图中|[部侧边面]|位于|呈|为|可见|存在|一[个处枚种]|[的了在]|是否|有无|有没有|[是吗么?有里中上]|这张?|图片"
    r"|包[含括]|出现|显示|病人|患者|任何"
)
_SENTENCE = re.compile(r"[^。;；!?！？\n]+[。;；!?！？\n]?")


@dataclass(frozen=True)
class Question:
    """A question, its answer (是 or 否; one of `options`; a few words), the words of the text that support it."""

    kind: Literal["open", "choice", "yes_no"]
    question: str
    answer: str
    evidence: str
    options: tuple[str, ...] = ()
    about: str | None = None


def read_question(row: Any) -> Question | str:
    """A service's row as a Question in simplified characters of one width; or what is wrong with its form."""
    if not isinstance(row, dict):
        return "it is no object"
    fields = {name: row.get(name) for name in ("type", "question", "answer", "evidence")}
    missing = [name for name, value in fields.items() if not isinstance(value, str) or not value.strip()]
    if missing:
        return f"{missing[0]} is missing or no text"
    listed = row.get("options") or []
    if not isinstance(listed, list) or not all(isinstance(option, str) for option in listed):
        return "options are no list of texts"
    words = {name: tidy(value) for name, value in fields.items() if isinstance(value, str)}
    about = next((name for name in ABOUT if name.lower() == str(row.get("about")).lower()), None)
    options = tuple(re.sub(r"^[A-Ha-h][.、:：]\s*", "", tidy(option)) for option in listed)
    answer = words["answer"].rstrip("。.")
    if words["type"] == "choice" and answer.upper() in LETTERS[: len(options)]:
        answer = options[LETTERS.index(answer.upper())]
    if words["type"] == "open":
        return Question("open", words["question"], answer, words["evidence"], (), about)
    if words["type"] == "choice":
        kept = tuple(option.rstrip("。.") for option in options)
        return Question("choice", words["question"], answer.rstrip("。."), words["evidence"], kept, about)
    if words["type"] == "yes_no":
        return Question("yes_no", words["question"], answer, words["evidence"], (), about)
    return f"type is {words['type']!r}, expected open, choice or yes_no"


def tidy(text: str) -> str:
    return re.sub(r"\s+", " ", simplified(narrow_letters(text))).strip()


def check_question(text: str, asked: Question) -> dict[str, str]:
    """{check: what it found} for each that fails; {} for a question that none doubts."""
    ground = sentences_with(text, asked.evidence)
    if ground is None:
        ground = ""
    found = {name: said for name, check in CHECKS.items() if (said := check(ground, asked))}
    if not ground:
        return {name: found[name] for name in FORM if name in found} | {
            "evidence": f"does not stand in the text: {asked.evidence[:40]}"
        }
    return found


def sentences_with(text: str, quote: str) -> str | None:
    """The whole sentences of a text that a quotation comes from, so that none leaves a denial out; None: not in it."""
    wanted = bare(quote)
    sentences = [found.group() for found in _SENTENCE.finditer(text)]
    letters = [bare(sentence) for sentence in sentences]
    at = "".join(letters).find(wanted) if len(wanted) > 1 else -1
    if at < 0:
        return None
    chosen, begin = [], 0
    for sentence, own in zip(sentences, letters, strict=True):
        if begin < at + len(wanted) and at < begin + len(own):
            chosen.append(sentence)
        begin += len(own)
    return "".join(chosen)


def bare(text: str) -> str:
    """Letters, digits and the point between digits: what a quotation must have in common with its text."""
    return re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w.%]|_", "", plain(text))


# --- form -----------------------------------------------------------------------------------------------------------


def form(ground: str, asked: Question) -> str | None:
    if not 4 <= len(asked.question) <= LONGEST or len(asked.answer) > LONGEST:
        return f"question or answer is too short or longer than {LONGEST} characters"
    closed = yesno.asks_yes_no(plain(asked.question))
    if asked.kind == "yes_no":
        if asked.answer not in (YES, NO):
            return f"the answer is {asked.answer!r}, expected 是 or 否"
        return None if closed else "it does not ask for yes or no"
    return "it asks for yes or no" if closed else None


def options(ground: str, asked: Question) -> str | None:
    if asked.kind != "choice":
        return None
    names = [plain(option) for option in asked.options]
    if not 3 <= len(names) <= len(LETTERS) or len(set(names)) < len(names) or not all(names):
        return "expected three to eight different options"
    if names.count(plain(asked.answer)) != 1:
        return "the answer is none of the options"
    wrong = [name for name in names if name != plain(asked.answer)]
    longest = max(map(len, wrong))
    if len(plain(asked.answer)) > max(STANDS_OUT * longest, longest + 3):
        return "the right option stands out by its length"
    inside = plain(ground)
    true = [name for name in wrong if len(name) > 1 and affirms(inside, name) and name not in plain(asked.answer)]
    return f"another option is true too: {true[0]}" if true else None


def affirms(text: str, word: str) -> bool:
    return any(not is_denied(text, *found.span()) for found in re.finditer(re.escape(word), text))


def language(ground: str, asked: Question) -> str | None:
    if not has_chinese(asked.question) or language_of(asked.question) != "zh":
        return "the question is not Chinese"
    for said in (asked.question, asked.answer, *asked.options):
        if language_of(said) == "other" or ENGLISH_RUN.search(said.lower()):
            return f"another language: {said[:40]}"
        if REFUSALS.search(said):
            return f"speaks of itself: {said[:40]}"
    return None


def refers(ground: str, asked: Question) -> str | None:
    found = next(filter(None, map(_REFERS.search, (asked.question, asked.answer, *asked.options))), None)
    return f"speaks of the text: {found.group()}" if found else None


def unseen(ground: str, asked: Question) -> str | None:
    found = next(filter(None, map(_UNSEEN.search, (asked.question, asked.answer, *asked.options))), None)
    return f"no image shows it: {found.group()}" if found else None


def gives_away(ground: str, asked: Question) -> str | None:
    """The answer does not stand in the question, nor does the question lead to it."""
    if found := _LEADS_ON.search(asked.question):
        return f"leads on: {found.group()}"
    if asked.kind == "yes_no":
        return None
    answer, question = plain(asked.answer), plain(asked.question)
    pattern = rf"(?<![a-z0-9]){re.escape(answer)}(?![a-z0-9])" if answer.isascii() else re.escape(answer)
    return f"the question names its answer: {answer}" if answer and re.search(pattern, question) else None


# --- is it what the text says? --------------------------------------------------------------------------------------


def numbers(ground: str, asked: Question) -> str | None:
    """No number and no quantity that the text has not; a question answered by 否 may name another one."""
    stated = asked.answer if asked.kind != "yes_no" else ""
    asks = "" if asked.answer == NO and asked.kind == "yes_no" else asked.question
    known = values(NUMBER, narrow(ground)) | values(CHINESE_NUMBER, narrow(ground))
    known |= {Fraction(0)} if negations(ground) else set()  # 未见肾脏 has 0 of them, 双肺 are 2
    known |= {Fraction(2)} if "both" in named_sides(ground) else set()
    added = values(_COUNTS, counts_as_digits(narrow(f"{asks} {stated}"))) - known - scaled(known)
    if added:
        return f"not in its sentence: {', '.join(f'{float(number):g}' for number in sorted(added))}"
    have = {(found.kind, found.value) for found in measures(ground)}
    wrong = {(found.kind, found.value) for found in measures(f"{asks} {stated}")} - have
    return f"not in its sentence: {', '.join(f'{k} {float(v):g}' for k, v in sorted(wrong))}" if wrong else None


def laterality(ground: str, asked: Question) -> str | None:
    """No side that its sentence does not name, and none but the finding's own."""
    if asked.kind == "yes_no" and asked.answer == NO:
        return None
    said = named_sides(f"{asked.question} {asked.answer if asked.kind != 'yes_no' else ''}")
    theirs = named_sides(ground)
    pair = {"left", "right"}
    single = said - {"both"}
    both_told = "both" in theirs or pair <= theirs
    added = set() if both_told and single == pair else single - theirs
    if "both" in said and not both_told:
        added = added | {"both"}
    if added:
        return f"not in its sentence: {' and '.join(sorted(added))}"
    if other := other_side(asked.answer, ground):
        return other
    if len(single) != 1:
        return None
    facts = facts_of_text(ground)
    own = "左" if single == {"left"} else "右"
    for name in polarity(asked.question) | polarity(asked.answer):
        told = {fact.rpartition("=")[2] for fact in facts if fact.startswith(f"{name}|side=")}
        if told and all(sides_conflict(side, own) for side in told):
            return f"{name} is on another side: {'、'.join(sorted(told))}"
    return None


def other_side(answer: str, ground: str) -> str | None:
    """左肺 is no answer where the sentence speaks of 右肺 alone, be it on the left of the image (图像左侧)."""
    for side, thing in re.findall(r"([左右])侧?([\u4e00-\u9fff])", answer):
        told = re.findall(rf"([左右])侧?{thing}", ground)
        if told and side not in told:
            return f"{''.join(set(told))}{thing} in its sentence"
    return None


def negation(ground: str, asked: Question) -> str | None:
    """What the sentence denies is not affirmed, and the other way round; 是 and 否 agree with the sentence."""
    if asked.kind == "yes_no":
        told = tells(ground, asked.question)
        if told is None:
            return "its sentence settles neither 是 nor 否"
        return None if told is (asked.answer == YES) else f"its sentence says {YES if told else NO}"
    inside, answer = plain(ground), plain(asked.answer)
    if answer in inside and not affirms(inside, answer) and not negations(answer):
        return f"denied in its sentence: {answer}"
    theirs = polarity(reaching_chinese(inside))
    ours = polarity(reaching_chinese(answer))
    turned = [name for name in ours if name in theirs and not ours[name] & theirs[name]]
    return f"turned round: {', '.join(sorted(turned))}" if turned else None


def tells(ground: str, question: str) -> bool | None:
    """What a text says to a question of yes or no: by the findings both name, else as the scorer reads an answer."""
    text, asks = plain(ground), plain(question)
    stated, found = polarity(asks), polarity(reaching_chinese(text))
    known = [(name, other) for name in stated for other in found if name.endswith(other) or other.endswith(name)]
    if known:
        facts = facts_of_text(ground)
        wanted = named_sides(asks) & {"left", "right"}
        said = set()
        for name, other in known:
            sides = {fact.rpartition("=")[2] for fact in facts if fact.startswith(f"{other}|side=")}
            elsewhere = len(wanted) == 1 and sides and all(sides_conflict(side, asks) for side in sides)
            if elsewhere or len(found[other]) == 1:
                said.add(False if elsewhere else found[other] == stated[name])
        return said.pop() if len(said) == 1 else None
    read = {yesno.polarity(plain(clause), asks) for clause in _SENTENCE.findall(ground)} - {None}
    if len(read) != 1:
        return None
    told = read.pop()
    if yesno.asked_normality(asks) is not None:
        return None if told and yesno.normality(text) is None else told
    names = [(yesno.named(asks, kind), yesno.named(text, kind)) for kind in KINDS]
    touched = held(asks, text) >= ALIKE
    if told:  # every thing that the question names is there: 核磁共振 does not tell T1
        return True if all(wanted <= there for wanted, there in names) and (touched or any(map(all, names))) else None
    return False if touched or any(map(all, names)) else None


def words(ground: str, asked: Question) -> str | None:
    """An answer in words has most of them from its sentence, or names the same thing by another word."""
    if asked.kind == "yes_no" or parse_count(asked.answer):
        return None
    answer, inside = plain(asked.answer), plain(ground)
    if any(yesno.named(answer, kind) & yesno.named(inside, kind) for kind in KINDS):
        return None
    share = held(answer, inside)
    return None if share >= ALIKE else f"{share:.0%} of the answer's words stand in its sentence"


def held(words: str, text: str) -> float:
    """The share of a text's words, frames left out, that another text holds; 1 where no word is left."""
    pieces = [piece for part in re.split(r"[^\w]+", _FRAME.sub("", words)) for piece in letter_pairs(part)]
    return sum(piece in text for piece in pieces) / len(pieces) if pieces else 1.0


def letter_pairs(part: str) -> list[str]:
    """Neighbouring Chinese characters two by two, Latin words and numbers whole."""
    found = []
    for run in re.findall(r"[a-z0-9.%-]+|[^a-z0-9.%-]+", part):
        found += [run] if run.isascii() or len(run) == 1 else [run[n : n + 2] for n in range(len(run) - 1)]
    return found


CHECKS: dict[str, Callable[[str, Question], str | None]] = {
    "form": form,
    "options": options,
    "language": language,
    "refers": refers,
    "unseen": unseen,
    "gives away": gives_away,
    "numbers": numbers,
    "laterality": laterality,
    "negation": negation,
    "words": words,
}
FORM = ("form", "language", "refers", "unseen", "gives away")  # these need no support of the text
