"""What every step that writes a dataset folder shares: its settings, its command line, and whether its output exists.

In: a step's config and its input datasets. Out: the settings that the manifest records, with those of all earlier
steps; the summary that the command prints.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qilin.core.config import flat_fields, flat_values
from qilin.core.errors import UserError
from qilin.core.output_dir import differing_keys, require_empty
from qilin.core.progress import refusals
from qilin.core.terminal import make_console, print_json
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import MANIFEST

# options that do not change the dataset that a step writes: where it runs, how fast, at what price, what it prints
EXECUTION_OPTIONS = (
    "workers", "cluster", "json", "concurrency", "rate", "timeout", "cache", "budget", "price_in", "price_out",
)  # fmt: skip


def command_line(command: str, config: Any, positional: Sequence[str]) -> str:
    """The command of a config without anything local, such as `qilin data curate SOURCE OUT --license commercial`.

    Paths and endpoint addresses become words in capitals, options at their default and EXECUTION_OPTIONS are left out.
    """
    values = flat_values(config)
    arguments = [word for name in positional for word in format_value(name, values[name])]
    for field in flat_fields(type(config)):
        value = values[field.name]
        if field.name in (*positional, *EXECUTION_OPTIONS) or value in (field.default, None):
            continue
        flag = "--" + field.name.rstrip("_").replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag[2:]}")
        else:
            arguments += [flag, *format_value(field.name, value)]
    return f"qilin {command} {shlex.join(arguments)}"


def format_value(name: str, value: Any) -> list[str]:
    """A value as the words of a command line; a local path or an address becomes its option's name in capitals."""
    items = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(item, Path) or "://" in str(item) or str(item).startswith("/") for item in items):
        return [name.upper()]
    return list(map(str, items))


def step_settings(sources: Sequence[Dataset], step: Mapping[str, Any]) -> dict[str, Any]:
    """The `settings` of a new manifest: the step's own, and name, hash and settings of each input dataset."""
    inputs = [
        {"source": data.path.resolve().name, "input": data.hash, "made_from": data.manifest["settings"]}
        for data in sources
    ]
    return {**step, **(inputs[0] if len(inputs) == 1 else {"made_from": inputs})}


def is_complete(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether `out` holds the dataset of these settings. Raises UserError if it holds anything else."""
    if not (out / MANIFEST).is_file():
        require_empty(out)  # refused before the work, not after
        return False
    if keys := differing_keys(open_dataset(out).manifest["settings"], settings):
        raise UserError(
            f"{out}: already holds another dataset ({', '.join(keys)} differ); name a new folder, or remove this one"
        )
    return True


def print_summary(
    out: Path,
    data: Dataset,
    is_new: bool,
    as_json: bool,
    extra: Mapping[str, Any] | None = None,
    lines: Sequence[str] = (),
) -> None:
    """Print what the dataset in `out` holds: one JSON object with `extra`, or text with `lines` and the rejections."""
    counts = data.manifest["counts"]
    if as_json:
        row = {"out": str(out), "made": is_new, "hash": data.hash, **(extra or {}), **counts}
        print_json(row, indent=None)
        return
    console = make_console()
    samples = ", ".join(f"{split} {count:,}" for split, count in counts["samples"].items())
    console.print(f"{'wrote' if is_new else 'already there:'} {out}: {counts['pictures']:,} images; samples: {samples}")
    for line in lines:
        console.print(line)
    if counts["dropped"]:
        console.print(refusals(counts["dropped_reasons"], "rejected", str(out / "dropped.jsonl")))
