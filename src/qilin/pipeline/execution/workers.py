"""Where shards are computed: in this process, in a pool of processes, or by the workers of a dask cluster.

In: the `workers` and `cluster` options of a command. Out: a factory of `concurrent.futures` executors and the errors
by which they report a killed worker. The steps do not depend on the choice.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal
from threading import Thread
from typing import Any

from qilin import __version__
from qilin.core.errors import RunError, UserError
from qilin.core.processes import spawn_context

SCHEDULER_TIMEOUT = 10.0  # seconds until a scheduler must answer
WORKER_TIMEOUT = 60.0  # seconds until its first worker must be connected


@dataclass(frozen=True)
class Workers:
    """`make_executor` is called again after workers of the last executor were killed."""

    make_executor: Callable[[], Executor]
    max_running: int  # shards submitted at a time: enough to keep all busy, few enough that little is lost
    killed_errors: tuple[type[Exception], ...] = (BrokenProcessPool,)
    max_attempts: int = 3  # for a shard whose worker was killed
    check: Callable[[Path], None] = lambda folder: None  # raises UserError where workers cannot write to a folder


def make_workers(workers: int, cluster: str | None = None, max_workers: int | None = None) -> Workers | None:
    """A cluster if its address is given, else `workers` processes (0: one per core, at most `max_workers`).

    None for a single process: no pool, the caller's process does the work.
    """
    if cluster:
        return cluster_workers(cluster)
    if workers < 0:
        raise UserError(f"--workers {workers}: expected 0 (one per core) or more")
    cores = os.cpu_count() or 1
    count = workers or (cores if max_workers is None else min(cores, max_workers))
    if count <= 1:
        return None
    # A fresh interpreter per worker: forking a process that has threads (the progress bar's) can deadlock.
    context = spawn_context()
    return Workers(lambda: ProcessPoolExecutor(count, context, initializer=init_worker), 2 * count)


def init_worker() -> None:
    """In each process of a pool: leave Ctrl-C to the parent, and exit when the parent is killed."""
    signal(SIGINT, SIG_IGN)
    Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent, "not started by a pool"
    parent.join()
    os._exit(1)  # the main thread would wait forever for the next shard


def cluster_workers(address: str) -> Workers:
    """The workers of a dask scheduler; they need the same version of Qilin and the same file system.

    Raises UserError for a missing package or a malformed address, RunError where no scheduler or no worker answers.
    """
    try:
        from distributed import KilledWorker
    except ImportError:
        raise UserError("--cluster needs dask: pip install 'qilin-med[cluster]'") from None
    if not address.startswith(("tcp://", "tls://", "ucx://")):
        raise UserError(f"--cluster {address}: expected a scheduler's address, such as tcp://10.0.0.1:8786")
    client = connect_client(address)
    try:
        client.wait_for_workers(1, timeout=WORKER_TIMEOUT)
    except TimeoutError:
        raise RunError(
            f"--cluster {address}: no worker connected in {WORKER_TIMEOUT:g} s; start some: dask worker {address}"
        ) from None
    threads = sum(client.nthreads().values())
    # the scheduler itself retries a killed shard on another worker, so its giving up is final
    return Workers(
        lambda: client.get_executor(pure=False),
        max(16, 2 * threads),
        (KilledWorker,),
        max_attempts=1,
        check=lambda folder: check_cluster(client, address, folder),
    )


@cache
def connect_client(address: str) -> Any:
    """A client of the scheduler, one for all steps of a process. Raises RunError where none answers."""
    from distributed import Client

    try:
        return Client(address, timeout=SCHEDULER_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RunError(f"--cluster {address}: no scheduler answers at this address ({first_line(error)})") from None


def check_cluster(client: Any, address: str, folder: Path) -> None:
    """Raise UserError unless every connected worker has this version of Qilin and can write to the folder."""
    try:
        answers = client.run(describe_worker, str(folder))
    except ImportError as error:
        raise UserError(
            f"--cluster {address}: a worker cannot import Qilin ({first_line(error)}); install it there"
        ) from None
    for worker, (version, is_writable) in sorted(answers.items()):
        if version != __version__:
            raise UserError(
                f"--cluster {address}: {worker} has Qilin {version}, expected {__version__}; install the same version"
            )
        if not is_writable:
            raise UserError(
                f"--cluster {address}: {worker} cannot write to {folder}; a cluster needs a shared file system"
            )


def describe_worker(folder: str) -> tuple[str, bool]:
    """Run on each worker: (version of Qilin, whether the folder is writable)."""
    return __version__, os.access(folder, os.W_OK)


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
