"""Cost of preparation and of a training step as a function of the number of samples and ranks.

Inputs: a working folder and sizes. Output: a JSON file, one row per size: CPU seconds and peak memory of opening the
dataset, tokenizing its texts (without and with the cache), planning, packing a step for 1, 2 and 64 ranks, the first
batch, a later batch, a step of a tiny model; and, at 10,000 samples, complete runs on one and on two processes (gloo).

    nice python bench/train/growth.py WORK bench/results/growth.json 10000 100000 1000000

Rows that are in the file are skipped, so the benchmark can be resumed. Plans of all sizes come first, since they need
no dataset. Each phase runs in a separate process.
"""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from random_inputs import make_data, make_parts

T = TypeVar("T")
QUESTIONS = 3
COMMON = (
    "batch_size=64 num_epochs=1 template=v1 kinds=[vqa] precision=fp32 device=cpu save_steps=0 trackers=[] "
    "max_length=256 pack_tokens=4096 logging_steps=1"
)
TIMED_STEPS = 200  # steps whose packing is timed
BATCHES = 50
STEPS = 30
MAX_COMPLETE_RUN = 10_000  # samples up to which complete runs are measured


def main(work: Path, out: Path, sizes: list[int]) -> None:
    parts = make_parts(work / "parts", 64, 2, side=32, tower=(64, 2), vocabulary=1000)
    rows = json.loads(out.read_text())["rows"] if out.is_file() else []
    rows += [{"samples": size} for size in sizes if all(row["samples"] != size for row in rows)]
    rows.sort(key=lambda row: row["samples"])
    for row in rows:
        if "a plan" not in row:
            row["a plan"] = run_phase(work, "plan", [str(row["samples"])])
            write_result(out, rows)
    for row in rows:
        if "with a dataset" in row:
            continue
        size = row["samples"]
        writing, data = measure(
            lambda n=size: make_data(work / f"data-{n}", images=-(-n // QUESTIONS), side=32, longest=40)
        )
        phases: dict[str, Any] = {"dataset made": writing}
        overrides = [*COMMON.split(), f"vision={parts / 'vision'}", f"language={parts / 'language'}", f"data={data}"]
        for phase in ("first", "again"):
            phases |= run_phase(work, phase, overrides)
        if size <= MAX_COMPLETE_RUN:
            phases["a whole run"] = {f"{ranks} processes": train_completely(work, overrides, ranks) for ranks in (1, 2)}
        row["with a dataset"] = phases
        write_result(out, rows)
        shutil.rmtree(data)


def write_result(out: Path, rows: list[dict[str, Any]]) -> None:
    result = {
        "command": "nice python bench/train/growth.py WORK bench/results/growth.json "
        + " ".join(str(row["samples"]) for row in rows),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a process",
        "versions": {
            "python": platform.python_version(),
            **{n: version(n) for n in ("torch", "transformers", "pyarrow")},
        },
        "settings": COMMON,
        "reads": "seconds are CPU seconds; peak_gb is the peak memory of the process so far, including 0.5 for imports",
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(function: Callable[[], T]) -> tuple[dict[str, float], T]:
    """(CPU seconds and peak memory of a call in this process, its result)"""
    start = time.process_time()
    result = function()
    seconds = time.process_time() - start
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # ru_maxrss includes the parent's peak
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return {"seconds": round(seconds, 6), "peak_gb": round(peak / 1e9, 3)}, result


def run_phase(work: Path, phase: str, overrides: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--phase", phase, str(work), *overrides]
    environment = os.environ | {"QILIN_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment, text=True)
    row: dict[str, Any] = json.loads(process.stdout)
    print(json.dumps(row), file=sys.stderr)
    return row


def train_completely(work: Path, overrides: list[str], ranks: int) -> dict[str, float]:
    """`qilin train` on `ranks` processes: total CPU seconds and the median wall time of a step."""
    shutil.rmtree(work / "run", ignore_errors=True)
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launch, "-m", "qilin.cli", "train", "small/align", *overrides, f"out={work / 'run'}"]
    environment = os.environ | {"QILIN_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    metrics = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()][10:]
    return {
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "steps": len(metrics) + 10,
        "step_wall_seconds_median": round(sorted(row["seconds"] for row in metrics)[len(metrics) // 2], 5),
        "data_wait": round(sum(row["data_wait"] for row in metrics) / len(metrics), 4),
        "imbalance_mean": round(sum(row.get("imbalance", 1.0) for row in metrics) / len(metrics), 4),
        "peak_gb_of_the_first": round(metrics[-1]["memory_gb"], 3),
    }


def measure_plan(overrides: list[str]) -> dict[str, Any]:
    """Cost of a plan for overrides[0] samples with random lengths."""
    import numpy as np

    from qilin.train.plan import Lengths, make_plan

    samples = int(overrides[0])
    start, _ = measure(lambda: None)
    prefix = np.full(samples, 40, dtype=np.int64)
    other_tokens = np.random.default_rng(0).integers(10, 60, samples)
    index = np.arange(samples)
    zero, one = np.zeros(samples, dtype=np.int64), np.ones(samples, dtype=np.int64)
    lengths = Lengths(prefix + other_tokens, prefix, other_tokens // 2, index // QUESTIONS, zero, one)
    row: dict[str, Any] = {"the program": start["peak_gb"]}
    row["made"], plan = measure(
        lambda: make_plan(lengths, [1.0], batch_size=64, num_epochs=1, pack_tokens=4096, seed=0)
    )
    row["its hash"], _ = measure(lambda: plan.hash)
    row["its account"], _ = measure(plan.counts)
    steps = range(min(len(plan), TIMED_STEPS))
    for ranks in (1, 2, 64):
        cost, _ = measure(lambda n=ranks: [plan.packs(step, n) for step in steps])
        row[f"a step cut for {ranks}"] = cost | {"seconds": round(cost["seconds"] / len(steps), 6)}
    return row


def measure_first_start(overrides: list[str]) -> dict[str, Any]:
    """First start: tokenizes all texts to measure their lengths, since the cache is empty."""
    from qilin.train.config import read_recipe
    from qilin.train.data_loader import PackedDataset
    from qilin.train.stage import load_start

    config = read_recipe("small/align", overrides)
    loaded = load_start(config)
    start, _ = measure(lambda: None)
    return {
        "the program": start["peak_gb"],
        "texts measured": measure(lambda: PackedDataset(config, loaded.processor))[0],
    }


def measure_second_start(overrides: list[str]) -> dict[str, Any]:
    """Second start with cached lengths, followed by some batches and training steps."""
    import torch

    from qilin.model.architectures import set_trainable
    from qilin.train.config import read_recipe
    from qilin.train.context import TrainContext
    from qilin.train.data_loader import PackedDataset, StepBatch
    from qilin.train.data_sources import open_sources
    from qilin.train.distributed import ModelWithLoss
    from qilin.train.loop import compute_gradients, pack_loss, trainable_params
    from qilin.train.optimizer import make_optimizer
    from qilin.train.packed_attention import use_packed_attention
    from qilin.train.plan import make_plan
    from qilin.train.stage import load_start

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    config = read_recipe("small/align", overrides)
    loaded = load_start(config)
    row: dict[str, Any] = {}
    row["dataset opened"], _ = measure(lambda: open_sources(config, "training"))
    row["opened, lengths from the cache"], data = measure(lambda: PackedDataset(config, loaded.processor))
    plan = make_plan(
        data.lengths,
        [1.0],
        batch_size=config.batch_size,
        num_epochs=1,
        pack_tokens=config.pack_tokens,
        seed=config.seed,
    )

    def batch(step: int) -> Any:
        return [data.make_pack(groups, cpu, torch.float32) for groups in plan.packs(step)[0]]

    row["first batch"], _ = measure(lambda: batch(0))
    later = range(1, min(len(plan), BATCHES))
    cost, batches = measure(lambda: [batch(step) for step in later])
    row["a batch"] = cost | {"seconds": round(cost["seconds"] / len(later), 6)}
    set_trainable(loaded.model, config.trainable)
    use_packed_attention(loaded.model.train())
    module = ModelWithLoss(loaded.model, pack_loss)
    context = TrainContext(config, Path("unused"), "bench", data, plan)
    optimizer = make_optimizer(trainable_params(loaded.model, config), "adamw", config.betas)

    def train_on(packs: Any, step: int) -> None:
        compute_gradients(context, module, StepBatch(step, packs, [], 0.0))
        optimizer.step()
        optimizer.zero_grad()

    train_on(batches[0], 0)
    timed_batches = batches[1 : STEPS + 1]
    cost, _ = measure(lambda: [train_on(packs, step) for step, packs in enumerate(timed_batches)])
    row["a step"] = cost | {"seconds": round(cost["seconds"] / len(timed_batches), 6)}
    return row


PHASES = {"plan": measure_plan, "first": measure_first_start, "again": measure_second_start}

if __name__ == "__main__":
    if sys.argv[1] == "--phase":
        print(json.dumps(PHASES[sys.argv[2]](sys.argv[4:])))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]), [int(size) for size in sys.argv[3:]])
