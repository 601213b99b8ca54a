"""Attention on a CPU in blocks of plain matmul_flops beside PyTorch's own kernel, and what a new shape of a product costs.

In: nothing. Out: a JSON file. One thread, CPU seconds, the two by turns, medians of seven; forward and backward.

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

WIDTH = 64  # of a head
SHAPES = [  # heads, sequences, their length
    (3, 8, 64), (3, 32, 64), (16, 8, 64), (3, 1, 224), (3, 4, 224), (16, 4, 224), (3, 1, 704), (3, 8, 704),
    (16, 1, 704), (3, 2, 2000),
]  # fmt: skip


def main(out: Path) -> None:
    torch.set_num_threads(1)
    rows = [beside(*shape, kind) for kind in (torch.bfloat16, torch.float32) for shape in SHAPES]
    sizes = [block_size(size) for size in (64, 128, 192, 256)]
    found = {
        "command": "python bench/train/attention.py bench/results/attention.json",
        "machine": machine(), "code": commit(), "torch": torch.__version__, "width_of_a_head": WIDTH,
        "beside_pytorch": rows, "queries_a_block": sizes,
        "new_shapes": [new_shapes(kind) for kind in ("bfloat16", "float32")],
    }  # fmt: skip
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def beside(heads: int, count: int, length: int, kind: torch.dtype) -> dict[str, Any]:
    """Milliseconds a sequence, ours and PyTorch's causal kernel, which is given the same numbers."""
    ours, theirs = (made(heads, count, length, kind) for _ in range(2))
    buckets = buckets_of(count, length)
    square = [x.detach().view(heads, count, length, WIDTH).transpose(0, 1).requires_grad_() for x in theirs]
    both: tuple[Callable[[], Any], ...] = (
        lambda: learn(bucketed_attention(*ours, buckets), ours),
        lambda: learn(F.scaled_dot_product_attention(*square, is_causal=True), square),
    )
    times: list[list[float]] = [[], []]
    for _ in range(8):
        for place, run in enumerate(both):
            times[place].append(seconds(run))
    mine, other = (1e3 * statistics.median(each[1:]) / count for each in times)
    row = {"kind": str(kind), "heads": heads, "sequences": count, "length": length}
    return row | {"blocks_ms": round(mine, 3), "pytorch_ms": round(other, 3), "faster": round(other / mine, 2)}


def block_size(size: int) -> dict[str, Any]:
    """Another number of queries a block, over sequences of 704 and 2,000 tokens."""
    before, blocks.BLOCK = blocks.BLOCK, size
    found: dict[str, Any] = {"queries": size}
    for length in (704, 2000):
        given, buckets = made(3, 4, length, torch.bfloat16), buckets_of(4, length)
        times = [seconds(lambda g=given, b=buckets: learn(bucketed_attention(*g, b), g)) for _ in range(8)]  # type: ignore[misc]
        found[f"ms_{length}"] = round(1e3 * statistics.median(times[1:]) / 4, 3)
    blocks.BLOCK = before
    return found


def new_shapes(kind: str) -> dict[str, Any]:
    """A product of queries with 50 different numbers of keys, the first time and again."""
    dtype = getattr(torch, kind)
    query, key = torch.randn(9, 128, WIDTH, dtype=dtype), torch.randn(9, 1200, WIDTH, dtype=dtype)
    lengths = range(301, 1201, 18)
    torch.bmm(query, key[:, :300].transpose(1, 2))
    memory = psutil.Process().memory_info().rss

    def all_of_them() -> None:
        for length in lengths:
            torch.bmm(query, key[:, :length].transpose(1, 2))

    first = seconds(all_of_them)
    grown = psutil.Process().memory_info().rss - memory
    again = statistics.median(seconds(all_of_them) for _ in range(5))
    each = 1e3 * (first - again) / len(lengths), grown / 1e6 / len(lengths)
    return {"kind": kind, "more_ms_the_first_time": round(each[0], 3), "mb_kept": round(each[1], 3)}


def made(heads: int, count: int, length: int, kind: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(heads, count * length, WIDTH).to(kind).requires_grad_() for _ in range(3)]


def buckets_of(count: int, length: int) -> list[blocks.Bucket]:
    return list(make_buckets([(tokens, tokens) for tokens in torch.arange(count * length).split(length)]))


def learn(out: torch.Tensor, given: list[torch.Tensor]) -> None:
    torch.autograd.grad(out, given, torch.ones_like(out))


def seconds(run: Callable[[], Any]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


if __name__ == "__main__":
    main(Path(sys.argv[1]))
