"""Output folders: locked by one process, refused where occupied, written under a temporary name, bound to settings.

In: a path and, for a folder that is filled step by step, its settings. Out: a folder that is complete or absent, or one
whose record file (`begun.json`) holds the settings, so that a later run with other settings is refused. While a process
writes a folder, the file `.NAME.lock` beside it names the process; the folder itself never holds a lock.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import read_json, to_json, write_atomic


@contextmanager
def lock_dir(path: Path) -> Iterator[None]:
    """Hold the lock of an output folder, which may not exist yet, for the length of a block.

    Raises UserError if another process holds it: with its pid, machine and start. The lock of a process that has ended
    (kill -9, power cut) is taken over. A block inside a block of the same process changes nothing.
    """
    lock = lock_path(path)
    lock.parent.mkdir(parents=True, exist_ok=True)
    if not acquire_lock(lock, path):
        yield
        return
    try:
        yield
    finally:
        release_lock(lock)


def lock_path(path: Path) -> Path:
    """The lock file of an output folder: `.NAME.lock` beside it."""
    path = Path(path).resolve()
    return path.with_name(f".{path.name}.lock")


def acquire_lock(lock: Path, path: Path) -> bool:
    """Write this process into the lock file; False if it is there already. Raises UserError where another holds it."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
            with contextlib.suppress(OSError):  # a file system without flock: two takeovers at once are not told apart
                fcntl.flock(file, fcntl.LOCK_EX)  # held for the few lines below only
            try:
                if os.stat(lock).st_ino != os.fstat(descriptor).st_ino:
                    continue  # its owner released it before we had it
            except FileNotFoundError:
                continue
            owner = read_owner(file.read(10_000), lock, path)
            if owner and is_this_process(owner):
                return False
            if owner and is_running(owner):
                raise UserError(describe_owner(owner, lock, path))
            file.seek(0)
            file.truncate()
            file.write(to_json({**this_process(), "since": datetime.now().isoformat(" ", "seconds")}))
            return True


def release_lock(lock: Path) -> None:
    """Remove the lock file if it names this process: a child that was forked inside the block leaves it alone."""
    with contextlib.suppress(OSError, ValueError):
        owner = json.loads(lock.read_text(encoding="utf-8"))
        if is_this_process(owner):
            lock.unlink()


def read_owner(text: str, lock: Path, path: Path) -> dict[str, Any] | None:
    """The owner in a lock file; None for an empty one, whose process was killed before it wrote."""
    if not text.strip("\0 \n"):
        return None
    try:
        owner = json.loads(text)
        owner = {name: owner[name] for name in ("pid", "host", "started", "since")}
        assert isinstance(owner["pid"], int)
    except (ValueError, LookupError, TypeError, AssertionError):
        raise UserError(f"{path}: its lock {lock} is damaged; remove that file if nothing writes the folder") from None
    return owner


def this_process() -> dict[str, Any]:
    """What identifies this process in a lock file."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": start_time(os.getpid())}


def is_this_process(owner: Mapping[str, Any]) -> bool:
    return all(owner[name] == value for name, value in this_process().items())


def start_time(pid: int) -> str:
    """When a process started, in ticks since the boot; "" if it has ended, or where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]  # a zombie has ended


def is_running(owner: Mapping[str, Any]) -> bool:
    """Whether a lock's owner may still write: another machine cannot be asked, so its owner counts as running."""
    if owner["host"] != socket.gethostname():
        return True
    if Path("/proc/self/stat").exists():
        return start_time(owner["pid"]) == owner["started"]  # a pid is given again to another process
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # the process of another user
    return True


def describe_owner(owner: Mapping[str, Any], lock: Path, path: Path) -> str:
    """The error for a folder that is in use."""
    text = f"{path}: in use by process {owner['pid']} on {owner['host']} since {owner['since']}"
    if owner["host"] == socket.gethostname():
        return f"{text}; wait for it, or name another folder"
    return f"{text}, another machine; if that process has ended, remove {lock}"


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

    Raises UserError if `path` is occupied, or another process writes it.
    """
    with lock_dir(path):
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
