"""Cost of preparation and of a training step by the number of samples and of ranks.

In: a work folder and sizes. Out: a JSON file, one row per size: CPU seconds and peak memory of opening the dataset,
measuring its texts (without and with the cache), planning, packing a step for 1, 2 and 64 ranks, the first batch, a
later batch, a step of a tiny model; and, at 10,000 samples, complete runs on one and on two processes (gloo).

    nice python bench/train/growth.py WORK bench/results/growth.json 10000 100000 1000000

Rows in the file are not measured again, so a run can be interrupted. Plans of all sizes come first, since they need no
dataset. Each phase is a process of its own.
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

from made import make_data, make_parts

T = TypeVar("T")
QUESTIONS = 3
COMMON = (
    "batch_size=64 num_epochs=1 template=v1 kinds=[vqa] precision=fp32 device=cpu save_steps=0 trackers=[] "
    "max_length=256 pack_tokens=4096 logging_steps=1"
)
TIMED_STEPS = 200  # steps whose packing is timed
BATCHES = 50
STEPS = 30
WHOLE = 10_000  # samples up to which a run is made from end to end


def main(work: Path, out: Path, sizes: list[int]) -> None:
    parts = make_parts(work / "parts", 64, 2, side=32, tower=(64, 2), vocabulary=1000)
    rows = json.loads(out.read_text())["rows"] if out.is_file() else []
    rows += [{"samples": size} for size in sizes if all(row["samples"] != size for row in rows)]
    rows.sort(key=lambda row: row["samples"])
    for row in rows:
        if "a plan" not in row:
            row["a plan"] = run_phase(work, "plan", [str(row["samples"])])
            write(out, rows)
    for row in rows:
        if "with a dataset" in row:
            continue
        size = row["samples"]
        writing, data = timed(
            lambda n=size: make_data(work / f"data-{n}", images=-(-n // QUESTIONS), side=32, longest=40)
        )
        phases: dict[str, Any] = {"dataset made": writing}
        overrides = [*COMMON.split(), f"vision={parts / 'vision'}", f"language={parts / 'language'}", f"data={data}"]
        for phase in ("first", "again"):
            phases |= run_phase(work, phase, overrides)
        if size <= WHOLE:
            phases["a whole run"] = {f"{ranks} processes": train_completely(work, overrides, ranks) for ranks in (1, 2)}
        row["with a dataset"] = phases
        write(out, rows)
        shutil.rmtree(data)


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    result = {
        "command": "nice python bench/train/growth.py WORK bench/results/growth.json "
        + " ".join(str(row["samples"]) for row in rows),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a process",
        "versions": {
            "python": platform.python_version(),
            **{n: version(n) for n in ("torch", "transformers", "pyarrow")},
        },
        "settings": COMMON,
        "reads": "seconds are CPU seconds; peak_gb is the most memory of the process so far, 0.5 of it the program",
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def timed(work: Callable[[], T]) -> tuple[dict[str, float], T]:
    """CPU seconds and peak memory of a call in this process, and its result."""
    before = time.process_time()
    result = work()
    took = time.process_time() - before
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # ru_maxrss would begin at the parent's
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return {"seconds": round(took, 6), "peak_gb": round(peak / 1e9, 3)}, result


def run_phase(work: Path, phase: str, overrides: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--phase", phase, str(work), *overrides]
    environment = os.environ | {"QILIN_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment, text=True)
    row: dict[str, Any] = json.loads(process.stdout)
    print(json.dumps(row), file=sys.stderr)
    return row


def train_completely(work: Path, overrides: list[str], ranks: int) -> dict[str, float]:
    """`qilin train` on `ranks` processes: CPU seconds of all of them, and the median wall time of a step."""
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


def plan(overrides: list[str]) -> dict[str, Any]:
    """A plan of a number of samples with random lengths."""
    import numpy as np

    from qilin.train.plan import Lengths, make_plan

    samples = int(overrides[0])
    start, _ = timed(lambda: None)
    prefix = np.full(samples, 40, dtype=np.int64)
    rest = np.random.default_rng(0).integers(10, 60, samples)
    index = np.arange(samples)
    zero, one = np.zeros(samples, dtype=np.int64), np.ones(samples, dtype=np.int64)
    lengths = Lengths(prefix + rest, prefix, rest // 2, index // QUESTIONS, zero, one)
    row: dict[str, Any] = {"the program": start["peak_gb"]}
    row["made"], planned = timed(
        lambda: make_plan(lengths, [1.0], batch_size=64, num_epochs=1, pack_tokens=4096, seed=0)
    )
    row["its hash"], _ = timed(lambda: planned.hash)
    row["its account"], _ = timed(planned.counts)
    steps = range(min(len(planned), TIMED_STEPS))
    for ranks in (1, 2, 64):
        took, _ = timed(lambda n=ranks: [planned.packs(step, n) for step in steps])
        row[f"a step cut for {ranks}"] = took | {"seconds": round(took["seconds"] / len(steps), 6)}
    return row


def first(overrides: list[str]) -> dict[str, Any]:
    """Without the cache: texts are measured."""
    from qilin.train.config import read_recipe
    from qilin.train.data_loader import PackedDataset
    from qilin.train.stage import load_start

    config = read_recipe("small/align", overrides)
    loaded = load_start(config)
    start, _ = timed(lambda: None)
    return {
        "the program": start["peak_gb"],
        "texts measured": timed(lambda: PackedDataset(config, loaded.processor))[0],
    }


def again(overrides: list[str]) -> dict[str, Any]:
    """The second time, as far as some steps."""
    import torch

    from qilin.model.llava import set_trainable
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
    row["dataset opened"], _ = timed(lambda: open_sources(config, "training"))
    row["opened, lengths from the cache"], data = timed(lambda: PackedDataset(config, loaded.processor))
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

    row["first batch"], _ = timed(lambda: batch(0))
    later = range(1, min(len(plan), BATCHES))
    took, batches = timed(lambda: [batch(step) for step in later])
    row["a batch"] = took | {"seconds": round(took["seconds"] / len(later), 6)}
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
    chosen = batches[1 : STEPS + 1]
    took, _ = timed(lambda: [train_on(packs, step) for step, packs in enumerate(chosen)])
    row["a step"] = took | {"seconds": round(took["seconds"] / len(chosen), 6)}
    return row


if __name__ == "__main__":
    if sys.argv[1] == "--phase":
        print(json.dumps({"plan": plan, "first": first, "again": again}[sys.argv[2]](sys.argv[4:])))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]), [int(word) for word in sys.argv[3:]])
