"""Surface metrics against hand-computed values and reference implementations."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilin.evaluate.scoring.text_metrics import bleu, chrf, cider, lcs_length, rouge_l, token_f1


def test_token_f1() -> None:
    assert token_f1("左肺", "左肺") == 1.0
    assert token_f1("左肺", "心脏") == 0.0
    assert 0 < token_f1("左肺上叶结节", "左肺下叶结节", "char") < 1


def test_bleu_tokenizes_chinese_by_character() -> None:
    # With one token per sentence, two different sentences would share nothing.
    assert bleu(["左肺上叶可见结节影"], ["左肺下叶可见结节影"]) > 0.4
    assert bleu(["心脏大小正常"], ["左肺下叶可见结节影"]) < 0.05


def test_chrf() -> None:
    assert chrf(["左肺结节"], ["左肺结节"]) == pytest.approx(1.0)
    assert chrf(["左肺结节"], ["心影增大"]) < 0.05


def test_rouge_l_matches_hand_computed_values() -> None:
    assert rouge_l("左肺结节", "左肺上叶结节") == pytest.approx(2 * 4 / 10)
    assert rouge_l("", "左肺") == 0.0
    assert rouge_l("左肺结节", "左肺上叶结节", "word") > 0


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_lcs_length_matches_dynamic_programming(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert lcs_length(a, b) == table[-1][-1]


def test_cider_matches_hand_computed_values() -> None:
    # Two references without a common word: idf = log 2 for every n-gram, so equal texts score 10 and others 0.
    a, b = ["左", "肺", "上", "叶", "结节"], ["右", "肾", "可见", "小", "囊肿"]
    assert cider([a, b], [a, b]) == pytest.approx([10.0, 10.0])
    assert cider([b, a], [a, b]) == [0.0, 0.0]
    # 4 of 5 words, 3 of 4 bigrams, 2 of 3 trigrams and 1 of 2 four-grams: each a cosine of counts
    near = cider([["左", "肺", "上", "叶", "肿块"], b], [a, b])[0]
    assert near == pytest.approx(10 * (4 / 5 + 3 / 4 + 2 / 3 + 1 / 2) / 4 * 1.0, rel=0.15)
    assert cider([a * 4, b], [a, b])[0] < 5  # the length penalty applies to a fourfold repetition
    assert cider([a], [a]) == [0.0]


def test_jieba_reads_no_cache_of_the_temporary_folder(tmp_path: Path) -> None:
    """A planted one with other words changes every word score."""
    program = """
import jieba, marshal, os, sys, tempfile
words = {"右上肺": 10**9, "右": 0, "右上": 0, "上": 0, "上肺": 0, "肺": 0}
with open(os.path.join(tempfile.gettempdir(), "jieba.cache"), "wb") as file:
    marshal.dump((words, 10**9), file)
from qilin.evaluate.scoring.text_metrics import tokens
print(jieba.lcut("右上肺") if sys.argv[1] == "control" else list(tokens("右上肺", "word")))
"""
    answers = {}
    for mode in ("control", "qilin"):
        environment = os.environ | {"TMPDIR": str(tmp_path), "QILIN_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-c", program, mode]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        answers[mode] = result.stdout.strip()
    assert answers["control"] == "['右上肺']"  # the planted cache works where it is read
    assert answers["qilin"] not in ("", answers["control"])
    assert (tmp_path / "cache/jieba/jieba.cache").is_file()
