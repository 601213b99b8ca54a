"""Evaluations of a remote model, and repeated evaluations."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.evaluation import config_for
from builders.llm_server import FakeService, serve
from qilin.core.config import build_config
from qilin.core.errors import RunError, UserError
from qilin.evaluate.commands import evaluate_command
from qilin.evaluate.config import EvaluateConfig
from qilin.evaluate.reproduce import find_differences, read_scores, reproduce
from qilin.evaluate.run import evaluate


def answer_with_image(body: dict[str, Any]) -> str:
    """Checks that the first turn has an image; answers 左侧 to a turn with an image, else 确定."""
    last = body["messages"][-1]["content"]
    first = body["messages"][0]["content"]
    assert isinstance(first, list), "the first turn holds the image"
    assert first[0]["image_url"]["url"].startswith("data:image/png;base64,")
    return "左侧" if isinstance(last, list) else "确定"


@pytest.mark.story
def test_remote_model(dataset: Path, tmp_path: Path) -> None:
    with serve(FakeService(answer_with_image)) as service:
        options: dict[str, Any] = {
            "model": "served", "dataset": dataset, "endpoint": service.url, "resamples": 100, "shuffles": 1,
            "train": dataset, "out": tmp_path / "a",
        }  # fmt: skip
        scores = evaluate(EvaluateConfig(**options))
        requests = len(service.requests)
        # the second turn of a chat carries its history
        assert any(len(body["messages"]) == 3 for body in service.requests)
        assert scores["manifest"]["model"] == {"path": "served", "sha256": None, "endpoint": service.url}
        assert scores["all"]["accuracy"]["value"] > 0.3
        assert scores["confidence"]["n"] == scores["all"]["n"]
        (tmp_path / "a" / "passes" / "as_it_is.jsonl").unlink()
        evaluate(EvaluateConfig(**options))
        assert len(service.requests) == requests  # every reply comes from the cache
        other = options | {"endpoint": service.url.replace("127.0.0.1", "localhost")}
        with pytest.raises(UserError, match="different: model"):
            evaluate(EvaluateConfig(**other))


def test_a_password_in_the_address_is_in_no_file(dataset: Path, tmp_path: Path) -> None:
    with serve(FakeService(answer_with_image)) as service:
        url = service.url.replace("//", "//user:hidden-word@")
        options: dict[str, Any] = {"model": "served", "dataset": dataset, "endpoint": url, "resamples": 10}
        options |= {"controls": False, "train": dataset, "limit": 2, "extra": '{"top_k": 1}', "out": tmp_path / "a"}
        scores = evaluate(EvaluateConfig(**options))
        assert service.keys[-1].startswith("Basic ")
        assert service.requests[-1]["top_k"] == 1
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert [path.name for path in files if b"hidden-word" in path.read_bytes()] == []
    assert scores["manifest"]["settings"]["endpoint"] == service.url
    assert scores["manifest"]["model"]["extra"] == '{"top_k": 1}'
    assert "scores.json" in {path.name for path in files}


@pytest.mark.story
def test_budget_is_for_the_whole_evaluation(dataset: Path, tmp_path: Path) -> None:
    """A pass is sent in chunks of 8 batches; 300 tokens are enough for 20 requests of 15 tokens in all chunks."""
    with serve(FakeService(answer_with_image)) as service:
        options: dict[str, Any] = {
            "model": "served", "dataset": dataset, "endpoint": service.url, "resamples": 10, "controls": False,
            "train": dataset, "out": tmp_path / "a", "batch_size": 1, "concurrency": 1,
        }  # fmt: skip
        with pytest.raises(RunError, match="budget"):
            evaluate(EvaluateConfig(**options, budget=300))
        assert len(service.requests) == 20
        evaluate(EvaluateConfig(**options))
        assert len(service.requests) == 60  # nothing is asked twice


@pytest.mark.story
def test_reproduce(
    lookup_model: dict[str, Any], dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(config_for(lookup_model, dataset, tmp_path / "first"))
    path = tmp_path / "first" / "scores.json"
    evaluate_command(EvaluateConfig(reproduce=path, out=tmp_path / "second"))
    report = json.loads((tmp_path / "second" / "reproduced.json").read_text(encoding="utf-8"))
    assert report == {"inputs": [], "scores": [], "answers_changed": 0, "same": True}
    changed = json.loads(path.read_text(encoding="utf-8"))
    changed["all"]["accuracy"]["value"] = 0.5
    path.write_text(json.dumps(changed), encoding="utf-8")
    capsys.readouterr()
    with pytest.raises(RunError, match="1 values differ"):
        evaluate_command(EvaluateConfig(reproduce=path, out=tmp_path / "third"))
    assert "all.accuracy.value: 0.5 before, 1.0 now" in capsys.readouterr().out
    report = json.loads((tmp_path / "third" / "reproduced.json").read_text(encoding="utf-8"))
    assert report["scores"] == ["all.accuracy.value: 0.5 before, 1.0 now"]
    with pytest.raises(UserError, match="another --out"):
        evaluate_command(EvaluateConfig(reproduce=path, out=tmp_path / "first"))
    (tmp_path / "no.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"no\.json.*manifest\.settings"):
        evaluate_command(EvaluateConfig(reproduce=tmp_path / "no.json", out=tmp_path / "fourth"))


def test_differences_name_the_value() -> None:
    old = {"a": [1.0, {"b": 2}], "path": "x", "c": None}
    new = {"a": [1.0 + 1e-12, {"b": 3}], "path": "y", "c": None}
    assert list(find_differences(old, new, "")) == ["a[1].b: 2 before, 3 now"]


def test_tolerance_ignores_the_last_bit_of_a_confidence_and_finds_one_answer() -> None:
    """Both values as a demo and its reproduction had them; then one answer of 100,000."""
    old = {"mean_confidence": 0.3368871612681283, "exact": 0.5}
    assert not list(find_differences(old, {"mean_confidence": 0.3368871642483605, "exact": 0.5}, ""))
    assert list(find_differences(old, old | {"exact": 0.50001}, "")) == ["exact: 0.5 before, 0.50001 now"]


def test_config_requires_model_and_dataset() -> None:
    with pytest.raises(ValueError, match="model and dataset"):
        EvaluateConfig()


@pytest.mark.parametrize(
    "option", [{"seed": 3}, {"split": "train"}, {"limit": 2}, {"protocol": "slake-zh"}, {"dtype": "bf16"}]
)
def test_options_that_a_repeated_evaluation_would_ignore_are_refused(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--reproduce takes --{next(iter(option))} from scores.json"):
        build_config(EvaluateConfig, {"reproduce": tmp_path / "scores.json", **option}, "the command line")
    EvaluateConfig(reproduce=tmp_path / "scores.json", train=tmp_path, batch_size=2)  # where and how fast may differ


def test_a_new_training_folder_replaces_the_recorded_one(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model": "m", "dataset": "old", "train": "gone", "seed": 7}
    old = tmp_path / "scores.json"
    old.write_text(json.dumps({"manifest": {"settings": settings}}), encoding="utf-8")
    used: list[EvaluateConfig] = []
    monkeypatch.setattr("qilin.evaluate.reproduce.evaluate", lambda config: used.append(config) or {"manifest": {}})
    for train, expected in ((dataset, dataset), (None, Path("gone"))):
        out = tmp_path / "new"
        out.mkdir(exist_ok=True)
        reproduce(EvaluateConfig(reproduce=old, train=train, out=out))
        assert (used[-1].train, used[-1].seed, used[-1].dataset) == (expected, 7, Path("old"))


@pytest.mark.parametrize("content", ["[]", "{}", '{"manifest": []}', '{"manifest": {"settings": 1}}', "{", "[" * 99999])
def test_damaged_scores_are_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(UserError, match="scores.json: ") as error:
        read_scores(tmp_path / "scores.json")
    assert "\n" not in str(error.value)
