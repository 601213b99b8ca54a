"""The judge between two systems: in both orders, chats whole, a judge that loves the first answer proves nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.llm_server import Service, serving
from qilin.evaluate.compare import compare_command
from qilin.evaluate.config import CompareConfig
from qilin.evaluate.scoring.llm_judge import combined, matches_of, read_verdict


def rows(right: bool) -> list[dict[str, Any]]:
    made = [
        {"id": f"r{i}", "question": "描述", "reference": "左肺结节", "prediction": "左肺结节" if right else "右肺结节",
         "kind": "report", "image_ids": [f"p{i}"]}
        for i in range(12)
    ]  # fmt: skip
    made += [
        {"id": f"c{k}", "question": "在哪?", "reference": "左侧", "prediction": "左侧" if right or not k else "右侧",
         "kind": "chat", "image_ids": ["p0"]}
        for k in ("", "#1")
    ]  # fmt: skip
    return [*made, {"id": "same", "question": "?", "reference": "CT", "prediction": "CT", "image_ids": ["p1"]}]


def files(folder: Path) -> tuple[Path, Path]:
    for name, right in (("a", True), ("b", False)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(right))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder / "a.jsonl", folder / "b.jsonl"


def honest(body: dict[str, Any]) -> str:
    text = body["messages"][0]["content"]
    first, second = (text.split(f"{who}的回答：")[-1].split("\n")[0] for who in "甲乙")
    return f"比较如下……\n[[{'平' if first == second else '甲' if '左' in first else '乙'}]]"


def test_an_honest_judge(tmp_path: Path) -> None:
    a, b = files(tmp_path)
    with serving(Service(honest)) as service:
        given: dict[str, Any] = {"a": a, "b": b, "judge": "judge", "endpoint": service.url, "resamples": 500}
        found = compare_command(CompareConfig(**given))["judge"]
        assert {k: found[k] for k in ("n", "alike", "a", "b", "tie", "contradicted")} == {
            "n": 14, "alike": 1, "a": 13, "b": 0, "tie": 0, "contradicted": 0,
        }  # fmt: skip
        assert found["p_value"] < 0.01
        assert "参考答案" in found["judge"]["prompt"]
        asked = len(service.seen)
        assert asked == 26  # 12 reports and a chat, in both orders
        chat = next(body for body in service.seen if "在哪" in body["messages"][0]["content"])
        assert chat["messages"][0]["content"].count("参考答案：") == 2
        compare_command(CompareConfig(**given))
        assert len(service.seen) == asked


def test_a_judge_that_loves_the_first_proves_nothing(tmp_path: Path) -> None:
    a, b = files(tmp_path)
    with serving(Service(lambda body: "[[甲]]")) as service:
        found = compare_command(CompareConfig(a=a, b=b, judge="j", endpoint=service.url, resamples=100))["judge"]
        assert (found["contradicted"], found["difference"]) == (13, 0)


def test_verdicts() -> None:
    assert read_verdict("先看[[甲]]，但最终[[乙]]") == "乙"
    assert read_verdict("甲更好") is None
    assert combined("甲", "乙") == "a"
    assert combined("乙", "甲") == "b"
    assert combined("平", "平") == "tie"
    assert combined("甲", None) == "unreadable"
    assert len(matches_of(rows(True), rows(True))) == 0
    with pytest.raises(ValueError, match="go together"):
        CompareConfig(a=Path("a"), b=Path("b"), judge="x")
