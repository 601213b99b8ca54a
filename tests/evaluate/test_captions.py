"""Fact scores of captions, with a control for each: wrong sides, invented findings, contradictions, truth records."""

import csv
import json
from pathlib import Path

import pytest

from qilin.core.errors import UserError
from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.captions import (
    FactSource,
    compare_statements,
    read_fact_source,
    score_captions,
    statements_of_facts,
)
from qilin.text.facts import DEFAULT_VOCABULARY, find_contradictions

REFERENCE = "胸部X光片，左侧气胸，未见胸腔积液。"
NO_TRUTH = FactSource(DEFAULT_VOCABULARY, {})


def caption(text: str) -> Prediction:
    return Prediction("1", "", REFERENCE, text, image_ids=("a",), kind="caption")


def test_a_caption_equal_to_its_reference_scores_1() -> None:
    scores, facts = score_captions([caption(REFERENCE)], NO_TRUTH)
    assert [scores[name] for name in ("fact_f1", "bleu4", "rouge_l_char")] == pytest.approx([1.0, 1.0, 1.0])
    assert scores["invented_findings"] == 0
    assert facts[0].shared == facts[0].true


def test_a_wrong_side_lowers_fact_f1_although_the_text_hardly_differs() -> None:
    scores, _ = score_captions([caption(REFERENCE.replace("左", "右"))], NO_TRUTH)
    assert scores["fact_f1"] < 0.9 < scores["rouge_l_char"]


def test_invented_findings_are_counted() -> None:
    scores, _ = score_captions([caption(REFERENCE + "右肺可见肿块。")], NO_TRUTH)
    assert scores["invented_findings"] == 1
    stated, true = (statements_of_facts(frozenset(facts)) for facts in ({"肿块", "no 气胸"}, {"气胸"}))
    assert compare_statements(stated, true).invented == 1


def test_a_contradiction_is_one_wrong_statement() -> None:
    scores, facts = score_captions([caption(REFERENCE + "未见气胸。")], NO_TRUTH)
    assert facts[0].contradicted == 1
    assert scores["contradictions"] == 1
    assert scores["fact_f1"] < score_captions([caption(REFERENCE)], NO_TRUTH)[0]["fact_f1"]
    source = FactSource(DEFAULT_VOCABULARY, {"a": frozenset({"modality=X光", "气胸"})})
    texts = ["胸部X光片，气胸。", "胸部X光片，气胸，未见气胸。", "胸部X光片。"]
    affirmed, contradicted, omitted = (source.compare(["a"], "", text).f1 for text in texts)
    assert affirmed > omitted > contradicted


@pytest.mark.parametrize(
    ("text", "contradicted"),
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
def test_find_contradictions(text: str, contradicted: set[str]) -> None:
    assert find_contradictions(text) == contradicted


def test_contradictions_of_a_text_that_repeats_itself() -> None:
    clauses = "，".join(f"{side}肺{name}" for side in "左右" for name in ("结节", "肿块", "未见积液")) + "，"
    assert find_contradictions(clauses * 100) == set()
    assert find_contradictions(clauses * 100 + "左肺未见结节。") == {"结节"}


def test_different_wording_states_the_same_facts() -> None:
    assert NO_TRUTH.compare([], "左肺可见结节。", "左肺结节。").f1 == 1.0
    assert NO_TRUTH.compare([], "大脑左侧可见水肿。", "左侧脑水肿。").f1 == 1.0
    assert NO_TRUTH.compare([], "左肺可见结节。", "左侧脑水肿。").f1 < 0.5


def test_a_truth_record_takes_precedence_over_the_reference() -> None:
    truth = {"a": frozenset({"modality=X光", "气胸", "气胸|side=右侧"})}
    scores, _ = score_captions([caption(REFERENCE)], FactSource(DEFAULT_VOCABULARY, truth))
    # 未见胸腔积液 need not be in a truth record; a finding on the wrong side is another finding: 1 of 3 facts is shared
    assert [scores["fact_precision"], scores["fact_recall"]] == pytest.approx([1 / 3, 1 / 3])


def test_control_answers_replace_the_predictions() -> None:
    scores, _ = score_captions([caption("")], NO_TRUTH, {"1": REFERENCE})
    assert scores["fact_f1"] == 1.0
    assert "bleu4" not in scores


def test_read_fact_source(tmp_path: Path) -> None:
    assert read_fact_source(tmp_path).truth == {}
    (tmp_path / "facts.json").write_text('{"finding": {"气胸": ["气胸"]}}', encoding="utf-8")
    lines = [json.dumps({"image_id": "a", "facts": ["气胸"]}), json.dumps({"image_id": "b", "kind": "no facts here"})]
    (tmp_path / "truth.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = read_fact_source(tmp_path)
    assert source.truth == {"a": frozenset({"气胸"})}
    assert source.compare(["a"], "", "左侧气胸").f1 == 1.0
    (tmp_path / "truth.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"truth\.jsonl, line 1"):
        read_fact_source(tmp_path)


with (Path(__file__).parent / "caption_pairs.tsv").open(encoding="utf-8", newline="") as file:
    CAPTION_PAIRS = list(csv.DictReader(file, delimiter="\t"))
BOUNDS = {"same": (0.85, 1), "part": (0.2, 0.99), "side": (0, 0.55), "wrong": (0, 0.2)}


@pytest.mark.parametrize("pair", CAPTION_PAIRS, ids=lambda pair: f"{pair['verdict']}: {pair['prediction']}"[:40])
def test_caption_pair(pair: dict[str, str]) -> None:
    low, high = BOUNDS[pair["verdict"]]
    assert low <= NO_TRUTH.compare([], pair["reference"], pair["prediction"]).f1 <= high
