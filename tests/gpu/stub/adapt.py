"""Lets training run on the stub GPU: what its libraries cannot do is done by other operations of the same shape.

Imported before a model is made (`pytest -p gpu.stub.adapt` with PYTHONPATH=src:tests). Values on the stub are whatever
memory holds, so checks of values are switched off. `counters()` reads what the stub counted.
"""

import ctypes
import math
import os
import types

os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"  # compares values that no kernel has written

import torch

import qilin.train.loop
from qilin.train.compiled_layers import CompiledForward

RUNTIME = ("n_sync", "n_h2d", "n_h2d_pageable", "bytes_h2d", "n_d2h", "n_launch", "n_malloc")


def counters() -> dict[str, int]:
    """Calls since the process began: synchronizations, copies, launches (of Triton's kernels: n_driver_launch)."""
    runtime, driver = ctypes.CDLL(os.environ["LD_PRELOAD"].split(":")[0]), ctypes.CDLL("libcuda.so.1")
    counts = {name: ctypes.c_long.in_dll(runtime, name).value for name in RUNTIME}
    return counts | {"n_driver_launch": ctypes.c_long.in_dll(driver, "n_driver_launch").value}


def masked_scatter(self: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Rows of images in another place: the real one needs a prefix sum on the device."""
    if self.device.type == "cpu":
        return plain_masked_scatter(self, mask, source)
    out = self.clone()
    count = source.numel() // (self.shape[0] * self.shape[-1])
    out[:, :count] = source.reshape(self.shape[0], count, -1)
    return out


def embed(self: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    """A lookup whose backward pass sorts nothing."""
    return self.weight.index_select(0, ids.flatten()).view(*ids.shape, -1)


def not_compiled(self: CompiledForward, error: Exception) -> None:
    """In place of going on uncompiled: here it is what a run looks for."""
    raise AssertionError(f"{self.name} does not compile") from error


plain_masked_scatter = torch.Tensor.masked_scatter
torch.backends.cudnn.enabled = False
torch.backends.cuda.enable_cudnn_sdp(False)
torch.Tensor.masked_scatter = masked_scatter  # type: ignore[method-assign]
torch.nn.Embedding.forward = embed  # type: ignore[method-assign]
CompiledForward.stop = not_compiled  # type: ignore[method-assign]
finite = types.SimpleNamespace(**{name: getattr(math, name) for name in dir(math)})
finite.isfinite = lambda value: True
qilin.train.loop.math = finite  # type: ignore[attr-defined]
