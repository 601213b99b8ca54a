"""Many devices: who takes part, what they tell each other, a model divided among them. On one device all is a no-op.

In: the environment that torchrun sets. Out: a World. The model is divided by PyTorch's FSDP2; small words between the
processes (sums of losses, who was asked to stop) go over gloo on the CPU, beside the gradients.
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

PATIENCE = timedelta(hours=2)  # reading a million samples or 13 billion weights in turns takes longer than the default
GATHERED = 4e9  # bytes of whole gradients that a device may keep from pack to pack, to send them once a step


@dataclass(frozen=True)
class World:
    """The processes of a run, and this one among them."""

    rank: int = 0
    size: int = 1
    place: int = 0  # among the processes of this machine
    beside: int = 1  # how many those are
    device: torch.device = torch.device("cpu")
    words: Any = None  # gloo group for what the training loop says
    saving: Any = None  # gloo group for checkpoints, which are written in a thread of their own
    mesh: Any = None  # all devices in a row, for FSDP

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Number by number the sum over all processes."""
        return self.reduce(numbers, dist.ReduceOp.SUM) if self.size > 1 else list(numbers)

    def most(self, numbers: Sequence[float]) -> list[float]:
        """Number by number the largest of all processes."""
        return self.reduce(numbers, dist.ReduceOp.MAX) if self.size > 1 else list(numbers)

    def reduce(self, numbers: Sequence[float], how: Any) -> list[float]:
        table = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(table, how, group=self.words)
        return [float(number) for number in table]

    def all_of(self, mine: Sequence[str]) -> list[str]:
        """The words of all processes, one after another."""
        if self.size == 1:
            return list(mine)
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, list(mine), group=self.words)
        return [word for words in found for word in words]

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier(group=self.words)

    @contextmanager
    def turns(self) -> Iterator[None]:
        """The processes of a machine one after another: they share its memory, and what the first one caches."""
        for _ in range(self.place):
            self.wait()
        yield
        for _ in range(self.beside - self.place):
            self.wait()


ALONE = World()


def join(device: str) -> World:
    """Take part in what torchrun started; without it, a world of one."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World(device=pick_device(device))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place, beside = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    found = pick_device(device)
    if found.type == "cuda":
        if place >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started {beside} processes here, but this machine has {torch.cuda.device_count()} GPUs; "
                "give it --nproc-per-node no larger than that"
            )
        found = torch.device("cuda", place)
        torch.cuda.set_device(found)
    if size == 1:
        return World(device=found)
    if size % beside:
        raise UserError(f"torchrun started {size} processes, {beside} of them here; start as many on every machine")
    if not dist.is_initialized():
        backend = "gloo" if found.type == "cpu" else f"cpu:gloo,{found.type}:nccl"
        dist.init_process_group(backend, timeout=PATIENCE)
    words, saving = (dist.new_group(backend="gloo", timeout=PATIENCE) for _ in range(2))
    mesh = dist.init_device_mesh(found.type, (size,))
    return World(rank, size, place, beside, found, words, saving, mesh)


def leave(world: World) -> None:
    """The processes part; each goes on alone."""
    if world.size > 1:
        world.wait()
        dist.destroy_process_group()


class Learner(torch.nn.Module):
    """A model with its loss as one module, since FSDP divides at the bounds of modules."""

    def __init__(self, model: Any, loss: Any) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, pack: Any, pixels: Any) -> Any:
        return self.loss(self.model, pack, pixels)


def divide(learner: Learner, world: World, config: TrainConfig) -> None:
    """Divide the model's weights, their gradients and the optimizer's state over the devices, in place."""
    if world.size == 1:
        return
    model: Any = learner.model
    kind = torch.bfloat16 if config.precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
    frozen = {p for p in model.parameters() if not p.requires_grad}
    held = set() if divides_frozen(config, sum(p.nbytes for p in frozen), memory_of(world)) else frozen
    for parameter in held:
        parameter.data = parameter.data.to(world.device)
    options: dict[str, Any] = {"mesh": world.mesh, "mp_policy": policy, "ignored_params": held}
    # the layers of encoder and language model; never a model of transformers itself, which would lose its outputs:
    # fully_shard gives a module another class, and transformers finds by class what to record
    for layer in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        if any(p not in held for p in layer.parameters()):
            fully_shard(layer, **options)
    fully_shard(learner, **options)


def divides_frozen(config: TrainConfig, frozen: float, memory: float) -> bool:
    """Whether `frozen` bytes that do not learn are divided too, over devices of `memory` bytes.

    Where a device holds them easily they need not be sent around at every step.
    """
    return config.shard == "all" or (config.shard == "auto" and frozen > 0.4 * memory)


def memory_of(world: World) -> float:
    """Bytes of one GPU; on a CPU those of the machine, shared by the processes on it."""
    if world.device.type == "cuda":
        return float(torch.cuda.get_device_properties(world.device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / world.beside


def send_gradients(learner: Learner, world: World, now: bool) -> None:
    """Whether the next backward pass sends gradients around (`now`), or they gather here until a later one does.

    Gathering takes a whole gradient on every device, so large ones are sent after each pack.
    """
    if world.size > 1:
        gathers = 4 * sum(p.numel() for p in learner.parameters() if p.requires_grad) <= GATHERED
        divided: Any = learner  # fully_shard has given it FSDP's methods
        divided.set_requires_gradient_sync(now or not gathers)


def regather(learner: Learner, world: World) -> None:
    """Let go of whole weights that a forward without a backward has left; the next one gathers them as they are then.

    Only the outermost module keeps them so long.
    """
    if world.size > 1:
        divided: Any = learner
        divided.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all of its numbers, wherever they lie."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
