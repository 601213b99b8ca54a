"""The LLM judge between two systems: both orders, chats as one unit, no effect of a judge with a position bias."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.llm_server import FakeService, serve
from qilin.evaluate.compare import compare_command
from qilin.evaluate.config import CompareConfig
from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.llm_judge import build_pairs, combine_verdicts, parse_verdict


def predictions(correct: bool) -> list[Prediction]:
    """12 reports, a chat of two turns whose first turn is always correct, and a row that both systems answer alike."""
    answer, side = ("左肺结节", "左侧") if correct else ("右肺结节", "右侧")
    reports = [Prediction(f"r{i}", "描述", "左肺结节", answer, image_ids=(f"p{i}",), kind="report") for i in range(12)]
    chat = [
        Prediction("c", "在哪?", "左侧", "左侧", image_ids=("p0",), kind="chat"),
        Prediction("c#1", "在哪?", "左侧", side, image_ids=("p0",), kind="chat"),
    ]
    return [*reports, *chat, Prediction("same", "?", "CT", "CT", "open", image_ids=("p1",))]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Prediction files of system a, which is always correct, and of system b."""
    paths = {}
    for name, correct in (("a", True), ("b", False)):
        paths[name] = tmp_path / f"{name}.jsonl"
        text = "".join(json.dumps(p.to_row(), ensure_ascii=False) + "\n" for p in predictions(correct))
        paths[name].write_text(text, encoding="utf-8")
    return paths


def unbiased_reply(body: dict[str, Any]) -> str:
    text = body["messages"][0]["content"]
    first, second = (text.split(f"{name}的回答：")[-1].split("\n")[0] for name in "甲乙")
    return f"比较如下……\n[[{'平' if first == second else '甲' if '左' in first else '乙'}]]"


def test_an_unbiased_judge_finds_the_better_system(files: dict[str, Path]) -> None:
    with serve(FakeService(unbiased_reply)) as service:
        config = CompareConfig(**files, judge="judge", endpoint=service.url, resamples=500)
        result = compare_command(config)["judge"]
        assert {name: result[name] for name in ("n", "alike", "a", "b", "tie", "contradicted")} == {
            "n": 14, "alike": 1, "a": 13, "b": 0, "tie": 0, "contradicted": 0,
        }  # fmt: skip
        assert result["p_value"] < 0.01
        assert "参考答案" in result["judge"]["prompt"]
        num_requests = len(service.requests)
        assert num_requests == 26  # 12 reports and a chat, in both orders
        chat = next(body for body in service.requests if "在哪" in body["messages"][0]["content"])
        assert chat["messages"][0]["content"].count("参考答案：") == 2
        compare_command(config)
        assert len(service.requests) == num_requests  # replies are cached


def test_a_judge_that_prefers_the_first_answer_has_no_effect(files: dict[str, Path]) -> None:
    with serve(FakeService(lambda body: "[[甲]]")) as service:
        result = compare_command(CompareConfig(**files, judge="j", endpoint=service.url, resamples=100))["judge"]
        assert (result["contradicted"], result["difference"]) == (13, 0)


def test_verdicts() -> None:
    assert parse_verdict("先看[[甲]]，但最终[[乙]]") == "乙"
    assert parse_verdict("甲更好") is None
    assert combine_verdicts("甲", "乙") == "a"
    assert combine_verdicts("乙", "甲") == "b"
    assert combine_verdicts("平", "平") == "tie"
    assert combine_verdicts("甲", None) == "unreadable"
    assert len(build_pairs(predictions(True), predictions(True))) == 0
    with pytest.raises(ValueError, match=r"judge.*endpoint"):
        CompareConfig(a=Path("a"), b=Path("b"), judge="x")
