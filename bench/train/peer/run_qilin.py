"""`qilin train` on a job's samples; for bench/train/gains.py with one of its optimizations disabled.

python run_qilin.py JOB.json
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from watch import Watch, read_job

from qilin.core.config import read_yaml
from qilin.core.provenance import code_hash, commit
from qilin.model import processing
from qilin.train import data_loader, loop, plan
from qilin.train import packed_attention as attention
from qilin.train.config import DataSource, TrainConfig
from qilin.train.metrics import MetricsLog
from qilin.train.stage import run_stage


def main(path: str) -> None:
    job = read_job(path)
    flags = job["flags"]
    for name in job["off"]:
        if name in DISABLED_BY_FLAG:
            flags |= DISABLED_BY_FLAG[name]
        else:
            DISABLED_BY_PATCH[name]()
    watch = Watch(job)
    watch_loop(watch)
    config = TrainConfig(
        model=job["model"], data=(DataSource(path=Path(job["data"])),), trainable=tuple(job["trainable"]),
        template="v1", system_prompt="", out=Path(job["out"]), seed=job["seed"], save_steps=0, device="cpu", **flags,
    )  # fmt: skip
    run_stage(config, "bench")
    done = read_yaml(Path(job["out"]) / "recipe.yaml")
    code = {"commit": commit(), "code": code_hash()[:12]}
    watch.report({"flags": flags, "pack_tokens": done["pack_tokens"], "precision": done["precision"]} | code)


def watch_loop(watch: Watch) -> None:
    """Attaches the watch to Qilin's training loop: at its start, before each step's packs, after each step."""
    prefetch, compute_gradients, log_step = loop.prefetch, loop.compute_gradients, MetricsLog.log_step

    def begin(*arguments: Any) -> Iterator[Any]:
        watch.begin()
        return prefetch(*arguments)

    def count(context: Any, module: Any, batch: Any) -> Any:
        for pack in batch.packs:
            watch.batch(pack.ids, pack.targets, pack.ids.numel())
        return compute_gradients(context, module, batch)

    def mark(self: Any, metrics: Any, write: bool) -> None:
        log_step(self, metrics, write)
        watch.step()
        watch.loss(metrics["loss"])

    loop.prefetch, loop.compute_gradients = begin, count
    MetricsLog.log_step = mark  # type: ignore[method-assign]


def no_packing() -> None:
    """One group (an image with its questions) per pack."""
    plan.best_fit = lambda groups, max_tokens: [[group] for group in groups]


def all_logits() -> None:
    """Computes the logits of all positions, as the loss of a causal language model does."""

    def answer_loss(
        hidden: torch.Tensor, head: Any, target_positions: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        assert len(target_positions.unique()) == len(target_positions), "a token separates an image from each answer"
        labels = torch.full((len(hidden),), -100).index_copy(0, target_positions, targets)
        return F.cross_entropy(head(hidden).float(), labels, ignore_index=-100, reduction="sum")

    loop.answer_loss = answer_loss


def dense_mask() -> None:
    """One attention call per pack with a dense mask instead of one call per document."""

    def make_masked_layout(
        documents: Sequence[tuple[int, int, int]], device: torch.device, used: Any = None
    ) -> attention.Layout:
        table = torch.tensor(documents)
        document = torch.repeat_interleave(torch.arange(len(table)), table[:, 1])
        prefix = torch.repeat_interleave(table[:, 2], table[:, 1])
        mask = (document[:, None] == document) | (prefix[:, None] == document)
        return attention.Layout(table, block_mask=mask & torch.ones(mask.shape, dtype=torch.bool).tril())

    data_loader.make_layout = make_masked_layout
    attention.flex = lambda q, k, v, mask, scaling: F.scaled_dot_product_attention(
        q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    ).transpose(1, 2)


def no_blocks() -> None:
    """PyTorch's attention per bucket of documents: causal if they attend only to themselves, else with a mask."""

    def sdpa_by_bucket(query: Any, key: Any, value: Any, buckets: Sequence[Any], scaling: float | None = None) -> Any:
        out = torch.zeros_like(query, dtype=value.dtype)
        for bucket in buckets:
            q, k, v = (
                rows.to(value.dtype).index_select(1, tokens).unflatten(1, (bucket.count, -1)).transpose(0, 1)
                for rows, tokens in ((query, bucket.queries), (key, bucket.keys), (value, bucket.keys))
            )
            mask = None
            if bucket.blocks[0].mask is not None and len(bucket.queries) < len(bucket.keys):
                mask = torch.zeros(bucket.count, q.shape[2], k.shape[2], dtype=torch.bool)
                for block in bucket.blocks:
                    mask[:, block.rows, : block.visible] = True
                    mask[:, block.rows, block.visible : block.keys] = ~block.mask
                mask = mask[:, None]
            causal = mask is None and bucket.blocks[0].mask is not None
            grouped = q.shape[1] != k.shape[1]
            attended = F.scaled_dot_product_attention(
                q, k, v, mask, is_causal=causal, scale=scaling, enable_gqa=grouped
            )
            rows = attended.transpose(0, 1).flatten(1, 2)
            out = out.index_copy(1, bucket.tokens, rows if bucket.real is None else rows[:, bucket.real])
        return out

    attention.bucketed_attention = sdpa_by_bucket


def no_skipping() -> None:
    """Computes the last layers of the language model and of the encoder for all tokens."""
    make_layout = attention.make_layout
    data_loader.make_layout = lambda documents, device, used=None: make_layout(documents, device)
    attention.add_skip_hooks = lambda model, **parts: None


def no_image_cache() -> None:
    """Decodes and resizes an image at each use."""
    processing.PixelCache.__init__.__defaults__ = (0,)


def no_prefetch() -> None:
    """Builds the packs of a step after the previous step, in the same thread."""

    class SynchronousExecutor:
        def __init__(self, workers: int) -> None: ...
        def __enter__(self) -> "SynchronousExecutor":
            return self

        def __exit__(self, *error: object) -> None: ...
        def submit(self, make: Callable[[int], Any], step: int) -> Any:
            class Future:
                def result(self) -> Any:
                    return make(step)

            return Future()

    data_loader.ThreadPoolExecutor = SynchronousExecutor  # type: ignore[assignment, misc]


DISABLED_BY_FLAG = {"shared prefix": {"share_image_prefix": False}, "bf16": {"precision": "fp32"}}
DISABLED_BY_PATCH: dict[str, Callable[[], None]] = {
    "packing": no_packing,
    "supervised-only loss": all_logits,
    "attention by document": dense_mask,
    "blocked attention": no_blocks,
    "skipping unused positions": no_skipping,
    "image cache": no_image_cache,
    "prefetch": no_prefetch,
}


if __name__ == "__main__":
    main(sys.argv[1])
