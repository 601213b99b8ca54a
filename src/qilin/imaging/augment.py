"""Random shift, zoom, brightness and contrast. Never a mirror flip: sides are findings."""

import torch
import torch.nn.functional as F


def augment(pixels: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    """Augment pixels (P, 3, height, width) by an amount from 0 to 1; returns the same shape and dtype.

    At 1: shift and zoom by up to 15 %, brightness and contrast by up to 30 %. Computed in float32, since bf16 would
    round sampling positions to some tenths of a pixel.
    """
    count = len(pixels)

    def sample(max_change: float) -> torch.Tensor:
        return ((torch.rand(count, generator=generator) * 2 - 1) * max_change * amount).to(pixels.device)

    zoom, shift_x, shift_y = 1 + sample(0.15), sample(0.15), sample(0.15)
    zero = torch.zeros_like(zoom)
    affine = torch.stack(
        [torch.stack([zoom, zero, shift_x], -1), torch.stack([zero, zoom, shift_y], -1)], 1
    )  # (P, 2, 3)
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    warped = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    brightness, contrast = sample(0.3)[:, None, None, None], 1 + sample(0.3)[:, None, None, None]
    return (warped * contrast + brightness).to(pixels.dtype)
