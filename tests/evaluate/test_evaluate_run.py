"""`evaluate` from a dataset to the report, with a model whose scores are known in advance."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders.evaluation import blob_image, config_for
from qilin.core.errors import UserError
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, assistant, text_of, user
from qilin.dataset.writer import DatasetWriter
from qilin.evaluate.commands import evaluate_command
from qilin.evaluate.items import iter_items
from qilin.evaluate.predict import ModelAnswer, count_refusals, run_pass
from qilin.evaluate.run import evaluate
from qilin.evaluate.scoring.aggregate import write_scores
from qilin.evaluate.scoring.answers import SCORER_VERSION
from qilin.model.card import check_card, write_card


def test_scores_controls_and_report(lookup_model: dict[str, Any], dataset: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    write_card(lookup_model["folder"], {"data": []})
    evaluate_command(config_for(lookup_model, dataset, out))
    result = check_card(lookup_model["folder"])["model-index"][0]["results"][0]
    assert result["metrics"][0]["value"] == 1.0
    assert result["metrics"][0]["controls"]["shuffled"] < 0.9
    captured = capsys.readouterr()
    assert "all" in captured.out
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["all"]["n"] == 48
    assert scores["closed"]["n"] == 12
    assert scores["captions"]["n"] == 12
    for name in ("all", "closed", "open"):
        for metric in ("exact", "accuracy"):
            score = scores[name][metric]
            assert score["value"] == 1.0
            assert score["blind"] < 0.9
            assert score["shuffled"] < 0.9
            assert score["shuffles"] == 3
            assert len(score["interval"]) == 2
    assert scores["captions"]["fact_f1"] == 1.0
    assert scores["captions"]["blind"] < 1.0
    assert scores["unseen_wording"]["n"] == 2
    assert scores["no_near_duplicate"]["n"] is not None
    assert set(scores["by_question_type"]) == {"Modality", "Position"}
    assert set(scores["by_modality"]) == {"CT", "MRI"}
    nearest = scores["nearest_neighbour"]
    assert nearest["accuracy"]["value"] < 1.0
    assert set(nearest["each"]) == {"thumbnails", "model features"}
    assert nearest["accuracy"]["value"] == max(by["accuracy"] for by in nearest["each"].values())
    assert nearest["each"][nearest["from"]]["accuracy"] == nearest["accuracy"]["value"]
    assert scores["captions"]["nearest"] < 1.0
    for name in ("over_blind", "over_nearest_neighbour"):
        assert scores["gain"][name]["value"] > 0
    probe = scores["nothing_to_see"]
    assert probe["n"] == probe["own_picture"]["n"] == probe["mean_picture"]["n"] == probe["blank_picture"]["n"]
    assert probe["own_picture"]["affirm_a_finding"] == 1.0
    assert probe["blank_picture"]["affirm_a_finding"] == 0.0
    manifest = scores["manifest"]
    assert manifest["leaks"]["pictures"]["same"] == 0
    assert "of 12 images" in captured.err
    assert "no calibration.json: 48 answers" in captured.err
    for name in ("model", "dataset", "decoding", "prompt", "scorer", "code", "versions", "machine", "time"):
        assert manifest[name]
    assert manifest["dataset"]["split_sha256"] == open_dataset(dataset).split_hash("test")
    assert manifest["dataset"]["benchmark"] is None
    assert manifest["judge"] is None
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 12
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "<polyline" in page
    assert "{{" not in page


def test_fields_of_predictions_jsonl(lookup_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    evaluate(config_for(lookup_model, dataset, tmp_path / "out"))
    lines = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    fields = [
        "id", "question", "reference", "prediction", "answer_type", "choices", "image_ids", "question_type",
        "confidence", "kind", "group",
    ]  # fmt: skip
    assert all(list(row) == fields for row in rows)
    turns = [row for row in rows if row["id"].startswith("40-c")]
    assert [(row["id"], row["question"]) for row in turns] == [("40-c", "病变在哪?"), ("40-c#1", "确定吗?")]
    assert next(row for row in rows if row["id"] == "40-k")["question"] == "描述图片。"


@pytest.mark.story
def test_interrupted_evaluation_resumes(
    lookup_model: dict[str, Any], dataset: Path, tmp_path: Path, capsys: Any
) -> None:
    out, state = tmp_path / "out", lookup_model["state"]
    state["stop_after"] = 75  # in the middle of the second pass
    with pytest.raises(KeyboardInterrupt):
        evaluate(config_for(lookup_model, dataset, out))
    assert not (out / "scores.json").exists()
    with (out / "passes" / "shuffled_0.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "cut sho')  # killed in the middle of a line
    state["stop_after"] = None
    first = evaluate(config_for(lookup_model, dataset, out))
    with_finding = first["nothing_to_see"]["n"]
    for _ in range(2):
        assert state["answered"] == 60 * 5 + with_finding  # no question is answered twice
        assert state["embedded"] == 40 + 12  # each image of both splits once
        again = evaluate(config_for(lookup_model, dataset, out))
        assert again["all"] == first["all"]
    assert "scorer" not in capsys.readouterr().err
    write_scores(out / "scores.json", {**first, "manifest": {**first["manifest"], "scorer": "1.2"}})
    evaluate(config_for(lookup_model, dataset, out))
    assert f"was made by scorer 1.2, now by {SCORER_VERSION}" in capsys.readouterr().err


def test_refused_questions_count_as_empty_answers(dataset: Path, tmp_path: Path, capsys: Any) -> None:
    items = list(iter_items(open_dataset(dataset).samples("test"), "描述图像。"))

    def answer(requests: Any, max_new_tokens: int) -> Any:
        refused = ("an image is too thin" if text_of(r.messages[-1]) == "确定吗?" else "" for r in requests)
        return [ModelAnswer("", 0.0, reason) if reason else ModelAnswer("是", 0.5) for reason in refused]

    limits: dict[str, int] = {"batch_size": 4, "max_new_tokens": 1, "caption_tokens": 1}
    for _ in range(2):  # the second run reads the answers of the first
        answers = run_pass(answer, items, "as_it_is", lambda i: None, tmp_path, **limits)  # type: ignore[arg-type, return-value]
        assert sum(a.refusal == "an image is too thin" for a in answers.values()) == count_refusals(tmp_path) == 12
        assert "12 of 60 count as empty: an image is too thin" in capsys.readouterr().err
    only = [item for item in items if item.question == "确定吗?"]
    with pytest.raises(UserError, match="none of 12 questions"):
        run_pass(answer, only, "shuffled_0", lambda i: None, tmp_path, **limits)  # type: ignore[arg-type, return-value]


def test_folder_of_another_evaluation_is_refused(lookup_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(config_for(lookup_model, dataset, out, controls=False))
    with pytest.raises(UserError, match="another evaluation.*decoding"):
        evaluate(config_for(lookup_model, dataset, out, controls=False, max_new_tokens=8))
    (lookup_model["folder"] / "config.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(UserError, match="different: model"):
        evaluate(config_for(lookup_model, dataset, out, controls=False))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.docx").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="other: is not empty"):
        evaluate(config_for(lookup_model, dataset, other))
    assert [path.name for path in other.iterdir()] == ["thesis.docx"]


def test_missing_controls_are_null_with_a_reason(lookup_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    (lookup_model["folder"] / "qilin.json").unlink()
    scores = evaluate(config_for(lookup_model, dataset, tmp_path / "out", controls=False, label="试跑"))
    score = scores["all"]["accuracy"]
    assert score["blind"] is None
    assert score["shuffled"] is None
    assert "--train" in score["reasons"]["blind"]
    assert scores["nearest_neighbour"]["accuracy"] is None
    assert "--train" in scores["unseen_wording"]["reason"]
    assert "试跑" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_scores_without_a_manifest_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="manifest"):
        write_scores(tmp_path / "scores.json", {"all": {}})
    assert not list(tmp_path.iterdir())
    write_scores(tmp_path / "scores.json", {"all": {}, "manifest": {"scorer": "1"}})
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_splits_without_images_or_without_questions(lookup_model: dict[str, Any], tmp_path: Path) -> None:
    """Text-only and captions-only splits are evaluated; missing values are null with a reason."""
    with DatasetWriter(tmp_path / "text", {"importer": "test"}) as writer:
        writer.add_sample("test", Sample("t", "vqa", (), (user("1加1等于几?"), assistant("2")), "open"))
    with DatasetWriter(tmp_path / "captions", {"importer": "test"}) as writer:
        image = blob_image(0)
        writer.add_image(image)
        messages = (user("", 1), assistant("右侧结节。"))
        writer.add_sample("test", Sample("k", "caption", (image.image_id,), messages))
    scores = evaluate(config_for(lookup_model, tmp_path / "text", tmp_path / "a"))
    assert scores["all"]["n"] == 1
    assert scores["captions"]["n"] == 0
    assert scores["all"]["accuracy"]["reasons"]["shuffled"] == "fewer than two images in the split"
    assert "no image" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    scores = evaluate(config_for(lookup_model, tmp_path / "captions", tmp_path / "b"))
    assert scores["all"]["n"] == 0
    assert scores["all"]["exact"]["value"] is None
    assert scores["all"]["exact"]["reason"]
    assert scores["captions"]["n"] == 1
    assert scores["captions"]["shuffled"] is None
    assert "No questions" in (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
