"""What converting costs: memory and speed on a synthetic checkpoint in LLaVA's layout, about 2 GB in 3 .bin shards.

In: a folder to work in (twice the checkpoint's size is needed) and, for precision, one to keep. Out: a JSON file with
the command, the machine, the versions and the numbers. The converter runs in a process of its own, whose peak of memory
the system reports (resident set, mapped files included); the disk is measured by copying the same bytes.

    nice -n 19 python bench/convert.py DIR bench/results/convert.json
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

WIDTH, INNER, LAYERS, SHARDS = 2048, 5504, 21, 3


def make(folder: Path) -> None:
    """The miniature of the tests with a wide language model, shard by shard; bf16."""
    import torch

    from builders import llava as llava_mini

    llava_mini.WIDTH, llava_mini.INNER, llava_mini.LAYERS, llava_mini.HEADS = WIDTH, INNER, 1, 16
    llava_mini.llava_mini(folder, shards=1, groups=16)
    small = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": LAYERS, "num_attention_heads": 16, "num_key_value_heads": 16}
    (folder / "config.json").write_text(json.dumps(config))
    files: dict[str, str] = {}
    for n in range(SHARDS):
        part = {} if n else {name: t for name, t in small.items() if ".layers.0." not in name or "vision" in name}
        for layer in range(LAYERS * n // SHARDS, LAYERS * (n + 1) // SHARDS):
            part |= {
                name.replace("layers.0.", f"layers.{layer}."): t.clone()
                for name, t in small.items()
                if name.startswith("model.layers.0.")
            }
        file = f"pytorch_model-{n + 1:05}-of-{SHARDS:05}.bin"
        torch.save(part, folder / file)
        files |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))


def status() -> dict[str, int]:
    """This process's memory in bytes, as Linux says it: VmRSS now, VmHWM at most, RssAnon its own, RssFile mapped."""
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {row[0][:-1]: int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


def convert_alone(source: str, out: str) -> None:
    """In a process of its own: what importing takes, what converting adds."""
    import transformers  # noqa: F401
    from transformers import LlavaForConditionalGeneration  # noqa: F401

    from qilin.convert.run import convert
    from qilin.model.config import ConvertConfig

    before = status()["VmRSS"]
    highest = {"RssAnon": 0, "RssFile": 0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            now = status()
            highest.update({name: max(value, now[name]) for name, value in highest.items()})

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start, used = time.perf_counter(), time.process_time()
    convert(ConvertConfig(source=source, out=Path(out)))
    seconds, used = time.perf_counter() - start, time.process_time() - used
    done.set()
    watcher.join()
    peak = status()["VmHWM"]  # not getrusage's: that keeps the peak of the process this one was forked from
    print(json.dumps({"seconds": seconds, "cpu_seconds": used, "before": before, "peak": peak, **highest}))


def measure(folder: Path) -> dict[str, Any]:
    import torch
    import transformers

    source, out = folder / "source", folder / "out"
    make(source)
    sizes = [file.stat().st_size for file in sorted(source.glob("*.bin"))]
    start = time.perf_counter()
    for file in source.glob("*.bin"):
        shutil.copyfile(file, folder / "copy")
    copying = time.perf_counter() - start
    (folder / "copy").unlink()
    found = subprocess.run(
        [sys.executable, __file__, "alone", str(source), str(out)], capture_output=True, text=True, check=True
    )
    numbers = json.loads(found.stdout)
    added = numbers["peak"] - numbers["before"]
    return {
        "command": "nice -n 19 python bench/convert.py DIR bench/results/convert.json",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work while measured",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "checkpoint_bytes": sum(sizes),
        "largest_shard_bytes": max(sizes),
        "peak_bytes": numbers["peak"],
        "before_converting_bytes": numbers["before"],
        "added_bytes": added,
        "added_over_largest_shard": round(added / max(sizes), 3),
        "highest_own_bytes": numbers["RssAnon"],
        "highest_mapped_bytes": numbers["RssFile"],
        "seconds": round(numbers["seconds"], 2),
        "cpu_seconds": round(numbers["cpu_seconds"], 2),
        "mb_per_second": round(sum(sizes) / 1e6 / numbers["seconds"]),
        "copying_mb_per_second": round(sum(sizes) / 1e6 / copying),
    }


if __name__ == "__main__":
    if sys.argv[1] == "alone":
        convert_alone(sys.argv[2], sys.argv[3])
    else:
        work = Path(sys.argv[1])
        work.mkdir(parents=True)
        try:
            result = measure(work)
        finally:
            shutil.rmtree(work)
        Path(sys.argv[2]).write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result, indent=2))
