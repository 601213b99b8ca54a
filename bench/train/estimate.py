"""Accuracy of `qilin estimate`: estimated memory against the peak resident memory of `qilin train` on a CPU.

Input: a working folder. Output: a JSON file with the estimate by cause, the measurement and the error of each case;
cases that are in the file are skipped. Weights are random, data are noise images with texts of random length.

    nice python bench/train/estimate.py WORK bench/results/estimate.json
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from random_inputs import make_data, make_parts

SHAPES = {"small": (512, 6), "larger": (1024, 8)}  # (width, depth) of the language model
# two steps of 12 samples: AdamW allocates its moments at the end of the first step
COMMON = (
    "batch_size=12 num_epochs=1 template=v1 kinds=[vqa] device=cpu save_steps=0 trackers=[] max_length=1024 "
    "pack_tokens=4096"
)
# glibc retains freed blocks of up to 32 MB; these settings return them to the system
TRIMMED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
CASES: dict[str, tuple[str, str]] = {
    "stage 1, fp32": ("small", "small/align precision=fp32"),
    "stage 1, bf16": ("small", "small/align precision=bf16"),
    "stage 1, bf16, checkpointing": ("small", "small/align precision=bf16 gradient_checkpointing=true"),
    "stage 2, bf16": ("small", "small/align precision=bf16 trainable=[projector,language]"),
    "adapters, bf16": ("small", "small/align precision=bf16 lora={rank:16}"),
    "larger, stage 1, bf16": ("larger", "small/align precision=bf16"),
    "larger, stage 2, bf16, checkpointing": (
        "larger",
        "small/align precision=bf16 trainable=[projector,language] gradient_checkpointing=true",
    ),
}


def main(work: Path, out: Path) -> None:
    make_data(work / "data", images=8, side=128, longest=600)
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.is_file() else []
    for name, (shape, recipe) in CASES.items():
        if any(row["case"] == name for row in rows):
            continue
        parts = make_parts(work / shape, *SHAPES[shape], side=128, tower=(384, 6))
        command = [w.replace(":", ": ") for w in (recipe + " " + COMMON).split()]
        command += [f"vision={parts / 'vision'}", f"language={parts / 'language'}", f"data={work / 'data'}"]
        estimate = json.loads(run(work, ["estimate", *command, "--gpu", "cpu", "--json"])[0])
        untrimmed, trimmed = (peak_memory(work, command, allocator) for allocator in ({}, TRIMMED))
        row = {
            "case": name,
            "estimated_gb": round(estimate["memory_total"] / 1e9, 3),
            "measured_gb": round(trimmed / 1e9, 3),
            "error": round(estimate["memory_total"] / trimmed - 1, 4),
            "measured_with_the_allocator_as_it_is_gb": round(untrimmed / 1e9, 3),
            "error_with_the_allocator_as_it_is": round(estimate["memory_total"] / untrimmed - 1, 4),
            "by_cause_gb": {cause: round(size / 1e9, 3) for cause, size in estimate["memory"].items()},
            "words": recipe,
        }
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
        write_result(out, rows)


def write_result(out: Path, rows: list[dict[str, Any]]) -> None:
    """Writes command, machine, versions, and the rows with the largest error."""
    result: dict[str, Any] = {
        "command": "nice python bench/train/estimate.py WORK bench/results/estimate.json",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, threads {torch.get_num_threads()}",
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in ("torch", "transformers")}},
        "usual": COMMON,
        "shapes (width, depth)": SHAPES,
        "largest_error": max((row["error"] for row in rows), key=abs),
        "largest_error_with_the_allocator_as_it_is": max(
            (row["error_with_the_allocator_as_it_is"] for row in rows), key=abs
        ),
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def peak_memory(work: Path, command: list[str], allocator: dict[str, str]) -> int:
    """Peak resident memory of one training run, in bytes."""
    shutil.rmtree(work / "run", ignore_errors=True)
    return run(work, ["train", *command, f"out={work / 'run'}"], allocator)[1]


def run(work: Path, arguments: list[str], variables: dict[str, str] | None = None) -> tuple[str, int]:
    """Runs a qilin command; returns (stdout, peak resident memory in bytes)."""
    code = (
        "import resource, sys\nfrom qilin import cli\ncode = cli.main(sys.argv[1:])\n"
        "print('\\n', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\nsys.exit(code)"
    )
    environment = os.environ | {"QILIN_CACHE": str(work / "cache")} | (variables or {})
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    if process.returncode:
        raise SystemExit(process.stderr)
    return process.stdout, int(process.stderr.split()[-1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
