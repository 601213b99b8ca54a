"""A second training at the same time, in a process of its own, for models too small to keep two cores busy.

In: a function with its arguments, and who is told of its steps. Out: a block that ends when both are done. Its errors
are raised here; it ends with the block that waits for it.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from signal import SIG_IGN, SIGINT, signal
from threading import Thread
from typing import Any

from qilin.core.errors import RunError, UserError

Tell = Callable[[int, int, float], None]  # steps done, steps in all, loss


@contextmanager
def beside(work: Callable[..., None], given: tuple[Any, ...], tell: Tell) -> Iterator[None]:
    """While the block runs, `work(*given, tell)` does in another process; leaving the block waits for it.

    Raises UserError or RunError with what went wrong there, RunError where it was killed.
    """
    import torch

    context = multiprocessing.get_context("spawn")  # forking a process that has threads can hang
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=alone, args=(work, given, theirs, torch.get_num_threads()), daemon=True)
    process.start()
    theirs.close()  # so that reading ends when the other side does
    end: list[Any] = []
    listener = Thread(target=listen, args=(mine, tell, end), daemon=True)
    listener.start()
    try:
        yield
        listener.join()
        process.join()
    finally:
        process.terminate()
        process.join()
    if not end:
        raise RunError(f"{work.__name__} was killed (exit code {process.exitcode}): out of memory?")
    if end[0] is not None:
        raise end[0]


def alone(work: Callable[..., None], given: tuple[Any, ...], to: Connection, threads: int) -> None:
    """The other process: does the work and sends its steps, in the end None or what went wrong."""
    signal(SIGINT, SIG_IGN)  # Ctrl-C goes to the one that waits, and that one ends this
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    try:
        work(*given, lambda *step: to.send(step))
    except (UserError, RunError) as error:
        to.send(error)
    except Exception as error:
        to.send(RunError(f"{work.__name__}: {type(error).__name__}: {error}"))
    else:
        to.send(None)


def listen(mine: Connection, tell: Tell, end: list[Any]) -> None:
    """Pass steps on until the other side ends; its last word goes to `end`."""
    while True:
        try:
            said = mine.recv()
        except (EOFError, OSError):
            return
        if isinstance(said, tuple):
            tell(*said)
        else:
            end.append(said)
