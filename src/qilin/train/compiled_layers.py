"""Compiles the layers of a language model one by one, so that norms, rotary embeddings and activations take one pass
over memory instead of one per operation.

In: a language model whose attention is packed. Out: the same with layers whose forward pass is compiled: one graph for
all of them and for all lengths of packs. The last layer is left as it is: its hooks skip the tokens that predict
nothing (skip_unused.py). Layers that do not compile are computed as before, with a warning.
"""

import traceback
import warnings
from typing import Any

import torch

from qilin.train.skip_unused import language_layers


class CompiledForward:
    """The forward pass of all layers of one class, compiled at its first call."""

    def __init__(self, layer_class: type) -> None:
        self.plain: Any = layer_class.forward  # type: ignore[attr-defined]
        self.compiled = torch.compile(self.plain, dynamic=True, fullgraph=True)
        self.error = ""  # why the layers are not compiled after all

    def __call__(self, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.error:
            return self.plain(layer, *args, **kwargs)
        try:
            return self.compiled(layer, *args, **kwargs)
        except Exception as error:
            if not is_compile_error(error):
                raise
            self.error = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
            warnings.warn(
                f"{type(layer).__name__} does not compile and is computed uncompiled, which is slower ({self.error})",
                stacklevel=2,
            )
            return self.plain(layer, *args, **kwargs)


class LayerForward:
    """One layer's forward method, through the CompiledForward of its class."""

    def __init__(self, layer: torch.nn.Module, forward: CompiledForward) -> None:
        self.layer, self.forward = layer, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(self.layer, *args, **kwargs)


def is_compile_error(error: Exception) -> bool:
    """Whether torch.compile raised it, for code that it does not compile or for want of a compiler; its own assertions
    count."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    if isinstance(error, TorchDynamoException | InductorError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, AssertionError) and any("_dynamo" in frame.filename for frame in frames[-3:])


def compile_layers(language: Any, memory_budget: float = 1.0) -> None:
    """Compile all layers but the last. `memory_budget`: what share of the activations that a compiled layer would keep
    for its backward pass it keeps; cheap ones are recomputed first."""
    import torch._functorch.config as functorch_config

    functorch_config.activation_memory_budget = memory_budget
    by_class: dict[type, CompiledForward] = {}
    for layer in list(language_layers(language))[:-1]:
        forward = by_class.setdefault(type(layer), CompiledForward(type(layer)))
        layer.forward = LayerForward(layer, forward)


def remove_compiled_layers(language: Any) -> None:
    """Undo `compile_layers`, for generation, whose caches do not compile."""
    for layer in language_layers(language):
        if isinstance(layer.__dict__.get("forward"), LayerForward):
            del layer.forward
