"""Validation while training: the right loss on the right samples, training untouched, the best checkpoints kept."""

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from builders.tiny import tiny_dataset
from builders.training import Crash, metrics_rows, tiny_home
from qilin.core.config import build_config
from qilin.core.errors import RunError, UserError
from qilin.evaluate.report.charts import training_stages
from qilin.model.llava import load_model
from qilin.model.processing import PixelCache, encode_sample
from qilin.train import checkpoint, loop
from qilin.train import validation as validate
from qilin.train.config import TrainConfig
from qilin.train.data_sources import open_sources
from qilin.train.stage import run_stage

# everything of a run that has a state of its own: dropout, changed images, an average, two optimizers
MOVING = {
    "lora": {"rank": 4, "dropout": 0.2}, "augment": 0.5, "ema_decay": 0.9, "optimizer": "muon"
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tiny_home(tmp_path_factory.mktemp("validate"), images=5, splits=("train", "validation"))
    tiny_dataset(home / "alone", images=3, splits=("train",))
    return home


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path_factory.getbasetemp() / "lengths-of-validation"))


def recipe(home: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "vision": str(home / "vision"), "language": str(home / "language"), "data": [{"path": str(home / "data")}],
        "system_prompt": "", "batch_size": 8, "num_epochs": 2, "learning_rate": 1e-2, "warmup_ratio": 0,
        "max_length": 300, "pack_tokens": 300,
        "logging_steps": 1, "save_steps": 0, "device": "cpu", "precision": "fp32", "trackers": [],
    }  # fmt: skip
    return build_config(TrainConfig, values | changes, "test")


def train(home: Path, out: Path, **changes: Any) -> Path:
    assert run_stage(recipe(home, out=str(out), **changes), "test") == out
    return out


def of(run: Path, figure: str) -> dict[int, float]:
    return {row["step"]: row[figure] for row in metrics_rows(run) if figure in row}


# --- the loss


def alone(run: Path, home: Path, split: str) -> list[tuple[float, int]]:
    """Summed loss and answer tokens of each sample, one by one through transformers' own forward."""
    loaded = load_model(str(run), device="cpu", dtype="fp32")
    model: Any = LlavaForConditionalGeneration.from_pretrained(run, dtype=torch.float32)
    model = model.eval()
    source = open_sources(recipe(home, validate={"split": split}), "validation")[0]
    pixels, losses_and_counts = PixelCache(loaded.processor.image_processor), []
    for sample in source.dataset.samples(split):
        encoded = encode_sample(sample, loaded.processor)
        kept_steps = [pixels.get(source.dataset, image) for image in sample.image_ids]
        ids = torch.tensor([encoded.ids])
        labels = torch.where(torch.tensor([encoded.loss_mask]), ids, -100)
        with torch.no_grad():
            loss = model(
                input_ids=ids, pixel_values=torch.stack(kept_steps) if kept_steps else None, labels=labels
            ).loss
        count = int((labels[0, 1:] != -100).sum())
        losses_and_counts.append((float(loss) * count, count))
    return losses_and_counts


def test_validation_loss_is_the_mean_over_answer_tokens(home: Path, tmp_path: Path) -> None:
    run = train(home, tmp_path / "run", trainable=["projector", "language"], validate={"interval": 2, "keep_best": 0})
    losses = of(run, "validation_loss")
    assert list(losses) == [2, 4, 6]
    sums = alone(run, home, "validation")
    assert len(sums) == 23
    by_token = sum(loss for loss, _ in sums) / sum(count for _, count in sums)
    assert losses[6] == pytest.approx(by_token, rel=1e-5)
    by_sample = sum(loss / count for loss, count in sums) / len(sums)
    assert abs(by_sample / by_token - 1) > 1e-2, "control: a mean of means is another number"
    card = json.loads((run / "qilin.json").read_text())["plan"]
    assert card["validation"] == {"samples": 23, "of": 23, "answer_tokens": sum(count for _, count in sums)}
    assert (card["model_of_step"], card["validation_loss"]) == (6, losses[6])


def test_validation_uses_the_moving_average(home: Path, tmp_path: Path) -> None:
    run = train(home, tmp_path / "run", ema_decay=0.9, validate={"interval": 6, "keep_best": 0})
    sums = alone(run, home, "validation")
    by_token = sum(loss for loss, _ in sums) / sum(count for _, count in sums)
    assert of(run, "validation_loss")[6] == pytest.approx(by_token, rel=1e-5)


def test_a_limited_validation_uses_the_same_samples_each_time(home: Path, tmp_path: Path) -> None:
    run = train(home, tmp_path / "run", num_epochs=1, validate={"interval": 1, "samples": 10, "keep_best": 0})
    assert json.loads((run / "plan.json").read_text())["validation"]["samples"] == 10
    still = train(
        home,
        tmp_path / "still",
        num_epochs=1,
        learning_rate=1e-30,
        validate={"interval": 1, "samples": 10, "keep_best": 0},
    )
    assert len(set(of(still, "validation_loss").values())) == 1
    assert len(set(of(run, "validation_loss").values())) == 3, "control: weights that move have other losses"


# --- training is not touched


def test_validation_leaves_training_bit_identical(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(home, tmp_path / "plain", **MOVING)
    validated = train(home, tmp_path / "looked", **MOVING, validate={"interval": 1, "keep_best": 0})
    assert len(of(validated, "validation_loss")) == 6
    for figure in ("loss", "grad_norm"):
        assert of(validated, figure) == of(plain, figure)
    assert (validated / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()

    # controls: a model that is left without dropout, or with the average in place of its weights
    with monkeypatch.context() as patch:
        patch.setattr(validate, "eval_mode", lambda module: nullcontext(module.eval()))
        other = train(home, tmp_path / "eval", **MOVING, validate={"interval": 1, "keep_best": 0})
        assert of(other, "loss") != of(plain, "loss")
    real, calls = validate.swap_ema_weights, []

    def once(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) % 2:
            real(*arguments)

    monkeypatch.setattr(validate, "swap_ema_weights", once)
    other = train(home, tmp_path / "other", **MOVING, validate={"interval": 1, "keep_best": 0})
    assert of(other, "loss") != of(plain, "loss")


# --- the best


def scripted(patch: pytest.MonkeyPatch, losses: list[float]) -> dict[int, dict[str, torch.Tensor]]:
    """Let validations say these losses, one a step; the weights at each step, as they are gathered."""
    weights: dict[int, dict[str, torch.Tensor]] = {}
    real = loop.compute_gradients

    def step(context: Any, module: Any, batch: Any) -> Any:
        weights[batch.step] = {n: t.clone() for n, t in checkpoint.trainable_weights(module.model).items()}  # before it
        current["step"] = batch.step
        return real(context, module, batch)

    current = {"step": 0}
    patch.setattr(loop, "compute_gradients", step)
    patch.setattr(loop, "validate", lambda *arguments: losses[current["step"]])
    return weights


def test_best_checkpoints_are_kept_and_the_model_is_the_best(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept_steps: list[list[int]] = []
    real = checkpoint.Checkpointer.complete

    def complete(saver: Any, *arguments: Any) -> None:
        real(saver, *arguments)
        kept_steps.append([checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path / "run")])

    monkeypatch.setattr(checkpoint.Checkpointer, "complete", complete)
    weights = scripted(monkeypatch, [5.0, 3.0, 4.0, 2.0, 6.0, 3.5])
    options: dict[str, Any] = {"validate": {"interval": 1, "keep_best": 2}, "save_total_limit": 1, "save_steps": 5}
    run = train(home, tmp_path / "run", **options, trackers=["tensorboard"])
    # kept for their loss 1 2 | 2 3 | 2 4; for save_every 5; at the end 6
    assert kept_steps == [[1], [1, 2], [2, 3], [2, 4], [2, 4, 5], [2, 4, 6]]
    card = json.loads((run / "qilin.json").read_text())["plan"]
    assert (card["model_of_step"], card["validation_loss"], card["validation_loss_last"]) == (4, 2.0, 3.5)
    assert "final model: step 4, validation loss 2.0000 (last step, 6: 3.5000)" in (
        " ".join(capsys.readouterr().err.split())
    )
    (stage,) = training_stages(run)  # as the report of an evaluation will draw it
    assert list(stage.validation) == [(1, 5.0), (2, 3.0), (3, 4.0), (4, 2.0), (5, 6.0), (6, 3.5)]
    assert stage.selected_step == 4
    saved = load_file(run / "model.safetensors")
    projector = {name: tensor for name, tensor in saved.items() if "projector" in name}
    assert len(projector) == 4
    for name, tensor in projector.items():
        key = next(n for n in weights[4] if n.endswith(name.split("projector.")[1]))
        assert torch.equal(tensor, weights[4][key]), name  # before step 5 as numbered from 1: after 4
        assert not torch.equal(tensor, weights[5][key]), "control: the step after is another"
    assert not (run / "checkpoints").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert [(e.step, round(e.value, 3)) for e in board.Scalars("validation_loss")] == [
        (1, 5.0), (2, 3.0), (3, 4.0), (4, 2.0), (5, 6.0), (6, 3.5)
    ]  # fmt: skip


def crash(home: Path, run: Path, stop: int, **options: Any) -> None:
    real = loop.compute_gradients

    def crashing(context: Any, module: Any, batch: Any) -> Any:
        if batch.step == stop:
            raise Crash
        return real(context, module, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compute_gradients", crashing)
        with pytest.raises(Crash):
            train(home, run, **options)


@pytest.mark.story
def test_a_run_interrupted_at_every_step_is_bit_identical(home: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        **MOVING,
        "learning_rate": 0.3,
        "validate": {"interval": 2},
        "save_steps": 3,
        "save_total_limit": 1,
    }
    uninterrupted, run = train(home, tmp_path / "whole", **options), tmp_path / "run"
    for stop in range(6):
        crash(home, run, stop, **options)
    train(home, run, **options)
    for figure in ("loss", "grad_norm", "validation_loss"):
        assert of(run, figure) == of(uninterrupted, figure)
    assert (run / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    losses = of(uninterrupted, "validation_loss")
    best = json.loads((uninterrupted / "qilin.json").read_text())["plan"]["model_of_step"]
    assert best == min(losses, key=lambda step: (losses[step], step))


def test_a_damaged_best_checkpoint_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qilin.train.stage as run_module

    def refused(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    options: dict[str, Any] = {"validate": {"interval": 1}}
    scripted(monkeypatch, [5.0, 2.0, 4.0, 3.0, 6.0, 3.5])
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_model", refused)
        with pytest.raises(RunError, match="model could not be written"):
            train(home, tmp_path / "run", **options)
    best = tmp_path / "run" / "checkpoints" / "step-0000002"
    (best / "__0_0.distcp").write_bytes(b"half")
    with pytest.raises(RunError, match=r"step-0000002: cannot be read .*remove this folder"):
        train(home, tmp_path / "run", **options)
    shutil.rmtree(best)
    train(home, tmp_path / "run", **options)
    assert json.loads((tmp_path / "run" / "qilin.json").read_text())["plan"]["model_of_step"] == 6


def test_a_non_finite_validation_loss_names_its_samples(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.pack_loss
    monkeypatch.setattr(
        "qilin.train.stage.pack_loss",
        lambda model, pack, pixels: real(model, pack, pixels) * (1.0 if model.training else math.nan),
    )
    with pytest.raises(RunError, match=r"the validation loss is nan; samples of batch 1: validation-"):
        train(home, tmp_path / "run", validate={"interval": 1})


# --- which samples


@pytest.mark.parametrize(
    ("changes", "current"),
    [
        ({"validate": {"split": "test"}}, r"nothing to validate on: .*data has train, validation; name one of these"),
        ({"validate": {"split": "train"}}, r"validate\.split is 'train', which .* is trained on"),
        ({"validate": {"split": 0.999}}, "0.999.*none of 23 samples to train on"),
        ({"validate": {"split": 1e-6}}, "none of 23 samples to validate on"),
        ({"validate": {"split": 1.5}}, r"validate\.split is 1\.5; expected the name of a split, or a share"),
        ({"validate": {"interval": 0}}, r"validate\.interval is 0; expected at least 1"),
        ({"validate": {"intervall": 1}}, r"unknown key validate\.intervall; did you mean validate\.interval"),
        ({"validate": {}, "kinds": ["report"]}, "no samples of kind report in split"),
    ],
)
def test_invalid_validation_is_refused_before_training(
    home: Path, tmp_path: Path, changes: dict[str, Any], current: str
) -> None:
    with pytest.raises(UserError, match=current):
        train(home, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_check_decodes_the_images_of_the_validation_set(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(home, out=str(tmp_path / "run"), validate={})
    bad = keys(open_sources(config, "validation"))[0].pop()
    real = PixelCache.get

    def get(pixels: Any, dataset: Any, image_id: str, dtype: torch.dtype) -> torch.Tensor:
        if image_id == bad:
            raise UserError("damaged")
        return real(pixels, dataset, image_id, dtype)

    monkeypatch.setattr(PixelCache, "get", get)
    assert run_stage(recipe(home, out=str(tmp_path / "run")), "test", check=True) is None  # control: not read there
    with pytest.raises(UserError, match=rf"1 of 10 images do not decode:\n .*image {bad} \(sample validation-"):
        run_stage(config, "test", check=True)


def keys(sources: Any) -> tuple[set[str], set[str], int]:
    """Images, groups and number of samples."""
    images, groups, count = set(), set(), 0
    for source in sources:
        for row in source.rows.tolist():
            sample = source.dataset.samples(source.split)[row]
            images |= set(sample.image_ids)
            groups |= {sample.group} if sample.group else set()
            count += 1
    return images, groups, count


def test_a_share_is_held_out_by_whole_images_and_groups(home: Path, tmp_path: Path) -> None:
    config = recipe(home, data=[{"path": str(home / "data")}, {"path": str(home / "alone")}],
                      validate={"split": 0.3})  # fmt: skip
    training, validation = (keys(open_sources(config, part)) for part in ("training", "validation"))
    assert not training[0] & validation[0]
    assert not training[1] & validation[1]
    total = keys(open_sources(recipe(home, data=config.data), "training"))
    assert training[2] + validation[2] == total[2] == 23 + 15
    assert 0.1 < validation[2] / total[2] < 0.5
    assert keys(open_sources(config, "validation")) == validation
    run = train(home, tmp_path / "run", validate={"split": 0.3, "interval": 2}, num_epochs=1)
    facts = json.loads((run / "plan.json").read_text())
    assert facts["samples"] + facts["validation"]["samples"] == 23


def test_a_dataset_without_the_split_is_only_trained_on(home: Path) -> None:
    config = recipe(home, data=[{"path": str(home / "data")}, {"path": str(home / "alone")}], validate={})
    assert [source.dataset.path.name for source in open_sources(config, "validation")] == ["data"]
    assert len(open_sources(config, "training")) == 2


def test_kinds_occur_as_often_as_their_weights(home: Path) -> None:
    """A caption at 0.5 in a dataset at weight 2 occurs once per epoch, everything else twice."""
    data = [{"path": str(home / "data"), "weight": 2}]
    (plain,) = open_sources(recipe(home, data=data), "training")
    by_weight = {source.weight: source for source in open_sources(
        recipe(home, data=data, kind_weights={"caption": 0.5}), "training")}  # fmt: skip
    kinds = np.array(plain.dataset.table("train").column("kind").to_pylist())
    assert set(kinds[by_weight[1.0].rows]) == {"caption"}
    assert by_weight[1.0].rows.tolist() + by_weight[2.0].rows.tolist() == sorted(
        plain.rows.tolist(), key=lambda row: (kinds[row] != "caption", row)
    )
    with pytest.raises(UserError, match=r"kind_weights.vqa is 0.0"):
        recipe(home, kind_weights={"vqa": 0})
