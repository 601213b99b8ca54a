"""What a text-only model may gain: nothing. Guesses without the image, and which questions stay because of them.

In: sound questions of one piece and a service that answers without the image. Out: for each question how often it was
guessed, and why it may not stay: an open question that is guessed, and what has one answer too many. Of closed
questions that a guesser answers alike, half are 是 and half 否; of a choice of four, a quarter is guessed.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qilin.core.llm_client import ChatReply, ChatRequest, Endpoint, complete_all
from qilin.pipeline.questions.checks import LETTERS, NO, YES, Question
from qilin.text.laterality import sides_conflict
from qilin.text.negation import negations
from qilin.text.normalize import normalise, plain
from qilin.text.numbers import parse_count
from qilin.text.synonyms import kind_and_name

GUESS_PROMPT = "你看不到图像。请只凭问题本身猜测这道医学图像问答题最可能的答案。"
HOW = {"open": "只写答案，不超过十个字。", "choice": "只写一个选项字母。", "yes_no": "只写“是”或“否”。"}
WARMTH = 0.7  # the temperature of guesses: at 0 every try would say the same


@dataclass(frozen=True)
class Guesses:
    """What tries without the image came to: how many were right, of how many, and what most of them said."""

    right: int = 0
    tries: int = 0
    leaning: str | None = None

    def hit(self) -> bool:
        return 2 * self.right > self.tries


def guess_all(
    guesser: Endpoint, tries: int, asked: Sequence[Question], budget: Callable[[], int | None],
    record_usage: Callable[[ChatReply], None],
) -> list[Guesses]:  # fmt: skip
    """Ask each question `tries` times without image or text, each try by a seed of its own."""
    said: list[list[str]] = [[] for _ in asked]
    for seed in range(tries):
        there = replace(guesser, seed=seed, temperature=WARMTH, budget=budget())
        replies = complete_all(there, [guess_of(question) for question in asked], lambda place, reply: record_usage(reply))
        for texts, reply in zip(said, replies, strict=True):
            texts.append(reply.text)
    return [counted(question, texts) for question, texts in zip(asked, said, strict=True)]


def guess_of(asked: Question) -> ChatRequest:
    content = f"{with_options(asked)}\n{HOW[asked.kind]}"
    return ChatRequest(
        [{"role": "system", "content": GUESS_PROMPT}, {"role": "user", "content": content}], max_tokens=40
    )


def with_options(asked: Question) -> str:
    """The question as it is put: its options a line each under it."""
    return asked.question + "".join(f"\n{LETTERS[n]}. {option}" for n, option in enumerate(asked.options))


def counted(asked: Question, texts: Sequence[str]) -> Guesses:
    read = [reading(asked, text) for text in texts]
    right = sum(alike(said, asked.answer) if asked.kind == "open" else said == asked.answer for said in read)
    common = Counter(said for said in read if said).most_common(1)
    return Guesses(right, len(texts), common[0][0] if common else None)


def reading(asked: Question, text: str) -> str:
    """A guess as 是 or 否, as one of the options, or as it is; empty where it says none of them."""
    text = text.strip()
    if asked.kind == "yes_no":
        found = re.match(r"[^\w]*(?:答案?[是为]?[:：]?)?\s*(否|不|没|无|no\b|是|有|存在|yes\b)", text, re.IGNORECASE)
        return "" if not found else (NO if found.group(1).lower() in ("否", "不", "没", "无", "no") else YES)
    if asked.kind == "choice":
        letter = re.match(r"[^A-Za-z\u4e00-\u9fff]*(?:答案?[是为]?[:：]?|选)?\s*([A-Ha-h])(?![A-Za-z])", text)
        if letter and LETTERS.index(letter.group(1).upper()) < len(asked.options):
            return asked.options[LETTERS.index(letter.group(1).upper())]
        return next((option for option in asked.options if plain(option) == plain(text)), "")
    return text


def alike(said: str, answer: str) -> bool:
    """Whether a guess says what the answer says: the same words, another word for it, or the one within the other."""
    a, b = normalise(said), normalise(answer)
    if not a or not b or sides_conflict(a, b) or bool(negations(a)) != bool(negations(b)):
        return False
    if a == b or (kind_and_name(a) is not None and kind_and_name(a) == kind_and_name(b)):
        return True
    counts = parse_count(a), parse_count(b)
    if counts[0] and counts[1]:
        return counts[0][0] == counts[1][0]
    short, long = sorted((a, b), key=len)
    return short in long and 2 * len(short) >= len(long)


def surplus(
    keys: Sequence[str], asked: Sequence[Question], guesses: Sequence[Guesses], mix: Mapping[str, int], seed: int
) -> dict[int, str]:
    """Place -> why it may not stay. Which of several goes is drawn by a hash of `keys`, the same everywhere.

    `mix`: how many of each kind were asked for of a text; open and closed ones stay in that proportion.
    """
    order = sorted(range(len(keys)), key=lambda n: hashlib.sha256(f"{seed} {keys[n]}".encode()).digest())
    gone: dict[int, str] = {}
    for n in order:
        if asked[n].kind == "open" and guesses[n].hit():
            gone[n] = "guessed: answered without the image"
    for count in sorted({len(row.options) for row in asked if row.kind == "choice"}):
        here = [n for n in order if asked[n].kind == "choice" and len(asked[n].options) == count]
        hits = [n for n in here if guesses[n].hit()]
        allowed = (len(here) - len(hits)) // (count - 1)  # one of `count` is guessed by chance
        gone |= dict.fromkeys(hits[allowed:], "guessed: more choices than by chance")
    pairs: list[tuple[int, int]] = []
    for leaning in (YES, NO, None):
        here = [n for n in order if asked[n].kind == "yes_no" and guesses[n].leaning == leaning]
        yes, no = ([n for n in here if asked[n].answer == answer] for answer in (YES, NO))
        pairs += zip(yes, no, strict=False)
        short = min(len(yes), len(no))
        gone |= dict.fromkeys([*yes[short:], *no[short:]], "balance: no question with the other answer beside it")
    return gone | unmixed(order, asked, gone, pairs, mix)


def unmixed(
    order: Sequence[int], asked: Sequence[Question], gone: Mapping[int, str], pairs: Sequence[tuple[int, int]],
    mix: Mapping[str, int],
) -> dict[int, str]:  # fmt: skip
    """What stands in the way of the proportion of open and closed: open ones, or pairs of 是 and 否."""
    wanted_open, wanted_closed = mix["open"], mix["choice"] + mix["yes_no"]
    if not wanted_open or not wanted_closed:
        return {}
    stay = [n for n in order if n not in gone]
    opened = [n for n in stay if asked[n].kind == "open"]
    closed = len(stay) - len(opened)
    most_open = math.floor(closed * wanted_open / wanted_closed)
    most_closed = math.ceil(len(opened) * wanted_closed / wanted_open)
    lost = dict.fromkeys(opened[most_open:], "balance: more open questions than closed ones")
    for pair in pairs[: max(0, closed - most_closed) // 2]:
        lost |= dict.fromkeys(pair, "balance: more closed questions than open ones")
    return lost
