"""The evaluation from rows to report, with a model that is a table: its scores are known beforehand."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from PIL import Image

from qilin.core.errors import UserError
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import ImageRecord, Sample, assistant, text_of, user
from qilin.dataset.writer import DatasetWriter
from qilin.evaluate.config import EvaluateConfig, ScoreConfig
from qilin.evaluate.controls.blind import CommonestAnswer, Known, derangements, mean_image
from qilin.evaluate.items import is_caption, is_closed, items_of, read_rows
from qilin.evaluate.run import evaluate
from qilin.evaluate.score import score_file
from qilin.evaluate.scoring.aggregate import write_scores


def image(seed: int) -> ImageRecord:
    """Broad random blobs: images whose hashes lie far apart."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((48, 48), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG")
    import hashlib

    data = file.getvalue()
    name = hashlib.sha256(data).hexdigest()
    return ImageRecord(name, data, "png", 48, 48, str(imagehash.phash(image)), "CT" if seed % 2 else "MRI")


def side_of(seed: int) -> str:
    return "左侧" if seed % 3 else "右侧"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 12 test images; each asked modality, side, a chat of two turns, and a caption."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    with DatasetWriter(folder, {"importer": "test"}) as writer:
        for seed in range(52):
            split, shown = ("train" if seed < 40 else "test"), image(seed)
            writer.add_image(shown)
            kind, here = (shown.modality or ""), (shown.image_id,)
            ask = "这张图片的成像方式是什么?" if seed < 50 else "用什么方式拍的片?"
            rows = [
                Sample(f"{seed}-m", "vqa", here, (user(ask, 1), assistant(kind)), "open", question_type="Modality"),
                Sample(
                    f"{seed}-s", "vqa", here, (user("病变在左侧吗?", 1), assistant("是的" if seed % 3 else "不是")),
                    "closed", question_type="Position",
                ),
                Sample(
                    f"{seed}-c", "chat", here,
                    (user("病变在哪?", 1), assistant(side_of(seed)), user("确定吗?"), assistant("确定")), "open",
                ),
                Sample(f"{seed}-k", "caption", here, (user("", 1), assistant(f"{kind}图像，{side_of(seed)}结节。"))),
            ]  # fmt: skip
            for row in rows:
                assert writer.add_sample(split, row)
    return folder


@pytest.fixture
def table_model(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A model folder, and a stand-in for generation that knows the truth of each image, wrong about one image."""
    from qilin.model import generate
    from qilin.model import generate as features
    from qilin.model import llava as compose

    data = open_dataset(dataset)
    truth = {}
    for split in ("train", "test"):
        for item in items_of(data.samples(split), "描述图片。"):
            shown = Image.open(io.BytesIO(data.image(item.image_ids[0]).bytes)).convert("RGB")
            truth[shown.tobytes(), item.question] = item.reference
    state: dict[str, Any] = {"asked": 0, "stop_after": None}

    def answer_all(
        loaded: Any, requests: Sequence[Any], batch: int = 16, max_new_tokens: int = 64
    ) -> Iterator[generate.Answer]:
        for request in requests:
            if state["stop_after"] is not None and state["asked"] >= state["stop_after"]:
                raise KeyboardInterrupt
            state["asked"] += 1
            question = text_of(request.messages[-1])
            seen = request.images[0].tobytes() if request.images else b""
            yield generate.Answer(truth.get((seen, question), "是的"), 0.5)

    monkeypatch.setattr(compose, "load_model", lambda *a, **k: compose.LoadedModel(None, None, {}, "table"))
    monkeypatch.setattr(generate, "answer_all", answer_all)

    def image_features(loaded: Any, images: Sequence[Image.Image]) -> Any:
        state["looked"] = state.get("looked", 0) + len(images)
        return np.stack([np.asarray(p.resize((1, 1)), dtype=np.float16).ravel() / 255 for p in images])

    monkeypatch.setattr(features, "image_features", image_features)
    folder = tmp_path / "model"
    folder.mkdir()
    card = {
        "data": [{"path": str(dataset), "hash": data.hash}],
        "instructions": ["描述图片。"],
        "metrics": "metrics.jsonl",
    }
    (folder / "qilin.json").write_text(json.dumps(card | {"stage": "language", "parent": None}), encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    rows = "".join(json.dumps({"step": step, "loss": 3 / step}) + "\n" for step in range(1, 30))
    (folder / "metrics.jsonl").write_text(rows, encoding="utf-8")
    return {"folder": folder, "state": state}


def config_for(model: dict[str, Any], dataset: Path, out: Path, **more: Any) -> EvaluateConfig:
    return EvaluateConfig(model=str(model["folder"]), dataset=dataset, out=out, resamples=200, shuffles=3, **more)


def test_evaluate_whole(table_model: dict[str, Any], dataset: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    scores = evaluate(config_for(table_model, dataset, out))
    caught = capsys.readouterr()
    assert "all" in caught.out
    assert scores["all"]["n"] == 48
    assert scores["closed"]["n"] == 12
    assert scores["captions"]["n"] == 12
    for name in ("all", "closed", "open"):
        for metric in ("exact", "accuracy"):
            part = scores[name][metric]
            assert part["value"] == 1.0
            assert part["blind"] < 0.9
            assert part["shuffled"] < 0.9
            assert part["shuffles"] == 3
            assert len(part["interval"]) == 2
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
    nothing = scores["nothing_to_see"]
    assert nothing["n"] == nothing["own_picture"]["n"] == nothing["mean_picture"]["n"] == nothing["blank_picture"]["n"]
    assert nothing["own_picture"]["affirm_a_finding"] == 1.0
    assert nothing["blank_picture"]["affirm_a_finding"] == 0.0
    assert "against training: " in caught.err
    assert scores["manifest"]["leaks"]["pictures"]["same"] == 0
    manifest = json.loads((out / "scores.json").read_text(encoding="utf-8"))["manifest"]
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


def test_predictions_have_the_agreed_fields(table_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    evaluate(config_for(table_model, dataset, tmp_path / "out"))
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    fields = (
        "id",
        "question",
        "reference",
        "prediction",
        "answer_type",
        "choices",
        "image_ids",
        "question_type",
        "confidence",
    )
    assert all(list(row)[: len(fields)] == list(fields) for row in rows)
    turns = [row for row in rows if row["id"].startswith("40-c")]
    assert [(row["id"], row["question"]) for row in turns] == [("40-c", "病变在哪?"), ("40-c#1", "确定吗?")]
    assert next(row for row in rows if row["id"] == "40-k")["question"] == "描述图片。"


def test_score_gives_what_evaluate_wrote(table_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wrote = evaluate(config_for(table_model, dataset, out))
    scores, judged = score_file(ScoreConfig(file=out / "predictions.jsonl", resamples=200))
    assert json.loads(json.dumps({k: v for k, v in scores.items() if k != "manifest"})) == json.loads(
        json.dumps({k: v for k, v in wrote.items() if k != "manifest"})
    )
    assert len(judged) == 60
    assert {row["rule"] for row in judged if row["id"].endswith("-k")} == {"caption"}


def test_score_makes_the_controls_that_need_no_model(
    table_model: dict[str, Any],
    dataset: Path,
    tmp_path: Path,
    capsys: Any,
) -> None:
    """Predictions alone, as from another system: --train and --dataset give the same figures that evaluate wrote."""
    wrote = evaluate(config_for(table_model, dataset, tmp_path / "out"))
    alone = tmp_path / "alone.jsonl"
    alone.write_bytes((tmp_path / "out" / "predictions.jsonl").read_bytes())
    capsys.readouterr()
    scores, _ = score_file(ScoreConfig(file=alone, train=dataset, dataset=dataset, resamples=200))
    assert "against training: " in capsys.readouterr().err
    assert scores["nearest_neighbour"]["each"] == {"thumbnails": wrote["nearest_neighbour"]["each"]["thumbnails"]}
    for name in ("no_near_duplicate", "unseen_wording"):
        assert scores[name]["n"] == wrote[name]["n"]
        assert scores[name]["accuracy"]["value"] == wrote[name]["accuracy"]["value"]
    each = wrote["all"]["accuracy"]["blind_each"]
    assert scores["all"]["accuracy"]["blind"] == each["commonest training answer"]
    assert scores["all"]["accuracy"]["shuffled"] is None
    only_answers, _ = score_file(ScoreConfig(file=alone, train=dataset, resamples=200))
    assert only_answers["nearest_neighbour"]["accuracy"] is None
    assert "--dataset" in only_answers["nearest_neighbour"]["reason"]
    strange = alone.read_text(encoding="utf-8").replace('"image_ids": ["', '"image_ids": ["x', 1)
    alone.write_text(strange, encoding="utf-8")
    with pytest.raises(UserError, match="not in this dataset"):
        score_file(ScoreConfig(file=alone, train=dataset, dataset=dataset, resamples=200))


def test_interrupted_evaluation_goes_on(table_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "out", table_model["state"]
    state["stop_after"] = 75  # in the middle of the second pass
    with pytest.raises(KeyboardInterrupt):
        evaluate(config_for(table_model, dataset, out))
    assert not (out / "scores.json").exists()
    with (out / "passes" / "shuffled_0.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "cut sho')  # killed in the middle of a line
    state["stop_after"] = None
    first = evaluate(config_for(table_model, dataset, out))
    affirming = first["nothing_to_see"]["n"]
    assert state["asked"] == 60 * 5 + affirming  # nothing was asked twice
    assert state["looked"] == 40 + 12  # each image of both splits
    again = evaluate(config_for(table_model, dataset, out))
    assert state["asked"] == 60 * 5 + affirming
    assert state["looked"] == 40 + 12
    assert again["all"] == first["all"]


def test_folder_of_another_evaluation_is_refused(table_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(config_for(table_model, dataset, out, controls=False))
    with pytest.raises(UserError, match="holds another evaluation"):
        evaluate(config_for(table_model, dataset, out, controls=False, max_new_tokens=8))
    (table_model["folder"] / "config.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(UserError, match="different: model"):
        evaluate(config_for(table_model, dataset, out, controls=False))
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.docx").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="already holds something"):
        evaluate(config_for(table_model, dataset, strange))


def test_missing_controls_are_null_with_a_reason(table_model: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    (table_model["folder"] / "qilin.json").unlink()
    scores = evaluate(config_for(table_model, dataset, tmp_path / "out", controls=False, label="试跑"))
    part = scores["all"]["accuracy"]
    assert part["blind"] is None
    assert part["shuffled"] is None
    assert "--train" in part["reasons"]["blind"]
    assert scores["nearest_neighbour"]["accuracy"] is None
    assert "--train" in scores["unseen_wording"]["reason"]
    assert "试跑" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_scores_without_a_manifest_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without a manifest"):
        write_scores(tmp_path / "scores.json", {"all": {}})
    assert not list(tmp_path.iterdir())
    write_scores(tmp_path / "scores.json", {"all": {}, "manifest": {"scorer": "1"}})
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


ROW = {"id": "1", "question": "图片中包含肝脏吗?", "reference": "包含", "prediction": "是"}


def test_score_of_foreign_rows(tmp_path: Path) -> None:
    rows = [
        ROW,
        ROW | {"id": 2, "prediction": None},
        ROW | {"id": "3", "question": "图中有几个肾脏?", "reference": 2, "prediction": "两个"},
        ROW | {"id": "4", "answer_type": None, "reference": "左侧气胸。", "prediction": "右侧气胸。"},
    ]
    scores, judged = score_file(ScoreConfig(file=write_rows(tmp_path / "p.jsonl", rows)))
    assert [row["correct"] for row in judged] == [True, None, True, None]
    assert scores["all"]["n"] == 3
    assert scores["all"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert scores["all"]["exact"]["value"] == 0.0
    assert scores["all"]["unparsable"] == 1
    assert scores["closed"]["n"] == 2
    assert scores["captions"]["n"] == 1
    assert scores["captions"]["fact_f1"] == pytest.approx(0.5)
    assert scores["all"]["accuracy"]["blind"] is None
    assert scores["all"]["accuracy"]["reasons"]["shuffled"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "1", "question": "a", "reference": "b"}], "line 1: field prediction is missing"),
        ([ROW, ROW], "line 2: id 1 was used on line 1"),
        ([ROW | {"reference": " "}], "reference is empty"),
        ([ROW | {"answer_type": "maybe"}], "answer_type is 'maybe'"),
        ([ROW | {"choices": "A"}], "choices is 'A'"),
        ([ROW | {"prediction": ["A"]}], "expected a text"),
        ([[1]], "expected an object"),
        ([], "no rows"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_rows(write_rows(tmp_path / "p.jsonl", rows))


def test_rows_sort_themselves() -> None:
    assert is_caption({"kind": "report"})
    assert not is_caption({"kind": "chat", "answer_type": None})
    assert is_caption({"answer_type": None})
    assert not is_caption({})
    assert is_closed(ROW)
    assert not is_closed(ROW | {"answer_type": "open"})
    assert is_closed({"question": "", "reference": "", "answer_type": "choice"})


def test_derangements_move_everything() -> None:
    names = [f"p{i}" for i in range(20)]
    maps = derangements(names, 5, seed=0)
    assert len(maps) == 5
    assert all(set(m) == set(m.values()) == set(names) for m in maps)
    assert all(m[name] != name for m in maps for name in names)
    assert maps[0] != maps[1]
    assert maps == derangements(names, 5, seed=0)
    assert derangements(["one"], 5, seed=0) == []


def shade(value: int) -> Image.Image:
    return Image.new("RGB", (20, 20), (value, value, value))


def test_commonest_answer_and_mean_image() -> None:
    dark, light = (shade(v) for v in (10, 240))
    rows = [Known("在哪?", "左", "P", "d"), Known("在哪?", "左", "P", "d"), Known("在哪?", "右", "P", "l")]
    common = CommonestAnswer().learn(rows)
    assert common.answer("在哪？") == "左"
    assert common.answer("不同的问题", "P") == "左"
    assert common.knows("在哪")
    assert not common.knows("是什么?")
    mean = mean_image([dark, light], side=8)
    assert mean is not None
    assert mean.getpixel((3, 3)) == (125, 125, 125)
    assert mean_image([]) is None


def test_text_only_and_captions_only(table_model: dict[str, Any], tmp_path: Path) -> None:
    """Splits with nothing to see, or nothing to ask, are evaluated too; what is missing is null with a reason."""
    with DatasetWriter(tmp_path / "text", {"importer": "test"}) as writer:
        writer.add_sample("test", Sample("t", "vqa", (), (user("1加1等于几?"), assistant("2")), "open"))
    with DatasetWriter(tmp_path / "captions", {"importer": "test"}) as writer:
        writer.add_image(image(0))
        messages = (user("", 1), assistant("右侧结节。"))
        writer.add_sample("test", Sample("k", "caption", (image(0).image_id,), messages))
    scores = evaluate(config_for(table_model, tmp_path / "text", tmp_path / "a"))
    assert scores["all"]["n"] == 1
    assert scores["captions"]["n"] == 0
    assert scores["all"]["accuracy"]["reasons"]["shuffled"] == "fewer than two images in the split"
    assert "no image" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    scores = evaluate(config_for(table_model, tmp_path / "captions", tmp_path / "b"))
    assert scores["all"]["n"] == 0
    assert scores["all"]["exact"]["value"] is None
    assert scores["all"]["exact"]["reason"]
    assert scores["captions"]["n"] == 1
    assert scores["captions"]["shuffled"] is None
    assert "No questions" in (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
