"""`qilin estimate`: its memory against what PyTorch really allocates, its words against what was asked."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.image_text_models import image_text_model
from builders.sized_images import unequal_dataset
from builders.tiny import tiny_language
from builders.training import tiny_home
from qilin import cli
from qilin.dataset.reader import open_dataset
from qilin.model.architectures import PARTS, part_of, set_trainable
from qilin.model.llava import load_model
from qilin.model.meta_model import build_meta_model, load_model_config
from qilin.train import estimate as train_estimate
from qilin.train import memory_estimate as memory
from qilin.train.commands import EstimateCommand
from qilin.train.config import TrainConfig, read_recipe
from qilin.train.data_loader import PackedDataset
from qilin.train.estimate import largest_pack
from qilin.train.estimate_command import format_flops, format_hours
from qilin.train.flops import flop_cost
from qilin.train.gpus import GPUS, Machine
from qilin.train.loop import pack_loss
from qilin.train.memory_estimate import LiveMemory, peak_memory, prepare_model, static_memory
from qilin.train.model_setup import add_adapters, apply_precision, autocast_context, base_model, compute_dtype
from qilin.train.packed_attention import use_packed_attention
from qilin.train.plan import Plan, make_plan
from qilin.train.stage import load_start
from qilin.train.utilization import assumed_utilization

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"width": 64, "layers": 6}
    home = tiny_home(tmp_path_factory.mktemp("estimate"), images=8, extras=False, splits=("train",), **shape)
    tiny_language(home / "qwen3", "qwen3", width=64, layers=6)
    for part in ("vision", "language"):  # what a hub gives before anything is downloaded
        (home / "bare" / part).mkdir(parents=True)
        shutil.copy(home / part / "config.json", home / "bare" / part)
    return home


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "cache"))


def overrides(home: Path, *more: str) -> list[str]:
    overridden = {word.split("=")[0] for word in more}
    usual = ["vision=" + str(home / "vision"), "language=" + str(home / "language"), "data=" + str(home / "data")]
    usual += ["kinds=[vqa]", "template=v1", "batch_size=24", "pack_tokens=2048", "max_length=512"]
    return [word for word in usual if word.split("=")[0] not in overridden] + list(more)


def allocated(config: TrainConfig) -> tuple[float, Plan, Any]:
    """Bytes that a real pack holds at most, its plan, the real model's shape."""
    loaded = load_start(config)
    set_trainable(loaded.model, config.trainable)
    data = PackedDataset(config, loaded.processor)
    plan = make_plan(
        data.lengths, [1.0], batch_size=config.batch_size, num_epochs=1, pack_tokens=config.pack_tokens, seed=0
    )
    model = base_model(add_adapters(apply_precision(loaded.model, config), config)).train()
    use_packed_attention(model)
    pack = data.make_pack(plan.packs(0)[0][0], CPU, compute_dtype(config))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    existing = [t for p in model.parameters() for t in (p, p.grad) if t is not None]
    existing += [*model.buffers(), pack.ids, pack.positions, pack.target_positions, pack.targets]
    assert pack.pixels is not None
    with LiveMemory([*existing, pack.pixels]) as live:
        with autocast_context(config.precision, CPU):
            loss = pack_loss(model, pack, pack.pixels)
        loss.backward()
    return float(live.peak), plan, model


@pytest.mark.story
@pytest.mark.parametrize(
    "more",
    [
        ("precision=fp32",),
        ("precision=bf16",),
        ("precision=bf16", "gradient_checkpointing=true"),
        ("precision=bf16", "trainable=[projector, language]"),
        ("precision=fp32", "trainable=[vision, projector, language]", "gradient_checkpointing=true"),
        ("precision=bf16", "lora={rank: 4}"),
        ("precision=bf16", "trainable=[projector, language]", "language=qwen3", "template=chatml"),
    ],
    ids=" ".join,
)
def test_estimated_memory_matches_pytorchs_allocations(home: Path, more: Sequence[str]) -> None:
    """Seen on tensors without data at 3 and 4 layers, and on real ones at 6."""
    more = [f"language={home / 'qwen3'}" if word == "language=qwen3" else word for word in more]
    config = read_recipe("small/align", overrides(home, *more))
    real, plan, model = allocated(config)
    model_config = load_model_config(config.vision, config.language, None, "huggingface", None)
    bones = build_meta_model(model_config)
    run_estimate = peak_memory(model_config, config, largest_pack(plan), on_gpu=False)
    # with activations computed again, the largest moment may be another at another depth
    assert run_estimate == pytest.approx(real, rel=0.12 if config.gradient_checkpointing else 0.05)
    assert peak_memory(model_config, config, largest_pack(plan), on_gpu=True) != run_estimate
    stays = static_memory(prepare_model(bones, config), config, False)
    rows = model.get_input_embeddings().weight.shape[0] - model_config.get_text_config().vocab_size  # of <image>
    extra = 2 * 4 * rows * 64
    assert stays["weights"] == pytest.approx(sum(p.nbytes for p in model.parameters()), abs=extra)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert stays["optimizer"] == pytest.approx(8 * trainable, abs=2 * extra)


def test_loading_needs_the_complete_model_on_the_host(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where training takes less: with frozen weights in bf16 and a small pack."""
    monkeypatch.setattr(memory, "peak_memory", lambda *overridden: 0.0)
    figures, pack = {}, memory.PackShape([(0, 64, -1)], 1, 0)
    for precision in ("bf16", "fp32"):
        config = read_recipe("small/align", overrides(home, f"precision={precision}"))
        model_config = load_model_config(config.vision, config.language, None, "huggingface", None)
        model = prepare_model(build_meta_model(model_config), config)
        causes = [memory.memory_by_cause(model_config, model, config, pack, on_gpu) for on_gpu in (False, True)]
        figures[precision] = ["more, while loading and saving" in each for each in causes]
        if precision == "bf16":
            assert sum(causes[0].values()) == memory.load_memory(model)
    assert figures == {"bf16": [True, False], "fp32": [False, False]}


def test_a_meta_model_has_the_shapes_of_the_real_one(home: Path) -> None:
    config = read_recipe("small/align", overrides(home))
    real = load_start(config).model
    model_config = load_model_config(config.vision, config.language, None, "huggingface", None)
    bones = build_meta_model(model_config)
    assert all(p.is_meta for p in bones.parameters())
    assert model_config.image_seq_length == real.config.image_seq_length
    assert model_config.vision_feature_select_strategy == real.config.vision_feature_select_strategy
    for model in (real, bones):
        set_trainable(model, ("projector",))
    rows = real.lm_head.out_features - bones.lm_head.out_features
    assert rows in (0, 1)
    assert flop_cost(bones).image == flop_cost(real).image
    assert flop_cost(bones).token == flop_cost(real).token


def run_estimate(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    assert cli.main(["estimate", *command]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.story
def test_estimate_needs_only_config_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [f"vision={home / 'bare' / 'vision'}", f"language={home / 'bare' / 'language'}"]
    figures = run_estimate(capsys, "qilin-med-vl-13b/align", *parts, "--gpu", "h200", "--json")
    assert figures["fits"]
    assert "hours" not in figures  # nothing is known of the data, so nothing is said of time
    assert figures["parameters"]["projector"]["trainable"] == figures["parameters"]["projector"]["all"] > 0
    assert figures["parameters"]["language"]["trainable"] == 0
    assert figures["memory_total"] == pytest.approx(sum(figures["memory"].values()), abs=8)
    data = ["--samples", "5000", "--samples-per-image", "2.5"]
    usual = ["qilin-med-vl-13b/align", *parts, "--gpu", "h200", "--json", *data]
    more = run_estimate(capsys, *usual, "--price", "3")
    assert more["samples"] == 5000
    assert more["steps"] == 20
    assert more["tokens"] < more["tokens_unshared"]
    assert more["money"] == pytest.approx(3 * more["device_hours"])
    assert run_estimate(capsys, *usual, "--devices", "2")["hours"] == pytest.approx(more["hours"] / 2)


def test_an_answer_is_kept_until_its_inputs_change(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "bare", tmp_path / "bare")
    parts = [f"{part}={tmp_path / 'bare' / part}" for part in ("vision", "language")]
    command = ["small/align", *parts, "--json", "--samples", "100"]
    computed: list[EstimateCommand] = []

    def compute_figures(command: EstimateCommand, config: TrainConfig) -> tuple[dict[str, Any], Machine]:
        computed.append(command)
        return {"number": len(computed), "device_hours": 0.5, "money": None}, Machine("4090", 1e9, 1e12, True, 1)

    monkeypatch.setattr(train_estimate, "compute_figures", compute_figures)

    def answer(*more: str) -> int:
        return int(run_estimate(capsys, *command, *more)["number"])

    assert (answer("--gpu", "4090"), answer("--gpu", "4090")) == (1, 1)
    assert run_estimate(capsys, *command, "--gpu", "4090", "--price", "3")["money"] == 1.5
    assert len(computed) == 1, "a price changes nothing that is computed"
    assert [answer(*more) for more in (["--gpu", "3090"], ["--gpu", "cpu"], ["--gpu", "4090", "batch_size=8"])] == [
        2,
        3,
        4,
    ]
    (tmp_path / "bare" / "language" / "config.json").write_text("{}")
    assert answer("--gpu", "4090") == 5
    for file in (tmp_path / "cache" / "estimates").iterdir():
        file.write_text('{"figures"')
    assert answer("--gpu", "4090") == 6, "a damaged file is computed again"
    named = ["small/align", "vision=owner/vision", "language=owner/language", "--gpu", "4090", "--json"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.main(["estimate", *named]) == 2
    assert "owner/vision: no such folder, and the download from the hub failed" in capsys.readouterr().err
    monkeypatch.setattr("qilin.model.hub.read_cache_only_without_network", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert [run_estimate(capsys, *named)["number"] for _ in range(2)] == [7, 8], "nothing is known of their files"
    for part in ("vision", "language"):
        (tmp_path / f"hub/models--owner--{part}/refs").mkdir(parents=True)
        (tmp_path / f"hub/models--owner--{part}/refs/main").write_text("0123")
    assert [run_estimate(capsys, *named)["number"] for _ in range(2)] == [9, 9]


@pytest.mark.usefixtures("memory_formula")
def test_a_kept_answer_needs_no_torch(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does a mistyped folder: both answer in half a second."""
    usual = ["estimate", "small/align", *overrides(home), "--gpu", "4090", "--json"]
    assert cli.main(usual) == 0
    printed = capsys.readouterr().out
    code = (
        "import sys\nfrom qilin.cli import main\nn = main(sys.argv[1:])\nassert 'torch' not in sys.modules\nsys.exit(n)"
    )
    again = subprocess.run([sys.executable, "-c", code, *usual], capture_output=True, text=True)
    assert (again.returncode, again.stdout, again.stderr) == (0, printed, "")
    mistyped = [word.replace("/language", "/langage") for word in usual]
    refused = subprocess.run([sys.executable, "-c", code, *mistyped], capture_output=True, text=True)
    assert refused.returncode == 2
    assert f"did you mean {home / 'language'}?" in refused.stderr


@pytest.mark.usefixtures("memory_formula")
def test_local_data_is_measured(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = run_estimate(capsys, "small/align", *overrides(home, "num_epochs=2"), "--gpu", "cpu", "--json")
    config = read_recipe("small/align", overrides(home))
    lengths = PackedDataset(config, load_start(config).processor).lengths
    assert figures["samples"] == 2 * len(lengths.total)
    assert figures["tokens_unshared"] == 2 * int(lengths.total.sum())
    assert figures["tokens"] < figures["tokens_unshared"]


@pytest.mark.story
def test_alternatives_are_listed_where_it_does_not_fit(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["small/align", *overrides(home, "trainable=[projector, language]", "precision=bf16"), "--gpu", "l20"]
    needs = run_estimate(capsys, *command, "--json")["memory_total"]
    tight = [*command, "--gpu-memory", str(needs * 0.9 / 1e9)]
    figures = run_estimate(capsys, *tight, "--json")
    assert not figures["fits"]
    assert any("gradient_checkpointing=true" in line for line in figures["would fit"])
    simulated = len(memory._peak_cache)
    assert cli.main(["estimate", *tight, "--price", "3"]) == 0
    assert len(memory._peak_cache) == simulated, "nothing is simulated twice"
    assert "would fit with gradient_checkpointing=true" in capsys.readouterr().out
    assert run_estimate(capsys, *command, "--gpu-memory", "1e-6", "--json")["would fit"] == []


@pytest.mark.usefixtures("memory_formula")
def test_precision_auto_is_bf16_on_a_gpu_and_the_faster_one_on_a_cpu(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "qilin.train.flops.measure_peak_flops", lambda device, dtype: 1e9 if dtype == torch.float32 else 5e8
    )
    for gpu, resolved in (("h200", "bf16"), ("cpu", "fp32")):
        auto, named = (
            run_estimate(capsys, "small/align", *overrides(home, f"precision={precision}"), "--gpu", gpu, "--json")
            for precision in ("auto", resolved)
        )
        assert auto["memory"] == named["memory"]
    other = run_estimate(capsys, "small/align", *overrides(home, "precision=bf16"), "--gpu", "cpu", "--json")
    assert other["memory"] != auto["memory"], "control: it is seen"


@pytest.mark.parametrize(
    ("more", "expected_error"),
    [
        (("--gpu", "potato"), "gpu is 'potato'; expected one of b200, h200"),
        (("--gpu", "h200", "precision=fp32"), "precision is fp32"),
        (("--answer-tokens", "500"), "answer_tokens is 500; expected at most text_tokens (120)"),
        (("--mfu", "40"), "mfu is 40.0; expected more than 0 and at most 1"),
        (("--samples", "0"), "samples is 0; expected at least 1"),
    ],
)
def test_invalid_requests_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str], more: Sequence[str], expected_error: str
) -> None:
    assert cli.main(["estimate", "small/align", *overrides(home), *more]) == 2
    assert expected_error in capsys.readouterr().err


def test_a_checkpoint_in_another_layout_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", "small/instruct", "data=x", f"model={home / 'bare' / 'language'}", "--gpu", "h200"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "model_type in its config.json is 'llama', which Qilin does not train" in error
    assert "qilin convert" in error


def test_small_figures_are_not_rounded_to_zero() -> None:
    assert (format_hours(24.04), format_hours(1234.5), format_hours(0.25), format_hours(0.001)) == (
        "24.0 hours", "1,234.5 hours", "15 minutes", "0.06 minutes",
    )  # fmt: skip
    assert (format_flops(2.25e15), format_flops(989e12), format_flops(3.1e10)) == (
        "2,250.0 TFLOP/s",
        "989.0 TFLOP/s",
        "31.0 GFLOP/s",
    )


@pytest.mark.usefixtures("memory_formula")
def test_hours_depend_on_recomputation_and_are_given_only_to_what_fits(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["small/align", *overrides(home, "trainable=[projector, language]"), "--gpu", "4090", "--json"]
    kept = run_estimate(capsys, *command)
    recomputed = run_estimate(capsys, *command, "gradient_checkpointing=true")
    assert kept["precision"] == "bf16"
    assert recomputed["operations"] == kept["operations"]
    share = 1 + recomputed["recomputed_operations"] / kept["operations"]
    assert recomputed["hours"] == pytest.approx(kept["hours"] * share)
    assert share > 1.1
    gigabytes = kept["memory_total"] / 1e9
    for size, fits in ((gigabytes * 0.9, False), (gigabytes * 1.05, False), (gigabytes * 1.2, True)):
        figures = run_estimate(capsys, *command, "--gpu-memory", str(size))
        assert (figures["fits"], "hours" in figures) == (fits, fits), "a margin is left before it fits"
    cli.main(["estimate", *command[:-1], "--gpu-memory", str(gigabytes * 1.05)])
    assert "does not fit safely" in capsys.readouterr().out


@pytest.mark.usefixtures("memory_formula")
def test_suggestions_can_be_pasted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["small/align", *overrides(home, "trainable=[projector, language]"), "--json", "--gpu", "4090"]
    memory = str(run_estimate(capsys, *command)["memory_total"] / 1e9)
    for line in run_estimate(capsys, *command, "--gpu-memory", memory)["would fit"]:
        words = shlex.split(line.rpartition(": ")[0])
        if words[0] != "--devices":
            assert run_estimate(capsys, *command, "--gpu-memory", memory, *words)["fits"], line


@pytest.mark.usefixtures("memory_formula")
def test_a_device_is_described_by_flags(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = ["--gpu-memory", "64", "--gpu-tflops", "313"]
    figures, named = (
        run_estimate(capsys, "small/align", *overrides(home), "--json", *flags)
        for flags in (described, ["--gpu", "ascend-910b"])
    )
    assert (figures["memory_of_machine"], figures["peak"], figures["hours"]) == (64e9, 313e12, named["hours"])
    old = run_estimate(capsys, "small/align", *overrides(home), "--json", "--gpu", "v100-32gb")
    assert (old["precision"], old["memory_of_machine"]) == ("fp16", round(GPUS["v100 32gb"].memory))
    assert cli.main(["estimate", "small/align", *overrides(home, "precision=bf16"), "--gpu", "t4"]) == 2
    assert "computes no bf16" in capsys.readouterr().err


def test_assumed_utilization_gives_the_published_hours() -> None:
    """Stage 1 and stage 2 of LLaVA-1.5 13B within a fifth; see bench/results/published-runs.json."""
    file = Path(__file__).parents[2] / "bench" / "results" / "published-runs.json"
    rows = {row["run"]: row for row in json.loads(file.read_text())["rows"] if "README" in row["source"]}
    for run, trained in (("LLaVA-1.5 13B, stage 1", False), ("LLaVA-1.5 13B, stage 2", True)):
        row = rows[run]
        share, _ = assumed_utilization(GPUS[row["gpu"]], trained)
        hours = (row["operations"] + row["recomputed"]) / (share * 8 * GPUS[row["gpu"]].half) / 3600
        assert hours == pytest.approx(row["hours"], rel=0.2)
        if trained:
            assert row["operations"] / (0.4 * 8 * 312e12) / 3600 < 0.7 * row["hours"], "control: 40 % of the peak"


@pytest.mark.story
@pytest.mark.parametrize("name", ["qwen2.5-vl", pytest.param("gemma3", marks=pytest.mark.long)])
def test_a_released_architecture(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The parameters are the model's; with its data, tokens and images are those of the run."""
    model = image_text_model(tmp_path / "model", name)
    data = unequal_dataset(tmp_path / "data")
    more = [f"model={model}", f"data={data}", "out=x", "max_length=400", "pack_tokens=500", "kinds=[]", "batch_size=4",
            "precision=bf16", "lora={rank: 2}", "trainable=[vision, projector]", "num_epochs=1",
            "kind_weights={caption: 1}"]  # fmt: skip
    assert cli.main(["estimate", "small/instruct", *more, "--gpu", "4090", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    real = load_model(model).model
    counts = dict.fromkeys(PARTS, 0)
    for parameter_name, parameter in real.named_parameters():
        counts[part_of(parameter_name)] += parameter.numel()
    parameters = figures["parameters"]
    assert {part: parameters[part]["all"] for part in ("vision", "projector")} == {
        part: counts[part] for part in ("vision", "projector")
    }
    assert parameters["language"]["all"] - parameters["language"]["trainable"] == counts["language"]
    assert all(parameters[part]["trainable"] == counts[part] for part in ("vision", "projector"))
    assert figures["samples"] == sum(1 for _ in open_dataset(data).samples("train"))
    assert 0 < figures["memory"]["activations"] < figures["memory_total"]
