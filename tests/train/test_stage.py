"""Whole small runs: which parameters move, what is refused and in which words, what a run folder holds."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter
from transformers import LlavaForConditionalGeneration

import qilin.train.checkpoint as checkpoint
import qilin.train.loop as loop
from builders.training import metrics_rows, tiny_home
from qilin import cli
from qilin.convert.weight_files import list_tensors
from qilin.core.config import read_yaml
from qilin.core.errors import RunError, UserError
from qilin.core.files import sha256_file
from qilin.dataset.reader import content_hash
from qilin.imaging.augment import augment
from qilin.model.llava import load_model, part_of
from qilin.train.config import read_recipe
from qilin.train.data_loader import PackedDataset
from qilin.train.optimizer import lr_factor
from qilin.train.stage import load_start, run_stage

# twelve steps of a few samples in fp32, so that what should stay can be asked to stay bit for bit
SMALL = (
    "precision=fp32",
    "device=cpu",
    "template=v1",
    "kinds=[vqa]",
    "batch_size=4",
    "num_epochs=2",
    "save_steps=0",
    "logging_steps=1",
    "learning_rate=1e-2",
    "warmup_ratio=0",
    "trackers=[]",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return tiny_home(folder, images=4, questions=2, extras=False, splits=("train",))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path_factory.getbasetemp() / "lengths-of-runs"))


def overrides(home: Path, out: Path, more: Sequence[str] = ()) -> list[str]:
    arguments = {word.split("=")[0] for word in more}
    begin = [] if "model" in arguments else [f"vision={home / 'vision'}", f"language={home / 'language'}"]
    usual = [word for word in (*SMALL, f"data={home / 'data'}", f"out={out}") if word.split("=")[0] not in arguments]
    return [*begin, *usual, *more]


def stage(home: Path, out: Path, *more: str, recipe: str = "small/align") -> Path:
    result = run_stage(read_recipe(recipe, overrides(home, out, more)), "test")
    assert result == out
    return out


@pytest.fixture(scope="module")
def aligned(home: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QILIN_CACHE", str(home / "lengths"))
        return stage(home, home / "aligned")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(str(folder), device="cpu", dtype="fp32").model.named_parameters())


def changed_parts(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, set[bool]]:
    """Part -> whether its parameters changed: {True} all of them, {False} none."""
    assert before.keys() == after.keys()
    result: dict[str, set[bool]] = {}
    for name, tensor in before.items():
        result.setdefault(part_of(name), set()).add(not torch.equal(tensor, after[name]))
    return result


# --- which parameters move


def test_stage_one_trains_only_the_projector(home: Path, aligned: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = load_start(read_recipe("small/align", overrides(home, tmp_path)))
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
    run = stage(home, tmp_path / "run", f"model={aligned}", "trainable=[projector]", "precision=bf16", "num_epochs=1")
    assert changed_parts(before, weights(run)) == {"vision": {False}, "projector": {True}, "language": {False}}
    rounded = {name: tensor.bfloat16().float() for name, tensor in before.items()}
    assert changed_parts(before, rounded)["language"] == {True, False}, "control: rounding would be seen"


def fake_peaks(monkeypatch: pytest.MonkeyPatch, bf16: float) -> None:
    """A processor that fake_peaks bf16 so many times as fast as fp32."""
    peaks = {torch.float32: 1e9, torch.bfloat16: bf16 * 1e9}
    monkeypatch.setattr("qilin.train.flops.measure_peak_flops", lambda device, dtype: peaks[dtype])


@pytest.mark.parametrize(("bf16", "expected"), [(2.0, "bf16"), (0.5, "fp32")])
def test_precision_auto_takes_the_faster_one_on_a_cpu(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: float, expected: str
) -> None:
    fake_peaks(monkeypatch, bf16)
    assert (
        read_yaml(stage(home, tmp_path / "run", "precision=auto", "num_epochs=1") / "recipe.yaml")["precision"]
        == expected
    )


def test_precision_auto_keeps_the_precision_of_the_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(home, tmp_path / "run", "precision=bf16", "num_epochs=1")
    fake_peaks(monkeypatch, 0.5)
    stage(home, tmp_path / "run", "precision=auto", "num_epochs=1")
    assert "already done" in capsys.readouterr().err
    with pytest.raises(UserError, match="precision.*'bf16'.*'fp32'"):
        stage(home, tmp_path / "run", "precision=fp32", "num_epochs=1")


def test_a_learning_rate_of_zero_freezes_a_part(home: Path, aligned: Path, tmp_path: Path) -> None:
    run = stage(
        home,
        tmp_path / "run",
        f"model={aligned}",
        "trainable=[vision, projector, language]",
        "learning_rates.vision=0",
        "num_epochs=1",
    )
    assert changed_parts(weights(aligned), weights(run)) == {"vision": {False}, "projector": {True}, "language": {True}}


def test_stage_two_trains_projector_and_language(home: Path, aligned: Path, tmp_path: Path) -> None:
    run = stage(home, tmp_path / "run", f"model={aligned}", "trainable=[projector, language]")
    assert changed_parts(weights(aligned), weights(run)) == {"vision": {False}, "projector": {True}, "language": {True}}
    assert metrics_rows(run)[-1]["loss"] < metrics_rows(aligned)[-1]["loss"]


def test_vision_has_its_own_learning_rate(home: Path, aligned: Path, tmp_path: Path) -> None:
    reach = {}
    for rate in (1e-4, 1e-3):
        run = stage(
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


def steps_of(run: Path) -> int:
    return int(json.loads((run / "plan.json").read_text())["steps"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_trains_adapters_and_the_named_parts(home: Path, aligned: Path, tmp_path: Path, precision: str) -> None:
    from peft import PeftModel

    run = stage(
        home, tmp_path / "run", f"model={aligned}", "trainable=[projector]", "lora={rank: 4}", f"precision={precision}"
    )
    result = changed_parts(weights(aligned), weights(run))
    assert result["vision"] == {False}
    assert result["projector"] == {True}
    assert result["language"] == {True, False}
    for name, tensor in weights(run).items():  # adapters sit on linear layers: embeddings, norms and head stay
        if part_of(name) == "language" and "_proj" not in name:
            assert torch.equal(tensor, weights(aligned)[name]), name

    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert adapter
    assert all("lora_" in name and "language_model" in name for name in adapter)
    merged: Any = LlavaForConditionalGeneration.from_pretrained(run, dtype=torch.float32)
    base: Any = LlavaForConditionalGeneration.from_pretrained(aligned, dtype=torch.float32)
    base.model.multi_modal_projector.load_state_dict(merged.model.multi_modal_projector.state_dict())
    ids = torch.tensor([[1, 5, *[merged.config.image_token_id] * 16, 9, 30, 31]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = base.eval()(input_ids=ids, pixel_values=pixels).logits
        apart: Any = PeftModel.from_pretrained(base, str(run / "adapter")).eval()
        unmerged = apart(input_ids=ids, pixel_values=pixels).logits
        uninterrupted = merged.eval()(input_ids=ids, pixel_values=pixels).logits
    assert torch.allclose(unmerged, uninterrupted, atol=1e-5)
    assert not torch.allclose(plain, uninterrupted, atol=1e-3), "control: the adapter does something"


# --- runs that are there already


def test_a_finished_run_is_reused(home: Path, aligned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise AssertionError("trained again")

    stamp = (aligned / "model.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("qilin.train.stage.load_start", no)
        stage(home, aligned)
        with pytest.raises(UserError, match=r"learning_rate.*0\.01.*0\.02"):
            stage(home, aligned, "learning_rate=0.02")
    assert (aligned / "model.safetensors").stat().st_mtime_ns == stamp
    assert not (aligned / "checkpoints").exists()


def test_a_folder_that_is_not_a_run_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a run of Qilin"):
        stage(home, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


# --- what is refused


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
        stage(home, tmp_path / "run", *more, recipe=recipe)
    assert not (tmp_path / "run").exists()


def test_check_names_images_that_do_not_decode(home: Path, tmp_path: Path) -> None:
    uninterrupted = read_recipe("small/align", overrides(home, tmp_path / "run"))
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
    config = read_recipe("small/align", overrides(home, tmp_path / "run", [f"data={data}"]))
    expected_error = rf"image {table.column('image_id')[2]} \(sample train-vqa-"
    with pytest.raises(UserError, match=expected_error):
        run_stage(config, "test", check=True)


def test_a_missing_tracker_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trackers names swanlab, which is not installed: pip install swanlab"):
        stage(home, tmp_path / "run", "trackers=[swanlab]")


# --- when things go wrong in the middle


def test_a_non_finite_loss_stops_before_the_optimizer_step(
    home: Path, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: dict[str, torch.Tensor] = {}
    recorded: list[Any] = []
    real = loop.compute_gradients

    def poisoned(context: Any, module: Any, batch: Any) -> Any:
        model = module.model
        if batch.step == 1:
            model.model.language_model.norm.weight.data[0] = float("nan")
            before.update({n: p.detach().clone() for n, p in model.named_parameters()})
            recorded.append((model, batch.sample_ids))
        return real(context, module, batch)

    monkeypatch.setattr(loop, "compute_gradients", poisoned)
    with pytest.raises(RunError, match="step 2: the loss is nan") as caught:
        stage(home, tmp_path / "run", f"model={aligned}")
    model, samples = recorded[0]
    assert all(name in str(caught.value) for name in samples)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.nan_to_num(7.0), before[name].nan_to_num(7.0)), name
    assert [row["step"] for row in metrics_rows(tmp_path / "run")] == [1]
    assert not (tmp_path / "run" / "qilin.json").exists()


@pytest.mark.parametrize("failing_call", ["data", "name"])
@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_damages_no_checkpoint(
    home: Path, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: str, background: bool
) -> None:
    """Full while the numbers are written, or when the folder is to get its name."""
    run, calls = tmp_path / "run", []
    owner, name = (FileSystemWriter, "write_data") if failing_call == "data" else (checkpoint, "sync_file")
    real = getattr(owner, name)

    def full(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        message = r"could not be written \(No space left on device\); the checkpoint of step 1 is complete"
        with pytest.raises(RunError, match=message):
            stage(home, run, f"model={aligned}", "save_steps=1", f"async_checkpoint={str(background).lower()}")
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-0000001"]
    stage(home, run, f"model={aligned}", "save_steps=1")
    uninterrupted = stage(home, tmp_path / "whole", f"model={aligned}", "save_steps=1")
    assert (run / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()


def test_incomplete_checkpoints_are_ignored(tmp_path: Path) -> None:
    for name in (".step-0000009.unfinished", "step-0000008"):  # the second: without its last file
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-0000009.unfinished" / "state.json").write_text('{"step": 9}')
    assert checkpoint.latest_checkpoint(tmp_path) is None
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    saver = checkpoint.Checkpointer(tmp_path, keep_last=2)
    for step in (1, 2, 3):
        saver.save(step, model, optimizer, {})
    assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path)] == [2, 3]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_stop_signals_save_a_checkpoint_first(
    home: Path,
    aligned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    run, real = tmp_path / "run", loop.compute_gradients

    def signalled(context: Any, module: Any, batch: Any) -> Any:
        if batch.step == 1:
            os.kill(os.getpid(), number)
        return real(context, module, batch)

    command = ["train", "small/align", *overrides(home, run, [f"model={aligned}"])]
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_gradients", signalled)
        assert cli.main(command) == code
    assert "continue" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    assert checkpoint.step_of(checkpoint.list_checkpoints(run)[-1]) == 2
    assert cli.main(command) == 0
    uninterrupted = stage(home, tmp_path / "whole", f"model={aligned}")
    assert (run / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    assert [row["loss"] for row in metrics_rows(run)] == [row["loss"] for row in metrics_rows(uninterrupted)]


# --- the rest of what a recipe can ask for


def test_dropped_samples_are_listed(home: Path, aligned: Path, tmp_path: Path) -> None:
    lengths = measure(home, tmp_path)
    limit = max(lengths) - 1
    run = stage(home, tmp_path / "run", f"model={aligned}", f"max_length={limit}", "on_overlength=drop")
    dropped = [json.loads(line) for line in (run / "dropped.jsonl").read_text().splitlines()]
    assert len(dropped) == sum(length > limit for length in lengths) > 0
    assert all(f"max_length is {limit}" in row["reason"] for row in dropped)
    facts = json.loads((run / "plan.json").read_text())
    assert (facts["dropped"], facts["samples"]) == (len(dropped), len(lengths) - len(dropped))
    assert not (aligned / "dropped.jsonl").exists()


def measure(home: Path, tmp_path: Path) -> list[int]:
    config = read_recipe("small/align", overrides(home, tmp_path / "unused"))
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
    run = stage(home, tmp_path / "run", f"model={aligned}", f"ema_decay={decay}")
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


def test_lr_schedules() -> None:
    shares = {name: [lr_factor(name, s, 100, 10) for s in range(100)] for name in ("cosine", "linear", "constant")}
    for result in shares.values():
        assert result[:11] == pytest.approx([s / 10 for s in range(11)])
    assert shares["constant"][10:] == [1.0] * 90
    assert shares["linear"][55] == pytest.approx(0.5)
    assert shares["cosine"][55] == pytest.approx(0.5)
    assert shares["cosine"][32] > shares["linear"][32]
    for name in ("cosine", "linear"):
        fall = shares[name][10:]
        assert all(a > b >= 0 for a, b in zip(fall, fall[1:], strict=False))
        assert fall[-1] < 0.02
    assert lr_factor("cosine", 0, 1, 1) == 1.0  # one step with its warm-up learns something


def test_tensorboard_has_the_metrics(home: Path, aligned: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = stage(home, tmp_path / "run", f"model={aligned}", "trackers=[tensorboard]", "num_epochs=1")
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


# --- number of steps and resolved values


def test_max_steps_trains_the_first_steps_of_the_same_plan(home: Path, aligned: Path, tmp_path: Path) -> None:
    options = (f"model={aligned}", "lr_scheduler_type=constant")
    uninterrupted = stage(home, tmp_path / "whole", *options, "num_epochs=2")
    steps = steps_of(uninterrupted) - 1
    limited = stage(home, tmp_path / "limited", *options, "num_epochs=1", f"max_steps={steps}")
    assert steps_of(limited) == steps > steps_of(uninterrupted) // 2  # in the second epoch
    assert [row["loss"] for row in metrics_rows(limited)] == [row["loss"] for row in metrics_rows(uninterrupted)][
        :steps
    ]


def test_the_schedule_has_the_length_of_max_steps(home: Path, aligned: Path, tmp_path: Path) -> None:
    run = stage(home, tmp_path / "run", f"model={aligned}", "max_steps=3", "learning_rate=1e-3", "warmup_ratio=0.3")
    factors = [row["rate"] / 1e-3 for row in metrics_rows(run)]
    assert factors == pytest.approx([lr_factor("cosine", step, 3, 1) for step in range(3)])


def test_the_recipe_of_a_run_has_resolved_values(
    home: Path, aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run resumes on another machine, where `auto` resolves to something else."""
    fake_peaks(monkeypatch, 0.5)
    memory = [1e12, 1.0]  # bytes: nothing needs checkpointing, then everything
    monkeypatch.setattr("qilin.train.stage.device_memory", lambda world: memory.pop(0))
    auto = (f"model={aligned}", "precision=auto", "gradient_checkpointing=auto", "save_steps=1")
    run, real = tmp_path / "run", loop.compute_gradients

    def stop_after_first(context: Any, module: Any, batch: Any) -> Any:
        if batch.step == 1:
            raise KeyboardInterrupt
        return real(context, module, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "compute_gradients", stop_after_first)
        with pytest.raises(KeyboardInterrupt):
            stage(home, run, *auto)
    recipe = read_yaml(run / "recipe.yaml")
    assert (recipe["precision"], recipe["gradient_checkpointing"]) == ("fp32", 0.0)
    fake_peaks(monkeypatch, 2.0)
    stage(home, run, *auto)
    assert not memory
    recipe = json.loads((run / "qilin.json").read_text())["recipe"]
    assert (recipe["precision"], recipe["gradient_checkpointing"]) == ("fp32", 1.0)
    assert [row["step"] for row in metrics_rows(run)] == list(range(1, steps_of(run) + 1))
