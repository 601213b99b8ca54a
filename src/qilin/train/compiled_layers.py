"""Compiles the layers of a language model one by one, so that norms, rotary embeddings and activations take one pass
over memory instead of one per operation.

In: a language model whose attention is packed. Out: the same with layers whose forward pass is compiled: one graph for
all of them and for all lengths of packs. The last layer is left as it is: its hooks skip the tokens that predict
nothing (skip_unused.py). Layers that do not compile, forward or backward, are computed as before, with one line on
stderr; the results are those of a run without compiled layers.
"""

import os
from functools import partial
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from qilin.core.errors import RunError, UserError
from qilin.core.terminal import make_console
from qilin.train.skip_unused import language_layers

# errors that the uncompiled layers would raise as well
OTHER_ERRORS = (RunError, UserError, torch.OutOfMemoryError)
console = make_console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")


class CompiledForward:
    """The forward pass of all layers of one class, compiled at its first call."""

    def __init__(self, layer_class: type) -> None:
        self.name = layer_class.__name__
        self.checkpoints = checkpoints_in_forward(layer_class)
        forward: Any = layer_class.forward  # type: ignore[attr-defined]
        self.plain = forward.__wrapped__ if self.checkpoints else forward
        self.compiled = compile_forward(self.plain)
        self.failed = False

    def __call__(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.failed:
            return self.plain(layer, *args, **kwargs)
        try:
            return self.compiled(layer, *args, **kwargs)
        except OTHER_ERRORS:
            raise
        except Exception as error:  # of Dynamo, Inductor, Triton, the C++ compiler, or a kernel's launch
            if torch._C._current_graph_task_id() >= 0:
                # in a backward pass: gradient checkpointing raises where it has recomputed enough, and what was
                # computed compiled cannot be recomputed uncompiled; loop.py catches errors
                raise
            output = self.plain(layer, *args, **kwargs)  # raises an error that is the layer's own
            self.stop(error)
            return output

    def stop(self, error: Exception) -> None:
        """Compute the layers uncompiled from now on."""
        if not self.failed:
            self.failed = True
            reason = " ".join(str(error).split("\n")[:2])[:200] or "no message"
            console.print(
                f"  {self.name} does not compile and is computed uncompiled, which is slower; torch_compile=false does "
                f"without trying ({type(error).__name__}: {reason})",
                style="yellow",
            )


class LayerForward:
    """One layer's forward method, through the CompiledForward of its class. Gradient checkpointing stays around it:
    within a compiled layer, it would be another graph."""

    def __init__(self, layer: Any, forward: CompiledForward) -> None:
        self.layer, self.forward = layer, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = self.layer
        if self.forward.checkpoints and layer.gradient_checkpointing and layer.training:
            return layer._gradient_checkpointing_func(partial(self.forward, layer, **kwargs), *args)
        return self.forward(layer, *args, **kwargs)


def checkpoints_in_forward(layer_class: type) -> bool:
    """Whether transformers has wrapped the class's forward method in one that applies gradient checkpointing; older
    versions, such as 5.17, apply it in __call__."""
    wraps_forward = "__call__" not in vars(GradientCheckpointingLayer)
    return wraps_forward and issubclass(layer_class, GradientCheckpointingLayer)


def compile_forward(forward: Any) -> Any:
    return torch.compile(forward, dynamic=True, fullgraph=True)


def compile_layers(language: Any, memory_budget: float = 1.0) -> None:
    """Compile all layers but the last. `memory_budget`: what share of the activations that a compiled layer would keep
    for its backward pass it keeps; cheap ones are recomputed first."""
    import torch._dynamo.config as dynamo_config
    import torch._functorch.config as functorch_config

    # packs of one, two and more blocks of tokens have graphs of their own, as has validation; the default is 8
    dynamo_config.recompile_limit = 32
    functorch_config.activation_memory_budget = memory_budget
    # compile the backward pass together with the forward pass, where CompiledForward catches what fails
    functorch_config.force_non_lazy_backward_lowering = True
    by_class: dict[type, CompiledForward] = {}
    for layer in list(language_layers(language))[:-1]:
        forward = by_class.setdefault(type(layer), CompiledForward(type(layer)))
        layer.forward = LayerForward(layer, forward)


def compiled_forwards(language: Any) -> list[CompiledForward]:
    """What computes the compiled layers, without what has failed."""
    forwards = [layer.__dict__.get("forward") for layer in language_layers(language)]
    distinct = {id(f.forward): f.forward for f in forwards if isinstance(f, LayerForward)}
    return [forward for forward in distinct.values() if not forward.failed]


def remove_compiled_layers(language: Any) -> None:
    """Undo `compile_layers`, for generation, whose caches do not compile."""
    for layer in language_layers(language):
        if isinstance(layer.__dict__.get("forward"), LayerForward):
            del layer.forward
