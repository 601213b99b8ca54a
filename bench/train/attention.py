"""Attention on a CPU: Qilin's blocked matrix products against PyTorch's kernel, and the cost of new product shapes.

Output: a JSON file. Forward and backward pass, one thread, CPU seconds, alternating, medians of seven.

    python bench/train/attention.py bench/results/attention.json
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F

from qilin.core.provenance import commit, machine
from qilin.train import cpu_attention as blocks
from qilin.train.cpu_attention import bucketed_attention, make_buckets

HEAD_DIM = 64
SHAPES = [  # heads, sequences, tokens per sequence
    (3, 8, 64), (3, 32, 64), (16, 8, 64), (3, 1, 224), (3, 4, 224), (16, 4, 224), (3, 1, 704), (3, 8, 704),
    (16, 1, 704), (3, 2, 2000),
]  # fmt: skip


def main(out: Path) -> None:
    torch.set_num_threads(1)
    rows = [compare(*shape, dtype) for dtype in (torch.bfloat16, torch.float32) for shape in SHAPES]
    sizes = [measure_block_size(size) for size in (64, 128, 192, 256)]
    result = {
        "command": "python bench/train/attention.py bench/results/attention.json",
        "machine": machine(), "code": commit(), "torch": torch.__version__, "width_of_a_head": HEAD_DIM,
        "beside_pytorch": rows, "queries_a_block": sizes,
        "new_shapes": [measure_new_shapes(name) for name in ("bfloat16", "float32")],
    }  # fmt: skip
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compare(heads: int, count: int, length: int, dtype: torch.dtype) -> dict[str, Any]:
    """Milliseconds per sequence of Qilin's and PyTorch's causal kernels on the same inputs."""
    flat, copies = (random_qkv(heads, count, length, dtype) for _ in range(2))
    buckets = make_test_buckets(count, length)
    square = [x.detach().view(heads, count, length, HEAD_DIM).transpose(0, 1).requires_grad_() for x in copies]
    kernels: tuple[Callable[[], Any], ...] = (
        lambda: backward(bucketed_attention(*flat, buckets), flat),
        lambda: backward(F.scaled_dot_product_attention(*square, is_causal=True), square),
    )
    times: list[list[float]] = [[], []]
    for _ in range(8):
        for index, run in enumerate(kernels):
            times[index].append(seconds(run))
    blocks_ms, pytorch_ms = (1e3 * statistics.median(each[1:]) / count for each in times)
    row = {"kind": str(dtype), "heads": heads, "sequences": count, "length": length}
    return row | {
        "blocks_ms": round(blocks_ms, 3),
        "pytorch_ms": round(pytorch_ms, 3),
        "faster": round(pytorch_ms / blocks_ms, 2),
    }


def measure_block_size(size: int) -> dict[str, Any]:
    """Milliseconds with `size` queries per block, on sequences of 704 and 2,000 tokens."""
    before, blocks.BLOCK = blocks.BLOCK, size
    row: dict[str, Any] = {"queries": size}
    for length in (704, 2000):
        qkv, buckets = random_qkv(3, 4, length, torch.bfloat16), make_test_buckets(4, length)
        times = [seconds(lambda q=qkv, b=buckets: backward(bucketed_attention(*q, b), q)) for _ in range(8)]  # type: ignore[misc]
        row[f"ms_{length}"] = round(1e3 * statistics.median(times[1:]) / 4, 3)
    blocks.BLOCK = before
    return row


def measure_new_shapes(dtype_name: str) -> dict[str, Any]:
    """Extra time and memory of the first products of queries with 50 different numbers of keys."""
    dtype = getattr(torch, dtype_name)
    query, key = torch.randn(9, 128, HEAD_DIM, dtype=dtype), torch.randn(9, 1200, HEAD_DIM, dtype=dtype)
    lengths = range(301, 1201, 18)
    torch.bmm(query, key[:, :300].transpose(1, 2))
    memory = psutil.Process().memory_info().rss

    def all_products() -> None:
        for length in lengths:
            torch.bmm(query, key[:, :length].transpose(1, 2))

    first = seconds(all_products)
    added_bytes = psutil.Process().memory_info().rss - memory
    later = statistics.median(seconds(all_products) for _ in range(5))
    return {
        "kind": dtype_name,
        "more_ms_the_first_time": round(1e3 * (first - later) / len(lengths), 3),
        "mb_kept": round(added_bytes / 1e6 / len(lengths), 3),
    }


def random_qkv(heads: int, count: int, length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(heads, count * length, HEAD_DIM).to(dtype).requires_grad_() for _ in range(3)]


def make_test_buckets(count: int, length: int) -> list[blocks.Bucket]:
    return list(make_buckets([(tokens, tokens) for tokens in torch.arange(count * length).split(length)]))


def backward(out: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    torch.autograd.grad(out, inputs, torch.ones_like(out))


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main(Path(sys.argv[1]))
