"""Memory and speed of `qilin convert` on a synthetic checkpoint in LLaVA's layout, about 2 GB in 3 .bin shards.

Input: a working folder with space for twice the checkpoint. Output: a JSON file with command, machine, versions and
measurements. The conversion runs in a separate process, whose peak resident set (including mapped files) is measured;
disk speed is measured by copying the same bytes.

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

WIDTH, INTERMEDIATE, LAYERS, HEADS, SHARDS = 2048, 5504, 21, 16, 3


def make_checkpoint(folder: Path) -> None:
    """Writes the tests' tiny checkpoint with a wide language model in bf16, shard by shard."""
    import torch

    from builders import llava

    llava.WIDTH, llava.INTERMEDIATE, llava.LAYERS, llava.HEADS = WIDTH, INTERMEDIATE, 1, HEADS
    llava.tiny_llava_checkpoint(folder, shards=1, kv_heads=HEADS)
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    llava.edit_config(folder, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS)
    weight_map: dict[str, str] = {}
    for n in range(SHARDS):
        shard = {} if n else {name: t for name, t in tensors.items() if ".layers.0." not in name or "vision" in name}
        for layer in range(LAYERS * n // SHARDS, LAYERS * (n + 1) // SHARDS):
            shard |= {
                name.replace("layers.0.", f"layers.{layer}."): t.clone()
                for name, t in tensors.items()
                if name.startswith("model.layers.0.")
            }
        file = f"pytorch_model-{n + 1:05}-of-{SHARDS:05}.bin"
        torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def memory_status() -> dict[str, int]:
    """Memory of this process in bytes, from Linux: VmRSS current, VmHWM peak, RssAnon private, RssFile mapped."""
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {row[0][:-1]: int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


def convert_and_measure(source: str, out: str) -> None:
    """Prints as JSON the memory after imports and during the conversion; runs in a separate process."""
    import transformers  # noqa: F401
    from transformers import LlavaForConditionalGeneration  # noqa: F401

    from qilin.convert.config import ConvertConfig
    from qilin.convert.run import convert

    before = memory_status()["VmRSS"]
    highest = {"RssAnon": 0, "RssFile": 0}
    done = threading.Event()

    def watch_memory() -> None:
        while not done.wait(0.1):
            status = memory_status()
            highest.update({name: max(value, status[name]) for name, value in highest.items()})

    watcher = threading.Thread(target=watch_memory, daemon=True)
    watcher.start()
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    convert(ConvertConfig(source=source, out=Path(out)))
    seconds, cpu_seconds = time.perf_counter() - wall_start, time.process_time() - cpu_start
    done.set()
    watcher.join()
    peak = memory_status()["VmHWM"]  # getrusage would include the peak of the parent process before the fork
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "before": before, "peak": peak, **highest}))


def measure(folder: Path) -> dict[str, Any]:
    import torch
    import transformers

    source, out = folder / "source", folder / "out"
    make_checkpoint(source)
    sizes = [file.stat().st_size for file in sorted(source.glob("*.bin"))]
    start = time.perf_counter()
    for file in source.glob("*.bin"):
        shutil.copyfile(file, folder / "copy")
    copy_seconds = time.perf_counter() - start
    (folder / "copy").unlink()
    command = [sys.executable, __file__, "--measure", str(source), str(out)]
    numbers = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
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
        "copying_mb_per_second": round(sum(sizes) / 1e6 / copy_seconds),
    }


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        convert_and_measure(sys.argv[2], sys.argv[3])
    else:
        folder = Path(sys.argv[1])
        folder.mkdir(parents=True)
        try:
            result = measure(folder)
        finally:
            shutil.rmtree(folder)
        Path(sys.argv[2]).write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result, indent=2))
