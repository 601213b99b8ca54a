"""How much memory and work the engine may take.

In: settings and the machine's free memory. Out: EngineLimits, printed when the server starts.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

IMAGE_SHARE, PREFIX_SHARE, ROW_SHARE = 0.05, 0.20, 0.40  # of the free memory
MIN_BYTES = 64 << 20


@dataclass(frozen=True)
class EngineLimits:
    """max_rows: answers at a time. max_waiting: requests in the queue. prefill_tokens: a prompt's piece between two
    decoding passes. max_answer_tokens: the default length of an answer. The rest are bytes."""

    image_cache_bytes: int
    prefix_cache_bytes: int
    kv_bytes: int
    max_rows: int = 32
    max_waiting: int = 64
    prefill_tokens: int = 512
    max_answer_tokens: int = 512


def default_limits(free_bytes: int, max_rows: int = 32, max_waiting: int = 64) -> EngineLimits:
    """Limits from the memory that is free after the model was loaded; a third of it stays free for activations."""
    return EngineLimits(
        image_cache_bytes=max(MIN_BYTES, int(free_bytes * IMAGE_SHARE)),
        prefix_cache_bytes=max(MIN_BYTES, int(free_bytes * PREFIX_SHARE)),
        kv_bytes=max(MIN_BYTES, int(free_bytes * ROW_SHARE)),
        max_rows=max_rows,
        max_waiting=max_waiting,
    )


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the model's device: the accelerator's own count, else what Linux can make available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def token_bytes(model: Any) -> int:
    """Bytes of one token's keys and values in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * torch.empty(0, dtype=model.dtype).element_size())
