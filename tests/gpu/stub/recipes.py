"""Trains with the recipes of tests/gpu on the stub GPU: every step, validation, checkpoint and the model folder. Losses
are garbage there; only errors count.

    PYTHONPATH=src:tests STUB/python tests/gpu/stub/recipes.py [NUMBER …]
"""

import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

import gpu.stub.adapt  # noqa: F401  before a model is made
from builders.gpu_recipes import COMMON, RECIPES
from builders.training import metrics_rows, source_options, tiny_home
from qilin.train.config import read_recipe
from qilin.train.stage import run_stage


def main(numbers: list[int]) -> int:
    folder = Path(tempfile.mkdtemp())
    home = tiny_home(folder, images=6, splits=("train",), width=128)
    failed = 0
    for number in numbers or range(len(RECIPES)):
        started = time.perf_counter()
        torch.compiler.reset()  # a run is a process of its own
        overrides = [*source_options(home), f"out={folder / str(number)}", *COMMON.split(), *RECIPES[number]]
        try:
            run_stage(read_recipe("small/align", overrides), "stub")
            result = f"{len(metrics_rows(folder / str(number)))} steps"
        except Exception as error:
            failed += 1
            traceback.print_exc()
            result = f"FAILED: {type(error).__name__}: {error}"
        print(f"{number} {' '.join(RECIPES[number])}: {result}, {time.perf_counter() - started:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]]))
