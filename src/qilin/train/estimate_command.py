"""`qilin estimate`: answers from a cache or computes, and prints. Free of torch, whose import takes seconds.

In: the command line. Out: the figures of estimate.py, for people or as JSON. An answer is kept under everything that it
depends on: recipe, flags, the model's and the data's files, the code, the versions, on a CPU the machine.
"""

import contextlib
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qilin.core.config import parse_override
from qilin.core.errors import UserError
from qilin.core.files import cache_dir, to_json, write_atomic
from qilin.core.terminal import make_console
from qilin.model.hub import explain_load_error, fetch
from qilin.train.commands import EstimateCommand
from qilin.train.config import TrainConfig, read_recipe
from qilin.train.gpus import Gpu, Machine
from qilin.train.plan import format_saving

LIBRARIES = ("torch", "transformers", "tokenizers", "peft")
# device files of accelerators on Linux: NVIDIA, AMD, Windows' Linux, Intel, Ascend
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/dri", "/dev/davinci_manager")
console = make_console()


def estimate_command(command: EstimateCommand) -> None:
    """`qilin estimate RECIPE key=value …`"""
    overridden = {parse_override(override)[0].split(".")[0] for override in command.overrides}
    placeholder = [] if "data" in overridden else ["data=not-given"]  # a recipe requires data, an estimate does not
    config = read_recipe(command.recipe, [*placeholder, *command.overrides])
    figures, machine = cached_figures(command, config)
    if command.price is not None and "device_hours" in figures:
        figures["money"] = figures["device_hours"] * command.price
    print(json.dumps(figures, indent=2)) if command.json else print_figures(figures, machine)


def cached_figures(command: EstimateCommand, config: TrainConfig) -> tuple[dict[str, Any], Machine]:
    """The figures without a price, and their machine: from the cache, else computed."""
    command = replace(command, price=None, json=False)
    inputs = list_inputs(command, config)
    key = hashlib.sha256(to_json(inputs).encode()).hexdigest()[:32]
    file = cache_dir("estimates") / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent, or cut short: computed again
        if inputs is not None:
            answer = json.loads(file.read_text(encoding="utf-8"))
            gpu = answer["machine"].pop("gpu")
            return answer["figures"], Machine(**answer["machine"], gpu=gpu and Gpu(**gpu))
    from qilin.train.estimate import compute_figures

    figures, machine = compute_figures(command, config)
    if inputs is not None:
        with contextlib.suppress(OSError):  # a full disk, no permission: computed again next time
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, to_json({"figures": figures, "machine": asdict(machine)}))
    return figures, machine


def list_inputs(command: EstimateCommand, config: TrainConfig) -> list[str] | None:
    """All that the figures depend on; None where that is not known without loading more, so nothing is cached.

    Raises UserError for a mistyped folder, and without a network for a hub id that is not cached.
    """
    inputs = [repr(command), repr(config), *(version(library) for library in LIBRARIES)]
    for code in (Path(__file__).parent, Path(fetch.__code__.co_filename).parent):
        inputs += describe_files(code)
    for name in [config.model] if config.model is not None else [config.vision, config.language]:
        files = describe_model(name or "", config.hub)
        if files is None:
            return None
        inputs += files
    for source in config.data:
        inputs += describe_files(source.path, "manifest.json")  # written last; a folder that has one does not change
    if Path(config.template).is_file():
        inputs += describe_files(Path(config.template).parent, Path(config.template).name)
    if command.gpu not in ("auto", "cpu"):
        return inputs
    if command.gpu == "auto" and (sys.platform != "linux" or any(map(os.path.exists, ACCELERATORS))):
        return None
    return [*inputs, *describe_cpu()]


def describe_model(name: str, hub: str) -> list[str] | None:
    """The files of a model's folder, or the commit of a Hugging Face id in huggingface_hub's cache; None if it is in
    neither."""
    if Path(name).is_dir():
        return list(describe_files(Path(name)))
    if hub == "modelscope":
        return None
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"models--{fetch(name, hub).replace('/', '--')}")
    commit = folder / "refs" / "main"
    if commit.is_file():
        return [str(folder), commit.read_text(encoding="utf-8")]
    if constants.HF_HUB_OFFLINE:
        raise UserError(explain_load_error(name, name, OSError("no network, and it is not in the hub's cache")))
    return None


def describe_files(folder: Path, pattern: str = "*") -> Iterator[str]:
    """A folder's files with size and time of change."""
    for file in sorted(folder.glob(pattern)):
        if file.is_file():
            status = file.stat()
            yield f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"


def describe_cpu() -> Iterator[str]:
    """What the measured rate of this machine depends on."""
    yield f"{platform.node()} {platform.machine()} {os.cpu_count()}"
    yield str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    yield str({name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")})
    with contextlib.suppress(OSError):
        yield next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")


def print_figures(figures: Mapping[str, Any], machine: Machine) -> None:
    """Print the figures for people."""
    for part, counts in figures["parameters"].items():
        status = f"{counts['trainable']:,} trainable" if counts["trainable"] else "frozen"
        console.print(f"  {part:10} {counts['all']:>15,} parameters, {status}")
    name = f"each of {machine.devices} x {machine.name}" if machine.devices > 1 else machine.name
    console.print(f"\n  peak memory of {name}")
    for cause, size in figures["memory"].items():
        console.print(f"    {size / 1e9:>8.2f} GB  {cause}")
    total, available = figures["memory_total"] / 1e9, figures["memory_of_machine"] / 1e9
    console.print(f"    {total:>8.2f} GB  total; {format_verdict(figures, machine)} into {available:.0f} GB")
    for line in figures.get("would fit", []):
        console.print(f"             would fit with {line}")
    if not figures["fits"] and not figures["would fit"]:
        console.print("             no known change makes it fit; use a larger GPU, or more of them")
    if not figures["fits"]:
        console.print("\n  no training time: it does not fit")
        return
    if "hours" not in figures:
        console.print(
            "\n  for the training time name the data (data=FOLDER), or give --samples, --text-tokens, --answer-tokens, "
            "--samples-per-image"
        )
        return
    recomputed = figures["recomputed_operations"]
    recomputed = f" and {recomputed:.3g} recomputed (gradient_checkpointing)" if recomputed else ""
    console.print(
        f"\n  {figures['samples']:,} samples, {figures['steps']:,} steps, {figures['tokens']:,} tokens"
        f"{format_saving(figures)}, {figures['answer_tokens']:,} answer tokens\n"
        f"  {figures['operations']:.3g} operations{recomputed}: {format_hours(figures['hours'])} at "
        f"{figures['mfu_assumed']:.0%} (--mfu; {figures['mfu_source']}) of {format_flops(figures['peak'])} per device"
    )
    price = f", cost {figures['money']:,.0f}" if figures["money"] is not None else " (--price gives the cost)"
    console.print(f"  {format_hours(figures['device_hours'])} of device time{price}")


def format_verdict(figures: Mapping[str, Any], machine: Machine) -> str:
    """Whether it fits, with the margin where that decides."""
    if figures["fits"]:
        return "fits"
    if figures["memory_total"] > machine.memory:
        return "does not fit"
    reserve = 1 - machine.usable_memory / machine.memory
    return f"does not fit safely ({reserve:.0%} are left for libraries and the error of this estimate)"


def format_hours(hours: float) -> str:
    """Hours, or minutes below one hour."""
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"


def format_flops(operations: float) -> str:
    """Operations per second, in TFLOP/s for GPUs and GFLOP/s for CPUs."""
    return f"{operations / 1e12:,.1f} TFLOP/s" if operations >= 1e12 else f"{operations / 1e9:,.1f} GFLOP/s"
