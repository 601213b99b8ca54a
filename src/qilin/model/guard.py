"""Checks that a composed Llava is its language model, and that what will be written can be read.

In: a Llava and the language model it was made of. Out: nothing, or a UserError with what differs and by how much. Large
models are computed on their first layers only, which takes about a second.
"""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from qilin.core.errors import QilinError, UserError
from qilin.model.architectures import language_of, vision_of
from qilin.model.hub import format_first
from qilin.model.logit_scale import fold_logit_scale

LARGE = 20_000_000  # parameters; models with more are checked on their first layers
MAX_LAYERS = 8
TOLERANCE = 2e-6  # of the largest logit: both sides run the same layers
NOT_OF_THE_HEAD = ("output_attentions", "output_hidden_states", "output_router_logits", "return_dict",
                   "use_return_dict", "vocab_size", "use_cache", "hidden_size", "num_experts", "num_local_experts",
                   "num_experts_per_tok",
                   "router_aux_loss_coef")  # fmt: skip


@torch.no_grad()
def check_text_logits(model: Any, language_model: Any, name: str) -> float | None:
    """Compare the text logits of a Llava with those of its language model's own class.

    A stock Llava has layers and a linear head; what the language model does between and after them (scales, soft caps)
    is lost. A scale that is a power of two moves into the last norm, and is returned. Raises UserError that names the
    config's keys that its forward pass reads.
    """
    ids = torch.randint(min(300, language_model.config.vocab_size), (1, 24), generator=torch.Generator().manual_seed(0))
    with eval_mode(model), eval_mode(language_model), first_layers(model):
        expected = one_line_errors(name, lambda: language_model(input_ids=ids, use_cache=False).logits)
        logits = one_line_errors(name, lambda: model(input_ids=ids, use_cache=False).logits)
        difference, factor, keys = relative_difference(logits, expected), None, keys_of_head(language_model)
        if difference > TOLERANCE:
            factor = fold_logit_scale(model, keys, logits, expected)
        if factor is not None:
            difference = relative_difference(model(input_ids=ids, use_cache=False).logits, expected)
    if difference <= TOLERANCE:
        return factor
    class_name = type(language_model).__name__
    listed = ", ".join(f"{key} {value}" for key, value in keys.items())
    raise UserError(
        f"{name}: {class_name} is more than layers and a linear head ({listed or 'see its forward'}), which a Llava "
        f"does not have: its logits would be off by {difference:.1%} of the largest; choose another language model"
    )


def relative_difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a share of the largest logit."""
    return float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def one_line_errors(name: str, compute: Any) -> Any:
    """The result of `compute`; whatever a model's code raises becomes one line."""
    try:
        return compute()
    except QilinError:
        raise
    except Exception as error:  # any code of transformers
        raise UserError(f"{name}: does not work inside a Llava ({describe(error)}); choose another model") from error


def describe(error: BaseException) -> str:
    """An exception's type and first line."""
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first_line}"[:200].rstrip(": ")


def keys_of_head(language_model: Any) -> dict[str, Any]:
    """The config's keys that the forward pass of a ForCausalLM class reads, with their values."""
    source = inspect.getsource(type(language_model).forward)
    names = dict.fromkeys(re.findall(r"self\.(?:config\.)?(\w+)", source))
    config = language_model.config
    values = {name: getattr(config, name, None) for name in names if name not in NOT_OF_THE_HEAD}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def check_structure(model: Any, name: str) -> None:
    """Compare names and shapes of the weights with those of a new model from the config that will be saved."""
    config = LlavaConfig.from_dict(model.config.to_dict())

    def build() -> Any:
        with torch.device("meta"):
            return LlavaForConditionalGeneration(config)

    fresh = one_line_errors(name, build)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    expected = {key: tuple(tensor.shape) for key, tensor in fresh.state_dict().items()}
    lost, absent = sorted(set(shapes) - set(expected)), sorted(set(expected) - set(shapes))
    other = sorted(key for key in set(shapes) & set(expected) if shapes[key] != expected[key])
    parts = {"lost": lost, "missing": absent, "of another shape": other}
    differences = [f"{len(keys)} {what} ({format_first(keys)})" for what, keys in parts.items() if keys]
    if differences:
        raise UserError(
            f"{name}: a saved model could not be read again: of its {len(shapes)} weights, {'; '.join(differences)}; "
            "choose another model"
        )


@contextmanager
def eval_mode(module: Any) -> Iterator[None]:
    """Without dropout; every submodule gets its own mode back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def first_layers(model: Any) -> Iterator[None]:
    """A large model with only the first layers of its language model and encoder: as many as it takes to have each
    type of layer, at least two."""
    if sum(p.numel() for p in model.parameters()) <= LARGE:
        yield
        return
    language, vision = language_of(model), vision_of(model)
    vision_stack = getattr(vision, "encoder", getattr(vision, "vision_model", vision))
    layer = getattr(model.config, "vision_feature_layer", None)
    restored = [] if layer is None else [(model.config, "vision_feature_layer", layer)]
    if layer is not None:
        capture_hidden_states(vision)
    for part, stack, depth in (
        (language, language, count_first_layers(language.config)),
        (vision, vision_stack, 3),
    ):
        name = next((name for name in ("layers", "layer", "blocks") if hasattr(stack, name)), "layers")
        layers = getattr(stack, name, None)
        if isinstance(layers, torch.nn.ModuleList) and len(layers) > depth:
            restored.append((stack, name, layers))
            setattr(stack, name, layers[:depth])
            if hasattr(part.config, "num_hidden_layers"):
                restored.append((part.config, "num_hidden_layers", part.config.num_hidden_layers))
                part.config.num_hidden_layers = depth
            if part is vision and layer not in (None, -1):
                model.config.vision_feature_layer = -2
    try:
        yield
    finally:
        for owner, attribute, value in restored:
            setattr(owner, attribute, value)


def capture_hidden_states(encoder: Any) -> None:
    """Attach transformers' hooks for hidden states to all layers. It attaches them once, when hidden states are first
    asked for: on a cut encoder, `hidden_states[-2]` would afterwards be that of its second layer, without an error."""
    for module in encoder.modules():
        if isinstance(module, PreTrainedModel) and module._can_record_outputs:
            maybe_install_capturing_hooks(module)


def count_first_layers(config: Any) -> int:
    """The first layers that have all types of layers in them, 2 to MAX_LAYERS."""
    types = list(getattr(config, "layer_types", None) or [])
    return min(MAX_LAYERS, max([2, *(types.index(kind) + 1 for kind in set(types))]))
