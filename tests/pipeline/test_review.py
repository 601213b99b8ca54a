"""Decisions of reviewers, the sampling of a review, and applying the decisions to the dataset."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from builders.review import write_both
from qilin.cli import main
from qilin.core.errors import UserError
from qilin.dataset.reader import open_dataset
from qilin.dataset.writer import DatasetWriter
from qilin.pipeline.execution.step_output import step_settings
from qilin.pipeline.review.decisions import (
    Decision,
    add_decision,
    agreement_of_pairs,
    current_decisions,
    decisions_path,
    final_decision,
    read_decisions,
    reviewer_agreement,
    sample_hash,
)
from qilin.pipeline.review.sampling import (
    draw_samples,
    find_original,
    run_checks,
    sample_refs,
    stratified_sample,
    to_page_json,
)

# --- decisions ------------------------------------------------------------------------------------------------------


def decide(decision: Any, row: str = "r", reviewer: str = "a", when: str = "1", **details: Any) -> Decision:
    return Decision("s", row, decision, reviewer, when, **details)


def test_decisions_are_appended_and_the_last_one_counts(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    assert read_decisions(path) == []
    decisions = [
        decide("accept"), decide("reject", reason="错"), decide("accept", "other"), decide("undo", "other"),
        decide("fix", reviewer="b", when="0", texts={"text 1.0": "新"}), decide("undo", "never decided"),
    ]  # fmt: skip
    for decision in decisions:
        add_decision(path, decision)
    assert read_decisions(path) == decisions
    current = current_decisions(decisions)
    assert {key: sorted(by_reviewer) for key, by_reviewer in current.items()} == {("s", "r"): ["a", "b"]}
    assert final_decision(current[("s", "r")]).reason == "错"  # one rejection decides
    assert final_decision({"a": decisions[0], "b": decisions[4]}).decision == "fix"


def test_a_pipe_of_decisions_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "decisions.jsonl")
    with pytest.raises(UserError, match=r"decisions\.jsonl: is a named pipe"):
        read_decisions(tmp_path / "decisions.jsonl")


def test_a_line_truncated_by_a_crash_is_the_only_loss(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    add_decision(path, decide("accept"))
    with path.open("a") as file:
        file.write('{"sample_id": "s", "row": "r2", "dec')
    assert len(read_decisions(path)) == 1
    add_decision(path, decide("reject"))
    assert [decision.decision for decision in read_decisions(path)] == ["accept", "reject"]
    path.write_text('{"sample_id": "s"}\n')
    with pytest.raises(UserError, match=r"d\.jsonl:1: "):
        read_decisions(path)
    path.write_text(json.dumps(vars(decide("maybe"))) + "\n")
    with pytest.raises(UserError, match=r"d\.jsonl:1: .*'maybe'"):
        read_decisions(path)


def add_many(path: Path, reviewer: str) -> None:
    for n in range(100):
        add_decision(path, decide("accept", str(n), reviewer, reason="长" * 300))


def test_concurrent_reviewers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=add_many, args=(path, reviewer)) for reviewer in ("a", "b", "c")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    decisions = read_decisions(path)
    assert len(decisions) == 300
    assert all(len(by_reviewer) == 3 for by_reviewer in current_decisions(decisions).values())


def test_a_full_disk_leaves_no_partial_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.jsonl"
    add_decision(path, decide("accept"))
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:20]))
    with pytest.raises(OSError, match=r"d\.jsonl"):
        add_decision(path, decide("reject"))
    assert path.read_bytes() == before


def test_agreement_of_reviewers() -> None:
    pairs = [("accept", "accept")] * 20 + [("accept", "reject")] * 5 + [("reject", "accept")] * 10
    pairs += [("reject", "reject")] * 15
    agreement = agreement_of_pairs(pairs)  # the textbook's example: 0.7 observed, 0.5 expected
    assert (agreement["same"], agreement["kappa"]) == (0.7, pytest.approx(0.4))
    assert agreement_of_pairs([("accept", "accept")])["kappa"] is None
    decisions = [decide("accept", str(n), "a") for n in range(3)] + [decide("accept", str(n), "b") for n in range(1, 4)]
    (pair,) = reviewer_agreement(current_decisions(decisions))
    assert (pair["reviewers"], pair["rows"], pair["same"]) == (["a", "b"], 2, 1.0)


# --- sampling -------------------------------------------------------------------------------------------------------


def test_samples_are_stratified_and_reproducible(tmp_path: Path) -> None:
    english, chinese = write_both(tmp_path)
    assert (find_original(chinese) or english).path == english.path
    session = draw_samples(chinese, english, (), 4, seed=0)
    assert session.refs == draw_samples(chinese, english, (), 4, seed=0).refs
    assert len({ref.stratum for ref in session.refs}) == 4
    assert {ref.sample_id for ref in draw_samples(chinese, english, (), 0, seed=5).refs} == {
        "row-0", "row-1", "row-2", "row-3", "choice", "plain",
    }  # fmt: skip
    with DatasetWriter(tmp_path / "merged", step_settings([english, chinese], {"step": "merge"})) as writer:
        english_row = next(english.stream("train"))
        for image in english.images():
            writer.add_image(image)
        writer.add_sample("train", english_row)
    assert (find_original(open_dataset(tmp_path / "merged")) or chinese).path == english.path  # one of several inputs
    orders = {tuple(ref.sample_id for ref in draw_samples(chinese, english, (), 0, seed).refs) for seed in range(5)}
    assert len(orders) > 1
    refs = list(sample_refs(chinese, ()))
    unbalanced = [ref for ref in refs for _ in range(50 if ref.sample_id == "row-0" else 1)]
    assert {ref.sample_id for ref in stratified_sample(unbalanced, 5)} >= {"row-1", "choice", "plain"}
    assert list(sample_refs(chinese, ("test",))) == []


def test_page_json_with_checks_and_originals(tmp_path: Path) -> None:
    english, chinese = write_both(tmp_path)
    session = draw_samples(chinese, english, (), 0, seed=0)
    rows = {row["sample_id"]: row for row in (to_page_json(session, n) for n in range(len(session.samples)))}
    failed = {
        name: sorted(check["name"] for check in row["checks"] if not check["passed"]) for name, row in rows.items()
    }
    assert {name: checks for name, checks in failed.items() if checks} == {
        "row-2": ["laterality"],
        "row-3": ["personal data"],
    }
    assert [(text["label"], text["text"], text["original"]) for text in rows["choice"]["texts"]] == [
        ("question", "图中显示的是哪个器官？", "Which organ is shown?"),
        ("option A", "肝脏", "Liver"),
        ("option B", "脾脏", "Spleen"),
    ]
    assert rows["choice"]["answer"] == "脾脏"
    assert all(text["original"] is None for text in rows["plain"]["texts"])
    assert len(rows["row-1"]["images"]) == 2
    without_original = draw_samples(chinese, None, (), 0, seed=0)
    assert [check["name"] for check in run_checks(without_original, without_original.samples[0])] == [
        "personal data", "single language", "no contradictions",
    ]  # fmt: skip


# --- applying -------------------------------------------------------------------------------------------------------


def test_decisions_apply_only_to_unchanged_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, chinese = write_both(tmp_path)
    source, path = tmp_path / "articles-zh", decisions_path(tmp_path / "articles-zh")
    assert main(["data", "apply-review", str(source), str(tmp_path / "out")]) == 2
    assert str(path) in capsys.readouterr().err
    samples = {sample.sample_id: sample for sample in chinese.samples("train")}
    add_decision(path, Decision("row-0", sample_hash(samples["row-0"]), "reject", "a", "1", "x"))
    add_decision(path, Decision("row-1", "hash of another text", "reject", "a", "1", "x"))
    assert main(["data", "apply-review", str(source), str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stale"] == 1
    sample_ids = {sample.sample_id for sample in open_dataset(tmp_path / "out").samples("train")}
    assert "row-1" in sample_ids
    assert "row-0" not in sample_ids


def test_a_deeply_nested_line_of_decisions_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("[" * 5000 + "]" * 5000 + "\n")
    with pytest.raises(UserError, match=r"d.jsonl:1: not a decision"):
        read_decisions(path)
