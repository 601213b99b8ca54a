"""What a run prints where the output is a file, the names that it saves, and answers scored while it trains."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import qilin.train.loop as loop
from builders.tiny import tiny_dataset
from builders.training import metrics_rows, stage_overrides, steps_of, train_stage
from qilin import cli
from qilin.core.files import read_json
from qilin.core.provenance import public_name, run_paths
from qilin.evaluate.while_training import score_answers
from qilin.model.card import check_card


def run_in_a_file(arguments: list[str], cache: Path) -> str:
    """Everything that a process prints into a file."""
    environment = os.environ | {"QILIN_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "40"}
    command = [sys.executable, "-m", "qilin.cli", "train", "small/align", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    return result.stdout + result.stderr


@pytest.mark.long
def test_a_log_file_has_plain_lines_and_no_bars(home: Path, aligned: Path, tmp_path: Path) -> None:
    more = [f"model={aligned}", "lora={rank: 4}", "logging_steps=1", "trackers=[tensorboard]"]
    text = run_in_a_file(stage_overrides(home, tmp_path / "run", more), tmp_path / "cache")
    for unwanted in ("\r", "\x1b", "it/s]", "━", "FutureWarning", "UserWarning", "Loading weights"):
        assert unwanted not in text, unwanted


def test_lines_of_a_run_name_steps_files_and_the_next_command(
    home: Path, aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert cli.main(["train", "small/align", *stage_overrides(home, run, [f"model={aligned}"])]) == 0
    lines = capsys.readouterr().err.splitlines()
    steps = steps_of(run)
    of_steps = [line for line in lines if f" of {steps}, loss" in line]
    assert len(of_steps) == steps, "one line every logging_steps"
    assert all(word in of_steps[0] for word in ("step 1 of", "learning rate", "tokens/s", "left"))
    assert any(f"metrics: {run / 'metrics.jsonl'}" in line for line in lines)
    assert f"saved: {run}, the model of step {steps} of {steps}" in lines[-2]
    assert (
        lines[-1] == f"  next: qilin train small/instruct data={home / 'data'} model={run} out={tmp_path / 'instruct'}"
    )


def test_an_interrupted_run_names_the_saved_step(
    home: Path, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = loop.compute_gradients

    def interrupt(context: Any, module: Any, batch: Any) -> Any:
        if batch.step == 2:
            raise KeyboardInterrupt
        return real(context, module, batch)

    monkeypatch.setattr(loop, "compute_gradients", interrupt)
    command = ["train", "small/align", *stage_overrides(home, tmp_path / "run", [f"model={aligned}", "save_steps=1"])]
    assert cli.main(command) == 130
    assert "step 2 of 4 is saved in" in capsys.readouterr().err


def test_samples_are_counted_as_drawn(
    home: Path, aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"data={{path: {home / 'data'}, weight: 0.5}}"
    run = train_stage(home, tmp_path / "run", f"model={aligned}", data, "num_epochs=3")
    assert "12 samples drawn from 8, 3 steps" in capsys.readouterr().err
    facts = read_json(run / "plan.json")
    assert (facts["samples"], facts["samples_drawn"]) == (8, 12)


def test_a_finished_model_names_no_folder_of_this_machine(home: Path, aligned: Path, tmp_path: Path) -> None:
    run = train_stage(home, tmp_path / "run", f"model={aligned}", "lora={rank: 2}", "max_steps=1")
    for folder in (aligned, run, run / "adapter"):
        for file in [*folder.glob("*.json"), *folder.glob("*.md"), *folder.glob("*.jinja")]:
            text = file.read_text(encoding="utf-8")
            assert not [path for path in (home, tmp_path, aligned) if str(path) in text], file
    metadata = read_json(run / "qilin.json")
    assert (metadata["parent"], metadata["data"][0]["path"]) == ("aligned", "data")
    assert [base["name"] for base in metadata["bases"]] == ["vision", "language"]  # what the parent was composed of
    assert [source["name"] for source in check_card(run)["training_data"]] == ["data", "data"]  # of both stages
    paths = run_paths(run)
    assert paths == {metadata["data"][0]["hash"]: str((home / "data").resolve()), "parent": str(aligned.resolve())}
    assert public_name("openai/clip-vit-large-patch14-336") == "openai/clip-vit-large-patch14-336"
    assert public_name(tmp_path) == tmp_path.name


@pytest.fixture(scope="module")
def validated_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "data", images=3, questions=2, splits=("train", "validation"))


def test_generated_answers_are_scored_and_training_stays_bit_identical(
    home: Path, aligned: Path, validated_data: Path, tmp_path: Path
) -> None:
    options = (f"model={aligned}", f"data={validated_data}", "kinds=[]", "trainable=[projector, language]")
    silent = train_stage(home, tmp_path / "silent", *options, "validate={interval: 2}")
    numbers = "validate={interval: 2, generate: 7}"
    run = train_stage(home, tmp_path / "run", *options, numbers, score_answers=score_answers)
    assert [row["loss"] for row in metrics_rows(run)] == [row["loss"] for row in metrics_rows(silent)]
    assert (run / "model.safetensors").read_bytes() == (silent / "model.safetensors").read_bytes()
    rows = [row for row in metrics_rows(run) if "validation_loss" in row]
    assert rows
    assert all(row["validation_answers"] == 7 and 0 <= row["validation_score"] <= 1 for row in rows)


def test_the_best_checkpoint_is_that_of_the_score(
    home: Path, aligned: Path, validated_data: Path, tmp_path: Path
) -> None:
    """The scorer of this test likes the second validation best; the loss falls until the last."""
    scores = iter([0.2, 0.9, 0.3, 0.1, 0.0, 0.0, 0.0])
    seen: list[int] = []

    def scorer(loaded: Any, samples: Any, number: int) -> dict[str, float]:
        seen.append(sum(len(rows) for _, rows in samples))
        return {"score": next(scores)}

    options = (f"model={aligned}", f"data={validated_data}", "validate={interval: 1, generate: 3, metric: score}")
    run = train_stage(home, tmp_path / "run", *options, score_answers=scorer)
    metadata = json.loads((run / "qilin.json").read_text())
    assert metadata["plan"]["model_of_step"] == 2
    assert set(seen) == {3}
