"""CPU seconds of `qilin estimate`: computed, kept, refused. Models are folders with nothing but config.json.

    OMP_NUM_THREADS=1 python bench/train/estimate_seconds.py WORK bench/results/estimate-seconds.json

In: a scratch folder. Out: a result file with command, machine, versions and seconds.
"""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14}  # fmt: skip
LLAMA_13B = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824,
             "num_hidden_layers": 40, "num_attention_heads": 40}  # fmt: skip
FOLDERS = {"clip": CLIP, "llama13b": LLAMA_13B}
LARGE = ["qilin-med-vl-13b/align", "--gpu", "h200", "--samples", "580014", "--text-tokens", "500"]
COMMANDS = {
    "Llama 13B, H200": [*LARGE, "vision=clip", "language=llama13b"],
    "a hub id whose hub does not resolve": [*LARGE, "vision=owner/vision", "language=owner/language"],
    "a mistyped folder": [*LARGE, "vision=clip", "language=llama13"],
}  # fmt: skip


def main(work: Path, out: Path) -> None:
    for name, values in FOLDERS.items():
        (work / name).mkdir(parents=True, exist_ok=True)
        (work / name / "config.json").write_text(json.dumps(values), encoding="utf-8")
    shutil.rmtree(work / "cache", ignore_errors=True)
    rows = [{"case": name} | run(work, arguments) for name, arguments in COMMANDS.items() for _ in range(2)]
    result = {
        "command": "OMP_NUM_THREADS=1 python bench/train/estimate_seconds.py WORK bench/results/estimate-seconds.json",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other jobs, which lengthen wall_seconds",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def run(work: Path, arguments: list[str]) -> dict[str, object]:
    """CPU and wall seconds of one command; the second of two equal ones answers from the cache."""
    environment = os.environ | {"QILIN_CACHE": str(work / "cache"), "HF_HOME": str(work / "hub"),
                                "HF_ENDPOINT": "https://hub.invalid"}  # fmt: skip
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "qilin.cli", "estimate", *arguments], cwd=work, env=environment, capture_output=True
    )
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"exit_code": process.returncode, "cpu_seconds": round(cpu, 1), "wall_seconds": round(wall, 1)}


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
