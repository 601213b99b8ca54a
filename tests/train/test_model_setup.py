"""What takes less memory: activations computed again, few bits; the same results where they promise it."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.training import tiny_home
from qilin.core.errors import UserError
from qilin.model.architectures import set_trainable
from qilin.model.meta_model import load_model_config
from qilin.train.config import TrainConfig, read_recipe
from qilin.train.data_loader import PackedDataset
from qilin.train.fp8_linear import FrozenFp8Linear, fits_fp8
from qilin.train.loop import pack_loss, trainable_params
from qilin.train.memory_estimate import COMPILED_SHARES, largest_pack, peak_memory, resolve_auto, static_memory
from qilin.train.model_setup import apply_precision, autocast_context, quantize_frozen
from qilin.train.optimizer import make_optimizer
from qilin.train.packed_attention import use_packed_attention
from qilin.train.plan import Plan, make_plan
from qilin.train.stage import load_start

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"width": 64, "layers": 5}
    return tiny_home(tmp_path_factory.mktemp("memory"), images=4, questions=2, extras=False, splits=("train",), **shape)


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILIN_CACHE", str(home / "cache"))


def recipe(home: Path, *more: str) -> TrainConfig:
    overrides = [f"vision={home / 'vision'}", f"language={home / 'language'}", f"data={home / 'data'}", "template=v1"]
    return read_recipe("small/align", [*overrides, "kinds=[vqa]", "batch_size=100", "precision=fp32", *more])


def one_pack(config: TrainConfig) -> tuple[Any, Any, Plan]:
    loaded = load_start(config)
    set_trainable(loaded.model, config.trainable)
    data = PackedDataset(config, loaded.processor)
    plan = make_plan(data.lengths, [1.0], batch_size=100, num_epochs=1, pack_tokens=config.pack_tokens, seed=0)
    model = apply_precision(loaded.model, config).train()
    use_packed_attention(model)
    return model, data.make_pack(plan.packs(0)[0][0], CPU, torch.float32), plan


def test_bf16_frozen_weights_err_as_much_as_bf16_products(home: Path) -> None:
    results = {}
    for weights, matmul_flops in (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16")):
        model, pack, _ = one_pack(recipe(home, f"precision={weights}"))
        with autocast_context(matmul_flops, CPU):
            results[weights, matmul_flops] = gradient(model, pack)
    exact = results.pop(("fp32", "fp32"))
    alone, frozen = ((each - exact).norm() / exact.norm() for each in results.values())
    assert 1e-4 < frozen < 1.5 * alone + 1e-3


def gradient(model: Any, pack: Any) -> torch.Tensor:
    pack_loss(model, pack, pack.pixels).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_gradient_checkpointing_changes_no_gradient(home: Path) -> None:
    results = []
    for share, layers in ((0.0, 0), (0.5, 3), (1.0, 5)):
        torch.manual_seed(0)
        config = recipe(home, f"gradient_checkpointing={share}", "trainable=[projector, language]")
        model, pack, _ = one_pack(config)
        again = [layer.gradient_checkpointing for layer in model.model.language_model.layers]
        assert again == [True] * layers + [False] * (5 - layers)
        results.append(gradient(model, pack))
    assert torch.allclose(results[1], results[0], rtol=1e-6, atol=1e-8)
    assert torch.allclose(results[2], results[0], rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("memory_formula")
def test_auto_checkpoints_as_few_layers_as_memory_requires(home: Path) -> None:
    config = recipe(home, "gradient_checkpointing=auto", "torch_compile=false")
    _, _, plan = one_pack(replace(config, gradient_checkpointing=False))
    model_config = load_model_config(config.vision, config.language, None, "huggingface", None)
    pack = largest_pack(plan)
    highest, lowest = (
        peak_memory(model_config, replace(config, gradient_checkpointing=end), pack, True) for end in (False, True)
    )
    assert lowest < highest
    from qilin.model.meta_model import build_meta_model
    from qilin.train.memory_estimate import USABLE_SHARE, prepare_model

    stays = sum(
        static_memory(
            prepare_model(build_meta_model(model_config), replace(config, gradient_checkpointing=False)), config, True
        ).values()
    )
    shares = []
    for part in (2.0, 1.0, 0.5, 0.0, -1.0):  # of what lies between computing all again and nothing
        memory = (stays + lowest + part * (highest - lowest) + 1) / USABLE_SHARE
        shares.append(resolve_auto(model_config, config, pack, True, 1, memory).gradient_checkpointing)
    assert shares == pytest.approx([0, 0, 0.6, 1, 1])
    assert (
        resolve_auto(
            model_config, replace(config, gradient_checkpointing=0.2), pack, True, 1, 1.0
        ).gradient_checkpointing
        == 0.2
    )
    # compiled layers keep less before any is recomputed
    compiled = replace(config, torch_compile=None, gradient_checkpointing=False)
    halved = peak_memory(model_config, replace(compiled, activation_memory_budget=0.5), pack, True)
    assert halved < peak_memory(model_config, compiled, pack, True) < highest
    memory = (stays + halved + 1) / USABLE_SHARE
    resolved = resolve_auto(model_config, replace(config, torch_compile=None), pack, True, 1, memory)
    assert (resolved.gradient_checkpointing, resolved.activation_memory_budget) == (0, 0.5)


def test_sharded_memory_is_divided_by_the_devices(home: Path) -> None:
    from qilin.model.meta_model import build_meta_model
    from qilin.train.memory_estimate import prepare_model

    config = recipe(home, "trainable=[projector, language]", "shard=all", "precision=bf16")
    model = prepare_model(
        build_meta_model(load_model_config(config.vision, config.language, None, "huggingface", None)), config
    )
    alone, eight = static_memory(model, config, True), static_memory(model, config, True, 8)
    assert eight["optimizer"] == alone["optimizer"] / 8
    assert eight["weights"] == pytest.approx(alone["weights"] / 8)
    assert eight["unsharded weights and gradients"] > 0
    small = static_memory(model, replace(config, optimizer="adamw8bit"), True)
    assert small["optimizer"] < 0.3 * alone["optimizer"]


def test_the_shares_of_compiled_layers_are_those_of_the_result_file() -> None:
    file = Path(__file__).parents[2] / "bench" / "results" / "stub-gpu.json"
    rows = {(row["shape"], row["stage"], row["setting"]): row for row in json.loads(file.read_text())["rows"]}
    cases = {
        "trained": ("7B", 2, "split weights", "compiled"),
        "adapters": ("7B", 2, "adapters", "adapters, compiled"),
        "frozen": ("13B", 1, "split weights", "compiled"),
    }
    for kind, (shape, stage, plain, compiled) in cases.items():
        for budget, share in COMPILED_SHARES[kind].items():
            row = rows[shape, stage, compiled if budget == 1 else f"{compiled}, budget {budget}"]
            expected = row["layer_kept_gb"] / rows[shape, stage, plain]["layer_kept_gb"]
            assert share == pytest.approx(expected, abs=0.002), (kind, budget)


@pytest.mark.parametrize(
    ("word", "expected_error"),
    [
        ("gradient_checkpointing=1.5", "gradient_checkpointing is 1.5; expected true, false, auto or a share"),
        ("gradient_checkpointing=often", "gradient_checkpointing"),
        ("frozen_weights=int4", "frozen_weights is 'int4'"),
    ],
)
def test_invalid_values_are_refused(home: Path, word: str, expected_error: str) -> None:
    with pytest.raises(UserError, match=expected_error):
        recipe(home, word)


def test_a_trained_language_model_cannot_be_quantized(home: Path) -> None:
    with pytest.raises(UserError, match="frozen_weights is nf4, but trainable names language.*use lora"):
        recipe(home, "trainable=[projector, language]", "frozen_weights=nf4")


def test_a_missing_package_is_named(home: Path) -> None:
    model, _, _ = one_pack(recipe(home))
    for word, package in (
        ("frozen_weights=nf4", "bitsandbytes"),
        ("optimizer=adamw8bit", "torchao"),
    ):
        if importlib.util.find_spec(package) is not None:
            continue
        config = recipe(home, word)
        ask = optimizer_of if word.startswith("optimizer") else quantize
        with pytest.raises(UserError, match=rf"needs {package}: pip install 'qilin-med\[small\]'"):
            ask(model, config)


def optimizer_of(model: Any, config: TrainConfig) -> Any:
    return make_optimizer(trainable_params(model, config), config.optimizer, config.betas)


def quantize(model: Any, config: TrainConfig) -> Any:
    return quantize_frozen(model, config, CPU)


def test_fp8_requires_a_gpu_that_supports_it(home: Path) -> None:
    config = recipe(home, "frozen_weights=fp8")
    model, _, _ = one_pack(config)
    with pytest.raises(UserError, match="needs a GPU of compute capability 8.9 or more .*; the device is cpu"):
        quantize_frozen(model, config, CPU)


def test_fp8_is_close_to_the_plain_model(home: Path) -> None:
    """Emulated on rounded numbers; the FP8 products of a GPU were not run."""
    plain, pack, _ = one_pack(recipe(home))
    small, _, _ = one_pack(recipe(home, "frozen_weights=fp8"))
    small.load_state_dict(plain.state_dict())
    quantize_frozen(small, recipe(home, "frozen_weights=fp8"), CPU, emulate=True)
    a, b = pack_loss(plain, pack, pack.pixels), pack_loss(small, pack, pack.pixels)
    assert float(b) != float(a)
    assert float(b) == pytest.approx(float(a), rel=0.02)


@pytest.mark.parametrize(("tokens", "bias"), [(1, False), (37, True)])
def test_an_fp8_layer_has_an_input_gradient_only(tokens: int, bias: bool) -> None:
    random = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(64, 48, bias=bias).requires_grad_(False)
    small = FrozenFp8Linear(linear, emulate=True)
    results = []
    for layer in (linear, small):
        rows = torch.randn(1, tokens, 64, generator=random.manual_seed(1)).requires_grad_()
        out = layer(rows)
        out.float().mul(torch.linspace(-1, 1, 48)).sum().backward()
        results.append((out.float().detach(), rows.grad))
    for plain, rounded in zip(*results, strict=True):
        assert 1e-4 < float((rounded - plain).norm() / plain.norm()) < 0.06
    assert not list(small.parameters()) or bias  # the bias alone
    assert small.weight.element_size() == 1


def test_an_fp8_layer_keeps_widths_that_fp8_does_not_have() -> None:
    assert fits_fp8(torch.nn.Linear(32, 48))
    assert not fits_fp8(torch.nn.Linear(24, 48))
    assert not fits_fp8(torch.nn.Linear(48, 24))


def test_nf4_is_close_to_the_plain_model_and_trains(home: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plain, pack, _ = one_pack(recipe(home))
    small, _, _ = one_pack(recipe(home, "frozen_weights=nf4"))
    small.load_state_dict(plain.state_dict())
    before = sum(p.nbytes for p in small.model.language_model.layers.parameters())
    quantize_frozen(small, recipe(home, "frozen_weights=nf4"), CPU)
    assert sum(p.nbytes for p in small.model.language_model.layers.parameters()) < 0.2 * before
    a, b = pack_loss(plain, pack, pack.pixels), pack_loss(small, pack, pack.pixels)
    assert float(b) != float(a)
    assert float(b) == pytest.approx(float(a), rel=0.1)
    b.backward()
    assert float(small.model.multi_modal_projector.linear_1.weight.grad.norm()) > 0
