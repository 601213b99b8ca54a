"""Random shift, zoom, brightness and contrast. Never a mirror flip: sides are findings."""

import torch
import torch.nn.functional as F


def augment(pixels: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    """Augment pixels (P, 3, height, width) by an amount from 0 to 1; returns the same shape and dtype.

    At 1: shift and zoom by up to 15 %, brightness and contrast by up to 30 %. Computed in float32, since bf16 would
    round sampling positions to some tenths of a pixel.
    """
    return apply_changes(pixels, draw_changes(len(pixels), amount, generator).to(pixels.device))


def draw_changes(count: int, amount: float, generator: torch.Generator) -> torch.Tensor:
    """(count, 5) on the host: zoom, shift to the right and down, brightness, contrast, each as a difference."""

    def sample(max_change: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * max_change * amount

    return torch.stack([sample(max_change) for max_change in (0.15, 0.15, 0.15, 0.3, 0.3)], dim=1)


def apply_changes(pixels: torch.Tensor, changes: torch.Tensor) -> torch.Tensor:
    """Pixels (P, 3, height, width) with the changes (P, 5) that `draw_changes` drew, on the same device."""
    zoom, shift_x, shift_y = 1 + changes[:, 0], changes[:, 1], changes[:, 2]
    zero = torch.zeros_like(zoom)
    affine = torch.stack(
        [torch.stack([zoom, zero, shift_x], -1), torch.stack([zero, zoom, shift_y], -1)], 1
    )  # (P, 2, 3)
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    warped = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    brightness, contrast = changes[:, 3, None, None, None], 1 + changes[:, 4, None, None, None]
    return (warped * contrast + brightness).to(pixels.dtype)
