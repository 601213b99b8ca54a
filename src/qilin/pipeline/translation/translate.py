"""`qilin data translate`: the English samples of a dataset folder into Chinese, by any OpenAI-compatible service.

In: a dataset folder, a service, a glossary. Out: a dataset folder whose translated samples record how they were made. A
translation that fails the checks is requested again with the reason, then rejected. Replies are cached, so a second run
sends no request.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.llm_client import ChatReply, ChatRequest, Endpoint, make_endpoint
from qilin.core.llm_client_config import KEY_HELP, ServiceConfig
from qilin.core.llm_reply import parse_json_reply
from qilin.dataset.sample_texts import text_fields, with_texts
from qilin.dataset.schema import Sample
from qilin.pipeline.execution.dataset_map import SAMPLES_PER_SHARD, RejectedRow, reject
from qilin.pipeline.execution.llm_budget import TokenBudget, map_with_budget
from qilin.pipeline.execution.step_output import command_line, print_summary
from qilin.pipeline.translation.checks import ABBREVIATION, check_translation
from qilin.text.normalize import has_chinese

PROMPT = """You translate medical English into simplified Chinese for a data set of medical pictures.
You are given a JSON object whose values are texts that belong together. Answer with one JSON object that has the same
keys, each value being the translation of its text and nothing else.
Keep every number, unit, side (left, right), negation and degree of certainty. Leave abbreviations (CT, MRI, T2), names
of genes and letters of panels (A, B) as they are. Give drugs their Chinese names. Add nothing and leave nothing out."""
MAX_ABBREVIATION = 8  # characters; a longer word in capitals may be any word
GLOSSARY = Path(__file__).with_name("glossary.tsv")
Glossary = Sequence[tuple[str, str]]  # (English in lower case, Chinese), the longest English first
Doubts = dict[str, dict[str, str]]  # text field -> check -> what it found


@config_class
class TranslateConfig:
    """What to translate, with which service, and how strictly to check it."""

    source: Path = option(help="dataset folder; its Chinese samples are copied unchanged")
    out: Path = option(help="dataset folder to write; new, empty, or an interrupted run of the same command")
    service: ServiceConfig = option(default={"cache": Path("translations.sqlite")}, flatten=True)
    glossary: Path | None = option(
        default=None,
        help="TSV file with an English and a Chinese term per line; the longest match counts (default: Qilin's own)",
    )
    max_attempts: int = option(default=3, help="times a translation is requested before its sample is rejected")
    min_backtranslation_chrf: float = option(
        default=0.0, help="translate back into English and reject below this chrF (0 to 100); 0: no back-translation"
    )
    json: bool = option(default=False, help="print the summary as JSON")

    EPILOG = KEY_HELP

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is {self.max_attempts}; expected at least 1")
        if not 0 <= self.min_backtranslation_chrf <= 100:
            raise ValueError(
                f"min_backtranslation_chrf is {self.min_backtranslation_chrf:g}; expected a chrF from 0 to 100"
            )


@dataclass(frozen=True)
class Translator:
    """What decides a translation: the service, the glossary and the limits of the config."""

    endpoint: Endpoint
    glossary: Glossary
    max_attempts: int
    min_chrf: float  # of the back-translation; 0: none

    def metadata(self) -> dict[str, str]:
        """What a translated sample records in its `translation`."""
        checks = "passed" + (f"; chrF back at least {self.min_chrf:g}" if self.min_chrf else "")
        return {**self.fingerprints(), "checks": checks}

    def fingerprints(self) -> dict[str, str]:
        hashes = {"prompt": short_hash(PROMPT), "glossary": short_hash(json.dumps(self.glossary))}
        return {"model": self.endpoint.model, **hashes}


@dataclass(frozen=True)
class Result:
    """A sample's translations by text field, or None with the doubts that the last reply raised.

    `beginning`: how a reply began that could not be read. `is_final`: the service refuses the sample, a retry is
    pointless.
    """

    texts: dict[str, str] | None
    doubts: Doubts
    beginning: str = ""
    is_final: bool = False


def translate(config: TranslateConfig) -> None:
    """Write the translated dataset, unless it exists. Raises RunError if the budget is spent or the service fails."""
    glossary = read_glossary(config.glossary or GLOSSARY)
    translator = Translator(
        make_endpoint(config.service), glossary, config.max_attempts, config.min_backtranslation_chrf
    )
    settings = {
        "step": "translate",
        "command": command_line("data translate", config, ("source", "out")),
        **translator.fingerprints(),
        "max_attempts": config.max_attempts,
        "min_backtranslation_chrf": config.min_backtranslation_chrf,
    }
    step = partial(translate_shard, translator)
    dataset, is_new, budget = map_with_budget(
        config.source, config.out, step, settings, config.service, "translating", SAMPLES_PER_SHARD
    )
    lines = [budget.usage_summary()] if is_new else []
    print_summary(config.out, dataset, is_new, config.json, budget.usage_json(), lines)


def translate_shard(
    translator: Translator, budget: TokenBudget, rows: list[tuple[str, Sample]]
) -> Iterator[tuple[str, Sample] | RejectedRow]:
    """Samples with English texts -> the same in Chinese, or rejected with the failed checks; others unchanged."""
    texts = [texts_to_translate(sample) for _, sample in rows]
    results = iter(request_translations(translator, budget, [row for row in texts if row]))
    for (split, sample), english in zip(rows, texts, strict=True):
        if not english:
            yield split, sample
            continue
        result = next(results)
        if result.texts is None:
            checks = ", ".join(sorted({check for failed in result.doubts.values() for check in failed}))
            beginning = {"reply_began": result.beginning} if result.beginning else {}
            yield reject(sample, f"translation: {checks}", doubts=result.doubts, **beginning)
        else:
            yield split, replace(with_texts(sample, result.texts), lang="zh", translation=translator.metadata())


def texts_to_translate(sample: Sample) -> dict[str, str]:
    """The English texts of a sample by field. Next to Chinese, an abbreviation such as "MRI" is left as it is."""
    texts = text_fields(sample)
    english = {key: text for key, text in texts.items() if not has_chinese(text) and re.search(r"[A-Za-z]{2}", text)}
    if len(english) == len(texts):
        return english
    return {
        key: text
        for key, text in english.items()
        if not (len(text) <= MAX_ABBREVIATION and ABBREVIATION.fullmatch(text))
    }


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- glossary -------------------------------------------------------------------------------------------------------


def read_glossary(path: Path) -> tuple[tuple[str, str], ...]:
    """(English, Chinese) rows, the longest English first. Raises UserError for a line of another form."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = [row for row in csv.reader(lines, delimiter="\t") if row and not row[0].startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as a glossary ({error}); expected an English and a Chinese term per line, "
            "separated by a tab"
        ) from None
    for row in rows:
        if len(row) != 2 or not row[0].strip() or not has_chinese(row[1]):
            raise UserError(f"{path}: {row!r} is not a glossary row; expected English, tab, Chinese")
    return tuple(sorted(((a.strip().lower(), b.strip()) for a, b in rows), key=lambda row: (-len(row[0]), row)))


def terms_in(text: str, glossary: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The glossary terms in a text; where terms overlap, the longest counts."""
    remaining, terms = text.lower(), {}
    for english, chinese in glossary:
        pattern = rf"(?<![a-z]){re.escape(english)}(?:s|es)?(?![a-z])"
        if english in remaining and re.search(pattern, remaining):
            terms[english] = chinese
            remaining = re.sub(pattern, " ", remaining)
    return terms


# --- requests and replies -------------------------------------------------------------------------------------------


def request_translations(
    translator: Translator, budget: TokenBudget, samples: Sequence[Mapping[str, str]]
) -> list[Result]:
    """Translate each sample's texts; faulty translations are requested again with what is wrong with them."""
    results = [Result(None, {})] * len(samples)
    messages = [first_messages(texts, translator.glossary) for texts in samples]
    pending = list(range(len(samples)))
    for attempt in range(translator.max_attempts):
        requests = [ChatRequest(messages[n], max_tokens=max_reply_tokens(samples[n]), json=True) for n in pending]
        replies = budget.complete(translator.endpoint, requests, samples_per_reply=0 if attempt else 1)
        for n, reply in zip(pending, replies, strict=True):
            results[n] = check_reply(samples[n], reply, translator.glossary)
        if translator.min_chrf:
            check_back_translations(translator, budget, samples, results, pending)
        for n, reply in zip(pending, replies, strict=True):
            answer = {"role": "assistant", "content": reply.text}
            messages[n] = [*messages[n][:2], answer, retry_message(results[n].doubts)]
        pending = [n for n in pending if results[n].texts is None and not results[n].is_final]
    return results


def first_messages(texts: Mapping[str, str], glossary: Glossary) -> list[dict[str, str]]:
    """The prompt with the glossary terms to use, and a sample's texts under the keys 1, 2, ..."""
    terms = terms_in(" ".join(texts.values()), glossary)
    instruction = "\nUse these translations: " + "; ".join(f"{a} = {b}" for a, b in terms.items()) if terms else ""
    numbered = {str(n): text for n, text in enumerate(texts.values(), start=1)}
    return [
        {"role": "system", "content": PROMPT + instruction},
        {"role": "user", "content": json.dumps(numbered, ensure_ascii=False)},
    ]


def retry_message(doubts: Doubts) -> dict[str, str]:
    faults = "; ".join(f"{check}: {doubt}" for failed in doubts.values() for check, doubt in failed.items())
    return {"role": "user", "content": f"That has faults: {faults}. Answer with the whole corrected JSON object."}


def max_reply_tokens(texts: Mapping[str, str]) -> int:
    """A Chinese character takes up to two tokens and replaces several English ones; 200 more for the JSON object.

    Of long texts one token a character, which is still more than a translation takes: many services refuse over 8,192.
    """
    length = sum(map(len, texts.values()))
    return min(200 + 2 * length, max(8192, 200 + length))


def check_reply(texts: Mapping[str, str], reply: ChatReply, glossary: Glossary) -> Result:
    """The translations in a reply by text field, or what is wrong with them."""
    try:
        value = parse_json_reply(reply)
    except ValueError as error:
        return Result(None, {"": {reply.refused_by: str(error)}}, reply.beginning, bool(reply.refusal))
    keys = [str(n) for n in range(1, len(texts) + 1)]
    is_complete = isinstance(value, dict) and sorted(value) == sorted(keys)
    if not is_complete or not all(isinstance(text, str) for text in value.values()):
        fault = f"the reply does not have the keys {', '.join(keys)} with a text each"
        return Result(None, {"": {"form": fault}}, reply.beginning)
    translations = {name: value[key].strip() for name, key in zip(texts, keys, strict=True)}
    doubts = {
        name: failed
        for name, english in texts.items()
        if (failed := check_text(english, translations[name], terms_in(english, glossary)))
    }
    return Result(None, doubts) if doubts else Result(translations, {})


def check_text(english: str, chinese: str, terms: Mapping[str, str]) -> dict[str, str]:
    """`check_translation`; a text that the checks cannot read, such as a number of 400 digits, fails by its form."""
    try:
        return check_translation(english, chinese, terms)
    except (ValueError, ArithmeticError, RecursionError) as error:
        return {"form": f"it cannot be checked: {str(error)[:80]}"}


def check_back_translations(
    translator: Translator,
    budget: TokenBudget,
    samples: Sequence[Mapping[str, str]],
    results: list[Result],
    indices: Sequence[int],
) -> None:
    """Translate the accepted texts back into English and replace the results whose chrF is too low."""
    from sacrebleu.metrics import CHRF

    chrf = CHRF()
    accepted = [(n, name, text) for n in indices for name, text in (results[n].texts or {}).items()]
    requests = [
        ChatRequest([{"role": "user", "content": "Translate into English, nothing else:\n" + text}], max_tokens=1024)
        for _, _, text in accepted
    ]
    for (n, name, _), reply in zip(accepted, budget.complete(translator.endpoint, requests), strict=True):
        if reply.refusal:
            results[n] = Result(None, {**results[n].doubts, name: {reply.refused_by: reply.refusal}}, is_final=True)
            continue
        score = chrf.sentence_score(reply.text, [samples[n][name]]).score
        if score < translator.min_chrf:
            doubt = f"the back-translation has chrF {score:.0f}, below {translator.min_chrf:g}"
            results[n] = Result(None, {**results[n].doubts, name: {"back": doubt}})
