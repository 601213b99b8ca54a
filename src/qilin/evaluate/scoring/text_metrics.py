"""Surface metrics of Chinese texts: token F1, BLEU-4, chrF, ROUGE-L and CIDEr, over characters or jieba words.

Inputs: predictions and references as text; CIDEr takes tokens. Outputs: 0 to 1, CIDEr 0 to 10.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import exp, log, sqrt

from qilin.core.files import make_cache_dir
from qilin.text.normalize import normalize_answer

MAX_TEXT_CHARACTERS = 10_000  # of a text that the metrics read; what a model that repeats itself adds is not
JIEBA_BLOCK = 5_000  # characters
CIDER_MAX_NGRAM = 4
CIDER_SIGMA = 6.0  # of the length penalty, in bigrams, as published (CIDEr-D)

Ngram = tuple[str, ...]


@lru_cache(maxsize=20_000)
def tokens(text: str, unit: str) -> tuple[str, ...]:
    """A normalized text as characters (unit "char") or jieba words (unit "word"), without punctuation and spaces.

    What follows MAX_TEXT_CHARACTERS is not read.
    """
    text = text[:MAX_TEXT_CHARACTERS]
    if unit == "char":
        pieces: list[str] = list(text)
    else:
        import jieba

        jieba.setLogLevel(60)  # jieba logs how it loads its dictionary
        if not jieba.dt.initialized:
            jieba.dt.tmp_dir = str(make_cache_dir("jieba"))  # in /tmp anybody can plant a jieba.cache
        # jieba's time grows with the square of a run of unknown characters
        blocks = (text[i : i + JIEBA_BLOCK] for i in range(0, len(text), JIEBA_BLOCK))
        pieces = [piece for block in blocks for piece in jieba.lcut(block)]
    return tuple(piece for piece in pieces if piece.strip() and not re.fullmatch(r"[\W_]+", piece))


def token_f1(prediction: str, reference: str, unit: str = "word") -> float:
    """F1 of the shared tokens after normalization, 0 to 1."""
    p, r = tokens(normalize_answer(prediction), unit), tokens(normalize_answer(reference), unit)
    shared = sum((Counter(p) & Counter(r)).values())
    return 2 * shared / (len(p) + len(r)) if shared else float(p == r)


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU-4 by sacrebleu with its Chinese tokenizer, 0 to 1, on the texts as they are."""
    from sacrebleu.metrics import BLEU

    return float(BLEU(tokenize="zh").corpus_score(list(predictions), [list(references)]).score / 100)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2 by sacrebleu: character n-grams up to six, recall weighted twice; 0 to 1."""
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(list(predictions), [list(references)]).score / 100)


def mean_rouge_l(predictions: Sequence[str], references: Sequence[str], unit: str) -> float:
    """Mean ROUGE-L F1, 0 to 1."""
    return sum(rouge_l(p, r, unit) for p, r in zip(predictions, references, strict=True)) / max(1, len(predictions))


def rouge_l(prediction: str, reference: str, unit: str = "char") -> float:
    """F1 of the longest common subsequence of tokens after normalization."""
    p, r = tokens(normalize_answer(prediction), unit), tokens(normalize_answer(reference), unit)
    if not p or not r:
        return float(p == r)
    return 2 * lcs_length(p, r) / (len(p) + len(r))


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bit-parallel rows (Hyyrö 2004)."""
    positions: dict[str, int] = {}  # token -> bit mask of its positions in a
    for position, token in enumerate(a):
        positions[token] = positions.get(token, 0) | 1 << position
    all_ones = (1 << len(a)) - 1
    row = all_ones
    for token in b:
        matches = row & positions.get(token, 0)
        row = ((row + matches) | (row - matches)) & all_ones
    return len(a) - row.bit_count()


def cider(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption, 0 to 10. A single caption scores 0: its n-grams occur in all references (idf = 0)."""
    assert len(predictions) == len(references), f"{len(predictions)} predictions, {len(references)} references"
    reference_counts = [_count_ngrams(reference) for reference in references]
    document_counts: Counter[Ngram] = Counter(ngram for counts in reference_counts for ngram in counts)
    log_documents = log(max(1, len(references)))

    def vector(counts: Counter[Ngram]) -> list[dict[Ngram, float]]:
        """tf-idf weights of the n-grams, one mapping per n."""
        weights: list[dict[Ngram, float]] = [{} for _ in range(CIDER_MAX_NGRAM)]
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * (log_documents - log(max(1, document_counts[ngram])))
        return weights

    scores = []
    for prediction, r_counts in zip(predictions, reference_counts, strict=True):
        p_counts = _count_ngrams(prediction)
        excess_bigrams = _num_bigrams(p_counts) - _num_bigrams(r_counts)
        length_penalty = exp(-(excess_bigrams**2) / (2 * CIDER_SIGMA**2))
        similarity = 0.0  # summed over n = 1 to 4
        for p, r in zip(vector(p_counts), vector(r_counts), strict=True):
            norm = _norm(p) * _norm(r)
            if norm:
                clipped = sum(min(weight, r.get(ngram, 0.0)) * r.get(ngram, 0.0) for ngram, weight in p.items())
                similarity += length_penalty * clipped / norm
        scores.append(10 * (similarity / CIDER_MAX_NGRAM))
    return scores


def _count_ngrams(sequence: Sequence[str]) -> Counter[Ngram]:
    sizes = range(1, CIDER_MAX_NGRAM + 1)
    return Counter(tuple(sequence[i : i + n]) for n in sizes for i in range(len(sequence) - n + 1))


def _num_bigrams(counts: Counter[Ngram]) -> int:
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _norm(weights: dict[Ngram, float]) -> float:
    return sqrt(sum(weight * weight for weight in weights.values()))
