"""Many devices: the processes of a run, their communication, and a model sharded over them. No-ops on a single device.

In: the environment that torchrun sets. Out: a World. PyTorch's FSDP2 shards the model; small messages between the
processes (sums of losses, stop signals) use gloo on the CPU, separate from the gradients.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from qilin.core.errors import UserError
from qilin.model.llava import pick_device
from qilin.train.config import TrainConfig

# what is missing on Ascend; nothing of Qilin was tried there
NO_NPU = "Ascend NPUs have no kernel for packed attention (FlexAttention needs Triton), so they are not trained on"
TIMEOUT = timedelta(hours=2)  # reading a million samples or 13 billion weights rank by rank exceeds the default
MAX_UNSHARDED_GRADIENTS = 4e9  # bytes; gradients up to this are accumulated over a step's packs before they are sent


@dataclass(frozen=True)
class World:
    """The processes of a run, and this process among them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = torch.device("cpu")
    control_group: Any = None  # gloo group for messages of the training loop
    checkpoint_group: Any = None  # gloo group for checkpoints, which a thread of their own writes
    mesh: Any = None  # 1-D device mesh for FSDP

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Element-wise sum over all processes."""
        return self.reduce(numbers, dist.ReduceOp.SUM) if self.size > 1 else list(numbers)

    def max(self, numbers: Sequence[float]) -> list[float]:
        """Element-wise maximum over all processes."""
        return self.reduce(numbers, dist.ReduceOp.MAX) if self.size > 1 else list(numbers)

    def reduce(self, numbers: Sequence[float], operation: Any) -> list[float]:
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, operation, group=self.control_group)
        return [float(number) for number in tensor]

    def gather(self, texts: Sequence[str]) -> list[str]:
        """The texts of all processes, in order of rank."""
        if self.size == 1:
            return list(texts)
        by_rank: list[Any] = [None] * self.size
        dist.all_gather_object(by_rank, list(texts), group=self.control_group)
        return [text for rank_texts in by_rank for text in rank_texts]

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.size > 1:
            dist.barrier(group=self.control_group)

    @contextmanager
    def one_rank_at_a_time(self) -> Iterator[None]:
        """Run a block on the processes of a machine in turn: they share memory, and the first fills the caches."""
        for _ in range(self.local_rank):
            self.barrier()
        yield
        for _ in range(self.local_size - self.local_rank):
            self.barrier()


SINGLE_DEVICE = World()


def init_world(device: str) -> World:
    """Join the processes that torchrun started; without torchrun, a world of one.

    Raises UserError where there are more processes than GPUs, or machines with different numbers of processes.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World(device=training_device(device))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    torch_device = training_device(device)
    if torch_device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started {local_size} processes here, but this machine has {torch.cuda.device_count()} GPUs; "
                "set --nproc-per-node to at most that"
            )
        torch_device = torch.device("cuda", local_rank)
        torch.cuda.set_device(torch_device)
    if size == 1:
        return World(device=torch_device)
    if size % local_size:
        raise UserError(f"torchrun started {size} processes, {local_size} of them here; start as many on every machine")
    if not dist.is_initialized():
        backend = "gloo" if torch_device.type == "cpu" else f"cpu:gloo,{torch_device.type}:nccl"
        dist.init_process_group(backend, timeout=TIMEOUT)
    control_group, checkpoint_group = (dist.new_group(backend="gloo", timeout=TIMEOUT) for _ in range(2))
    mesh = dist.init_device_mesh(torch_device.type, (size,))
    return World(rank, size, local_rank, local_size, torch_device, control_group, checkpoint_group, mesh)


def training_device(name: str) -> torch.device:
    """The device to train on: `auto` is the GPU if there is one, else the CPU, also on a Mac.

    Raises UserError for other accelerators: packed attention has kernels for CPUs and, by FlexAttention, for CUDA and
    ROCm (which PyTorch calls cuda too).
    """
    if name.partition(":")[0] == "npu" and not hasattr(torch, "npu"):
        raise UserError(f"device is {name!r}, but torch_npu is not installed; {NO_NPU}")
    if torch.version.cuda and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        # before the first allocation; without it a 13B run reserves 4 to 25 GB more than it uses
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    device = pick_device(name)
    if device.type in ("cpu", "cuda"):
        return device
    if name == "auto" and device.type == "mps":
        return torch.device("cpu")
    what = NO_NPU if device.type == "npu" else f"{device.type} devices have no kernel for packed attention"
    raise UserError(f"device is {device.type}: {what}; train on CUDA or ROCm GPUs, or on the CPU with device=cpu")


def leave_world(world: World) -> None:
    """End communication; each process continues alone."""
    if world.size > 1:
        world.barrier()
        dist.destroy_process_group()


class ModelWithLoss(torch.nn.Module):
    """A model and its loss as one module, since FSDP shards at module boundaries."""

    def __init__(self, model: Any, loss: Any) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.loss_scale = 1.0  # gradients are those of the loss times this; above 1 with fp16 alone

    def forward(self, pack: Any, pixels: Any) -> Any:
        return self.loss(self.model, pack, pixels)


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The type of a precision's products; None for fp32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def shard_model(module: ModelWithLoss, world: World, config: TrainConfig) -> None:
    """Shard weights, gradients and optimizer state over the devices, in place; `shard` is all or trainable."""
    if world.size == 1:
        return
    model: Any = module.model
    dtype = autocast_dtype(config.precision)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    frozen = {p for p in model.parameters() if not p.requires_grad}
    replicated = set() if config.shard == "all" else frozen
    for parameter in replicated:
        parameter.data = parameter.data.to(world.device)
    options: dict[str, Any] = {"mesh": world.mesh, "mp_policy": policy, "ignored_params": replicated}
    # The layers of encoder and language model, never a complete transformers model: fully_shard changes a module's
    # class, by which transformers finds the outputs to record, so such a model would lose them.
    for layer in [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]:
        if any(p not in replicated for p in layer.parameters()):
            fully_shard(layer, **options)
    fully_shard(module, **options)


def shards_frozen(config: TrainConfig, frozen_bytes: float, memory: float) -> bool:
    """Whether frozen weights are sharded too, over devices of `memory` bytes. Replicas save communication."""
    return config.shard == "all" or (config.shard == "auto" and frozen_bytes > 0.4 * memory)


def device_memory(world: World) -> float:
    """Bytes of one GPU; on a CPU those of the machine, divided by the processes on it."""
    if world.device.type == "cuda":
        return float(torch.cuda.get_device_properties(world.device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / world.local_size


def set_gradient_sync(module: ModelWithLoss, world: World, last_pack: bool) -> None:
    """Let the next backward pass reduce gradients over devices, or accumulate them locally until the last pack.

    Local accumulation needs unsharded gradients on every device, so large ones are reduced after each pack.
    """
    if world.size > 1:
        trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
        sharded: Any = module  # fully_shard added FSDP's methods
        sharded.set_requires_gradient_sync(last_pack or 4 * trainable > MAX_UNSHARDED_GRADIENTS)


def reshard(module: ModelWithLoss, world: World) -> None:
    """Free the unsharded weights that a forward pass without backward leaves in the outermost module; the next
    forward pass gathers the current ones."""
    if world.size > 1:
        sharded: Any = module
        sharded.reshard()


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor with all of its elements; other tensors unchanged."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
