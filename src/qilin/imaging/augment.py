"""Small random changes of images: shift, zoom, brightness, contrast. Never a mirror flip: sides are findings."""

import torch
import torch.nn.functional as F


def augment(pixels: torch.Tensor, amount: float, random: torch.Generator) -> torch.Tensor:
    """pixels (P, 3, height, width), amount 0 to 1 -> the same shape and kind of number; computed in float32, for in
    bf16 places would be rounded to some tenths of a pixel.

    At 1: shift and zoom by up to 15 %, brightness and contrast by up to 30 %.
    """
    count = len(pixels)

    def draw(reach: float) -> torch.Tensor:
        numbers = torch.rand(count, generator=random) * 2 - 1
        return (numbers * reach * amount).to(pixels.device)

    zoom, right, down = 1 + draw(0.15), draw(0.15), draw(0.15)
    zero = torch.zeros_like(zoom)
    affine = torch.stack([torch.stack([zoom, zero, right], -1), torch.stack([zero, zoom, down], -1)], 1)  # (P, 2, 3)
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    light, contrast = draw(0.3)[:, None, None, None], 1 + draw(0.3)[:, None, None, None]
    return (moved * contrast + light).to(pixels.dtype)
