"""Evaluations of a served model, and evaluations made again."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from test_evaluate import config_for, dataset, table_model  # noqa: F401

from builders.llm_server import Service, serving
from qilin.core.errors import RunError, UserError
from qilin.evaluate.config import EvaluateConfig
from qilin.evaluate.reproduce import differences
from qilin.evaluate.run import evaluate


def sees_an_image(body: dict[str, Any]) -> str:
    """Answers only whoever sent an image, as the data has it for 左侧."""
    last = body["messages"][-1]["content"]
    first = body["messages"][0]["content"]
    assert isinstance(first, list), "the first turn holds the image"
    assert first[0]["image_url"]["url"].startswith("data:image/png;base64,")
    return "左侧" if isinstance(last, list) else "确定"


def test_a_served_model_is_measured(dataset: Path, tmp_path: Path) -> None:  # noqa: F811
    with serving(Service(sees_an_image)) as service:
        given: dict[str, Any] = {"model": "served", "dataset": dataset, "endpoint": service.url, "resamples": 100}
        scores = evaluate(EvaluateConfig(**given, out=tmp_path / "a", shuffles=1, train=dataset))
        asked = len(service.seen)
        # a chat's second turn carries its history, but for those seen alike from the mean image
        assert any(len(body["messages"]) == 3 for body in service.seen)
        assert scores["manifest"]["model"] == {"path": "served", "sha256": None, "endpoint": service.url}
        assert scores["all"]["accuracy"]["value"] > 0.3
        assert scores["confidence"]["n"] == scores["all"]["n"]
        (tmp_path / "a" / "passes" / "as_it_is.jsonl").unlink()
        evaluate(EvaluateConfig(**given, out=tmp_path / "a", shuffles=1, train=dataset))
        assert len(service.seen) == asked  # every reply was kept
        other = given | {"endpoint": service.url.replace("127.0.0.1", "localhost")}
        with pytest.raises(UserError, match="different: model"):
            evaluate(EvaluateConfig(**other, out=tmp_path / "a", shuffles=1, train=dataset))


def test_reproduce(table_model: dict[str, Any], dataset: Path, tmp_path: Path, capsys: Any) -> None:  # noqa: F811
    evaluate(config_for(table_model, dataset, tmp_path / "first"))
    path = tmp_path / "first" / "scores.json"
    capsys.readouterr()
    evaluate(EvaluateConfig(reproduce=path, out=tmp_path / "second"))
    assert "reproduced, every figure is the same" in capsys.readouterr().out
    changed = json.loads(path.read_text(encoding="utf-8"))
    changed["all"]["accuracy"]["value"] = 0.5
    path.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(RunError, match="1 figures differ"):
        evaluate(EvaluateConfig(reproduce=path, out=tmp_path / "third"))
    assert "all.accuracy.value: 0.5 then, 1.0 now" in capsys.readouterr().out
    with pytest.raises(UserError, match="name another --out"):
        evaluate(EvaluateConfig(reproduce=path, out=tmp_path / "first"))
    (tmp_path / "no.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="no settings"):
        evaluate(EvaluateConfig(reproduce=tmp_path / "no.json", out=tmp_path / "fourth"))


def test_differences_are_named() -> None:
    old = {"a": [1.0, {"b": 2}], "path": "x", "gone": None}
    assert list(differences(old, {"a": [1.0 + 1e-12, {"b": 3}], "path": "y", "gone": None}, "")) == [
        "a[1].b: 2 then, 3 now"
    ]


def test_the_last_bit_of_a_confidence_is_no_difference_and_one_answer_is() -> None:
    """Both figures as a demo and its reproduction gave them; then an answer among 100,000."""
    old = {"mean_confidence": 0.3368871612681283, "exact": 0.5}
    assert not list(differences(old, {"mean_confidence": 0.3368871642483605, "exact": 0.5}, ""))
    assert list(differences(old, old | {"exact": 0.50001}, "")) == ["exact: 0.5 then, 0.50001 now"]


def test_settings_name_what_is_missing() -> None:
    with pytest.raises(Exception, match="name a model and a dataset"):
        EvaluateConfig()
