"""Scores of Chinese captions: the facts they state, BLEU, chrF, CIDEr, ROUGE-L on characters and words.

In: references and predictions, and for facts either the truth beside the dataset or a vocabulary to read both texts
with. Out: one row of scores a caption and their means.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.evaluate.scoring.answers import tokens
from qilin.text.facts import DEFAULT_VOCABULARY, Vocabulary, contradictions, facts_of_text, is_finding, read_vocabulary
from qilin.text.normalize import normalise

VOCABULARY_FILE = "facts.json"
TRUTH_FILE = "truth.jsonl"


@dataclass(frozen=True)
class FactScore:
    """Shared, stated and true facts of one caption; `invented` are findings stated that are not true, `contradicted`
    those that the caption both affirms and denies (each counts as one wrong statement)."""

    shared: int
    stated: int
    true: int
    invented: int
    contradicted: int = 0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1.0 where nothing was to be said and nothing was."""
        return 2 * self.shared / (self.stated + self.true) if self.stated + self.true else 1.0


def fact_score(said: frozenset[str], true: frozenset[str], both: frozenset[str] = frozenset()) -> FactScore:
    """Compare stated with true facts. An invented finding is one affirmed that the truth does not affirm.

    Findings in `both` were affirmed and denied at once: neither statement is right, and together they are one wrong.
    """
    findings = {fact for fact in said if is_finding(fact)}
    said = frozenset(fact for fact in said if not _is_about(fact, both))
    return FactScore(len(said & true), len(said) + len(both), len(true), len(findings - true), len(both))


def _is_about(fact: str, findings: frozenset[str]) -> bool:
    """Whether a fact affirms, denies or describes one of the findings; 结节 is also meant by a denial of 肺结节."""
    name = fact.removeprefix("no ").split("|")[0]
    return name in findings or (fact.startswith("no ") and any(f.endswith(name) or name.endswith(f) for f in findings))


@dataclass(frozen=True)
class FactSource:
    """Where true facts come from: a truth record by image, else the reference caption read with the vocabulary."""

    vocabulary: Vocabulary
    truth: Mapping[str, frozenset[str]]  # image_id -> facts

    def compare(self, image_ids: Sequence[str], reference: str, prediction: str) -> FactScore:
        """The facts that a caption states against those that it should state."""
        said = facts_of_text(prediction, self.vocabulary)
        both = contradictions(prediction, self.vocabulary)
        if image_ids and all(image_id in self.truth for image_id in image_ids):
            true = frozenset().union(*(self.truth[image_id] for image_id in image_ids))
            # A truth record lists what is there; what is not there need not be denied one by one.
            return fact_score(frozenset(fact for fact in said if not fact.startswith("no ")), true, both)
        return fact_score(said, facts_of_text(reference, self.vocabulary), both)


def read_fact_source(dataset: Path | None) -> FactSource:
    """facts.json (a vocabulary) and truth.jsonl (rows {"image_id", "facts": [...]}) of a dataset folder, if there."""
    vocabulary: Vocabulary = DEFAULT_VOCABULARY
    truth: dict[str, frozenset[str]] = {}
    if dataset is not None and (dataset / VOCABULARY_FILE).is_file():
        vocabulary = read_vocabulary(dataset / VOCABULARY_FILE)
    if dataset is not None and (dataset / TRUTH_FILE).is_file():
        with (dataset / TRUTH_FILE).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    # A truth record may say more than facts, or other things: rows without facts say nothing here.
                    if "facts" in row:
                        truth[row["image_id"]] = frozenset(row["facts"])
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{dataset / TRUTH_FILE}, line {number}: expected image_id and facts, found {error}"
                    ) from None
    return FactSource(vocabulary, truth)


def score_captions(
    rows: Sequence[Mapping[str, Any]], source: FactSource, only_facts: bool = False
) -> tuple[dict[str, float], list[FactScore]]:
    """Means over caption rows (fields reference, prediction, image_ids) and each row's fact score.

    fact_f1 is over all facts of all captions together (micro), so a caption with many facts weighs more.
    """
    facts = [source.compare(row.get("image_ids") or (), row["reference"], row["prediction"]) for row in rows]
    shared, stated, true = (sum(getattr(fact, name) for fact in facts) for name in ("shared", "stated", "true"))
    scores = {
        "fact_f1": 2 * shared / (stated + true) if stated + true else 1.0,
        "fact_precision": shared / stated if stated else 0.0,
        "fact_recall": shared / true if true else 0.0,
        "invented_findings": sum(fact.invented for fact in facts) / len(facts),
        "captions_that_invent": sum(fact.invented > 0 for fact in facts) / len(facts),
        "contradictions": sum(fact.contradicted for fact in facts) / len(facts),
    }
    if not only_facts:
        predictions, references = [row["prediction"] for row in rows], [row["reference"] for row in rows]
        scores["bleu4"] = bleu(predictions, references)
        scores["chrf"] = chrf(predictions, references)
        words = [[tokens(normalise(text), "word") for text in texts] for texts in (predictions, references)]
        scores["cider"] = sum(cider(*words)) / len(rows)
        scores["rouge_l_char"] = mean_rouge(predictions, references, "char")
        scores["rouge_l_word"] = mean_rouge(predictions, references, "word")
    return scores, facts


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 by sacrebleu with its Chinese tokenizer, 0 to 1, on the texts as they are."""
    from sacrebleu.metrics import BLEU

    return float(BLEU(tokenize="zh").corpus_score(list(predictions), [list(references)]).score / 100)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF (characters, n-grams up to six, recall weighed double) by sacrebleu, 0 to 1."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(list(predictions), [list(references)]).score / 100)


def mean_rouge(predictions: Sequence[str], references: Sequence[str], unit: str) -> float:
    """Mean ROUGE-L F1 over characters or jieba words, 0 to 1."""
    return sum(rouge_l(p, r, unit) for p, r in zip(predictions, references, strict=True)) / max(1, len(predictions))


def rouge_l(prediction: str, reference: str, unit: str = "char") -> float:
    """F1 of the longest common subsequence of tokens (unit "char" or "word") after `normalise`."""
    said, true = tokens(normalise(prediction), unit), tokens(normalise(reference), unit)
    if not said or not true:
        return float(said == true)
    return 2 * longest_common(said, true) / (len(said) + len(true))


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bit-parallel rows (Hyyrö 2004)."""
    where: dict[str, int] = {}
    for position, token in enumerate(a):
        where[token] = where.get(token, 0) | 1 << position
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        match = row & where.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


NGRAMS = 4
SIGMA = 6.0  # of the damping by length, in bigrams, as published

Vector = tuple[list[dict[tuple[str, ...], float]], list[float], int]  # weights a size, norms a size, bigrams


def cider(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[float]:
    """A score a caption. With a single caption every n-gram is in every reference and weighs nothing: 0."""
    assert len(predictions) == len(references), f"{len(predictions)} predictions, {len(references)} references"
    grams = [ngrams(reference) for reference in references]
    seen: Counter[tuple[str, ...]] = Counter(gram for counts in grams for gram in counts)
    total = log(max(1, len(references)))
    return [
        10 * similarity(weigh(ngrams(said), seen, total), weigh(true, seen, total))
        for said, true in zip(predictions, grams, strict=True)
    ]


def ngrams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    """How often each n-gram of one to four tokens stands in the text."""
    return Counter(tuple(tokens[i : i + size]) for size in range(1, NGRAMS + 1) for i in range(len(tokens) - size + 1))


def weigh(counts: Counter[tuple[str, ...]], seen: Counter[tuple[str, ...]], total: float) -> Vector:
    """tf-idf of each n-gram by size, the norms, and the number of bigrams."""
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(NGRAMS)]
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * (total - log(max(1, seen[gram])))
    norms = [sqrt(sum(weight * weight for weight in of.values())) for of in weights]
    return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


def similarity(said: Vector, true: Vector) -> float:
    """Clipped cosine, mean over the sizes, damped by the difference of the lengths."""
    damping = exp(-((said[2] - true[2]) ** 2) / (2 * SIGMA**2))
    cosines = 0.0
    for mine, theirs, a, b in zip(said[0], true[0], said[1], true[1], strict=True):
        if a and b:
            shared = sum(min(weight, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, weight in mine.items())
            cosines += damping * shared / (a * b)
    return cosines / NGRAMS
