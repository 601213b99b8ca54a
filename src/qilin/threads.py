"""How many CPU threads the arithmetic uses: one place, so that every command agrees."""


def use_threads(count: int | None) -> None:
    """Use `count` threads, or (None) PyTorch's own choice: one a core, or what OMP_NUM_THREADS says."""
    import torch

    if count is not None:
        torch.set_num_threads(count)
