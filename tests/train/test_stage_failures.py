"""What goes wrong around a run is refused, named or survived: the cache of lengths, images, settings, the folder."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from builders.training import Crash, tiny_home
from qilin.core.config import build_config, read_yaml
from qilin.core.errors import RunError, UserError
from qilin.core.files import sha256_file
from qilin.dataset.reader import content_hash
from qilin.model.llava import LoadedModel, compose
from qilin.train import checkpoint, loop
from qilin.train import data_loader as loader_module
from qilin.train.config import TrainConfig, read_recipe
from qilin.train.data_loader import PackedDataset
from qilin.train.lengths_cache import write_cache
from qilin.train.stage import run_stage


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_home(tmp_path_factory.mktemp("parts"), language="llama", vision="clip", images=4, splits=("train",))


@pytest.fixture(scope="module")
def loaded(parts: Path) -> LoadedModel:
    return compose(str(parts / "clip"), str(parts / "llama"), template="v1", system="", pad_square=True)


def recipe(parts: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "vision": str(parts / "clip"),
        "language": str(parts / "llama"),
        "data": [{"path": str(parts / "data")}],
        "system_prompt": "",
        "batch_size": 8,
        "max_length": 300,
        "pack_tokens": 600,
        "logging_steps": 1,
        "save_steps": 2,
        "device": "cpu",
        "precision": "fp32",
        "trackers": [],
    }
    return build_config(TrainConfig, values | changes, "test")


# ── the cache of lengths ────────────────────────────────────────────────────────────────────────────────────────────


def test_an_unwritable_cache_is_no_error(parts: Path, loaded: LoadedModel, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert len(PackedDataset(recipe(parts), loaded.processor).numbers) == 19
    assert cache.is_file()


def test_a_full_disk_leaves_no_partial_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        real(path, content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    write_cache(cache / "x.npz", np.zeros((0, 6)), {})
    assert list(cache.iterdir()) == []


def test_concurrent_cache_writers_use_different_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that share a home folder may have the same process number."""
    paths: list[Path] = []
    real = Path.write_bytes

    def slow(path: Path, content: bytes) -> int:
        paths.append(path)
        if len(paths) == 1:
            write_cache(cache / "x.npz", np.zeros((1, 6)), {"second": 1})
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", slow)
    write_cache(cache / "x.npz", np.zeros((1, 6)), {"first": 1})
    assert paths[0] != paths[1]
    assert [path.name for path in cache.iterdir()] == ["x.npz"]


def test_encoded_samples_are_cached_up_to_a_limit(
    parts: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "ENCODED_CACHE_TOKENS", 100)
    data = PackedDataset(recipe(parts), loaded.processor)
    assert 0 < sum(len(encoded.ids) for encoded in data.encoded.values()) <= 100
    groups = [loader_module.PackedGroup((int(i),), 0) for i in range(len(data.numbers))]
    pack = data.make_pack(groups, torch.device("cpu"), torch.float32)  # the others are encoded when they are needed
    assert pack.ids.shape[1] == data.lengths.total.sum()
    assert data.free_tokens >= 0


# ── images ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_image_is_named_with_its_sample(parts: Path, loaded: LoadedModel, monkeypatch: Any) -> None:
    data = PackedDataset(recipe(parts, kinds=["caption"]), loaded.processor)
    bad = data.sample(0).image_ids[0]
    dataset = data.sources[0].dataset
    uninterrupted = type(dataset).image_bytes

    def image_bytes(self: Any, image_id: str) -> bytes:
        content: bytes = uninterrupted(self, image_id)
        return content[:60] if image_id == bad else content

    monkeypatch.setattr(type(dataset), "image_bytes", image_bytes)
    group = loader_module.PackedGroup((0,), 0)
    with pytest.raises(UserError, match=rf"image {bad} \(sample train-caption-0\): .*damaged"):
        data.make_pack([group], torch.device("cpu"), torch.float32)


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("overrides", "expected_error"),
    [
        (["max_grad_norm=0"], "max_grad_norm is 0.0; expected more than 0"),
        (["learning_rate=-1e-3"], "learning_rate is -0.001; expected more than 0"),
        (["learning_rate=.nan"], "learning_rate is nan"),
        (["seed=-1"], "seed is -1; expected at least 0"),
        (["save_steps=-1"], "save_steps is -1; expected at least 0"),
        (["betas=[1.5, 0.9]"], "betas are"),
        (["warmup_ratio=2"], "warmup_ratio is 2.0; expected 0 to 1"),
        (["batch_size=many"], "batch_size is 'many'"),
        (["bach_size=3"], "unknown key bach_size; did you mean batch_size"),
        (["max_steps=0"], "max_steps is 0; expected at least 1"),
        (["learning_rates.visoin=1"], "unknown key learning_rates.visoin; did you mean learning_rates.vision"),
        (["data=[{path: a, wieght: 2}]"], r"unknown key data\[0\].wieght; did you mean data\[0\].weight"),
        (["data=[{path: a, weight: 0}]"], "weight of a is 0.0; expected more than 0"),
        (["learning_rates.vision=1e-4"], "trainable does not name vision"),
        (["trainable=[projector]", "lora={rank: 0}"], "lora.rank is 0"),
        (["lora={}"], "lora and trainable"),
        (["vision=a", "model=b"], "either model"),
        (["pack_tokens=10"], "expected at least max_length"),
        (["trainable=[]"], "trainable is empty"),
        (["trainable=[projektor]"], "trainable.0 is 'projektor'"),
        (["template=v2"], "template is 'v2'"),
    ],
)
def test_invalid_values_are_refused_by_key(overrides: list[str], expected_error: str) -> None:
    with pytest.raises(UserError, match=expected_error):
        read_recipe("tiny/instruct", ["data=somewhere", "out=run", "model=align", *overrides])


def test_an_unknown_recipe_is_answered_with_the_closest_name() -> None:
    with pytest.raises(UserError, match="'tiny/aling'; did you mean tiny/align"):
        read_recipe("tiny/aling")


def test_control_the_recipe_without_the_mistake_is_valid() -> None:
    assert read_recipe("tiny/instruct", ["data=somewhere", "out=run", "model=align"]).batch_size == 32


# ── a run's folder ──────────────────────────────────────────────────────────────────────────────────────────────────


def train(parts: Path, out: Path, **changes: Any) -> Path:
    result = run_stage(recipe(parts, out=str(out), **{"num_epochs": 2, "learning_rate": 1e-2} | changes), "test")
    assert result == out
    return out


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QILIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return train(parts, tmp_path_factory.mktemp("whole") / "run")


def crash_at(patch: pytest.MonkeyPatch, step: int) -> None:
    real = loop.compute_gradients

    def crashing(context: Any, module: Any, batch: Any) -> Any:
        if batch.step == step:
            raise Crash
        return real(context, module, batch)

    patch.setattr(loop, "compute_gradients", crashing)


def crash(parts: Path, run: Path, step: int, **changes: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, step)
        with pytest.raises(Crash):
            train(parts, run, **changes)


def same(run: Path, uninterrupted: Path) -> bool:
    equal = (run / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    return equal and losses(run) == losses(uninterrupted)


def test_a_run_interrupted_at_every_step_is_bit_identical(parts: Path, uninterrupted: Path, tmp_path: Path) -> None:
    steps = len(losses(uninterrupted))
    assert steps == 6
    for step in range(steps):
        crash(parts, tmp_path / "run", step)
    assert same(train(parts, tmp_path / "run"), uninterrupted)


@pytest.mark.story
def test_resume_with_parameters_that_never_have_a_gradient(parts: Path, tmp_path: Path) -> None:
    """Features come from the layer before the last, so AdamW has no averages of the last one."""
    trainable = ["vision", "projector", "language"]
    uninterrupted = train(parts, tmp_path / "whole", trainable=trainable)
    crash(parts, tmp_path / "run", 3, trainable=trainable)
    run = train(parts, tmp_path / "run", trainable=trainable)
    assert same(run, uninterrupted)
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    assert [row["after_step"] for row in starts] == [0, 2]
    assert all(row["devices"] == 1 and row["device"] == "cpu" and row["torch"] for row in starts)


def test_control_without_optimizer_state_a_resumed_run_differs(
    parts: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    crash(parts, tmp_path / "run", 3)
    last = checkpoint.latest_checkpoint(tmp_path / "run")
    assert last is not None
    (last / "state.json").write_text(json.dumps({"step": 2, "finished": True}))  # its optimizer is not looked at
    assert not same(train(parts, tmp_path / "run"), uninterrupted)


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """Files of at most `limit` bytes: the system itself refuses to write more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_damages_no_checkpoint(
    parts: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = tmp_path / "run", checkpoint.Checkpointer.save

    def refused(saver: Any, step: int, *rest: Any) -> None:
        if step < 4:
            return real(saver, step, *rest)
        with small_disk(12_000):
            assert (checkpoint.list_checkpoints(run)[-1] / "__0_0.distcp").stat().st_size > 12_000
            return real(saver, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpointer, "save", refused)
        with pytest.raises(RunError, match=r"step-0000004: could not be written .*step 2 is complete"):
            train(parts, run)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-0000002"]
    assert same(train(parts, run), uninterrupted)


def test_a_model_that_cannot_be_saved_loses_no_step(
    parts: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = tmp_path / "run", loop.compute_gradients
    steps = len(losses(uninterrupted))

    def never(*arguments: Any) -> Any:
        raise AssertionError("all steps are done")

    import qilin.train.stage as run_module

    write = run_module.write_model

    def refused(*arguments: Any) -> None:
        with small_disk(5000):
            write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_model", refused)
        with pytest.raises(RunError, match=rf"model could not be written .*step {steps} of {steps} is complete"):
            train(parts, run)
    assert not (run / "qilin.json").exists()
    last = checkpoint.latest_checkpoint(run)
    assert last is not None
    saved = FileSystemReader(last).read_metadata().state_dict_metadata
    assert not [name for name in saved if name.startswith("optimizer")]  # nothing is left to optimize
    monkeypatch.setattr(loop, "compute_gradients", never)
    assert same(train(parts, run), uninterrupted)
    assert real is not never


def test_incomplete_checkpoints_are_removed(parts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    crash(parts, run, 3)
    for name in (".step-0000004.unfinished", "step-0000001"):  # the second: half-removed
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "__0_0.distcp").write_bytes(b"half")
    crash(parts, run, 5)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-0000002", "step-0000004"]


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_works(
    parts: Path, uninterrupted: Path, tmp_path: Path, file: str
) -> None:
    run = tmp_path / "run"
    crash(parts, run, 5)
    last = checkpoint.latest_checkpoint(run)
    assert last is not None
    (last / file).write_bytes((last / file).read_bytes()[: 8 if file == "state.json" else 100])
    with pytest.raises(RunError, match=r"step-0000004: cannot be read .*remove this folder"):
        train(parts, run)
    shutil.rmtree(last)
    assert same(train(parts, run), uninterrupted)


def test_keys_that_do_not_affect_the_result_may_change(parts: Path, uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    crash(parts, run, 3)
    train(parts, run, save_steps=3, save_total_limit=1, trackers=["tensorboard"])
    assert same(run, uninterrupted)
    assert read_yaml(run / "recipe.yaml")["save_steps"] == 3


def test_other_keys_may_not_change(parts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    crash(parts, run, 3)
    with pytest.raises(UserError, match=r"learning_rate.*0\.01.*0\.02.*out=FOLDER"):
        train(parts, run, learning_rate=2e-2)
    with pytest.raises(UserError, match=r"label.*None.*'quick'"):
        train(parts, run, label="quick")


def change_hash(data: Path) -> None:
    """Make a sound dataset of another hash: one more rejected row."""
    with (data / "dropped.jsonl").open("a") as file:
        file.write('{"reason": "another", "row": {}}\n')
    manifest = json.loads((data / "manifest.json").read_text())
    size = (data / "dropped.jsonl").stat().st_size
    manifest["files"]["dropped.jsonl"] = {"sha256": sha256_file(data / "dropped.jsonl"), "bytes": size}
    manifest["hash"] = content_hash(manifest["files"])
    (data / "manifest.json").write_text(json.dumps(manifest))


def test_other_data_under_the_same_name_is_refused(parts: Path, tmp_path: Path) -> None:
    """Texts of the same lengths make the same plan; the manifest's hash tells them apart."""
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(parts / "data", data)
    crash(parts, run, 3, data=[{"path": str(data)}])
    change_hash(data)
    with pytest.raises(UserError, match="other data"):
        train(parts, run, data=[{"path": str(data)}])


def test_text_only_samples_do_not_train_a_projector(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(parts, tmp_path / "mixed", kinds=["chat"], batch_size=1, num_epochs=1)
    assert "1 samples have no image" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "mixed" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(row["grad_norm"] > 0 for row in rows) == [False, True]


def test_text_only_data_for_a_projector_is_refused(parts: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(PackedDataset, "count_without_image", lambda data: len(data.numbers))
    with pytest.raises(UserError, match="no sample has an image, so projector"):
        train(parts, tmp_path / "run")
    train(parts, tmp_path / "both", trainable=["projector", "language"], num_epochs=1)


def test_a_missing_tracker_is_refused_before_loading(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trackers names swanlab, which is not installed: pip install swanlab"):
        train(parts, tmp_path / "run", trackers=["swanlab"], vision="nowhere", language="nowhere")


def test_a_non_finite_gradient_stops_before_the_optimizer_step(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss may be finite where its gradient is not."""
    names: list[str] = []
    real = loop.compute_gradients

    def poisoned(context: Any, module: Any, batch: Any) -> Any:
        content = real(context, module, batch)
        if batch.step == 1:
            module.model.model.multi_modal_projector.linear_1.bias.grad[0] = float("inf")
            names.extend(batch.sample_ids)
        return content

    monkeypatch.setattr(loop, "compute_gradients", poisoned)
    with pytest.raises(RunError, match="step 2: the gradient norm is inf") as caught:
        train(parts, tmp_path / "run")
    assert names
    assert all(name in str(caught.value) for name in names)


TRACKER = """
import json
rows = []
def init(*, project, name, config):
    assert isinstance(config, dict) and config["batch_size"] == 8
    rows.append([project, name])
def log(figures, step):
    rows.append([step, figures["loss"]])
def finish():
    open(__file__ + ".json", "w").write(json.dumps(rows))
"""


def test_another_tracker_gets_the_rows_of_metrics_jsonl(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trackio.py").write_text(TRACKER)
    monkeypatch.syspath_prepend(tmp_path)
    run = train(parts, tmp_path / "run", trackers=["trackio"], num_epochs=1)
    rows = json.loads((tmp_path / "trackio.py.json").read_text())
    assert rows[0] == ["qilin", "run test"]
    assert [tuple(row) for row in rows[1:]] == losses(run)
