"""Who does the pieces of a step: this process, a pool of processes, or the workers of a dask cluster.

In: the numbers and addresses that a command is given. Out: something that makes a concurrent.futures executor, with
what tells that a worker of it was killed. The steps know nothing of it.
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

WAIT = 10.0  # seconds for a scheduler to answer
COME = 60.0  # for its first worker


@dataclass(frozen=True)
class Workers:
    """`make` gives an executor; it is called again where the workers of the last one were killed."""

    make: Callable[[], Executor]
    at_once: int  # pieces in hand: enough to keep all busy, few enough that little is lost
    killed: tuple[type[Exception], ...] = (BrokenProcessPool,)
    tries: int = 3  # of a piece whose worker was killed
    check: Callable[[Path], None] = lambda folder: None  # raises UserError where workers cannot write to a folder


def make_workers(number: int, cluster: str | None = None, most: int | None = None) -> Workers | None:
    """A cluster where its address is given, else `number` processes: 0 for one a core, but not more than the `most`
    pieces that there are. None (no pool, work here) for a single one."""
    if cluster:
        return on_cluster(cluster)
    if number < 0:
        raise UserError(f"--workers {number}: expected 0 (one a core) or more")
    cores = os.cpu_count() or 1
    count = number or (cores if most is None else min(cores, most))
    if count <= 1:
        return None
    # A fresh interpreter a worker: forking a process that has threads (the bar's) can hang.
    context = multiprocessing.get_context("spawn")
    return Workers(lambda: ProcessPoolExecutor(count, context, initializer=start_worker), 2 * count)


def start_worker() -> None:
    """In each process of a pool: Ctrl-C is the first one's to answer, and where that is killed, this one ends too."""
    signal(SIGINT, SIG_IGN)
    Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent, "started by a pool"
    parent.join()
    os._exit(1)  # the main thread waits for work that never comes


def on_cluster(address: str) -> Workers:
    """The workers of a dask scheduler. They need Qilin of this version and the folders of this machine.

    Raises UserError for a missing package or a wrong address, RunError where no scheduler or no worker answers.
    """
    try:
        from distributed import KilledWorker
    except ImportError:
        raise UserError("--cluster needs dask: pip install 'qilin-med[cluster]'") from None
    if not address.startswith(("tcp://", "tls://", "ucx://")):
        raise UserError(f"--cluster {address}: expected a scheduler's address, such as tcp://10.0.0.1:8786")
    client = connect_client(address)
    try:
        client.wait_for_workers(1, timeout=COME)
    except TimeoutError:
        raise RunError(
            f"--cluster {address}: no worker came in {COME:g} s; start some: dask worker {address}"
        ) from None
    threads = sum(client.nthreads().values())
    # the scheduler tries a killed piece again by itself, on another worker; where it gives up, so do we
    return Workers(
        lambda: client.get_executor(pure=False),
        max(16, 2 * threads),
        (KilledWorker,),
        tries=1,
        check=lambda folder: check_cluster(client, address, folder),
    )


@cache
def connect_client(address: str) -> Any:
    """A client of the scheduler, one for all steps of a process. Raises RunError where none answers."""
    from distributed import Client

    try:
        return Client(address, timeout=WAIT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RunError(f"--cluster {address}: no scheduler answers there ({first_line(error)})") from None


def check_cluster(client: Any, address: str, folder: Path) -> None:
    """Whether all workers of now have this Qilin and see the folder. Raises UserError naming the first that has not."""
    try:
        seen = client.run(what_is_there, str(folder))
    except ImportError as error:
        raise UserError(
            f"--cluster {address}: a worker cannot run Qilin ({first_line(error)}); install it there"
        ) from None
    for worker, (version, there) in sorted(seen.items()):
        if version != __version__:
            raise UserError(
                f"--cluster {address}: {worker} has Qilin {version}, this is {__version__}; install the same"
            )
        if not there:
            raise UserError(
                f"--cluster {address}: {worker} does not see {folder}; a cluster needs one file system for all"
            )


def what_is_there(folder: str) -> tuple[str, bool]:
    """Asked of each worker."""
    return __version__, os.access(folder, os.W_OK)


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
