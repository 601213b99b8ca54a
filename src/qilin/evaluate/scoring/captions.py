"""Scores of Chinese captions: the facts they state (findings, sides, organs, modality) and the surface metrics.

Inputs: caption predictions, and as true facts either the truth record of the dataset or the facts that a vocabulary
extracts from the reference. Outputs: one fact score per caption and the means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qilin.core.errors import UserError
from qilin.core.files import read_jsonl, shorten
from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.text_metrics import MAX_TEXT_CHARACTERS, bleu, chrf, cider, mean_rouge_l, tokens
from qilin.text.facts import (
    DEFAULT_VOCABULARY,
    Vocabulary,
    extract_facts,
    find_contradictions,
    is_finding,
    read_vocabulary,
)
from qilin.text.normalize import normalize_answer

VOCABULARY_FILE = "facts.json"
TRUTH_FILE = "truth.jsonl"
DENIAL = "no "  # prefix of a denied finding


@dataclass(frozen=True)
class FactScore:
    """Counts of one caption: shared, stated and true facts; `invented`: affirmed findings that are not true;
    `contradicted`: findings that the caption both affirms and denies (each counts as one wrong statement)."""

    shared: int
    stated: int
    true: int
    invented: int
    contradicted: int = 0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1.0 where there is no true fact and none is stated."""
        return 2 * self.shared / (self.stated + self.true) if self.stated + self.true else 1.0


def fact_score(stated: frozenset[str], true: frozenset[str], contradicted: frozenset[str] = frozenset()) -> FactScore:
    """Compares stated with true facts. A contradicted finding counts as one wrong statement instead of two facts."""
    affirmed = {fact for fact in stated if is_finding(fact)}
    stated = frozenset(fact for fact in stated if not _concerns(fact, contradicted))
    num_stated = len(stated) + len(contradicted)
    return FactScore(len(stated & true), num_stated, len(true), len(affirmed - true), len(contradicted))


def _concerns(fact: str, findings: frozenset[str]) -> bool:
    """Whether a fact affirms, denies or describes one of the findings; a denial of 肺结节 also concerns 结节."""
    name = fact.removeprefix(DENIAL).split("|")[0]
    if name in findings:
        return True
    return fact.startswith(DENIAL) and any(f.endswith(name) or name.endswith(f) for f in findings)


@dataclass(frozen=True)
class FactSource:
    """Origin of the true facts: a truth record by image, else the reference caption read with the vocabulary."""

    vocabulary: Vocabulary
    truth: Mapping[str, frozenset[str]]  # image_id -> facts

    def compare(self, image_ids: Sequence[str], reference: str, prediction: str) -> FactScore:
        """The facts that a caption states against the true ones."""
        prediction, reference = prediction[:MAX_TEXT_CHARACTERS], reference[:MAX_TEXT_CHARACTERS]
        stated = extract_facts(prediction, self.vocabulary)
        contradicted = find_contradictions(prediction, self.vocabulary)
        if image_ids and all(image_id in self.truth for image_id in image_ids):
            true = frozenset().union(*(self.truth[image_id] for image_id in image_ids))
            # A truth record lists only what is present, so denials are neither rewarded nor punished.
            return fact_score(frozenset(fact for fact in stated if not fact.startswith(DENIAL)), true, contradicted)
        return fact_score(stated, extract_facts(reference, self.vocabulary), contradicted)


def read_fact_source(dataset: Path | None) -> FactSource:
    """facts.json (a vocabulary) and truth.jsonl (rows {"image_id", "facts": [...]}) of a dataset folder, if present."""
    vocabulary: Vocabulary = DEFAULT_VOCABULARY
    truth: dict[str, frozenset[str]] = {}
    if dataset is not None and (dataset / VOCABULARY_FILE).is_file():
        vocabulary = read_vocabulary(dataset / VOCABULARY_FILE)
    if dataset is not None and (dataset / TRUTH_FILE).is_file():
        for where, row in read_jsonl(dataset / TRUTH_FILE, "image_id and facts"):
            facts = row.get("facts", [])
            is_right = isinstance(facts, list) and all(isinstance(fact, str) for fact in facts)
            if "facts" in row and not (is_right and isinstance(row.get("image_id"), str)):
                raise UserError(f"{where}: expected image_id and facts, found {shorten(row)}")
            if "facts" in row:  # a truth record may hold rows without facts
                truth[row["image_id"]] = frozenset(facts)
    return FactSource(vocabulary, truth)


def score_captions(
    captions: Sequence[Prediction], source: FactSource, control_answers: Mapping[str, str] | None = None
) -> tuple[dict[str, float], list[FactScore]]:
    """Means over the captions, and each caption's fact score. For `control_answers` (by row id) only the facts.

    fact_f1 is over all facts of all captions together (micro), so a caption with many facts weighs more.
    """
    predictions = [p.prediction if control_answers is None else control_answers[p.id] for p in captions]
    references = [p.reference for p in captions]
    facts = [source.compare(p.image_ids, p.reference, text) for p, text in zip(captions, predictions, strict=True)]
    shared, stated, true = (sum(getattr(fact, name) for fact in facts) for name in ("shared", "stated", "true"))
    scores = {
        "fact_f1": 2 * shared / (stated + true) if stated + true else 1.0,
        "fact_precision": shared / stated if stated else 0.0,
        "fact_recall": shared / true if true else 0.0,
        "invented_findings": sum(fact.invented for fact in facts) / len(facts),
        "captions_that_invent": sum(fact.invented > 0 for fact in facts) / len(facts),
        "contradictions": sum(fact.contradicted for fact in facts) / len(facts),
    }
    if control_answers is None:
        predictions, references = ([t[:MAX_TEXT_CHARACTERS] for t in texts] for texts in (predictions, references))
        words = [[tokens(normalize_answer(text), "word") for text in texts] for texts in (predictions, references)]
        scores |= {
            "bleu4": bleu(predictions, references),
            "chrf": chrf(predictions, references),
            "cider": sum(cider(*words)) / len(captions),
            "rouge_l_char": mean_rouge_l(predictions, references, "char"),
            "rouge_l_word": mean_rouge_l(predictions, references, "word"),
        }
    return scores, facts
