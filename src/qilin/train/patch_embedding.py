"""Computes the patch embedding of Qwen-VL's vision encoders, a convolution whose kernel is a whole patch, as the matrix
product that it is.

In: a vision encoder. Out: the same with another forward pass of that layer, which `plain_patches` removes; no weight
changes. PyTorch's convolution takes 3 times as long on a CPU, and some versions of cuDNN have no fast kernel for it in
bf16 (huggingface/transformers issue 45750).
"""

from typing import Any

import torch
import torch.nn.functional as F


class PatchProduct:
    """The forward pass of a convolution over patches, (P, C, T, H, W) -> (P, D, 1, 1, 1)."""

    def __init__(self, convolution: torch.nn.Conv3d) -> None:
        self.convolution = convolution

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        convolution = self.convolution
        if input.ndim != 5 or input.shape[2:] != convolution.kernel_size:
            return torch.nn.Conv3d.forward(convolution, input)
        features = F.linear(input.flatten(1), convolution.weight.flatten(1), convolution.bias)
        return features[:, :, None, None, None]


def multiply_patches(encoder: Any) -> None:
    """Let an encoder compute its patch embedding as a matrix product; one without such a convolution is unchanged."""
    for module in encoder.modules():
        if type(module) is torch.nn.Conv3d and covers_patches(module):
            module.forward = PatchProduct(module)  # type: ignore[method-assign]


def covers_patches(convolution: torch.nn.Conv3d) -> bool:
    """Whether the patches of a convolution neither overlap nor are padded."""
    plain = convolution.groups == 1 and set(convolution.dilation) == {1} and set(convolution.padding) == {0}
    return plain and convolution.stride == convolution.kernel_size


def plain_patches(encoder: Any) -> None:
    """Undo `multiply_patches`."""
    for module in encoder.modules():
        if isinstance(module.__dict__.get("forward"), PatchProduct):
            del module.forward
