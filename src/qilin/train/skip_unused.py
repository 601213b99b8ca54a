"""Skips computation whose result is not used: the vision encoder's layers behind the features, and in the language
model's last layer the queries and the MLP of tokens that predict nothing.

In: a stock Llava. Out: the same with removable hooks; no code or weight of it changes. Used outputs and their
gradients stay the same. packed_attention.py skips the attention of the last layer.
"""

import re
from typing import Any

import torch

from qilin.model.architectures import language_of, vision_of


def add_skip_hooks(model: Any, *, vision: bool = True, last_layer: bool = True) -> None:
    """Add the hooks; a model that has them already is unchanged. A language model whose last layer has other modules
    than Llama's gets none."""
    remove_skip_hooks(model)
    if vision:
        for layer in vision_layers(model)[max(1, feature_depth(model)) :]:
            layer.register_forward_pre_hook(SkipLayer())
    if last_layer and has_usual_layers(language_of(model)):
        SkipLastLayer(language_of(model))


def has_usual_layers(language: Any) -> bool:
    """Whether the last layer has the modules that SkipLastLayer attaches to, in the order of a Llama."""
    layers = getattr(language, "layers", None) or [None]
    if hasattr(layers[-1], "pre_feedforward_layernorm"):  # Gemma: another norm is before the MLP, one behind it
        return False
    names = ("self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp")
    modules = dict(layers[-1].named_modules()) if isinstance(layers[-1], torch.nn.Module) else {}
    return hasattr(language, "norm") and all(name in modules for name in names)


def language_layers(language: Any) -> torch.nn.ModuleList:
    """The language model's transformer layers, whatever their name; empty for a model that has no such list."""
    lists = [module for module in language.children() if isinstance(module, torch.nn.ModuleList)]
    layers = getattr(language, "layers", None)
    return layers if isinstance(layers, torch.nn.ModuleList) else max(lists, key=len, default=torch.nn.ModuleList())


def remove_skip_hooks(model: Any) -> None:
    """Remove the hooks."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", hook), HOOK_OWNERS)]:
                del hooks[key]


def vision_layers(model: Any) -> list[torch.nn.Module]:
    """The vision encoder's transformer layers in order."""
    modules = vision_of(model).named_modules()
    return [module for name, module in modules if re.search(r"(?:^|\.)(?:layers?|blocks)\.\d+$", name)]


def feature_depth(model: Any) -> int:
    """Number of vision layers that the features depend on: all but the last for feature_layer -2, although transformers
    computes the last one too."""
    layer = getattr(model.config, "vision_feature_layer", -1)
    total = getattr(vision_of(model).config, "num_hidden_layers", None) or len(vision_layers(model))
    return max(n if n >= 0 else total + 1 + n for n in (layer if isinstance(layer, list | tuple) else [layer]))


class SkipLayer:
    """Pre-hook that passes only the first token of the first image to a layer whose result is not used."""

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (args[0][:1, :1], *args[1:]) if args else None


class SkipLastLayer:
    """Hooks on the last layer and the final norm: queries, projection, norms and MLP compute only the rows that the
    pack's layout marks as used, and the other rows become zeros."""

    def __init__(self, language: Any) -> None:
        self.used: torch.Tensor | None = None
        self.shape: tuple[int, ...] = ()
        layer = language.layers[-1]
        layer.register_forward_pre_hook(self.set_used, with_kwargs=True)
        attention = layer.self_attn
        for first, last in (
            (layer.post_attention_layernorm, layer.mlp),
            (language.norm, language.norm),
            (attention.q_proj, attention.q_proj),
            (attention.o_proj, attention.o_proj),
        ):
            first.register_forward_pre_hook(self.gather_rows)
            last.register_forward_hook(self.scatter_rows)

    def set_used(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layout = kwargs.get("layout")
        self.used = None if layout is None else layout.used

    def gather_rows(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.used is None:
            return None
        self.shape = args[0].shape[:2]  # 1, T
        return (args[0].index_select(1, self.used),)

    def scatter_rows(self, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        if self.used is None:
            return None
        return output.new_zeros(*self.shape, output.shape[-1]).index_copy(1, self.used, output)


HOOK_OWNERS = (SkipLayer, SkipLastLayer)
