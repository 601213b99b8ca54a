"""How much memory a run takes, by cause, before it begins.

In: a model's shape, the recipe, the layout of a pack. Out: bytes. What stands still (weights, gradients, optimizer) is
counted; what comes and goes (activations, logits) is seen from PyTorch's own operations, run on tensors without data at
two small depths. Depth adds the same to every layer, so the whole follows.
"""

import copy
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, LlavaConfig

from qilin.model.llava import set_trainable
from qilin.model.meta_model import build_meta_model
from qilin.train.config import TrainConfig
from qilin.train.distributed import GATHERED, divides_frozen
from qilin.train.loss import answer_loss
from qilin.train.model_setup import add_adapters, arithmetic, base_of, fit_out, image_dtype
from qilin.train.optimizer import Kind, Learning, inside_a_layer
from qilin.train.packed_attention import make_layout, use_packed_attention
from qilin.train.plan import Lengths, Piece, Plan, counts_of

SLACK = 0.94  # of a card's memory: what its context, fragments and libraries leave (not measured)
LIKE_FLEX = "qilin_like_flex"
DEPTHS = (3, 4)  # layers of the language model in the two trials
UNSEEN: Mapping[str, Any] = {"optimizer": "adamw", "frozen_weights": "plain", "shard": "auto"}
LOOKED: dict[str, int] = {}  # trials of this process, by all that they were given
PROCESS = 0.55e9  # Python with torch and transformers loaded, on a CPU (bench/results/estimate.json)


@dataclass(frozen=True)
class Shape:
    """The pack that is computed at once."""

    documents: Sequence[tuple[int, int, int]]  # as in attention.make_layout
    answers: int
    images: int

    @property
    def tokens(self) -> int:
        return sum(length for _, length, _ in self.documents)

    def where(self) -> list[int]:
        """Tokens that predict the answers, as if each document ended with its share of them."""
        share = self.answers / self.tokens
        ends = [
            range(start + length - math.ceil(share * length), start + length) for start, length, _ in self.documents
        ]
        return [token for end in ends for token in end][: self.answers]


def memory_by_cause(
    model_config: LlavaConfig, model: Any, config: TrainConfig, pack: Shape, on_card: bool, devices: int = 1
) -> dict[str, float]:
    """Bytes at most on each device, by cause; `model` is the skeleton made ready."""
    empty, silent = Shape([(0, 64, -1)], 1, 0), Shape(pack.documents, 1, pack.images)
    few, most, whole = (peak(model_config, config, shape, on_card, devices > 1) for shape in (empty, silent, pack))
    moving = {"copies of weights in bf16": few, "activations": most - few, "logits": whole - most}
    stays = standing(model, config, on_card, devices)
    causes = stays | {cause: size for cause, size in moving.items() if size > 0}
    more = 0.0 if on_card else read_bytes(model) - sum(causes.values())
    return causes | ({"more, while it is read and written": more} if more > 0 else {})


def read_bytes(model: Any) -> float:
    """Bytes on the host while the whole model is read or written, in fp32."""
    return 4.0 * sum(p.numel() for p in model.parameters()) + PROCESS


def standing(model: Any, config: TrainConfig, on_card: bool, devices: int = 1) -> dict[str, float]:
    """Bytes of what stays from step to step on each device, by cause."""
    learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = frozen_bytes(model, config)
    gathered = 0.0
    if devices > 1:
        layers = [sum(p.numel() for p in layer.parameters()) for layer in model.model.language_model.layers]
        outside = sum(p.numel() for p in model.parameters()) - sum(layers)
        kind = 2 if config.precision == "bf16" else 4
        gathered = kind * (2 * max(layers) + outside) + 4.0 * max(layers)  # two layers whole, and a gradient under way
        gathered += 4.0 * learn if 4 * learn <= GATHERED else 0.0
    shared = frozen / devices if config.shard == "all" else frozen
    found = {
        "weights": shared + 4.0 * learn / devices,
        "gradients": 4.0 * learn / devices,
        "optimizer": optimizer_bytes(model, config.optimizer) / devices,
        "running average": 4.0 * learn / devices if config.ema_decay else 0.0,
        "weights and gradients gathered": gathered,
        "the program itself": 0.0 if on_card else PROCESS,
    }
    return {cause: size for cause, size in found.items() if size}


def optimizer_bytes(model: Any, kind: Kind) -> float:
    """Two averages a weight, in 32 or 8 bits (with scales); Muon keeps one."""
    learning = [Learning(name, p, 0, 0) for name, p in model.named_parameters() if p.requires_grad]
    muons = sum(item.parameter.numel() for item in learning if kind == "muon" and inside_a_layer(item))
    others = sum(item.parameter.numel() for item in learning) - muons
    return 4.0 * muons + (2.03 if kind == "adamw8bit" else 8.0) * others


def frozen_bytes(model: Any, config: TrainConfig) -> float:
    """Bytes of what does not learn, all together; 4 bits with their scales are 0.516 bytes a number."""
    small = {
        p
        for module in model.model.language_model.modules()
        if isinstance(module, torch.nn.Linear) and config.frozen_weights == "nf4"
        for p in module.parameters()
    }
    sizes = (0.516 * p.numel() if p in small else p.numel() * p.element_size() for p in frozen_of(model))
    return float(sum(sizes))


def frozen_of(model: Any) -> list[torch.Tensor]:
    return [p for p in model.parameters() if not p.requires_grad]


def peak(model_config: LlavaConfig, config: TrainConfig, shape: Shape, on_card: bool, divided: bool = False) -> float:
    """Bytes that forward and backward of one pack hold at most, beside weights and their gradients."""
    share = float(config.gradient_checkpointing)
    ends = {False: 1 - share, True: share}  # what so many layers keep lies between what none and what all of them do
    return sum(
        part * at_depth(model_config, replace(config, gradient_checkpointing=end), shape, on_card, divided)
        for end, part in ends.items()
        if part
    )


def at_depth(model_config: LlavaConfig, config: TrainConfig, shape: Shape, on_card: bool, divided: bool) -> float:
    low, high = (trial(model_config, config, shape, on_card, divided, depth) for depth in DEPTHS)
    text: Any = model_config.text_config
    return low + (high - low) / (DEPTHS[1] - DEPTHS[0]) * (text.num_hidden_layers - DEPTHS[0])


def largest_pack(plan: Plan) -> Shape:
    """The fullest pack of the first steps: the one that memory must hold."""
    packs = [pieces for step in range(min(len(plan), 50)) for pieces in plan.packs(step)]
    return shape_of_pack(max(packs, key=lambda pack: sum(piece.tokens for piece in pack)), plan.lengths)


def shape_of_pack(pieces: Sequence[Piece], lengths: Lengths) -> Shape:
    """Pieces laid end to end, as the feed lays them."""
    counts = counts_of(pieces, lengths)
    documents: list[tuple[int, int, int]] = []
    start = 0
    for piece in pieces:
        prefix = int(lengths.prefix[piece.samples[0]]) if len(piece.samples) > 1 else 0
        head = len(documents) if prefix else -1
        rests = [int(lengths.total[index]) - prefix for index in piece.samples]
        for length, before in [(prefix, -1)] * bool(prefix) + [(rest, head) for rest in rests]:
            documents.append((start, length, before))
            start += length
    return Shape(documents, max(1, counts.answers), counts.images)


def settled(
    model_config: LlavaConfig, config: TrainConfig, pack: Shape, on_card: bool, devices: int, memory: float
) -> TrainConfig:
    """The recipe with what it leaves open decided for devices of `memory` bytes: `divide` and `checkpointing`.

    Activations are computed again in as few layers as memory asks for: in all where even that seems too much, since
    this is an estimate.
    """
    trial = config if config.gradient_checkpointing != "auto" else replace(config, gradient_checkpointing=False)
    model = ready(build_meta_model(model_config), trial)
    whole = devices > 1 and divides_frozen(config, frozen_bytes(model, config), memory)
    config = replace(config, shard="all" if whole else "trainable")
    if config.gradient_checkpointing != "auto":
        return config
    room = memory * (SLACK if on_card else 1) - sum(standing(model, config, on_card, devices).values())
    most, least = (
        peak(model_config, replace(config, gradient_checkpointing=end), pack, on_card, devices > 1)
        for end in (False, True)
    )
    layers: Any = model_config.text_config
    needed = math.ceil((most - room) / max(most - least, 1.0) * layers.num_hidden_layers)
    return replace(config, gradient_checkpointing=min(max(needed / layers.num_hidden_layers, 0.0), 1.0))


def trial(
    model_config: LlavaConfig, config: TrainConfig, shape: Shape, on_card: bool, divided: bool, depth: int
) -> int:
    """The same for a language model of `depth` layers. Looked at once: most of what an estimate tries to make a recipe
    fit changes nothing here."""
    config = replace(config, **UNSEEN)  # a trial cannot depend on what it is not given
    asked = repr((model_config.to_dict(), config, shape, on_card, divided, depth))
    if asked not in LOOKED:
        LOOKED[asked] = look(model_config, config, shape, on_card, divided, depth)
    return LOOKED[asked]


def look(model_config: LlavaConfig, config: TrainConfig, shape: Shape, on_card: bool, divided: bool, depth: int) -> int:
    """What a run on tensors without data holds at most."""
    model_config = copy.deepcopy(model_config)
    shrink(model_config, depth, "vision" in config.trainable)
    cpu = torch.device("cpu")
    layout = make_layout(shape.documents, cpu, shape.where())
    model = ready(build_meta_model(model_config), config)
    use_packed_attention(model)
    if on_card:
        model.model.language_model.set_attn_implementation(LIKE_FLEX)
        model.model.vision_tower.set_attn_implementation("sdpa")
    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        give_storage(model, torch.bfloat16 if divided and config.precision == "bf16" else None)
        known = [t for p in model.parameters() for t in (p, p.grad) if t is not None]
        with Live([*known, *model.buffers()]) as live:
            with arithmetic(config.precision, cpu):
                words = torch.zeros(1, shape.tokens, dtype=torch.int64)
                embedded = model.model.get_input_embeddings()(words)
                if shape.images:
                    side = model.config.vision_config.image_size
                    pixels = torch.zeros(shape.images, 3, side, side, dtype=image_dtype(config))
                    seen = model.model.get_image_features(pixel_values=pixels).pooler_output
                    place = (words == model_config.image_token_id).unsqueeze(-1)
                    embedded = embedded.masked_scatter(place, torch.cat(seen).to(embedded.dtype))
                hidden = model.model.language_model(
                    inputs_embeds=embedded, position_ids=words, layout=layout, use_cache=False
                ).last_hidden_state[0]
                where = torch.tensor(shape.where())
                loss = answer_loss(hidden, model.lm_head, where, where)
            if loss.requires_grad:
                loss.backward()
    return live.peak


def ready(model: Any, config: TrainConfig) -> Any:
    """The Llava that would learn, its adapters in place."""
    set_trainable(model, config.trainable)
    return base_of(add_adapters(fit_out(model, config), config))


def give_storage(model: Any, kind: torch.dtype | None) -> None:
    """From the meta device to tensors with a place but no data; what learns has a gradient from an earlier pack."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            placed = torch.nn.Parameter(torch.empty_like(parameter, device="cpu", dtype=kind), parameter.requires_grad)
            if parameter.requires_grad:
                placed.grad = torch.empty_like(placed)
            setattr(module, name, placed)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))


def shrink(model_config: LlavaConfig, depth: int, vision_learns: bool) -> None:
    """Fewer layers of the language model; of a frozen encoder too, whose tensors go from layer to layer."""
    text: Any = model_config.text_config
    vision: Any = model_config.vision_config
    if not vision_learns:
        vision.num_hidden_layers = min(vision.num_hidden_layers, 4)
        model_config.vision_feature_layer = -2
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
