"""Moves the tensors of a pack to a device together.

In: host tensors by name. Out: the same on the device. On CUDA it is one copy from pinned memory on a stream of its
own, which waits for nothing: a copy from ordinary memory would wait for all that the device has still to compute.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

ALIGNMENT = 64  # bytes


def copy_together(tensors: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Host tensors -> views of one buffer on the device, or the tensors themselves on a CPU.

    May be called in any thread; what the device computes next sees the values.
    """
    if device.type == "cpu":
        return dict(tensors)
    host = join_bytes(tensors, pinned=device.type == "cuda")
    return split_bytes(copy_on_own_stream(host, device) if device.type == "cuda" else host.to(device), tensors)


def join_bytes(tensors: Mapping[str, torch.Tensor], pinned: bool = False) -> torch.Tensor:
    """The bytes of all tensors in one buffer on the host."""
    buffer = torch.empty(sum(map(aligned_size, tensors.values())), dtype=torch.uint8, pin_memory=pinned)
    for name, part in split_bytes(buffer, tensors).items():
        part.copy_(tensors[name])
    return buffer


def split_bytes(buffer: torch.Tensor, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Views of the buffer with the shapes and types of `like`."""
    views, start = {}, 0
    for name, tensor in like.items():
        views[name] = buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        start += aligned_size(tensor)
    return views


def aligned_size(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def copy_on_own_stream(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Pinned bytes -> the same on the device; the device's main stream waits for them, the host does not."""
    main, copies = torch.cuda.current_stream(device), copy_stream(device)
    with torch.cuda.stream(copies):
        moved = host.to(device, non_blocking=True)
    main.wait_stream(copies)
    moved.record_stream(main)  # its memory is reused only after what main computes from it
    return moved


@lru_cache
def copy_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)
