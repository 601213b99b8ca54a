"""Scores of Chinese captions: the facts they state (findings, sides, organs, modality) and the surface metrics.

Inputs: caption predictions, and as true facts either the truth record of the dataset or the facts that a vocabulary
extracts from the reference. Outputs: one fact score per caption and the means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qilin.core.errors import UserError
from qilin.core.files import read_jsonl, shorten
from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.caption_matching import match_statements
from qilin.evaluate.scoring.text_metrics import MAX_TEXT_CHARACTERS, bleu, chrf, cider, mean_rouge_l, tokens
from qilin.text.facts import DEFAULT_VOCABULARY, Vocabulary, extract_facts, find_contradictions, read_vocabulary
from qilin.text.normalize import normalize_answer
from qilin.text.statements import Statement, Statements, is_abnormal, read_statements

VOCABULARY_FILE = "facts.json"
TRUTH_FILE = "truth.jsonl"
DENIAL = "no "  # prefix of a denied finding


@dataclass(frozen=True)
class FactScore:
    """Counts of one caption: shared, stated and true facts; `invented`: affirmed findings that are not true;
    `contradicted`: findings that the caption both affirms and denies (each counts as one wrong statement).
    `abnormal_…`: the same counts over the affirmed findings alone."""

    shared: int
    stated: int
    true: int
    invented: int
    contradicted: int = 0
    abnormal_shared: int = 0
    abnormal_stated: int = 0
    abnormal_true: int = 0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1.0 where there is no true fact and none is stated."""
        return f1_score(self.shared, self.stated, self.true)


def f1_score(shared: int, stated: int, true: int) -> float:
    """F1 of counts; 1.0 where nothing is stated and nothing is true."""
    return 2 * shared / (stated + true) if stated + true else 1.0


def compare_statements(stated: Statements, true: Statements, contradicted: frozenset[str] = frozenset()) -> FactScore:
    """Compares the statements of a caption with the true ones.

    A finding on the other side or of another organ is not the same finding: none of its facts is shared. A contradicted
    finding counts as one wrong statement instead of two.
    """
    findings = [f for f in stated.findings if not _concerns(f, contradicted)]
    pairs = match_statements(findings, true.findings)
    plain = stated.plain & true.plain
    shared = {index: facts for index, _, facts in pairs}
    affirmed = [index for index, f in enumerate(findings) if is_abnormal(f)]
    true_names = {(f.name, f.base) for f in true.findings if not f.negated}
    invented = {
        findings[i].base
        for i in affirmed
        if i not in shared and not any(findings[i].base == base for _, base in true_names)
    }
    return FactScore(
        shared=sum(shared.values()) + len(plain),
        stated=sum(f.weight for f in findings) + len(stated.plain) + len(contradicted),
        true=sum(f.weight for f in true.findings) + len(true.plain),
        invented=len(invented),
        contradicted=len(contradicted),
        abnormal_shared=sum(shared.get(index, 0) for index in affirmed),
        abnormal_stated=sum(findings[index].weight for index in affirmed) + len(contradicted),
        abnormal_true=sum(f.weight for f in true.findings if is_abnormal(f)),
    )


def _concerns(statement: Statement, contradicted: frozenset[str]) -> bool:
    """Whether a statement is about a contradicted finding; a denial of 肺结节 also concerns 结节."""
    names = {statement.name, statement.base}
    if names & contradicted:
        return True
    return statement.negated and any(f.endswith(statement.name) or statement.name.endswith(f) for f in contradicted)


def statements_of_facts(facts: frozenset[str]) -> Statements:
    """The facts of a truth record, or those extracted with a dataset's own vocabulary, as statements.

    `结节`, `结节|side=左侧` and `结节|mm=12` are one finding; facts of no finding (白细胞|number=4) stay as they are.
    """
    names = {fact.removeprefix(DENIAL) for fact in facts if "|" not in fact and "=" not in fact and fact != "normal"}
    details: dict[str, set[str]] = {}
    plain = {fact for fact in facts if fact == "normal" or ("=" in fact and fact.split("|")[0] not in names)}
    for fact in facts:
        name, _, detail = fact.partition("|")
        if detail and name in names:
            details.setdefault(name, set()).add(detail)
    findings = []
    for fact in sorted(facts):
        if fact.removeprefix(DENIAL) not in names:
            continue
        name, negated = fact.removeprefix(DENIAL), fact.startswith(DENIAL)
        attributes = set() if negated else details.get(name, set())
        sides = sorted(detail.removeprefix("side=") for detail in attributes if detail.startswith("side="))
        rest = frozenset(detail for detail in attributes if not detail.startswith("side="))
        findings += [Statement(name, name, negated, "", side, rest) for side in sides or [""]]
    return Statements(tuple(findings), frozenset(plain))


@dataclass(frozen=True)
class FactSource:
    """Origin of the true facts: a truth record by image, else the reference caption read with the vocabulary."""

    vocabulary: Vocabulary
    truth: Mapping[str, frozenset[str]]  # image_id -> facts

    def read(self, text: str) -> Statements:
        """The statements of a caption. A dataset's own vocabulary (facts.json) names no organs that contain others."""
        text = text[:MAX_TEXT_CHARACTERS]
        if self.vocabulary is not DEFAULT_VOCABULARY:
            return statements_of_facts(_facts(text, _Key(self.vocabulary)))
        statements = read_statements(text)
        # organs and regions are the sites of findings
        plain = frozenset(f for f in statements.plain if not f.startswith(("organ=", "region=", "phase=")))
        return Statements(statements.findings, plain)

    def has_truth(self, image_ids: Sequence[str]) -> bool:
        """Whether a truth record names the facts of every image."""
        return bool(image_ids) and all(image_id in self.truth for image_id in image_ids)

    def true_statements(self, image_ids: Sequence[str], reference: str) -> Statements:
        """What is true of the images."""
        if self.has_truth(image_ids):
            return statements_of_facts(frozenset().union(*(self.truth[image_id] for image_id in image_ids)))
        return self.read(reference)

    def stated_statements(self, image_ids: Sequence[str], prediction: str) -> Statements:
        """What a caption states. A truth record lists only what is present, so denials do not count against one."""
        if not self.has_truth(image_ids):
            return self.read(prediction)
        stated = statements_of_facts(_facts(prediction[:MAX_TEXT_CHARACTERS], _Key(self.vocabulary)))
        return Statements(tuple(f for f in stated.findings if not f.negated), stated.plain)

    def contradictions(self, text: str) -> frozenset[str]:
        """The findings that a text both affirms and denies."""
        return _contradictions(text[:MAX_TEXT_CHARACTERS], _Key(self.vocabulary))

    def compare(self, image_ids: Sequence[str], reference: str, prediction: str) -> FactScore:
        """The facts that a caption states against the true ones."""
        contradicted = self.contradictions(prediction)
        if contradicted and not self.has_truth(image_ids):
            contradicted -= self.contradictions(reference)  # what the reference contradicts itself is no fault
        stated = self.stated_statements(image_ids, prediction)
        return compare_statements(stated, self.true_statements(image_ids, reference), contradicted)


@dataclass(frozen=True)
class _Key:
    """A vocabulary as a key of a cache, by identity: hashing its terms would cost more than reading a text."""

    vocabulary: Vocabulary

    def __hash__(self) -> int:
        return id(self.vocabulary)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.vocabulary is other.vocabulary


# Controls give one caption to many rows, and every control is compared with the same references.
@lru_cache(maxsize=20_000)
def _facts(text: str, key: _Key) -> frozenset[str]:
    return extract_facts(text, key.vocabulary)


@lru_cache(maxsize=20_000)
def _contradictions(text: str, key: _Key) -> frozenset[str]:
    return find_contradictions(text, key.vocabulary)


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
        **abnormal_scores(facts),
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


def abnormal_scores(facts: Sequence[FactScore]) -> dict[str, float]:
    """F1, precision and recall over the affirmed findings alone, which a report of "normal" does not raise."""
    shared, stated, true = (
        sum(getattr(fact, f"abnormal_{name}") for fact in facts) for name in ("shared", "stated", "true")
    )
    return {
        "abnormal_f1": f1_score(shared, stated, true),
        "abnormal_precision": shared / stated if stated else 0.0,
        "abnormal_recall": shared / true if true else 0.0,
    }


def statements_of_captions(
    captions: Sequence[Prediction], source: FactSource
) -> tuple[list[Statements], list[Statements]]:
    """What each caption states and what is true of its images."""
    stated = [source.stated_statements(p.image_ids, p.prediction) for p in captions]
    return stated, [source.true_statements(p.image_ids, p.reference) for p in captions]
