"""Compiled layers compute what uncompiled ones do; where compilation fails, the run goes on without it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.training import metrics_rows, train_stage
from qilin.train import compiled_layers
from qilin.train.compiled_layers import compile_layers, compiled_forwards, remove_compiled_layers
from qilin.train.fp8_linear import FrozenFp8Linear
from qilin.train.model_setup import autocast_context

FAILURES = {"a later length": (), "a later backward": (), "recomputation": ("gradient_checkpointing=true",)}
SMALL_RUN = ("trainable=[projector, language]", "max_steps=3")
CPU = torch.device("cpu")


class FailInBackward(torch.autograd.Function):
    """The identity, whose backward pass fails."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        raise RuntimeError("no kernel for the backward pass\nmore lines")


def failing_compiler(failure: str, calls: list[int]) -> Callable[[Any], Any]:
    """In place of torch.compile: layers computed as they are, until a failure. `calls`: the lengths of what was
    computed before it."""

    def compile_forward(forward: Any) -> Any:
        def compiled(layer: torch.nn.Module, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            length = hidden.shape[1]
            fails = {
                "a later length": bool(calls) and length != calls[0],
                "recomputation": torch._C._current_graph_task_id() >= 0,  # during a backward pass
            }
            if fails.get(failure):
                raise RuntimeError("no kernel for the forward pass\nmore lines")
            calls.append(length)
            output = forward(layer, hidden, *args, **kwargs)
            return FailInBackward.apply(output) if failure == "a later backward" and len(calls) > 1 else output

        return compiled

    return compile_forward


@pytest.fixture(scope="module")
def uncompiled(home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return metrics_rows(train_stage(home, tmp_path_factory.mktemp("uncompiled") / "run", *SMALL_RUN))


@pytest.mark.parametrize("failure", FAILURES)
def test_a_run_whose_layers_do_not_compile_equals_an_uncompiled_one(
    failure: str,
    home: Path,
    uncompiled: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(compiled_layers, "compile_forward", failing_compiler(failure, calls))
    capsys.readouterr()
    run = train_stage(home, tmp_path / "run", *SMALL_RUN, *FAILURES[failure], "torch_compile=true")
    actual = metrics_rows(run)
    assert [(row["loss"], row["grad_norm"]) for row in actual] == [(r["loss"], r["grad_norm"]) for r in uncompiled]
    assert len(actual) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "does not compile" in line]
    assert "no kernel for the" in line
    assert "LlamaDecoderLayer" in line
    assert calls, "computed before the failure"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("too little memory"), KeyboardInterrupt()])
def test_other_errors_do_not_switch_compilation_off(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_forward(forward: Any) -> Any:
        def compiled(*args: Any) -> Any:
            raise error

        return compiled

    monkeypatch.setattr(compiled_layers, "compile_forward", compile_forward)
    model = make_model(torch.nn.Linear(16, 16))
    compile_layers(model)
    with pytest.raises(type(error)):
        compute(model)
    assert len(compiled_forwards(model)) == 1
    remove_compiled_layers(model)
    assert not compiled_forwards(model)


class Layer(torch.nn.Module):
    """A layer with a norm, a product and an activation."""

    def __init__(self, product: torch.nn.Module) -> None:
        super().__init__()
        self.norm, self.product = torch.nn.RMSNorm(16), product

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + torch.nn.functional.silu(self.product(self.norm(hidden)))


def make_model(*products: torch.nn.Module) -> Any:
    """Layers with these products, and a last one, which is never compiled."""
    model: Any = torch.nn.Module()
    model.layers = torch.nn.ModuleList(map(Layer, (*products, torch.nn.Linear(16, 16))))
    return model


def compute(model: Any, tokens: int = 7) -> list[torch.Tensor]:
    """The output, the gradients of the input and of trained weights."""
    model.zero_grad()
    hidden = inputs = torch.randn(1, tokens, 16, generator=torch.Generator().manual_seed(tokens)).requires_grad_()
    with autocast_context("bf16", CPU):
        for layer in model.layers:
            hidden = layer(hidden)
    hidden.square().sum().backward()
    return [hidden, inputs.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.story
def test_a_backward_graph_that_does_not_compile_is_noticed_in_the_forward_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By torch's own compiler, in which only the translation of graphs is replaced."""
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def fail(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        raise NotImplementedError("no backward kernel")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=fail)
    monkeypatch.setattr(
        compiled_layers, "compile_forward", lambda f: torch.compile(f, backend=backend, dynamic=True, fullgraph=True)
    )
    torch.manual_seed(0)
    model = make_model(torch.nn.Linear(16, 16))
    expected = compute(model)
    compile_layers(model)
    for actual, plain in zip(compute(model), expected, strict=True):
        assert torch.equal(actual, plain)
    assert len(graphs) == 1
    assert "no backward kernel" in capsys.readouterr().err
    assert not compiled_forwards(model)


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).detach().float().norm() / expected.detach().float().norm())


@pytest.mark.long
def test_compiled_layers_compute_what_uncompiled_ones_do() -> None:
    """Trained layers and FP8 ones (emulated), by Inductor, at three lengths by one graph."""
    torch.manual_seed(0)
    frozen = [FrozenFp8Linear(torch.nn.Linear(16, 16).requires_grad_(False), emulate=True) for _ in range(2)]
    for products in ([torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)], frozen):
        model = make_model(*products)
        expected = [compute(model, tokens) for tokens in (7, 12, 33)]
        compile_layers(model)
        for tokens, results in zip((7, 12, 33), expected, strict=True):
            for actual, plain in zip(compute(model, tokens), results, strict=True):
                assert difference(actual, plain) < 0.02  # bf16 is rounded less often
        assert len(compiled_forwards(model)) == 1, "still compiled"
        assert difference(compute(model, 8)[0][:, :7], expected[0][0]) > 0.1  # control
