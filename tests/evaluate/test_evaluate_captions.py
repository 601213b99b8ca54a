"""Caption scores: facts, BLEU, ROUGE-L, with a control for each."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilin.core.errors import UserError
from qilin.evaluate.scoring.captions import (
    FactSource,
    bleu,
    chrf,
    cider,
    fact_score,
    longest_common,
    read_fact_source,
    rouge_l,
    score_captions,
)
from qilin.text.facts import DEFAULT_VOCABULARY, find_contradictions

RIGHT = "胸部X光片，左侧气胸，未见胸腔积液。"


def row(prediction: str, reference: str = RIGHT, image: str = "a") -> dict[str, object]:
    return {"prediction": prediction, "reference": reference, "image_ids": [image]}


def test_a_caption_against_itself() -> None:
    scores, facts = score_captions([row(RIGHT)], FactSource(DEFAULT_VOCABULARY, {}))
    assert [scores[name] for name in ("fact_f1", "bleu4", "rouge_l_char")] == pytest.approx([1.0, 1.0, 1.0])
    assert scores["invented_findings"] == 0
    assert facts[0].shared == facts[0].true


def test_wrong_side_costs_facts_though_words_hardly_differ() -> None:
    scores, _ = score_captions([row(RIGHT.replace("左", "右"))], FactSource(DEFAULT_VOCABULARY, {}))
    assert scores["fact_f1"] < 0.9 < scores["rouge_l_char"]


def test_invented_findings_are_counted() -> None:
    scores, _ = score_captions([row(RIGHT + "右肺可见肿块。")], FactSource(DEFAULT_VOCABULARY, {}))
    assert scores["invented_findings"] == 1
    assert fact_score(frozenset({"肿块", "no 气胸"}), frozenset({"气胸"})).invented == 1


def test_a_contradiction_is_one_wrong_statement() -> None:
    scores, facts = score_captions([row(RIGHT + "未见气胸。")], FactSource(DEFAULT_VOCABULARY, {}))
    assert facts[0].contradicted == 1
    assert scores["contradictions"] == 1
    assert scores["fact_f1"] < score_captions([row(RIGHT)], FactSource(DEFAULT_VOCABULARY, {}))[0]["fact_f1"]
    truth = {"a": frozenset({"modality=X光", "气胸"})}
    said = ["胸部X光片，气胸。", "胸部X光片，气胸，未见气胸。", "胸部X光片。"]
    f1 = [FactSource(DEFAULT_VOCABULARY, truth).compare(["a"], "", text).f1 for text in said]
    assert f1[0] > f1[2] > f1[1]  # to say both is worse than to say nothing


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("左肺结节，右肺未见结节。", set()),
        ("左肺上叶结节，左肺下叶未见结节。", set()),
        ("肺部结节，余未见结节。", set()),
        ("可见骨折。未见骨折。", {"骨折"}),
        ("左肺结节，左肺未见结节。", {"结节"}),
        ("未见积液，可见气胸。", set()),
        ("肺部未见结节，肝脏可见结节。", set()),
        ("", set()),
    ],
)
def test_contradictions(text: str, found: set[str]) -> None:
    assert find_contradictions(text) == found


def test_cider_by_hand_and_in_general() -> None:
    # Two references, each word in one of them: idf = log 2 for all, so equal texts are at 10 and strange ones at 0.
    a, b = ["左", "肺", "上", "叶", "结节"], ["右", "肾", "可见", "小", "囊肿"]
    assert cider([a, b], [a, b]) == pytest.approx([10.0, 10.0])
    assert cider([b, a], [a, b]) == [0.0, 0.0]
    # 4 of 5 words, then 3 of 4 bigrams, 2 of 3 and 1 of 2: each a cosine of counts
    near = cider([["左", "肺", "上", "叶", "肿块"], b], [a, b])[0]
    assert near == pytest.approx(10 * (4 / 5 + 3 / 4 + 2 / 3 + 1 / 2) / 4 * 1.0, rel=0.15)
    assert cider([a * 4, b], [a, b])[0] < 5  # saying it four times is damped
    assert cider([a], [a]) == [0.0]


def test_one_word_or_two_state_the_same() -> None:
    source = FactSource(DEFAULT_VOCABULARY, {})
    assert source.compare([], "左肺可见结节。", "左肺结节。").f1 == 1.0
    assert source.compare([], "大脑左侧可见水肿。", "左侧脑水肿。").f1 == 1.0
    assert source.compare([], "左肺可见结节。", "左侧脑水肿。").f1 < 0.5


def test_chrf() -> None:
    assert chrf(["左肺结节"], ["左肺结节"]) == pytest.approx(1.0)
    assert chrf(["左肺结节"], ["心影增大"]) < 0.05


def test_truth_record_comes_before_the_reference() -> None:
    truth = {"a": frozenset({"modality=X光", "气胸", "气胸|side=右侧"})}
    scores, _ = score_captions([row(RIGHT)], FactSource(DEFAULT_VOCABULARY, truth))
    # 未见胸腔积液 need not be in a truth record; the side is wrong: 2 of 3 facts are shared.
    assert [scores["fact_precision"], scores["fact_recall"]] == pytest.approx([2 / 3, 2 / 3])


def test_fact_source_of_a_folder(tmp_path: Path) -> None:
    assert read_fact_source(tmp_path).truth == {}
    (tmp_path / "facts.json").write_text('{"finding": {"气胸": ["气胸"]}}', encoding="utf-8")
    lines = [json.dumps({"image_id": "a", "facts": ["气胸"]}), json.dumps({"image_id": "b", "kind": "no facts here"})]
    (tmp_path / "truth.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = read_fact_source(tmp_path)
    assert source.truth == {"a": frozenset({"气胸"})}
    assert source.compare(["a"], "", "左侧气胸").f1 == 1.0
    (tmp_path / "truth.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"truth\.jsonl, line 1"):
        read_fact_source(tmp_path)


def test_bleu_reads_chinese_by_character() -> None:
    # As one token a sentence, two different sentences would share nothing.
    assert bleu(["左肺上叶可见结节影"], ["左肺下叶可见结节影"]) > 0.4
    assert bleu(["心脏大小正常"], ["左肺下叶可见结节影"]) < 0.05


def test_rouge_is_by_hand() -> None:
    assert rouge_l("左肺结节", "左肺上叶结节") == pytest.approx(2 * 4 / 10)
    assert rouge_l("", "左肺") == 0.0
    assert rouge_l("左肺结节", "左肺上叶结节", "word") > 0


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_longest_common_against_the_plain_table(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert longest_common(a, b) == table[-1][-1]
