"""Estimates the memory of a run by cause, before it starts.

In: a model's shape, the recipe, the layout of a pack. Out: bytes. Static memory (weights, gradients, optimizer) is
computed; dynamic memory (activations, logits) is measured on PyTorch's own operations with fake tensors at two small
depths. Every layer adds the same amount, so the total follows by extrapolation.
"""

import contextlib
import copy
import hashlib
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, LlavaConfig

from qilin.core.files import cache_dir, write_atomic
from qilin.model.architectures import find_architecture, language_of, set_trainable, vision_of
from qilin.model.meta_model import build_meta_model
from qilin.train.config import TrainConfig
from qilin.train.distributed import MAX_UNSHARDED_GRADIENTS, autocast_dtype, shards_frozen
from qilin.train.gpus import USABLE_SHARE
from qilin.train.loss import answer_loss
from qilin.train.model_setup import add_adapters, apply_precision, autocast_context, base_model, compute_dtype
from qilin.train.optimizer import OptimizerName, TrainableParam, is_layer_matrix
from qilin.train.packed_attention import Document, make_layout, use_packed_attention
from qilin.train.plan import Lengths, PackedGroup, Plan, count_work
from qilin.train.split_weights import can_split_weights
from qilin.train.start_model import sliding_window

FLEX_MEMORY = "qilin_flex_memory"  # an attention with the memory of FlexAttention
DEPTHS = (3, 4)  # layers of the language model in the two simulations
# activation_memory_budget -> share of the activations that a compiled layer keeps, by the allocator on the stub GPU:
# trained layers and adapters in stage 2 of 7B, frozen layers in stage 1 of 13B (bench/results/stub-gpu.json)
COMPILED_SHARES = {
    "trained": {0.5: 0.368, 0.8: 0.500, 1.0: 0.706},
    "adapters": {0.5: 0.407, 1.0: 0.776},
    "frozen": {0.5: 0.377, 0.8: 0.556, 1.0: 0.756},
}
MEMORY_BUDGETS = (0.8, 0.5)  # what gradient_checkpointing=auto tries before it recomputes layers
PROCESS_BYTES = 0.55e9  # Python with torch and transformers loaded, on a CPU (bench/results/estimate.json)
SIMULATION_VERSION = 2  # raised when a change of this module changes what a simulation gives
VERSIONS = (torch.__version__, transformers.__version__)
_peak_cache: dict[str, int] = {}  # results of simulate_peak in this process


@dataclass(frozen=True)
class PackShape:
    """The shape of one pack."""

    documents: Sequence[Document]
    answer_tokens: int
    images: int
    image_tokens: int = 0

    @property
    def tokens(self) -> int:
        return sum(length for _, length, _ in self.documents)

    def target_positions(self) -> list[int]:
        """Positions that predict the answer tokens, as if each document ended with its share of them."""
        share = self.answer_tokens / self.tokens
        ends = [
            range(start + length - math.ceil(share * length), start + length) for start, length, _ in self.documents
        ]
        return [token for end in ends for token in end][: self.answer_tokens]


def memory_by_cause(
    model_config: Any, model: Any, config: TrainConfig, pack: PackShape, on_gpu: bool, devices: int = 1
) -> dict[str, float]:
    """Peak bytes on each device by cause; `model` is a meta model from `prepare_model`."""
    minimal, without_answers = PackShape([(0, 64, -1)], 1, 0), replace(pack, answer_tokens=1)
    shapes = (minimal, without_answers, pack)
    copies, activations, total = (peak_memory(model_config, config, shape, on_gpu, devices > 1) for shape in shapes)
    dynamic = {
        f"copies of weights in {config.precision}": copies,
        "activations": activations - copies,
        "logits": total - activations,
    }
    causes = static_memory(model, config, on_gpu, devices) | {
        cause: size for cause, size in dynamic.items() if size > 0
    }
    extra = 0.0 if on_gpu else load_memory(model) - sum(causes.values())
    return causes | ({"more, while loading and saving": extra} if extra > 0 else {})


def load_memory(model: Any) -> float:
    """Bytes on the host while the complete model is loaded or saved, in fp32."""
    return 4.0 * sum(p.numel() for p in model.parameters()) + PROCESS_BYTES


def static_memory(model: Any, config: TrainConfig, on_gpu: bool, devices: int = 1) -> dict[str, float]:
    """Bytes on each device that stay from step to step, by cause."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = frozen_bytes(model, config)
    unsharded = 0.0
    if devices > 1:
        layers = [sum(p.numel() for p in layer.parameters()) for layer in language_of(model).layers]
        outside = sum(p.numel() for p in model.parameters()) - sum(layers)
        itemsize = compute_dtype(config).itemsize
        unsharded = itemsize * (2 * max(layers) + outside) + 4.0 * max(layers)  # two layers, and one layer's gradient
        unsharded += 4.0 * trainable if 4 * trainable <= MAX_UNSHARDED_GRADIENTS else 0.0
    causes = {
        "weights": (frozen / devices if config.shard == "all" else frozen) + 4.0 * trainable / devices,
        "gradients": 4.0 * trainable / devices,
        "optimizer": optimizer_bytes(model, config.optimizer) / devices,
        "moving average": 4.0 * trainable / devices if config.ema_decay else 0.0,
        "unsharded weights and gradients": unsharded,
        "the process itself": 0.0 if on_gpu else PROCESS_BYTES,
    }
    return {cause: size for cause, size in causes.items() if size}


def optimizer_bytes(model: Any, name: OptimizerName) -> float:
    """AdamW: two moments per weight, in 32 bits, or in 8 bits with scales; Muon: one."""
    params = [TrainableParam(n, p, 0, 0) for n, p in model.named_parameters() if p.requires_grad]
    by_muon = sum(param.parameter.numel() for param in params if name == "muon" and is_layer_matrix(param))
    by_adamw = sum(param.parameter.numel() for param in params) - by_muon
    return 4.0 * by_muon + (2.03 if name == "adamw8bit" else 8.0) * by_adamw


def frozen_bytes(model: Any, config: TrainConfig) -> float:
    """Bytes of all frozen weights; nf4 with its scales takes 0.516 bytes per weight."""
    quantized = {
        p
        for module in language_of(model).modules()
        if isinstance(module, torch.nn.Linear) and config.frozen_weights == "nf4"
        for p in module.parameters()
    }
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return float(sum(0.516 * p.numel() if p in quantized else p.numel() * p.element_size() for p in frozen))


def peak_memory(model_config: Any, config: TrainConfig, shape: PackShape, on_gpu: bool, sharded: bool = False) -> float:
    """Peak bytes of forward and backward of one pack, without weights and their gradients.

    A share of checkpointed layers lies linearly between none and all of them.
    """
    share = float(config.gradient_checkpointing)
    language = sum(
        part
        * extrapolate_depth(model_config, replace(config, gradient_checkpointing=all_layers), shape, on_gpu, sharded)
        for all_layers, part in ((False, 1 - share), (True, share))
        if part
    )
    encoder = encoder_memory(model_config, config, shape.image_tokens)
    return language + encoder if "vision" in config.trainable else max(language, encoder)


def encoder_memory(model_config: Any, config: TrainConfig, image_tokens: int) -> float:
    """Bytes of an encoder's activations where images have any number of tokens; a Llava's are simulated.

    By its widths: 8 vectors of a layer's width and two of its MLP's for each patch, of all layers if it is trained,
    else of one.
    """
    if isinstance(model_config, LlavaConfig):
        return 0.0
    vision = model_config.vision_config
    patches = image_tokens * find_architecture(model_config).patches_per_token(model_config)
    layers = getattr(vision, "num_hidden_layers", None) or vision.depth
    width = float(vision.hidden_size)
    layer = 8 * width + 2 * vision.intermediate_size
    if "vision" not in config.trainable:
        elements = layer
    else:
        share = float(config.gradient_checkpointing)
        elements = layers * ((1 - share) * layer + share * width) + share * layer
    return patches * elements * compute_dtype(config).itemsize


def extrapolate_depth(model_config: Any, config: TrainConfig, shape: PackShape, on_gpu: bool, sharded: bool) -> float:
    shallow, deep = (cached_peak(model_config, config, shape, on_gpu, sharded, depth) for depth in DEPTHS)
    text_config: Any = model_config.text_config
    layer = (deep - shallow) / (DEPTHS[1] - DEPTHS[0])
    compiled_layers = text_config.num_hidden_layers - 1 if compiles(config, on_gpu, sharded) else 0
    saved = compiled_layers * layer * (1 - compiled_share(config))
    return shallow + layer * (text_config.num_hidden_layers - DEPTHS[0]) - saved


def compiles(config: TrainConfig, on_gpu: bool, sharded: bool) -> bool:
    """Whether layers keep what compiled ones do: those that are recomputed keep their input alone."""
    return on_gpu and not sharded and config.torch_compile is not False and not config.gradient_checkpointing


def compiled_share(config: TrainConfig) -> float:
    """What share of its activations a layer keeps when it is compiled; below a budget of 0.5, that of 0.5."""
    kind = "adapters" if config.lora is not None else "trained" if "language" in config.trainable else "frozen"
    shares = COMPILED_SHARES[kind]
    return float(np.interp(config.activation_memory_budget, list(shares), list(shares.values())))


def largest_pack(plan: Plan) -> PackShape:
    """The shape of the largest pack of the first 50 steps, which determines the memory."""
    packs = [pack for step in range(min(len(plan), 50)) for pack in plan.packs(step)[0]]
    return pack_shape(max(packs, key=lambda pack: sum(group.tokens for group in pack)), plan.lengths)


def pack_shape(groups: Sequence[PackedGroup], lengths: Lengths) -> PackShape:
    """The shape of groups packed as PackedDataset.make_pack does."""
    counts = count_work(groups, lengths)
    documents: list[Document] = []
    start = 0
    for group in groups:
        prefix = int(lengths.prefix[group.samples[0]]) if len(group.samples) > 1 else 0
        prefix_document = len(documents) if prefix else -1
        rests = [int(lengths.total[index]) - prefix for index in group.samples]
        for length, before in [(prefix, -1)] * bool(prefix) + [(rest, prefix_document) for rest in rests]:
            documents.append((start, length, before))
            start += length
    return PackShape(documents, max(1, counts.answer_tokens), counts.images, counts.image_tokens)


def resolve_auto(
    model_config: Any, config: TrainConfig, pack: PackShape, on_gpu: bool, devices: int, memory: float
) -> TrainConfig:
    """The recipe with `shard` and `gradient_checkpointing` resolved for devices of `memory` bytes.

    As few layers as the memory requires are checkpointed, none if compiled layers that keep less of their activations
    fit; all of them where even that seems too much, since this is an
    estimate.
    """
    if devices == 1 and config.gradient_checkpointing != "auto":
        return replace(config, shard="trainable")
    without_auto = config if config.gradient_checkpointing != "auto" else replace(config, gradient_checkpointing=False)
    model = prepare_model(build_meta_model(model_config), without_auto)
    shard_all = devices > 1 and shards_frozen(config, frozen_bytes(model, config), memory)
    config = replace(config, shard="all" if shard_all else "trainable")
    if config.gradient_checkpointing != "auto":
        return config
    available = memory * (USABLE_SHARE if on_gpu else 1) - sum(static_memory(model, config, on_gpu, devices).values())
    highest, lowest = (
        peak_memory(model_config, replace(config, gradient_checkpointing=all_layers), pack, on_gpu, devices > 1)
        for all_layers in (False, True)
    )
    for budget in MEMORY_BUDGETS:  # cheaper than recomputing layers
        budgeted = replace(config, activation_memory_budget=budget, gradient_checkpointing=0.0)
        if budget < config.activation_memory_budget and compiles(budgeted, on_gpu, devices > 1):
            if highest <= available:
                break
            if peak_memory(model_config, budgeted, pack, on_gpu, devices > 1) <= available:
                return budgeted
    text_config: Any = model_config.text_config
    num_layers = text_config.num_hidden_layers
    needed = math.ceil((highest - available) / max(highest - lowest, 1.0) * num_layers)
    return replace(config, gradient_checkpointing=min(max(needed / num_layers, 0.0), 1.0))


def cached_peak(
    model_config: Any, config: TrainConfig, shape: PackShape, on_gpu: bool, sharded: bool, depth: int
) -> int:
    """simulate_peak, once per distinct input: most changes that an estimate tries do not affect it. Kept on disk too,
    since a simulation takes most of the time of an estimate."""
    relevant = (
        config.trainable,
        config.lora,
        config.precision,
        config.gradient_checkpointing,
        splits(config, on_gpu, sharded),
    )
    inputs = repr((model_config.to_dict(), relevant, shape, on_gpu, sharded, depth, SIMULATION_VERSION, VERSIONS))
    key = hashlib.sha256(inputs.encode()).hexdigest()[:32]
    if key not in _peak_cache:
        file = cache_dir("memory") / f"{key}.txt"
        with contextlib.suppress(OSError, ValueError):
            _peak_cache[key] = int(file.read_text(encoding="ascii"))
    if key not in _peak_cache:
        _peak_cache[key] = simulate_peak(model_config, config, shape, on_gpu, sharded, depth)
        with contextlib.suppress(OSError):  # a full disk, no permission: simulated again next time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, str(_peak_cache[key]))
    return _peak_cache[key]


def simulate_peak(
    model_config: Any, config: TrainConfig, shape: PackShape, on_gpu: bool, sharded: bool, depth: int
) -> int:
    """Peak bytes of forward and backward on fake tensors, with `depth` layers of the language model."""
    model_config = copy.deepcopy(model_config)
    reduce_depth(model_config, depth, "vision" in config.trainable)
    cpu = torch.device("cpu")
    positions = shape.target_positions()
    layout = make_layout(shape.documents, cpu, positions, window=sliding_window(model_config))
    model = prepare_model(build_meta_model(model_config), config)
    use_packed_attention(model)
    if on_gpu:
        language_of(model).set_attn_implementation(FLEX_MEMORY)
        vision_of(model).set_attn_implementation("sdpa")
    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        dtype = autocast_dtype(config.precision) if sharded or splits(config, on_gpu, sharded) else None
        allocate_fake(model, dtype, gradient_dtype=dtype if sharded else torch.float32)
        existing = [t for p in model.parameters() for t in (p, p.grad) if t is not None]
        with LiveMemory([*existing, *model.buffers()]) as live:
            with autocast_context(config.precision, cpu):
                ids = torch.zeros(1, shape.tokens, dtype=torch.int64)
                embedded = model.model.get_input_embeddings()(ids)
                if shape.images and isinstance(model_config, LlavaConfig):
                    side = model.config.vision_config.image_size
                    pixels = torch.zeros(shape.images, 3, side, side, dtype=compute_dtype(config))
                    features = model.model.get_image_features(pixel_values=pixels).pooler_output
                    image_features = torch.cat(features).to(embedded.dtype)[None]
                    image_positions = torch.arange(image_features.shape[1])
                    embedded = embedded.index_copy(1, image_positions, image_features)
                hidden = language_of(model)(
                    inputs_embeds=embedded, position_ids=ids, layout=layout, use_cache=False
                ).last_hidden_state[0]
                targets = torch.tensor(positions)
                loss = answer_loss(hidden, model.lm_head, targets, targets)
            if loss.requires_grad:
                loss.backward()
    return live.peak


def prepare_model(model: Any, config: TrainConfig) -> Any:
    """The model as it would be trained, adapters included."""
    set_trainable(model, config.trainable)
    return base_model(add_adapters(apply_precision(model, config), config))


def splits(config: TrainConfig, on_gpu: bool, sharded: bool) -> bool:
    """Whether training keeps the trained weights in bf16 and their low bits apart."""
    return on_gpu and not sharded and can_split_weights(config, torch.device("cuda"), 1)


def allocate_fake(model: Any, dtype: torch.dtype | None, gradient_dtype: torch.dtype | None) -> None:
    """Move a model from the meta device to fake CPU tensors; trainable ones have a gradient from an earlier pack."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = torch.nn.Parameter(torch.empty_like(parameter, device="cpu", dtype=dtype), parameter.requires_grad)
            if parameter.requires_grad:
                fake.grad_dtype = gradient_dtype
                fake.grad = torch.empty_like(fake, dtype=gradient_dtype)
            setattr(module, name, fake)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))


def reduce_depth(model_config: Any, depth: int, vision_trained: bool) -> None:
    """Fewer layers in the language model, and in a Llava's frozen encoder, which frees activations layer by layer."""
    text_config: Any = model_config.text_config
    vision_config: Any = model_config.vision_config
    if not vision_trained and isinstance(model_config, LlavaConfig):
        vision_config.num_hidden_layers = min(vision_config.num_hidden_layers, 4)
        model_config.vision_feature_layer = -2
    text_config.num_hidden_layers = depth
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = (list(text_config.layer_types) * depth)[:depth]


class LiveMemory(TorchDispatchMode):
    """Adds up the storages that operations allocate and subtracts freed ones. `peak`: most bytes at once."""

    def __init__(self, existing: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.storages = {tensor.untyped_storage()._cdata for tensor in existing}
        self.now = self.peak = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return output

    def add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.storages.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.now -= size


def flex_memory_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Stores for the backward pass what FlexAttention does: queries, keys, values, output, a sum per row; no scores."""
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(FLEX_MEMORY, flex_memory_attention)
