"""Output folders: refused where occupied, written under a temporary name, or bound to the settings they are made with.

In: a path and, for a folder that is filled step by step, its settings. Out: a folder that is complete or absent, or one
whose record file (`begun.json`) holds the settings, so that a later run with other settings is refused.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import read_json, to_json, write_atomic


def require_empty(path: Path) -> None:
    """Raise UserError unless `path` is absent or an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: already holds something; name an empty or new folder, or remove it")


def create_staging_dir(path: Path) -> Path:
    """A new empty folder beside `path`, named `.NAME.unfinished`; one that an interrupted run left is removed."""
    staging = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def publish(staging: Path, path: Path) -> None:
    """Give a finished staging folder its final name; `path` may exist only as an empty folder."""
    if path.exists():
        path.rmdir()
    staging.rename(path)


@contextmanager
def staged_dir(path: Path) -> Iterator[Path]:
    """A staging folder that is published when the block ends normally, and removed otherwise.

    Raises UserError if `path` is occupied.
    """
    require_empty(path)
    staging = create_staging_dir(path)
    try:
        yield staging
        publish(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def bind_dir(path: Path, record_name: str, settings: Mapping[str, Any]) -> None:
    """Write `settings` into the record file of an empty folder, or check that they equal those recorded there.

    Raises UserError if the folder is occupied, or bound to other settings (the keys that differ are named).
    """
    record = path / record_name
    if record.is_file():
        if keys := differing_keys(read_json(record), settings):
            raise UserError(
                f"{path}: holds an unfinished run with other settings ({', '.join(keys)} differ); name a new folder, "
                "or remove this one"
            )
        return
    require_empty(path)
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(record, to_json(settings))


def differing_keys(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ, those of `wanted` first; recorded command lines are not compared."""
    a, b = (json.loads(json.dumps(without_commands(settings), default=str)) for settings in (recorded, wanted))
    return [key for key in dict.fromkeys([*b, *a]) if a.get(key) != b.get(key)]


def without_commands(settings: Any) -> Any:
    """Settings without the `command` keys at any depth: how a step was called does not decide what it makes."""
    if isinstance(settings, Mapping):
        return {key: without_commands(value) for key, value in settings.items() if key != "command"}
    return [without_commands(value) for value in settings] if isinstance(settings, list | tuple) else settings
