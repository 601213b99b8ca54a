"""Removes what a model can answer without the image, so that a text-only model gains nothing over chance.

In: checked questions of one shard, and a service that guesses their answers without the image. Out: for each question
its guesses, and for each question to reject the reason. Open questions that are guessed are rejected. Of the yes/no
questions that get the same guess, half keep the answer 是 and half 否; of choices among four, a quarter may be guessed.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qilin.core.llm_client import ChatRequest, Endpoint
from qilin.pipeline.execution.llm_budget import TokenBudget
from qilin.pipeline.questions.checks import LETTERS, NO, YES, Question
from qilin.text.laterality import sides_conflict
from qilin.text.negation import count_negations
from qilin.text.normalize import normalize_answer, normalize_text
from qilin.text.numbers import parse_count
from qilin.text.vocabulary import concept_of

GUESS_PROMPT = "你看不到图像。请只凭问题本身猜测这道医学图像问答题最可能的答案。"
ANSWER_FORMAT = {
    "open": "只写答案，不超过十个字。",
    "choice": "只写一个选项字母。",
    "yes_no": "只写“是”或“否”。",
}
TEMPERATURE = 0.7  # of guesses: at 0 every try would give the same answer


@dataclass(frozen=True)
class Guesses:
    """How many tries without the image were right, and the answer that most of them gave."""

    right: int = 0
    tries: int = 0
    majority_answer: str | None = None
    refusal: str = ""  # why there is no guess at all, although one was asked for

    @property
    def mostly_correct(self) -> bool:
        return 2 * self.right > self.tries


# --- guessing -------------------------------------------------------------------------------------------------------


def guess_answers(budget: TokenBudget, guesser: Endpoint, tries: int, questions: Sequence[Question]) -> list[Guesses]:
    """Ask each question `tries` times without image or text, each time with another seed."""
    requests = [guess_request(question) for question in questions]
    replies = [budget.complete(replace(guesser, seed=seed, temperature=TEMPERATURE), requests) for seed in range(tries)]
    guesses = []
    for index, question in enumerate(questions):
        answered = [replies[seed][index].text for seed in range(tries) if not replies[seed][index].refusal]
        refusal = replies[0][index].refused_by if tries and not answered else ""
        guesses.append(replace(score_guesses(question, answered), refusal=refusal))
    return guesses


def guess_request(question: Question) -> ChatRequest:
    content = f"{with_options(question)}\n{ANSWER_FORMAT[question.kind]}"
    return ChatRequest(
        [{"role": "system", "content": GUESS_PROMPT}, {"role": "user", "content": content}], max_tokens=40
    )


def with_options(question: Question) -> str:
    """The question's text with one line per option."""
    return question.question + "".join(f"\n{LETTERS[n]}. {option}" for n, option in enumerate(question.options))


def score_guesses(question: Question, replies: Sequence[str]) -> Guesses:
    answers = [parse_guess(question, reply) for reply in replies]
    right = sum(
        is_same_answer(answer, question.answer) if question.kind == "open" else answer == question.answer
        for answer in answers
    )
    most_common = Counter(filter(None, answers)).most_common(1)
    return Guesses(right, len(replies), most_common[0][0] if most_common else None)


def parse_guess(question: Question, reply: str) -> str:
    """A guess as 是 or 否, as one of the options ("" if it is neither), or as it is for an open question."""
    text = reply.strip()
    if question.kind == "yes_no":
        match = re.match(r"[^\w]*(?:答案?[是为]?[:：]?)?\s*(否|不|没|无|no\b|是|有|存在|yes\b)", text, re.IGNORECASE)
        return "" if not match else (NO if match.group(1).lower() in ("否", "不", "没", "无", "no") else YES)
    if question.kind == "choice":
        letter = re.match(r"[^A-Za-z\u4e00-\u9fff]*(?:答案?[是为]?[:：]?|选)?\s*([A-Ha-h])(?![A-Za-z])", text)
        if letter and LETTERS.index(letter.group(1).upper()) < len(question.options):
            return question.options[LETTERS.index(letter.group(1).upper())]
        return next((option for option in question.options if normalize_text(option) == normalize_text(text)), "")
    return text


def is_same_answer(guess: str, answer: str) -> bool:
    """Whether a guess matches an open answer: the same words, a synonym, the same count, or mostly contained in it."""
    a, b = normalize_answer(guess), normalize_answer(answer)
    if not a or not b or sides_conflict(a, b) or bool(count_negations(a)) != bool(count_negations(b)):
        return False
    if a == b or (concept_of(a) is not None and concept_of(a) == concept_of(b)):
        return True
    counts = parse_count(a), parse_count(b)
    if counts[0] and counts[1]:
        return counts[0][0] == counts[1][0]
    shorter, longer = sorted((a, b), key=len)
    return shorter in longer and 2 * len(shorter) >= len(longer)


# --- balancing ------------------------------------------------------------------------------------------------------


def rejections_for_balance(
    keys: Sequence[str], questions: Sequence[Question], guesses: Sequence[Guesses], mix: Mapping[str, int], seed: int
) -> dict[int, str]:
    """Index -> reason of each question to reject. A seeded hash of `keys` decides among several.

    `mix`: how many questions of each kind were requested per text; open and closed ones keep that proportion.
    """
    order = sorted(range(len(keys)), key=lambda n: hashlib.sha256(f"{seed} {keys[n]}".encode()).digest())
    # no guess is no evidence that a question cannot be guessed
    rejected = {n: f"guessed: not tried, refused by the {guesses[n].refusal}" for n in order if guesses[n].refusal}
    order = [n for n in order if n not in rejected]
    for n in order:
        if questions[n].kind == "open" and guesses[n].mostly_correct:
            rejected[n] = "guessed: answered without the image"
    for option_count in sorted({len(question.options) for question in questions if question.kind == "choice"}):
        choices = [n for n in order if questions[n].kind == "choice" and len(questions[n].options) == option_count]
        guessed = [n for n in choices if guesses[n].mostly_correct]
        by_chance = (len(choices) - len(guessed)) // (option_count - 1)  # one in `option_count`
        rejected |= dict.fromkeys(guessed[by_chance:], "guessed: more choices than by chance")
    pairs: list[tuple[int, int]] = []
    for answer in (YES, NO, None):
        yes_no = [n for n in order if questions[n].kind == "yes_no" and guesses[n].majority_answer == answer]
        yes, no = ([n for n in yes_no if questions[n].answer == word] for word in (YES, NO))
        pairs += zip(yes, no, strict=False)
        size = min(len(yes), len(no))
        unpaired = [*yes[size:], *no[size:]]
        rejected |= dict.fromkeys(unpaired, "balance: no question with the other answer beside it")
    return rejected | rejections_for_mix(order, questions, rejected, pairs, mix)


def rejections_for_mix(
    order: Sequence[int], questions: Sequence[Question], rejected: Mapping[int, str],
    pairs: Sequence[tuple[int, int]], mix: Mapping[str, int],
) -> dict[int, str]:  # fmt: skip
    """The questions that exceed the requested proportion: open ones, or pairs of 是 and 否."""
    wanted_open, wanted_closed = mix["open"], mix["choice"] + mix["yes_no"]
    if not wanted_open or not wanted_closed:
        return {}
    accepted = [n for n in order if n not in rejected]
    open_questions = [n for n in accepted if questions[n].kind == "open"]
    closed_count = len(accepted) - len(open_questions)
    max_open = math.floor(closed_count * wanted_open / wanted_closed)
    max_closed = math.ceil(len(open_questions) * wanted_closed / wanted_open)
    excess = dict.fromkeys(open_questions[max_open:], "balance: more open questions than closed ones")
    for pair in pairs[: max(0, closed_count - max_closed) // 2]:
        excess |= dict.fromkeys(pair, "balance: more closed questions than open ones")
    return excess
