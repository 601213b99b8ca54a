"""Output of a conversion: a folder that is complete or absent, weights with a progress bar, log lines on stderr."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qilin.convert.config import ConvertConfig
from qilin.convert.weight_files import TensorToWrite, write_shards
from qilin.core.errors import RunError, UserError
from qilin.core.output_dir import lock_dir
from qilin.core.progress import ProgressBars
from qilin.core.terminal import make_console

console = make_console(stderr=True)


def log(text: str) -> None:
    """Print a line to stderr. Without markup, because paths may contain square brackets."""
    console.print(text, markup=False, emoji=False)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that is renamed to `out` on success and removed on any error.

    Raises UserError if `out` exists and is not empty, or another process writes it.
    """
    with lock_dir(out):
        yield from write_new_folder(out)


def write_new_folder(out: Path) -> Iterator[Path]:
    """`new_folder` where this process holds the lock."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and holds something else; choose another OUT, or remove it")
    folder = out.parent / f".{out.name}.{os.getpid()}.partial"
    for other in out.parent.glob(f".{out.name}.*.partial"):
        log(f"{other}: removed; the conversion that wrote it was killed")
        shutil.rmtree(other, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_tensors(folder: Path, tensors: Sequence[TensorToWrite], config: ConvertConfig) -> None:
    """Write the weights to `folder` with a progress bar. Raises RunError if the disk is too small."""
    total = sum(tensor.bytes for tensor in tensors)
    check_disk_space(folder, total)
    with ProgressBars(unit="bytes", console=console) as bars:
        task = bars.add_task(f"{config.source} → {config.out}", total=total)
        write_shards(folder, tensors, int(config.shard_gb * 1e9), lambda written: bars.advance(task, written))


def check_disk_space(folder: Path, needed: int) -> None:
    """Raise RunError before writing starts if the disk cannot hold the result."""
    free = shutil.disk_usage(folder).free
    if free < needed * 1.01:
        raise RunError(f"{folder.parent}: the model takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")
