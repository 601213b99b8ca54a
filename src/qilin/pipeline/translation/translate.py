"""`qilin data translate`: the English samples of a dataset folder into Chinese, by any OpenAI-compatible service.

In: a dataset folder, a service, a glossary. Out: a dataset folder whose translated samples say how they were made; a
translation that fails the checks is asked for again with the reason, then refused. A second run asks nothing.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.llm_client import ChatReply, ChatRequest, Endpoint, complete_all, parse_json_reply
from qilin.core.llm_client_config import KEY_HELP
from qilin.core.progress import ProgressBars
from qilin.dataset.reader import open_dataset
from qilin.dataset.sample_texts import text_fields, with_texts
from qilin.dataset.schema import Sample
from qilin.pipeline.execution.dataset_map import SAMPLES_PER_SHARD, RejectedRow, cumulative_sizes, map_dataset, reject
from qilin.pipeline.execution.llm_budget import TokenBudget, print_summary
from qilin.pipeline.translation.checks import ABBREVIATION, check_translation
from qilin.text.normalize import has_chinese

PROMPT = """You translate medical English into simplified Chinese for a data set of medical images.
You are given a JSON object whose values are texts that belong together. Answer with one JSON object that has the same
keys, each value being the translation of its text and nothing else.
Keep every number, unit, side (left, right), negation and degree of certainty. Leave abbreviations (CT, MRI, T2), names
of genes and letters of panels (A, B) as they are. Give drugs their Chinese names. Add nothing and leave nothing out."""
SHORT = 8  # characters of an abbreviation; a longer word in capitals may be any word
GLOSSARY = Path(__file__).with_name("glossary.tsv")


@config_class
class TranslateConfig:
    """What to translate, with which service, how many times, for how much."""

    source: Path = option(help="a dataset folder; its Chinese samples are kept as they are")
    out: Path = option(help="the dataset folder to make; must be new or empty, or this work interrupted")
    endpoint: str = option(help="the service's address, up to and including /v1")
    model: str = option(help="the model's name there")
    glossary: Path = option(default=GLOSSARY, help="English, tab, Chinese a line; the longest match counts")
    cache: Path = option(default=Path("translations.sqlite"), help="the file of replies: what is in it costs nothing")
    concurrency: int = option(default=16, help="requests at once, at most; fewer where the service asks to wait")
    budget: int | None = option(default=None, help="tokens, read and written, after which it stops; goes on later")
    price_in: float = option(default=0.0, help="price of a million tokens read, for the cost on the bar")
    price_out: float = option(default=0.0, help="price of a million tokens written")
    asks: int = option(default=3, help="times a text is asked for before its sample is refused")
    back: float = option(default=0.0, help="translate back and refuse below this chrF (0 to 100); 0: do not")
    timeout: float = option(default=120.0, help="seconds for one reply")
    json: bool = option(default=False, help="print the summary as JSON")

    EPILOG = KEY_HELP

    def __post_init__(self) -> None:
        if self.asks < 1:
            raise ValueError(f"asks is {self.asks}; expected at least 1")
        if not 0 <= self.back <= 100:
            raise ValueError(f"back is {self.back:g}; expected a chrF from 0 to 100")


@dataclass(frozen=True)
class Work:
    """How pieces are translated: all that decides a translation, and where replies are kept."""

    endpoint: Endpoint
    terms: tuple[tuple[str, str], ...]
    asks: int
    back: float


def translate(given: TranslateConfig) -> None:
    """Make the translated folder, or say that it is there. RunError where the budget is spent or no one answers."""
    there = Endpoint(
        given.endpoint, given.model, concurrency=given.concurrency, timeout=given.timeout, cache=given.cache
    )
    terms = read_glossary(given.glossary)
    made_by = {
        "step": "translate",
        "model": given.model,
        "prompt": short_hash(PROMPT),
        "glossary": short_hash(json.dumps(terms)),
        "asks": given.asks,
        "back": given.back,
    }
    data = open_dataset(given.source)
    total = sum(data.count(split) for split in data.splits())
    with ProgressBars(transient=True) as progress:
        task = progress.add_task("translating", total=total)
        prices = (given.price_in, given.price_out)
        purse = TokenBudget("translating", given.budget, prices, given.cache, progress, task)
        step = partial(translated, Work(there, terms, given.asks, given.back), purse)
        ends = cumulative_sizes(data, SAMPLES_PER_SHARD)
        made, fresh = map_dataset(
            given.source, given.out, step, made_by, None, lambda n: purse.set_progress(ends[n]), SAMPLES_PER_SHARD
        )
    print_summary(given.out, made, fresh, purse, given.json)


def read_glossary(path: Path) -> tuple[tuple[str, str], ...]:
    """(English, Chinese) rows, the longest English first. Raises UserError for a line of another form."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = [row for row in csv.reader(lines, delimiter="\t") if row and not row[0].startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as a glossary ({error}); expected English, tab, Chinese a line"
        ) from None
    for row in rows:
        if len(row) != 2 or not row[0].strip() or not has_chinese(row[1]):
            raise UserError(f"{path}: {row!r} is no row of a glossary; expected English, tab, Chinese")
    return tuple(sorted(((a.strip().lower(), b.strip()) for a, b in rows), key=lambda row: (-len(row[0]), row)))


def terms_in(text: str, terms: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The terms of a glossary that a text holds, each place taken by the longest."""
    left, found = text.lower(), {}
    for english, chinese in terms:
        pattern = rf"(?<![a-z]){re.escape(english)}(?:s|es)?(?![a-z])"
        if english in left and re.search(pattern, left):
            found[english] = chinese
            left = re.sub(pattern, " ", left)
    return found


def translated(
    work: Work, purse: TokenBudget, rows: list[tuple[str, Sample]]
) -> Iterator[tuple[str, Sample] | RejectedRow]:
    """The step: samples with English in them -> the same in Chinese, or refused with what their translation lacks."""
    texts = [texts_of(sample) for _, sample in rows]
    answers = iter(answer_all(work, purse, [part for part in texts if part]))
    for (split, sample), asked in zip(rows, texts, strict=True):
        if not asked:
            yield split, sample
        else:
            made, doubts = next(answers)
            if made is None:
                kinds = ", ".join(sorted({check for checks in doubts.values() for check in checks}))
                yield reject(sample, f"translation: {kinds}", doubts=doubts)
            else:
                yield split, replace(with_texts(sample, made), lang="zh", translation=described(work))


def described(work: Work) -> dict[str, str]:
    checks = "passed" + (f"; chrF back at least {work.back:g}" if work.back else "")
    return {
        "model": work.endpoint.model,
        "prompt": short_hash(PROMPT),
        "glossary": short_hash(json.dumps(work.terms)),
        "checks": checks,
    }


# --- a sample's texts -----------------------------------------------------------------------------------------------


def texts_of(sample: Sample) -> dict[str, str]:
    """The English texts of a sample by their place. Beside Chinese, "MRI" is a Chinese answer and passes as it is."""
    found = text_fields(sample)
    english = {key: text for key, text in found.items() if not has_chinese(text) and re.search(r"[A-Za-z]{2}", text)}
    if len(english) == len(found):
        return english
    return {key: text for key, text in english.items() if not (len(text) <= SHORT and ABBREVIATION.fullmatch(text))}


# --- asking and checking --------------------------------------------------------------------------------------------

Doubts = dict[str, dict[str, str]]  # text -> check -> what it found


def answer_all(
    work: Work, purse: TokenBudget, samples: list[dict[str, str]]
) -> list[tuple[dict[str, str] | None, Doubts]]:
    """(translations, {}) of each sample, or (None, why not) after the last time of asking."""
    made: list[tuple[dict[str, str] | None, Doubts]] = [(None, {})] * len(samples)
    left = list(range(len(samples)))
    history: dict[int, list[dict[str, str]]] = {n: opening(samples[n], work.terms) for n in left}
    for turn in range(work.asks):
        if not left:
            break
        there = replace(work.endpoint, budget=purse.remaining())
        asks = [ChatRequest(history[n], max_tokens=room_for(samples[n]), json=True) for n in left]
        replies = complete_all(there, asks, purse.on_reply(0 if turn else 1))
        for n, reply in zip(left, replies, strict=True):
            made[n] = judged(samples[n], reply, work.terms)
        if work.back:
            check_back(work, purse, samples, made, left)
        for n, reply in zip(left, replies, strict=True):
            history[n] = [*history[n][:2], {"role": "assistant", "content": reply.text}, again(made[n][1])]
        left = [n for n in left if made[n][0] is None]
    return made


def opening(texts: Mapping[str, str], terms: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """The question about one sample: its texts under plain keys, and the terms that must be used."""
    used = terms_in(" ".join(texts.values()), terms)
    listed = "\nUse these translations: " + "; ".join(f"{a} = {b}" for a, b in used.items()) if used else ""
    numbered = {str(n): text for n, text in enumerate(texts.values(), start=1)}
    return [
        {"role": "system", "content": PROMPT + listed},
        {"role": "user", "content": json.dumps(numbered, ensure_ascii=False)},
    ]


def again(doubts: Doubts) -> dict[str, str]:
    said = "; ".join(f"{check}: {what}" for checks in doubts.values() for check, what in checks.items())
    return {"role": "user", "content": f"That has faults: {said}. Answer with the whole corrected JSON object."}


def room_for(texts: Mapping[str, str]) -> int:
    """Tokens for the reply: a Chinese character takes up to two, an English word up to four characters and more."""
    return 200 + 2 * sum(len(text) for text in texts.values())


def judged(
    texts: Mapping[str, str], reply: ChatReply, terms: Iterable[tuple[str, str]]
) -> tuple[dict[str, str] | None, Doubts]:
    """The reply's translations by their places, or what is wrong with them."""
    try:
        found = parse_json_reply(reply)
    except ValueError as error:
        return None, {"": {"form": str(error)}}
    keys = [str(n) for n in range(1, len(texts) + 1)]
    if (
        not isinstance(found, dict)
        or sorted(found) != sorted(keys)
        or not all(isinstance(v, str) for v in found.values())
    ):
        return None, {"": {"form": f"the reply does not have the keys {', '.join(keys)} with a text each"}}
    made = {place: found[key].strip() for place, key in zip(texts, keys, strict=True)}
    doubts = {
        place: said
        for place, text in texts.items()
        if (said := check_translation(text, made[place], terms_in(text, terms)))
    }
    return (None, doubts) if doubts else (made, {})


def check_back(
    work: Work, purse: TokenBudget, samples: list[dict[str, str]], made: list[tuple[dict[str, str] | None, Doubts]],
    places: list[int],
) -> None:  # fmt: skip
    """Translate back what passed, and doubt what does not come back alike."""
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    sound = [(n, place) for n in places if (found := made[n][0]) for place in found]
    asks = [
        ChatRequest(
            [{"role": "user", "content": "Translate into English, nothing else:\n" + (made[n][0] or {})[place]}], 1024
        )
        for n, place in sound
    ]
    replies = complete_all(replace(work.endpoint, budget=purse.remaining()), asks, purse.on_reply())
    for (n, place), reply in zip(sound, replies, strict=True):
        score = chrf.sentence_score(reply.text, [samples[n][place]]).score
        if score < work.back:
            made[n] = (None, {**made[n][1], place: {"back": f"comes back with chrF {score:.0f}, below {work.back:g}"}})


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
