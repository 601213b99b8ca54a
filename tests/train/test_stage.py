"""Whole small runs: which parameters move, what is refused and in which words, what a run folder holds."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import qilin.train.checkpoint as checkpoint
import qilin.train.loop as loop
from builders.training import changed_parts, metrics_rows, stage_overrides, steps_of, train_stage, weights
from qilin.convert.weight_files import list_tensors
from qilin.core.errors import UserError
from qilin.core.files import sha256_file
from qilin.dataset.reader import content_hash
from qilin.imaging.augment import augment
from qilin.model.architectures import part_of
from qilin.train.config import read_recipe
from qilin.train.data_loader import PackedDataset
from qilin.train.stage import load_start, run_stage


def test_stage_one_trains_only_the_projector(home: Path, aligned: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = load_start(read_recipe("small/align", stage_overrides(home, tmp_path)))
    before = dict(start.model.named_parameters())
    assert changed_parts(before, weights(aligned)) == {"vision": {False}, "projector": {True}, "language": {False}}
    # On the disk under llava-hf's names, which servers look for.
    names = {weight.name for weight in list_tensors(aligned)}
    assert {"vision_tower.vision_model.pre_layrnorm.weight", "language_model.model.norm.weight"} <= names
    metrics = metrics_rows(aligned)
    assert [row["step"] for row in metrics] == list(range(1, len(metrics) + 1))
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_frozen_weights_are_saved_unrounded(home: Path, aligned: Path, tmp_path: Path) -> None:
    """While it trains it is rounded to bf16."""
    before = weights(aligned)
    run = train_stage(
        home, tmp_path / "run", f"model={aligned}", "trainable=[projector]", "precision=bf16", "num_epochs=1"
    )
    assert changed_parts(before, weights(run)) == {"vision": {False}, "projector": {True}, "language": {False}}
    rounded = {name: tensor.bfloat16().float() for name, tensor in before.items()}
    assert changed_parts(before, rounded)["language"] == {True, False}, "control: rounding would be seen"


def test_a_learning_rate_of_zero_freezes_a_part(home: Path, aligned: Path, tmp_path: Path) -> None:
    run = train_stage(
        home,
        tmp_path / "run",
        f"model={aligned}",
        "trainable=[vision, projector, language]",
        "learning_rates.vision=0",
        "num_epochs=1",
    )
    assert changed_parts(weights(aligned), weights(run)) == {"vision": {False}, "projector": {True}, "language": {True}}


def test_stage_two_trains_projector_and_language(home: Path, aligned: Path, tmp_path: Path) -> None:
    run = train_stage(home, tmp_path / "run", f"model={aligned}", "trainable=[projector, language]")
    assert changed_parts(weights(aligned), weights(run)) == {"vision": {False}, "projector": {True}, "language": {True}}
    assert metrics_rows(run)[-1]["loss"] < metrics_rows(aligned)[-1]["loss"]


def test_vision_has_its_own_learning_rate(home: Path, aligned: Path, tmp_path: Path) -> None:
    reach = {}
    for rate in (1e-4, 1e-3):
        run = train_stage(
            home,
            tmp_path / str(rate),
            f"model={aligned}",
            "trainable=[vision, projector]",
            f"learning_rates.vision={rate}",
            "lr_scheduler_type=constant",
            "batch_size=8",
            "num_epochs=1",
        )
        before, after = weights(aligned), weights(run)
        result = changed_parts(before, after)
        assert result["language"] == {False}
        assert result["projector"] == {True}
        assert True in result["vision"]
        assert steps_of(run) == 1
        reach[rate] = max(
            float((after[n] - t).detach().abs().max()) for n, t in before.items() if part_of(n) == "vision"
        )
    # AdamW's first step is the rate itself wherever there is a gradient
    assert reach[1e-4] == pytest.approx(1e-4, rel=0.02)
    assert reach[1e-3] == pytest.approx(1e-3, rel=0.02)


def test_a_finished_run_is_reused(home: Path, aligned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise AssertionError("trained again")

    stamp = (aligned / "model.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("qilin.train.stage.load_start", no)
        train_stage(home, aligned)
        with pytest.raises(UserError, match=r"learning_rate.*0\.01.*0\.02"):
            train_stage(home, aligned, "learning_rate=0.02")
    assert (aligned / "model.safetensors").stat().st_mtime_ns == stamp
    assert not (aligned / "checkpoints").exists()


def test_a_folder_that_is_not_a_run_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a run of Qilin"):
        train_stage(home, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("recipe", "more", "expected_error"),
    [
        ("small/aling", [], "'small/aling'; did you mean small/align"),
        ("small/align", ["bacth_size=4"], "unknown key bacth_size; did you mean batch_size"),
        ("small/align", ["learning_rates.visoin=1"], r"learning_rates\.visoin; did you mean learning_rates\.vision"),
        ("small/align", ["lora={rnak: 4}"], r"unknown key lora\.rnak; did you mean lora\.rank"),
        ("small/align", ["trainable=[projector, language]", "lora={}"], "lora and trainable"),
        ("small/align", ["pack_tokens=100"], "pack_tokens is 100"),
        ("small/align", ["batch_size=0"], "batch_size is 0"),
        ("small/align", ["trackers=[tensorbord]"], "tensorboard"),
        ("small/align", ["data=nowhere"], "nowhere: no such dataset folder"),
        ("small/align", ["kinds=[report]"], "no samples of kind report in split train; it has caption, vqa"),
        ("small/align", ["data={path: DATA, split: tset}"], "no split 'tset'; it has train"),
        ("small/align", ["max_length=20", "pack_tokens=20"], "sample train-.*: .* tokens, max_length is 20"),
    ],
)
def test_an_error_names_its_cause(
    home: Path, tmp_path: Path, recipe: str, more: list[str], expected_error: str
) -> None:
    more = [word.replace("DATA", str(home / "data")) for word in more]
    with pytest.raises(UserError, match=expected_error):
        train_stage(home, tmp_path / "run", *more, recipe=recipe)
    assert not (tmp_path / "run").exists()


def test_check_names_images_that_do_not_decode(home: Path, tmp_path: Path) -> None:
    uninterrupted = read_recipe("small/align", stage_overrides(home, tmp_path / "run"))
    assert run_stage(uninterrupted, "test", check=True) is None  # control: whole images pass
    assert not (tmp_path / "run").exists()
    data = tmp_path / "data"
    shutil.copytree(home / "data", data)
    file = next((data / "images").glob("*.parquet"))
    table = pq.read_table(file)
    name = next(n for n in table.column_names if table.schema.field(n).type in ("binary", "large_binary"))
    bytes_ = table.column(name).to_pylist()
    bytes_[2] = bytes_[2][:60]
    owner = table.schema.get_field_index(name)
    pq.write_table(table.set_column(owner, table.schema.field(name), pa.array(bytes_)), file)
    manifest = json.loads((data / "manifest.json").read_text())
    entry = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}  # damaged before it was written, not after
    manifest["files"][f"images/{file.name}"] = entry
    manifest["hash"] = content_hash(manifest["files"])
    (data / "manifest.json").write_text(json.dumps(manifest))
    config = read_recipe("small/align", stage_overrides(home, tmp_path / "run", [f"data={data}"]))
    expected_error = rf"image {table.column('image_id')[2]} \(sample train-vqa-"
    with pytest.raises(UserError, match=expected_error):
        run_stage(config, "test", check=True)


def test_a_missing_tracker_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trackers names swanlab, which is not installed: pip install swanlab"):
        train_stage(home, tmp_path / "run", "trackers=[swanlab]")


def test_dropped_samples_are_listed(home: Path, aligned: Path, tmp_path: Path) -> None:
    lengths = measure(home, tmp_path)
    limit = max(lengths) - 1
    run = train_stage(home, tmp_path / "run", f"model={aligned}", f"max_length={limit}", "on_overlength=drop")
    dropped = [json.loads(line) for line in (run / "dropped.jsonl").read_text().splitlines()]
    assert len(dropped) == sum(length > limit for length in lengths) > 0
    assert all(f"max_length is {limit}" in row["reason"] for row in dropped)
    facts = json.loads((run / "plan.json").read_text())
    assert (facts["dropped"], facts["samples"]) == (len(dropped), len(lengths) - len(dropped))
    assert not (aligned / "dropped.jsonl").exists()


def measure(home: Path, tmp_path: Path) -> list[int]:
    config = read_recipe("small/align", stage_overrides(home, tmp_path / "unused"))
    return PackedDataset(config, load_start(config).processor).lengths.total.tolist()  # type: ignore[no-any-return]


def test_the_moving_average_becomes_the_model(
    home: Path, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_by_step: list[dict[str, torch.Tensor]] = []
    real = loop.update_ema

    def watch(average: Any, model: Any, decay: float, step: int) -> None:
        weights_by_step.append({name: p.clone() for name, p in checkpoint.trainable_weights(model).items()})
        real(average, model, decay, step)

    monkeypatch.setattr(loop, "update_ema", watch)
    decay = 0.3
    run = train_stage(home, tmp_path / "run", f"model={aligned}", f"ema_decay={decay}")
    expected = {name: weights(aligned)[name].detach() for name in weights_by_step[0]}
    for step, now in enumerate(weights_by_step):
        share = min(decay, (step + 1) / (step + 10))
        expected = {name: share * tensor + (1 - share) * now[name] for name, tensor in expected.items()}
    result = weights(run)
    for name, tensor in expected.items():
        assert torch.allclose(result[name], tensor, atol=1e-6), name
        assert not torch.allclose(result[name], weights_by_step[-1][name], atol=1e-6), (
            "control: not simply the last weights"
        )


def test_augmentation_is_determined_by_its_seed() -> None:
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    one, same, other = (augment(pixels, 1.0, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == pixels.shape
    assert torch.allclose(augment(pixels, 0.0, torch.Generator().manual_seed(5)), pixels, atol=1e-5)
    ramp = torch.linspace(-1, 1, 16).expand(8, 3, 16, 16)  # bright on the right: it stays on the right
    turned = augment(ramp, 1.0, torch.Generator().manual_seed(5))
    assert bool((turned[..., 8:].mean((1, 2, 3)) > turned[..., :8].mean((1, 2, 3))).all())


def test_a_pack_is_augmented_as_its_images_are() -> None:
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    pack: Any = SimpleNamespace(pixels=pixels, augment_seeds=(4, 9, 4))
    config: Any = SimpleNamespace(augment=0.5, seed=2)
    seeds = [(2 * 1_000_003 + 7) * 1_000_003 + seed for seed in pack.augment_seeds]
    alone = [
        augment(image, 0.5, torch.Generator().manual_seed(seed))
        for image, seed in zip(pixels.split(1), seeds, strict=True)
    ]
    assert torch.equal(loop.augment_pack(pack, config, step=7), torch.cat(alone))
    assert not torch.equal(loop.augment_pack(pack, config, step=8), torch.cat(alone))  # control


def test_tensorboard_has_the_metrics(home: Path, aligned: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = train_stage(home, tmp_path / "run", f"model={aligned}", "trackers=[tensorboard]", "num_epochs=1")
    files = list((run / "tensorboard").glob("events*"))
    assert len(files) == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(run / "tensorboard"))
    curves.Reload()
    for name in ("loss", "tokens_per_second", "answer_tokens_per_second", "samples_per_second", "padding", "data_wait",
                 "mfu", "memory_gb", "left_seconds"):  # fmt: skip
        assert [e.value for e in curves.Scalars(name)] == pytest.approx([row[name] for row in metrics_rows(run)]), name
    assert all(0 < row["mfu"] < 1.5 and row["padding"] == 0 for row in metrics_rows(run))
    assert metrics_rows(run)[-1]["left_seconds"] == 0
