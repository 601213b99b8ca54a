"""How much memory a run takes, by cause, before it begins.

In: a model's shape, the recipe, the layout of a pack. Out: bytes. What stands still (weights, gradients, optimizer) is
counted; what comes and goes (activations, logits) is seen from PyTorch's own operations, run on tensors without data at
two small depths. Depth adds the same to every layer, so the whole follows.
"""

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, LlavaConfig

from qilin.model.compose import set_learning
from qilin.model.skeleton import skeleton
from qilin.train.attention import make_layout, use_packed_attention
from qilin.train.loss import answer_loss
from qilin.train.settings import TrainSettings
from qilin.train.setup import add_adapters, arithmetic, base_of, fit_out

LIKE_FLEX = "qilin_like_flex"
DEPTHS = (3, 4)  # layers of the language model in the two trials
PROCESS = 0.55e9  # Python with torch and transformers loaded, on a CPU (bench/results/estimate.json)


@dataclass(frozen=True)
class Shape:
    """The pack that is computed at once."""

    documents: Sequence[tuple[int, int, int]]  # as in attention.make_layout
    answers: int
    pictures: int

    @property
    def tokens(self) -> int:
        return sum(length for _, length, _ in self.documents)


def memory_by_cause(
    config: LlavaConfig, model: Any, settings: TrainSettings, pack: Shape, on_card: bool
) -> dict[str, float]:
    """Bytes at most, by cause; `model` is the skeleton made ready."""
    empty, silent = Shape([(0, 64, -1)], 1, 0), Shape(pack.documents, 1, pack.pictures)
    few, most, whole = (peak(config, settings, shape, on_card) for shape in (empty, silent, pack))
    moving = {"copies of weights in bf16": few, "activations": most - few, "logits": whole - most}
    return standing(model, settings, on_card) | {cause: size for cause, size in moving.items() if size > 0}


def standing(model: Any, settings: TrainSettings, on_card: bool) -> dict[str, float]:
    """Bytes of what stays from step to step, by cause."""
    learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = {
        "weights": float(sum(p.numel() * p.element_size() for p in model.parameters())),
        "gradients": 4.0 * learn,
        "optimizer": 8.0 * learn,
        "running average": 4.0 * learn if settings.average else 0.0,
        "the program itself": 0.0 if on_card else PROCESS,
    }
    return {cause: size for cause, size in found.items() if size}


def peak(config: LlavaConfig, settings: TrainSettings, shape: Shape, on_card: bool) -> float:
    """Bytes that forward and backward of one pack hold at most, beside weights and their gradients."""
    low, high = (trial(config, settings, shape, on_card, depth) for depth in DEPTHS)
    text: Any = config.text_config
    return low + (high - low) / (DEPTHS[1] - DEPTHS[0]) * (text.num_hidden_layers - DEPTHS[0])


def trial(config: LlavaConfig, settings: TrainSettings, shape: Shape, on_card: bool, depth: int) -> int:
    """The same for a language model of `depth` layers, seen from a run on tensors without data."""
    config = copy.deepcopy(config)
    shrink(config, depth, "vision" in settings.learn)
    cpu = torch.device("cpu")
    layout = make_layout(shape.documents, cpu)
    model = ready(skeleton(config), settings, on_card)
    use_packed_attention(model)
    if on_card:
        model.model.language_model.set_attn_implementation(LIKE_FLEX)
    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        give_storage(model)
        known = [t for p in model.parameters() for t in (p, p.grad) if t is not None]
        with Live([*known, *model.buffers()]) as live:
            with arithmetic(settings.precision, cpu):
                words = torch.zeros(1, shape.tokens, dtype=torch.int64)
                embedded = model.model.get_input_embeddings()(words)
                if shape.pictures:
                    side = model.config.vision_config.image_size
                    pixels = torch.zeros(shape.pictures, 3, side, side)
                    seen = model.model.get_image_features(pixel_values=pixels).pooler_output
                    place = (words == config.image_token_id).unsqueeze(-1)
                    embedded = embedded.masked_scatter(place, torch.cat(seen).to(embedded.dtype))
                hidden = model.model.language_model(
                    inputs_embeds=embedded, position_ids=words, layout=layout, use_cache=False
                ).last_hidden_state[0]
                where = torch.zeros(shape.answers, dtype=torch.int64)
                loss = answer_loss(hidden, model.lm_head, where, where)
            if loss.requires_grad:
                loss.backward()
    return live.peak


def ready(model: Any, settings: TrainSettings, on_card: bool) -> Any:
    """The Llava that would learn, its adapters in place."""
    set_learning(model, settings.learn)
    return base_of(add_adapters(fit_out(model, settings, on_card), settings))


def give_storage(model: Any) -> None:
    """From the meta device to tensors with a place but no data; what learns has a gradient from an earlier pack."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            placed = torch.nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
            if parameter.requires_grad:
                placed.grad = torch.empty_like(placed)
            setattr(module, name, placed)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))


def shrink(config: LlavaConfig, depth: int, vision_learns: bool) -> None:
    """Fewer layers of the language model; of a frozen encoder too, whose tensors go from layer to layer."""
    text: Any = config.text_config
    vision: Any = config.vision_config
    if not vision_learns:
        vision.num_hidden_layers = min(vision.num_hidden_layers, 4)
        config.vision_feature_layer = -2
    text.num_hidden_layers = depth
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:depth]


class Live(TorchDispatchMode):
    """Adds up the storages that operations make, less those let go again. `peak`: most bytes at once."""

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return found

    def note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def like_flex(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What FlexAttention keeps for the backward pass: queries, keys, values, output and a sum a row, no scores."""
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(LIKE_FLEX, like_flex)
