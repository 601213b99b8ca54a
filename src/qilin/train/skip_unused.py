"""Work whose result nobody reads is left out: the vision encoder's layers behind the features, and in the language
model's last layer the queries and the MLP of tokens that predict nothing.

In: a stock Llava. Out: the same with hooks (no code or weight of it is changed), which can be taken off again. What is
read comes out as before, gradients too. The last layer's attention is left out in attention.py.
"""

import re
from typing import Any

import torch


def skip_unread(model: Any) -> None:
    """Put the hooks on; on a model that has them, nothing."""
    skip_unread_no_more(model)
    for layer in vision_layers(model)[max(1, features_depth(model)) :]:
        layer.register_forward_pre_hook(Shrink())
    LastLayer(model.model.language_model)


def skip_unread_no_more(model: Any) -> None:
    """Take the hooks off."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", hook), OURS)]:
                del hooks[key]


def vision_layers(model: Any) -> list[torch.nn.Module]:
    """The vision encoder's transformer layers, first to last."""
    found = model.model.vision_tower.named_modules()
    return [module for name, module in found if re.search(r"(?:^|\.)layers?\.\d+$", name)]


def features_depth(model: Any) -> int:
    """How many layers of the vision encoder the features need: with feature_layer -2 all but the last, which
    transformers computes and throws away."""
    layer = model.config.vision_feature_layer
    total = model.model.vision_tower.config.num_hidden_layers
    return max(n if n >= 0 else total + 1 + n for n in (layer if isinstance(layer, list | tuple) else [layer]))


class Shrink:
    """Gives a layer whose result is not read the first token of the first image alone."""

    def __call__(self, module: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0][:1, :1], *given[1:])


class LastLayer:
    """Gives the last attention's queries and what follows it (its projection, norm and MLP, the last norm) the rows
    that are read, as the layout of the pack says, and zeros to the rest."""

    def __init__(self, language: Any) -> None:
        self.read: torch.Tensor | None = None
        layer = language.layers[-1]
        layer.register_forward_pre_hook(self.begin, with_kwargs=True)
        attention = layer.self_attn
        ends = ((layer.post_attention_layernorm, layer.mlp), (language.norm, language.norm))
        for first, last in (*ends, (attention.q_proj, attention.q_proj), (attention.o_proj, attention.o_proj)):
            first.register_forward_pre_hook(self.choose)
            last.register_forward_hook(self.spread)

    def begin(self, module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        layout = named.get("layout")
        self.read = None if layout is None else layout.read

    def choose(self, module: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.read is None:
            return None
        self.tokens = given[0].shape[:2]  # 1, T
        return (given[0].index_select(1, self.read),)

    def spread(self, module: torch.nn.Module, given: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor | None:
        if self.read is None:
            return None
        return out.new_zeros(*self.tokens, out.shape[-1]).index_copy(1, self.read, out)


OURS = (Shrink, LastLayer)
